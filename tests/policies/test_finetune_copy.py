"""Fine-tuning by PPO and A2C: a source of SB3's shapes becomes SB3's own network, others stay as they are."""

import numpy as np
import pytest
import torch
from checks import never_offered
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import CHOOSE, IMAGE, PARTS, SETTINGS, STEER, VECTOR, Toy, target, tiny

from hubrl import Hub, HubCallback, load_agent
from hubrl.hub import pathway_weights
from hubrl.policies.on_policy.copied_source import UNKNOWN_LOGIT
from hubrl.policies.on_policy.policy import HubActorCriticPolicy

QUIET = {"probe_share": 0.0, "warmup_share": 0.0}
BOTH = pytest.mark.parametrize("algorithm", [PPO, A2C], ids=["ppo", "a2c"])
SPACES = pytest.mark.parametrize(
    ("observations", "actions"),
    [(VECTOR, STEER), (VECTOR, CHOOSE), (IMAGE, CHOOSE), (PARTS, STEER)],
    ids=["box", "discrete", "image", "dict"],
)


def rows_of(space, count=20):
    space.seed(0)
    sampled = [space.sample() for _ in range(count)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([one[key] for one in sampled]) for key in space.spaces}
    return np.stack(sampled)


def fine_tuned(agent, env, algorithm=PPO, settings=None, **options):
    made = Hub.from_agents([agent]).agent(algorithm, "finetune", level="outputs", **options)
    return target(algorithm, env, made, seed=3, **(settings or {}))


def weights(policy):
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def changed(before, policy):
    after = policy.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


@BOTH
@SPACES
def test_before_any_training_the_agent_acts_and_values_as_its_source(
    observations, actions, algorithm
):
    env = Toy(observations, actions)
    agent = tiny(algorithm, env, seed=5)
    model = fine_tuned(agent, env, algorithm)
    assert model.policy.is_copy_from_start
    rows = rows_of(agent.observation_space)
    expected, _ = agent.predict(rows, deterministic=True)
    assert np.array_equal(model.predict(rows, deterministic=True)[0], expected)
    seen, _ = agent.policy.obs_to_tensor(rows)
    torch.testing.assert_close(model.policy.predict_values(seen), agent.policy.predict_values(seen))


@pytest.mark.parametrize(("given", "expected"), [("auto", 0.1), (0.3, 0.3), (None, 0.7)])
def test_its_standard_deviation_starts_as_that_of_a_sources_pathway(given, expected):
    agent = tiny(PPO, Toy(), seed=5)
    agent.policy.log_std.data.fill_(np.log(0.7))
    model = fine_tuned(agent, Toy(), source_std=given)
    torch.testing.assert_close(model.policy.log_std.exp(), torch.full((2,), expected))
    assert model.policy.log_std.requires_grad


@BOTH
@pytest.mark.parametrize("actions", [STEER, CHOOSE], ids=["box", "discrete"])
def test_it_trains_as_sb3_trains_the_source_on_bit_for_bit(algorithm, actions):
    env, steps = Toy(actions=actions), 2 * SETTINGS[algorithm]["n_steps"]
    agent = tiny(algorithm, env, seed=5)
    plain = tiny(algorithm, env, seed=3)
    plain.policy.load_state_dict(agent.policy.state_dict())
    plain.learn(steps)
    model = fine_tuned(agent, env, algorithm, source_std=None, scale_values=False)
    model.learn(steps, callback=HubCallback(**QUIET))
    for name, tensor in plain.policy.state_dict().items():
        assert torch.equal(tensor, model.policy.state_dict()[name]), name


def test_it_is_one_network():
    agent = tiny(PPO, Toy(IMAGE, CHOOSE), seed=5)
    model = fine_tuned(agent, Toy(IMAGE, CHOOSE))
    sizes = [sum(one.numel() for one in each.policy.parameters()) for each in (agent, model)]
    assert sizes[0] == sizes[1]
    assert type(model.policy.optimizer.param_groups[0]["params"][0]) is torch.nn.Parameter


