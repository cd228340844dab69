"""PPO and A2C that hear the sources' own heads: exact ratios, noise in rollouts alone, SB3 bit for bit where all are dropped."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import TRPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from toys import CHOOSE, IMAGE, PARTS, SETTINGS, STEER, TINY, Toy, target, tiny, tiny_hub

from hubrl import BadConfig, Hub, HubActorCriticPolicy, HubCallback, SpaceMismatch, UnknownName
from hubrl.policies.on_policy.distributions import MixtureDistribution

ACTIONS = pytest.mark.parametrize("actions", [STEER, CHOOSE], ids=["box", "discrete"])
AGGREGATIONS = pytest.mark.parametrize("aggregation", ["mixture", "mean"])
ALGORITHMS = pytest.mark.parametrize("algorithm", [PPO, A2C], ids=["ppo", "a2c"])


def hears(algorithm, env, seed=0, hub=None, method="hub-pathway", settings=None, **options):
    """A target that hears a hub's outputs; the router's last layer is not zero, so that routing depends on what is seen."""
    hub = hub or tiny_hub(
        env if isinstance(env, Toy) else Toy(env.observation_space, env.action_space)
    )
    model = target(
        algorithm, env, hub.agent(algorithm, method, **options), seed, **(settings or {})
    )
    assert isinstance(model.policy, HubActorCriticPolicy)
    if method == "hub-pathway":
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.policy.method.router.mean.weight)
    return model


class FirstRatios(BaseCallback):
    """Log-ratios of a rollout before the first step of its update, as the update itself will see them."""

    def __init__(self):
        super().__init__()
        self.log_ratios, self.keys = [], []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer, policy = self.model.rollout_buffer, self.model.policy
        policy.set_training_mode(True)
        observations = torch.as_tensor(buffer.observations.reshape(-1, *buffer.obs_shape))
        actions = torch.as_tensor(buffer.actions.reshape(-1, buffer.action_dim))
        actions = (
            actions.long().flatten()
            if isinstance(policy.action_space, spaces.Discrete)
            else actions
        )
        _, log_prob, _ = policy.evaluate_actions(observations, actions)
        assert log_prob.requires_grad
        self.log_ratios.append(
            (log_prob.detach() - torch.as_tensor(buffer.log_probs.flatten())).abs().max().item()
        )
        self.keys.append(int(policy.noise_key))


@ACTIONS
@AGGREGATIONS
@pytest.mark.parametrize(
    ("algorithm", "top_k"), [(PPO, 1), (A2C, None)], ids=["ppo-top-1", "a2c-all"]
)
def test_the_ratio_is_one_at_the_start_of_every_update(actions, aggregation, algorithm, top_k):
    env = make_vec_env(lambda: Toy(actions=actions), n_envs=2, seed=0)
    model = hears(algorithm, env, aggregation=aggregation, top_k=top_k)
    watch = FirstRatios()
    model.learn(128, callback=watch)
    assert len(watch.log_ratios) >= 2
    assert max(watch.log_ratios) < 1e-5
    assert watch.keys == sorted(set(watch.keys)), "every rollout has noise of its own"


class Divergences(BaseCallback):
    """What SB3 itself logs as `train/approx_kl` of every update."""

    def __init__(self):
        super().__init__()
        self.found = []

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        self.found += [
            value for tag, value in self.logger.name_to_value.items() if tag == "train/approx_kl"
        ]


@ACTIONS
@pytest.mark.parametrize("stored", [False, True], ids=["hashed noise", "stored noise"])
def test_sb3s_own_divergence_is_zero_where_a_minibatch_is_the_whole_rollout(actions, stored):
    env = make_vec_env(lambda: Toy(actions=actions), n_envs=2, seed=0)
    made = tiny_hub(env).agent(PPO, source_lr=1.0, tuned=True)
    model = target(PPO, env, made, n_steps=32, batch_size=64, n_epochs=1, learning_rate=1e-2)
    watch = Divergences()
    model.learn(
        5 * 64,
        callback=[watch, *([HubCallback(probe_share=0.0, warmup_share=0.0)] if stored else [])],
    )
    assert len(watch.found) == 4
    np.testing.assert_allclose(watch.found, 0.0, atol=1e-6)


def test_without_the_rollouts_noise_the_ratio_would_not_be_one():
    model = hears(PPO, Toy(), top_k=1)
    watch = FirstRatios()
    model.learn(32, callback=watch)
    model.policy.noise_key += 1
    watch._on_rollout_end()
    assert watch.log_ratios[-1] > 0.1


@ACTIONS
@AGGREGATIONS
def test_deterministic_predictions_are_without_noise_and_repeat(actions, aggregation):
    model = hears(PPO, Toy(actions=actions), aggregation=aggregation, top_k=1)
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    expected, _ = model.predict(rows, deterministic=True)
    for key in range(3):
        model.policy.noise_key.fill_(key)
        assert np.array_equal(model.predict(rows, deterministic=True)[0], expected)
    routed = model.policy.route(torch.as_tensor(rows))
    if actions is STEER and aggregation == "mixture":
        best = routed.pathway_outputs[torch.arange(50), routed.weights.argmax(dim=1)].chunk(
            2, dim=1
        )[0]
        np.testing.assert_allclose(expected, best.detach().clamp(-1, 1), atol=1e-6)
    likeliest = model.policy.distribution_parameters(routed)
    if actions is CHOOSE:
        assert np.array_equal(expected, likeliest.argmax(dim=1))
    elif aggregation == "mean":
        np.testing.assert_allclose(
            expected, likeliest.detach().chunk(2, dim=1)[0].clamp(-1, 1), atol=1e-6
        )


def mixture():
    mean = torch.tensor([[[0.0, 1.0], [2.0, -1.0], [50.0, 50.0]]])
    std = torch.tensor([[[1.0, 0.5], [0.1, 0.2], [1.0, 1.0]]])
    weights = torch.tensor([[0.75, 0.25, 0.0]])
    return MixtureDistribution(spaces.Box(-1.0, 1.0, (2,))).proba_distribution(
        torch.cat([mean, std.log()], dim=2), weights.log()
    )


def test_the_likelihood_is_that_of_the_mixture():
    def density(x, mean, std):
        return math.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))

    for x, y in ((0.3, 0.7), (1.95, -0.9), (0.0, 0.0)):
        expected = 0.75 * density(x, 0, 1) * density(y, 1, 0.5) + 0.25 * density(
            x, 2, 0.1
        ) * density(y, -1, 0.2)
        log_prob = mixture().log_prob(torch.tensor([[x, y]], dtype=torch.float64))
        assert log_prob.item() == pytest.approx(math.log(expected), rel=1e-5)


def test_the_mode_is_the_mean_of_the_heaviest_pathway_and_never_an_average():
    assert mixture().mode().tolist() == [[0.0, 1.0]]


def test_samples_come_from_pathways_by_their_weights():
    torch.manual_seed(0)
    one = mixture()
    many = MixtureDistribution(spaces.Box(-1.0, 1.0, (2,)))
    many.action_params = one.action_params.expand(20_000, -1, -1)
    many.log_weights = one.log_weights.expand(20_000, -1)
    drawn = many.sample()
    torch.testing.assert_close(drawn.mean(dim=0), torch.tensor([0.5, 0.5]), atol=0.03, rtol=0)
    from_second = (drawn[:, 1] < -0.4) & (drawn[:, 0] > 1.4)
    assert from_second.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert drawn.abs().max() < 10, "a pathway of no weight is never drawn"


def test_gradients_of_a_mixture_are_finite_with_pathways_of_no_weight():
    speech = torch.randn(4, 3, 4, requires_grad=True)
    z = torch.randn(4, 3, requires_grad=True)
    logs = z.masked_fill(torch.tensor([False, True, False]), -torch.inf).log_softmax(dim=1)
    made = MixtureDistribution(spaces.Box(-1.0, 1.0, (2,))).proba_distribution(speech, logs)
    made.log_prob(torch.randn(4, 2)).sum().backward()
    assert torch.isfinite(speech.grad).all()
    assert torch.isfinite(z.grad).all()
    assert (speech.grad[:, 1] == 0).all()


def test_discrete_pathways_are_mixed_by_their_probabilities_or_averaged_by_their_logits():
    env = Toy(actions=CHOOSE)
    rows = torch.randn(5, 4)
    for aggregation in ("mixture", "mean"):
        policy = hears(PPO, env, aggregation=aggregation).policy
        routed = policy.route(rows)
        each = routed.pathway_outputs.log_softmax(dim=2)
        mixed = (routed.weights[:, :, None] * each.exp()).sum(dim=1)
        averaged = (routed.weights[:, :, None] * each).sum(dim=1).softmax(dim=1)
        probabilities = policy.get_distribution(rows).distribution.probs
        torch.testing.assert_close(probabilities, mixed if aggregation == "mixture" else averaged)


class Rewards(BaseCallback):
    """Rewards of every rollout."""

    def __init__(self, drop=False):
        super().__init__()
        self.drop, self.rewards = drop, []

    def _on_training_start(self):
        if self.drop:
            self.model.policy.method.apply_probe([False, False, True], [0.0, 0.0, 0.0])

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        self.rewards.append(self.model.rollout_buffer.rewards.copy())


@ACTIONS
@ALGORITHMS
@pytest.mark.parametrize("method", ["hub-pathway", "scratch"])
def test_with_every_source_dropped_training_is_sb3s_bit_for_bit(actions, algorithm, method):
    env = Toy(actions=actions)
    hub = tiny_hub(env)
    expected, seen = Rewards(), Rewards(drop=method == "hub-pathway")
    steps = 2 * SETTINGS[algorithm]["n_steps"]
    plain = algorithm(
        "MlpPolicy", env, seed=3, device="cpu", policy_kwargs=dict(TINY), **SETTINGS[algorithm]
    )
    plain.learn(steps, callback=expected)
    ours = target(algorithm, env, hub.agent(algorithm, method), seed=3)
    ours.learn(steps, callback=seen)
    assert ours.policy.fresh_alone
    assert len(expected.rewards) == 2
    assert all(
        np.array_equal(one, other)
        for one, other in zip(expected.rewards, seen.rewards, strict=True)
    )
    parameters = ours.policy.state_dict()
    for name, tensor in plain.policy.state_dict().items():
        assert torch.equal(tensor, parameters[name]), name
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    assert np.array_equal(
        plain.predict(rows, deterministic=True)[0], ours.predict(rows, deterministic=True)[0]
    )


@ALGORITHMS
def test_one_seed_gives_one_result_and_another_another(algorithm):
    env = Toy()
    hub = tiny_hub(env)
    runs = [hears(algorithm, Toy(), seed, hub).learn(32).policy.state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(tensor, runs[1][name]) for name, tensor in runs[0].items())
    assert any(not torch.equal(tensor, runs[2][name]) for name, tensor in runs[0].items())


@ALGORITHMS
@ACTIONS
def test_learning_leaves_the_sources_as_they_were_and_the_model_survives_saving(
    algorithm, actions, tmp_path
):
    env = Toy(actions=actions)
    hub = tiny_hub(env)
    before = [source.tensors() for source in hub]
    model = hears(algorithm, env, hub=hub)
    fresh = model.policy.action_net.weight.detach().clone()
    model.learn(32)
    assert not torch.equal(fresh, model.policy.action_net.weight)
    for place, source in enumerate(hub):
        heard = model.policy.method.pathways.sources[place].source.state_dict()
        assert all(torch.equal(heard[name], tensor) for name, tensor in before[place].items())
        assert all(
            heard[name].data_ptr() == tensor.data_ptr()
            for name, tensor in source.state_dict().items()
        )
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=env, device="cpu")
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    assert np.array_equal(
        loaded.predict(rows, deterministic=True)[0], model.predict(rows, deterministic=True)[0]
    )
    assert int(loaded.policy.noise_key) == int(model.policy.noise_key)
    loaded.learn(32)


def test_a_policy_alone_survives_saving(tmp_path):
    model = hears(PPO, Toy(), aggregation="mean")
    model.policy.save(tmp_path / "policy.pth")
    loaded = HubActorCriticPolicy.load(tmp_path / "policy.pth", device="cpu")
    rows = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    assert np.array_equal(
        loaded.predict(rows, deterministic=True)[0], model.predict(rows, deterministic=True)[0]
    )


def test_the_router_learns_from_the_task_and_from_the_exploration_loss():
    for explore_coef in (0.0, 1.0):
        model = hears(PPO, Toy(), explore_coef=explore_coef)
        rows = torch.randn(16, 4)
        model.policy.set_training_mode(True)
        router = model.policy.method.router.mean.weight
        _, log_prob, _ = model.policy.evaluate_actions(rows, torch.zeros(16, 2))
        (0 * log_prob.sum()).backward(retain_graph=True)
        assert (router.grad.abs().sum() > 0) == (explore_coef > 0)
        log_prob.sum().backward()
        assert router.grad.abs().sum() > 0


def test_a_sources_pathway_starts_with_its_means_and_the_given_deviation():
    env = Toy()
    hub = tiny_hub(env)
    rows = torch.randn(6, 4)
    for source_std in (0.05, None):
        routed = target(PPO, env, hub.agent(PPO, source_std=source_std)).policy.route(rows)
        for place, source in enumerate(hub):
            mean, log_std = source.outputs(rows).chunk(2, dim=1)
            heard_mean, heard_log_std = routed.pathway_outputs[:, place].chunk(2, dim=1)
            torch.testing.assert_close(heard_mean, mean)
            torch.testing.assert_close(
                heard_log_std,
                log_std if source_std is None else torch.full_like(log_std, math.log(0.05)),
            )


def test_each_pathway_can_be_asked_to_act():
    torch.manual_seed(0)
    env = Toy()
    hub = tiny_hub(env)
    policy = target(PPO, env, hub.agent(PPO, source_std=1e-6)).policy
    rows = torch.randn(6, 4)
    acted = policy.act_as(rows, torch.tensor([0, 1, 0, 1, 2, 2]))
    np.testing.assert_allclose(acted[[0, 2]], hub[0].outputs(rows[[0, 2]])[:, :2], atol=1e-4)
    np.testing.assert_allclose(acted[[1, 3]], hub[1].outputs(rows[[1, 3]])[:, :2], atol=1e-4)


def test_what_is_made_for_one_algorithm_is_refused_by_another():
    hub = tiny_hub(Toy(actions=CHOOSE))
    for algorithm, other in ((DQN, PPO), (PPO, DQN)):
        with pytest.raises(BadConfig, match=r"What hub.agent makes for .* was given to"):
            algorithm(env=Toy(actions=CHOOSE), device="cpu", **hub.agent(other))
    hub = tiny_hub(Toy())
    for algorithm in (SAC, TD3, RecurrentPPO):
        with pytest.raises(
            BadConfig, match=r"What hub.agent makes for .* was given to another algorithm"
        ):
            algorithm(env=Toy(), device="cpu", **hub.agent(PPO))
    with pytest.raises(BadConfig, match=r"was given to TRPO; use hub.agent\(TRPO\)"):
        TRPO(env=Toy(), device="cpu", n_steps=64, batch_size=32, **hub.agent(PPO)).learn(64)
    for given in ("PPO", PPO("MlpPolicy", Toy(), device="cpu")):
        with pytest.raises(
            BadConfig, match=r"expected an algorithm's class, as in hub.agent\(PPO\)"
        ):
            hub.agent(given)
    with pytest.raises(
        BadConfig, match=r"'ppo.zip' was given; expected a list of agents: \['ppo.zip'\]"
    ):
        Hub.from_agents("ppo.zip")


def test_state_dependent_exploration_is_refused():
    env = Toy()
    with pytest.raises(BadConfig, match="use_sde=True was given.*leave it out"):
        PPO(env=env, use_sde=True, device="cpu", **tiny_hub(env).agent(PPO))


def test_actions_that_are_neither_box_nor_discrete_are_refused():
    env = Toy(actions=spaces.MultiDiscrete([2, 3]))
    hub = Hub.from_agents([tiny(PPO, env)])
    with pytest.raises(
        SpaceMismatch, match=r"The target acts in MultiDiscrete\(2, 3\).*use level='features'"
    ):
        PPO(env=env, device="cpu", **hub.agent(PPO, level="outputs"))


def test_sources_that_act_otherwise_or_not_at_all_are_refused():
    env = Toy()
    with pytest.raises(
        SpaceMismatch,
        match=r"The target acts in Discrete\(3\), source 'ppo-0' in Box\(2,\); use level='features'",
    ):
        PPO(env=Toy(actions=CHOOSE), device="cpu", **tiny_hub(env).agent(PPO))


@pytest.mark.parametrize("level", ["features", "outputs"])
@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        (
            "hub-pathway",
            {"top_k": 3},
            BadConfig,
            "top_k=3 was given for a hub of 2 sources; expected 1 to 2",
        ),
        ("hub-pathway", {"top_k": 0}, BadConfig, "top_k=0 was given"),
        (
            "hub-pathwey",
            {},
            UnknownName,
            "Unknown method 'hub-pathwey'. Did you mean 'hub-pathway'",
        ),
        (
            "hub-pathway",
            {"explore_coeff": 1},
            UnknownName,
            "Unknown option of method 'hub-pathway' 'explore_coeff'. Did you mean 'explore_coef'",
        ),
    ],
)
def test_a_hub_that_cannot_be_is_refused_in_a_sentence(level, method, options, error, message):
    with pytest.raises(error, match=message):
        tiny_hub(Toy()).agent(PPO, method, level=level, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "max"}, "aggregation: .*'mixture' or 'mean'"),
        ({"source_std": "wide"}, "source_std: "),
        ({"residual": []}, "residual: "),
    ],
)
def test_an_option_of_the_outputs_that_cannot_be_is_refused(options, message):
    with pytest.raises(BadConfig, match=message):
        tiny_hub(Toy()).agent(PPO, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"width": 32},
            "width=32 was given at the level of outputs, which are as wide as the actions; use level='features', or leave it out",
        ),
        (
            {"fresh": False, "trial_share": 0.1},
            "trial_share or fresh_joins was given with fresh=False, which leaves no fresh pathway",
        ),
        (
            {"trial_share": 0.1, "judging_share": 0.0},
            "trial_share=0.1 was given where no arms are judged; give judging_share",
        ),
        ({"trial_share": 0.1, "top_k": 1}, "trial_share=0.1 was given where no arms are judged"),
        (
            {"method": "uniform", "trial_share": 0.1},
            "trial_share=0.1 was given where no arms are judged",
        ),
        (
            {"hold": 1, "release": "fixed"},
            "release='fixed' was given with hold=1, which is no commitment; give a greater hold, or leave it out",
        ),
    ],
    ids=str,
)
def test_an_option_that_would_change_nothing_is_refused(options, message):
    with pytest.raises(BadConfig, match=message):
        tiny_hub(Toy()).agent(PPO, **options)


def test_noise_that_cannot_be_replayed_is_refused():
    with pytest.raises(
        BadConfig,
        match="noise=True was given at the level of features, where it cannot be replayed; use level='outputs'",
    ):
        target(PPO, Toy(), tiny_hub(Toy()).agent(PPO, level="features", noise=True))


@pytest.mark.parametrize("observations", [IMAGE, PARTS], ids=["image", "dict"])
@ACTIONS
def test_images_and_dicts_are_heard_through(observations, actions, tmp_path):
    env = Toy(observations, actions)
    hub = Hub.from_agents(
        [tiny(PPO, env), tiny(DQN, env)] if actions is CHOOSE else [tiny(PPO, env)]
    )
    small = "cnn_output_dim" if observations is PARTS else "features_dim"
    made = hub.agent(PPO)
    made["policy_kwargs"]["features_extractor_kwargs"] = {small: 8}
    watch = FirstRatios() if observations is IMAGE else None
    model = target(PPO, env, made, n_steps=16, n_epochs=1).learn(32, callback=watch)
    model.save(tmp_path / "model.zip")
    env.observation_space.seed(0)
    row = env.observation_space.sample()
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    assert np.array_equal(
        loaded.predict(row, deterministic=True)[0], model.predict(row, deterministic=True)[0]
    )
    assert watch is None or max(watch.log_ratios) < 1e-5


def test_a_dqn_source_speaks_epsilon_greedily():
    env = Toy(actions=CHOOSE)
    dqn = tiny(DQN, env)
    policy = target(PPO, env, Hub.from_agents([dqn]).agent(PPO, residual=False)).policy
    rows = torch.randn(20, 4)
    said = policy.route(rows).pathway_outputs[:, 0].exp()
    expected = torch.full((20, 3), 0.05 / 3)
    greedy = torch.as_tensor(dqn.predict(rows.numpy(), deterministic=True)[0])
    torch.testing.assert_close(said, expected.scatter(1, greedy[:, None], 1 - 0.05 + 0.05 / 3))
