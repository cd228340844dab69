"""Under CachedVecEnv frozen sources are computed once a step, and everything else is as without it."""

import pickle

import numpy as np
import pytest
import torch
from cached_cases import (
    BOTH,
    EVERY_CASE,
    FEATURES_ALONE,
    Rows,
    envs_for,
    hub_for,
    observe,
    outputs_of,
    scattered,
    under_cache,
)
from gymnasium import spaces
from sb3_contrib import QRDQN, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import obs_as_tensor
from torch import nn
from toys import CHOOSE, IMAGE, PARTS, VECTOR, Toy, target, toy_for

from hubrl import (
    CachedVecEnv,
    Hub,
    HubCallback,
)
from hubrl.formats.cached_space import (
    CACHED_FEATURES,
    FLOAT16_MAX,
    OBSERVATION,
    CachedFeaturesSpace,
    find_cached_space,
    store_features,
)
from hubrl.policies.extractor import HubExtractor, parts_in

SPACES = {"vector": VECTOR, "image": IMAGE, "parts": PARTS}
EVERY_SPACE = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


@EVERY_CASE
def test_features_values_and_actions_are_those_without_it(method, options, space):
    space = SPACES[space]
    cached, hub = under_cache(PPO, space, method, **options)
    plain = target(PPO, envs_for(PPO, space), hub.agent(PPO, method, level="features", **options))
    plain.policy.load_state_dict(scattered(cached).policy.state_dict())
    rows = observe(space)
    inside, outside = (model.policy.obs_to_tensor(rows)[0] for model in (cached, plain))
    with torch.no_grad():
        features, expected = (
            model.policy.extract_features(seen)
            for model, seen in ((cached, inside), (plain, outside))
        )
        values, worth = (
            model.policy.predict_values(seen)
            for model, seen in ((cached, inside), (plain, outside))
        )
    assert expected.std(dim=0).max() > 0.05, "a test of nothing: all observations are alike"
    torch.testing.assert_close(features, expected, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(values, worth, atol=2e-2, rtol=2e-2)
    acted, expected = (model.predict(rows, deterministic=True)[0] for model in (cached, plain))
    np.testing.assert_allclose(acted, expected, atol=2e-2)


@EVERY_SPACE
@BOTH
def test_observations_are_the_sources_features_at_ends_of_episodes_too(options, space):
    model, hub = under_cache(PPO, space, **options)
    cached, plain = model.get_env(), envs_for(PPO, space)
    cached.seed(3), plain.seed(3)
    keeps = find_cached_space(cached.observation_space) is not cached.observation_space
    ends = 0
    for step in range(25):
        if step == 0:
            seen, raw = cached.reset(), plain.reset()
        else:
            actions = np.stack([cached.action_space.sample() for _ in range(2)])
            (seen, *_, infos), (raw, *_, expected) = cached.step(actions), plain.step(actions)
            for info, other in zip(infos, expected, strict=True):
                assert ("terminal_observation" in info) == ("terminal_observation" in other)
                if "terminal_observation" in other:
                    ends += 1
                    assert_cached(
                        info["terminal_observation"],
                        other["terminal_observation"],
                        hub,
                        space,
                        keeps,
                        one=True,
                    )
        assert_cached(seen, raw, hub, space, keeps)
    assert ends == 4


def assert_cached(seen, raw, hub, space, keeps, *, one=False):
    received = seen[CACHED_FEATURES] if keeps else seen
    assert received.dtype == np.float16
    assert keeps == isinstance(seen, dict)
    batch = (
        ({key: part[None] for key, part in raw.items()} if isinstance(raw, dict) else raw[None])
        if one
        else raw
    )
    np.testing.assert_allclose(
        received[None] if one else received, outputs_of(hub, batch, space), atol=2e-3
    )
    if keeps and isinstance(space, spaces.Dict):
        np.testing.assert_array_equal(seen["joints"], raw["joints"])
        np.testing.assert_array_equal(np.moveaxis(seen["camera"], -3, -1), raw["camera"])
    elif keeps:
        kept = seen[OBSERVATION]
        np.testing.assert_array_equal(np.moveaxis(kept, -3, -1) if space is IMAGE else kept, raw)


class Updates(BaseCallback):
    """Counts rows of encoders in rollouts, and ends of episodes."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.ends, self.before, self.in_updates = rows, 0, None, 0

    def _on_rollout_start(self):
        if self.before is not None:
            self.in_updates += sum(self.rows.count) - self.before

    def _on_rollout_end(self):
        self.before = sum(self.rows.count)

    def _on_step(self):
        self.ends += int(self.locals["dones"].sum())
        return True


@pytest.mark.parametrize(
    "algorithm", [PPO, A2C, DQN, SAC, TD3], ids=lambda algorithm: algorithm.__name__
)
@BOTH
def test_every_source_is_computed_once_a_step_and_never_in_an_update(algorithm, options):
    model, _ = under_cache(
        algorithm, **options, settings={} if algorithm in (PPO, A2C) else {"gradient_steps": 2}
    )
    rows = Rows(model.get_env().sources)
    updates = Updates(rows)
    model.learn(96, callback=[HubCallback(), updates])
    assert model._n_updates >= 3
    assert updates.ends > 4
    assert updates.in_updates == 0
    assert rows.count == [2 + model.num_timesteps + updates.ends] * 2


def test_without_it_sources_are_computed_over_and_over():
    hub = hub_for(Toy())
    model = target(PPO, envs_for(PPO), hub.agent(PPO, level="features"))
    rows = Rows(parts_in(model.policy, HubExtractor)[0].sources)
    model.learn(96)
    assert min(rows.count) > 2 * 96


class FirstMinibatch(BaseCallback):
    """How likely the update finds each rollout, before it changes anything, against what the rollout said."""

    def __init__(self):
        super().__init__()
        self.of_steps, self.of_minibatches = [], []

    def _on_rollout_end(self):
        buffer, policy = self.model.rollout_buffer, self.model.policy
        state = np.random.get_state()
        policy.set_training_mode(True)
        for step in range(buffer.buffer_size):
            stored = buffer.observations
            seen = obs_as_tensor(
                {key: part[step] for key, part in stored.items()}
                if isinstance(stored, dict)
                else stored[step],
                "cpu",
            )
            log_prob = policy.evaluate_actions(seen, torch.as_tensor(buffer.actions[step]))[1]
            self.of_steps.append(
                (log_prob.detach() - torch.as_tensor(buffer.log_probs[step])).exp()
            )
        for batch in buffer.get(16):
            log_prob = policy.evaluate_actions(batch.observations, batch.actions)[1].detach()
            self.of_minibatches.append((log_prob - batch.old_log_prob).exp())
        buffer.generator_ready = True
        np.random.set_state(state)

    def _on_step(self):
        return True


@BOTH
def test_the_ratio_of_an_update_is_one_before_it_begins(options):
    model, _ = under_cache(PPO, **options, settings={"learning_rate": 1e-2})
    first = FirstMinibatch()
    model.learn(192, callback=first)
    assert len(first.of_steps) == 96
    assert torch.equal(torch.cat(first.of_steps), torch.ones(192)), (
        "what was stored is to the bit what was acted on"
    )
    torch.testing.assert_close(torch.cat(first.of_minibatches), torch.ones(192), atol=1e-5, rtol=0)


@BOTH
def test_one_seed_gives_one_result(options):
    first, second, other = (
        under_cache(PPO, seed=seed, **options)[0].learn(96).policy.state_dict()
        for seed in (5, 5, 6)
    )
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    assert not all(torch.equal(first[name], tensor) for name, tensor in other.items())


def nature_hub(env):
    return Hub.from_agents(
        [
            PPO("CnnPolicy", env, n_steps=8, batch_size=8, seed=seed, device="cpu")
            for seed in range(3)
        ],
        ["a", "b", "c"],
    )


def test_a_replay_buffer_of_features_of_three_nature_cnns_is_nine_times_smaller():
    frames = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    hub = nature_hub(Toy(frames, CHOOSE))
    made = hub.agent(DQN, cached=True, **FEATURES_ALONE)
    received = DQN(
        env=CachedVecEnv(envs_for(DQN, frames), made, device="cpu"),
        **made,
        buffer_size=20,
        device="cpu",
    ).replay_buffer
    plain = DQN("CnnPolicy", envs_for(DQN, frames), buffer_size=20, device="cpu").replay_buffer
    own, theirs = (
        buffer.observations.nbytes + buffer.next_observations.nbytes for buffer in (received, plain)
    )
    assert received.observations.dtype == np.float16
    assert (own, theirs) == (20 * 2 * 3 * 512 * 2, 20 * 2 * 4 * 84 * 84)
    assert theirs / own > 9


def test_float16_keeps_features_of_nature_cnns_to_half_a_thousandth():
    frames = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    hub = nature_hub(Toy(frames, CHOOSE))
    seen = torch.as_tensor(observe(frames, 16)).float() / 255
    features = [source.features(seen) for source in hub]
    exact, kept = torch.cat(features, dim=1), torch.as_tensor(store_features(features)).float()
    assert exact.abs().max() > 0.1
    assert ((kept - exact).abs() <= exact.abs() * 2**-11 + 2**-25).all()


def test_features_beyond_float16_are_stored_as_its_greatest_number():
    loud = torch.tensor([[1e6, -1e30, torch.inf, 1.0]])
    np.testing.assert_array_equal(
        store_features([loud, loud[:, 3:]]),
        np.array([[FLOAT16_MAX, -FLOAT16_MAX, FLOAT16_MAX, 1.0, 1.0]], np.float16),
    )


def test_a_space_of_cached_features_survives_copies_and_names_its_sources():
    hub = hub_for(Toy())
    space = CachedFeaturesSpace(VECTOR, list(hub))
    assert pickle.loads(pickle.dumps(space)) == space
    assert CachedFeaturesSpace(VECTOR, [hub[1], hub[0]]) != space
    assert CachedFeaturesSpace(spaces.Box(-1.0, 1.0, (4,)), list(hub)) != space
    assert space != spaces.Box(-FLOAT16_MAX, FLOAT16_MAX, (13,), np.float16)
    assert space.observed == VECTOR


def test_attributes_methods_and_seeds_of_the_environments_are_within_reach():
    model, _ = under_cache(PPO)
    env = model.get_env()
    assert env.get_attr("length") == [10, 10]
    env.set_attr("length", 4)
    assert [mask.tolist() for mask in env.env_method("action_masks")] == [[True, True, False]] * 2
    firsts = []
    for seed in (3, 3, 4):
        env.seed(seed)
        firsts.append(env.reset()[OBSERVATION])
    np.testing.assert_array_equal(firsts[0], firsts[1])
    assert not np.array_equal(firsts[0], firsts[2])


def test_one_environment_alone_is_wrapped_as_sb3_does():
    made = hub_for(Toy(IMAGE)).agent(PPO, cached=True)
    env = CachedVecEnv(Toy(IMAGE), made, device="cpu")
    assert env.num_envs == 1
    assert env.observation_space[OBSERVATION].shape == (3, 36, 36)
    model = target(PPO, env, made).learn(32)
    assert len(model.ep_info_buffer) == 3, "Monitor counts its episodes"


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (QRDQN, "MultiInputPolicy"),
        (SAC, "MultiInputPolicy"),
        (RecurrentPPO, "MultiInputLstmPolicy"),
    ],
)
@BOTH
def test_other_algorithms_learn_from_cached_features_under_sb3s_own_policies(
    algorithm, name, options
):
    hub = hub_for(toy_for(algorithm))
    made = hub.agent(algorithm, cached=True, **options)
    assert made["policy"] == name
    env = CachedVecEnv(envs_for(algorithm), made, device="cpu")
    rows = Rows(env.sources)
    kwargs = {"lstm_hidden_size": 8} if algorithm is RecurrentPPO else {}
    settings = (
        {"learning_starts": 16, "buffer_size": 100}
        if algorithm in (QRDQN, SAC)
        else {"n_steps": 16, "batch_size": 16}
    )
    model = algorithm(
        name, env, policy_kwargs=kwargs | made["policy_kwargs"], device="cpu", seed=0, **settings
    ).learn(64)
    assert rows.count == [2 + model.num_timesteps + 6] * 2


def test_the_router_may_read_features_where_nothing_is_stored_too():
    env = Toy()
    hub = hub_for(env)
    extractor = HubExtractor(
        VECTOR, **hub.policy_kwargs(router_reads="features")["features_extractor_kwargs"]
    )
    rows = Rows(extractor.sources)
    router = extractor.method.router
    nn.init.normal_(router.mean.weight)
    seen = torch.as_tensor(observe(VECTOR))
    weights = extractor.route(seen).weights
    computed = torch.cat([source.encoder(seen) for source in extractor.sources], dim=1)
    expected = router(computed, None).softmax(dim=1)
    torch.testing.assert_close(weights, expected)
    assert rows.count == [12, 12], (
        "each once for the router and for its pathway together, and once here"
    )