def test_a_critic_of_other_widths_is_taken_over_with_its_shape():
    arch = {"pi": [8], "vf": [6, 5]}
    agent = PPO("MlpPolicy", Toy(), policy_kwargs={"net_arch": arch}, seed=5, device="cpu")
    made = Hub.from_agents([agent]).agent(PPO, "finetune")
    model = PPO(env=Toy(), **made, device="cpu")
    assert model.policy.critic_was_copied
    seen = torch.as_tensor(rows_of(VECTOR))
    torch.testing.assert_close(model.policy.predict_values(seen), agent.policy.predict_values(seen))


def test_a_critic_that_does_not_fit_starts_anew():
    agent = tiny(PPO, Toy(), seed=5)
    made = Hub.from_agents([agent]).agent(
        PPO, "finetune", policy_kwargs={"net_arch": {"pi": [8], "vf": [7]}}
    )
    policy = PPO(env=Toy(), **made, device="cpu").policy
    assert (policy.is_copy_from_start, policy.critic_was_copied) == (True, False)


@pytest.mark.parametrize("share", [True, False])
def test_only_the_critic_learns_while_it_warms_up(share):
    env = Toy(IMAGE, CHOOSE)
    made = Hub.from_agents([tiny(PPO, env, 5)]).agent(
        PPO, "finetune", policy_kwargs={"share_features_extractor": share}
    )
    model = target(PPO, env, made)
    before = weights(model.policy)
    model.learn(64, callback=HubCallback(probe_share=0.0, warmup_share=0.9))
    found = changed(before, model.policy)
    assert "value_net.weight" in found
    own = ("features_extractor", "pi_features", "action_net", "mlp_extractor.policy_net")
    assert not {name for name in found if name.startswith(own)}
    model.learn(64, callback=HubCallback(**QUIET))
    found = changed(before, model.policy)
    assert {"pi_features_extractor.cnn.0.weight", "action_net.weight"} <= found


def test_the_first_units_of_the_returns_leave_a_copied_critics_values():
    agent = tiny(PPO, Toy(), seed=5)
    model = fine_tuned(agent, Toy(), settings={"learning_rate": 0.0, "gamma": 0.5})
    model.learn(64, callback=HubCallback(**QUIET))
    assert model.policy.value_net.rescaled
    seen = torch.as_tensor(rows_of(VECTOR))
    torch.testing.assert_close(
        model.policy.predict_values(seen), agent.policy.predict_values(seen), atol=1e-5, rtol=1e-5
    )


def test_a_rate_of_its_own_is_that_of_the_actor():
    policy = fine_tuned(tiny(PPO, Toy(), 5), Toy(), source_lr=0.25).policy
    scales = {
        parameter: group["lr_scale"]
        for group in policy.optimizer.param_groups
        for parameter in group["params"]
    }
    slow = {name for name, one in policy.named_parameters() if scales[one] == 0.25}
    assert slow == {
        f"{part}.{kind}"
        for part in ("mlp_extractor.policy_net.0", "action_net")
        for kind in ("weight", "bias")
    }
    assert {*scales.values()} == {0.25, 1.0}


def test_discrete_actions_are_matched_by_their_meanings():
    agent = tiny(PPO, Toy(actions=CHOOSE), seed=5)
    source = Hub.from_agents([agent])[0].adapted(meanings=("NOOP", "FIRE", "UP"))
    wanted = ("UP", "LEFT", "NOOP")
    made = Hub([source]).agent(PPO, "finetune", action_meanings=wanted)
    layer, own = target(PPO, Toy(actions=CHOOSE), made).policy.action_net, agent.policy.action_net
    assert torch.equal(layer.weight[[0, 2]], own.weight[[2, 0]])
    assert torch.equal(layer.bias[[0, 2]], own.bias[[2, 0]])
    assert layer.bias[1] == UNKNOWN_LOGIT


def test_a_source_reads_raw_observations_under_vecnormalize(tmp_path):
    agent = tiny(PPO, Toy(), seed=5)
    env = VecNormalize(DummyVecEnv([Toy]))
    env.reset()
    for _ in range(40):
        env.step(np.zeros((1, 2)))
    made = Hub.from_agents([agent]).agent(PPO, "finetune")
    model = target(PPO, env, made, learning_rate=0.0)
    model.learn(32, callback=HubCallback(**QUIET))
    rows = rows_of(VECTOR) / 5
    expected = agent.predict(rows, deterministic=True)[0]
    model.save(tmp_path / "model.zip")
    for one in (model, PPO.load(tmp_path / "model.zip", device="cpu")):
        computed = one.predict(env.normalize_obs(rows), deterministic=True)[0]
        np.testing.assert_allclose(computed, expected, atol=1e-5)
    assert not np.allclose(model.predict(rows, deterministic=True)[0], expected, atol=1e-3)


def test_what_was_learned_survives_loading_and_set_parameters(tmp_path):
    env, rows = Toy(), rows_of(VECTOR)
    model = fine_tuned(tiny(PPO, env, 5), env)
    model.learn(64, callback=HubCallback(**QUIET))
    learned, _ = model.predict(rows, deterministic=True)
    model.save(tmp_path / "model.zip")
    model.policy.save(tmp_path / "policy.pth")
    loaded = PPO.load(tmp_path / "model.zip", env=env, device="cpu")
    fresh = fine_tuned(tiny(PPO, env, 5), env)
    assert not np.array_equal(fresh.predict(rows, deterministic=True)[0], learned)
    fresh.set_parameters(model.get_parameters())
    for one in (loaded, fresh, HubActorCriticPolicy.load(tmp_path / "policy.pth", "cpu")):
        assert np.array_equal(one.predict(rows, deterministic=True)[0], learned)
    loaded.learn(64, callback=HubCallback(**QUIET), reset_num_timesteps=False)
    assert loaded.policy.is_copy
    assert np.abs(load_agent(tmp_path / "model.zip").predict(rows)[0]).max() <= 1.0


def test_a_copy_whose_source_is_not_at_hand_needs_its_weights():
    env = Toy()
    made = Hub.from_agents([tiny(PPO, env, 5)]).agent(PPO, "finetune")
    known, without = target(PPO, env, made), target(PPO, env, never_offered(made))
    assert without.policy.is_copy_from_start
    without.set_parameters(known.get_parameters())
    rows = rows_of(VECTOR)
    assert np.array_equal(
        *(one.predict(rows, deterministic=True)[0] for one in (known, without)),
    )


def test_steps_are_logged_under_the_name_of_the_source():
    env = Toy()
    made = Hub.from_agents([tiny(PPO, env, 5)], ["walker"]).agent(PPO, "finetune")
    model = target(PPO, env, made)
    callback = HubCallback(**QUIET, log_every=10_000)
    model.learn(64, callback=callback)
    assert model.policy.method.pathways.names == ["walker"]
    assert callback._acted.history == []
    assert callback._acted.counts.tolist() == [64]
    assert pathway_weights(model, rows_of(VECTOR)[0]) == {"walker": 1.0}


NOT_COPIED = {
    "squashed": lambda: Hub.from_agents([tiny(SAC, Toy(), 1)]),
    "normalised": lambda: Hub.from_agents([tiny(PPO, VecNormalize(DummyVecEnv([Toy])), 1)]),
    "reordered": lambda: Hub([Hub.from_agents([tiny(PPO, Toy(), 1)])[0].adapted(order=[1, 0])]),
    "by Q-values": lambda: Hub.from_agents([tiny(DQN, Toy(actions=CHOOSE), 1)]),
}


@pytest.mark.parametrize("kind", NOT_COPIED)
def test_a_source_that_cannot_be_copied_is_trained_beside_a_critic_of_sb3s_shape(kind):
    env = Toy(actions=CHOOSE if kind == "by Q-values" else STEER)
    hub = NOT_COPIED[kind]()
    policy = PPO(env=env, **hub.agent(PPO, "finetune"), device="cpu").policy
    assert not policy.is_copy
    assert [pathway.source.name for pathway in policy.method.pathways.sources] == hub.names
    assert policy.mlp_extractor.value_net[0].out_features == 64


@pytest.mark.parametrize(
    "given", [{"net_arch": [5]}, {"activation_fn": torch.nn.ReLU}, {"net_arch": {"vf": [8]}}]
)
def test_a_network_of_another_shape_that_was_asked_for_stays(given):
    made = Hub.from_agents([tiny(PPO, Toy(), 1)]).agent(PPO, "finetune", policy_kwargs=given)
    policy = PPO(env=Toy(), **made, device="cpu").policy
    assert not policy.is_copy
    asked = {"activation_fn": torch.nn.Tanh, "net_arch": None, **given}
    assert policy.activation_fn is asked["activation_fn"]
