"""Agents that SB3 and sb3-contrib saved, read back from plain data and weights: they act and value as they did."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from read_agents import assert_alike, outputs_of
from sb3_contrib import QRDQN, TQC, TRPO, MaskablePPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.torch_layers import NatureCNN
from torch import nn
from untrained import ARM, FLAT, IMAGE, KEYS, draw, normalised, untrained

from hubrl.errors import BadConfig
from hubrl.reading import read_agent, read_live

ON_POLICY = [PPO, A2C, TRPO, MaskablePPO]
CONTINUOUS = [SAC, TQC, TD3, DDPG]
GREEDY = [DQN, QRDQN]
ALL = [*ON_POLICY, *CONTINUOUS, *GREEDY]

ROW = spaces.Dict(
    {
        "speed": spaces.Box(-5.0, 5.0, (3,)),
        "gear": spaces.Discrete(4),
        "camera": IMAGE,
        "lamps": spaces.MultiBinary(2),
    }
)
CNN = {"features_extractor_kwargs": {"features_dim": 16}}
COMBINED = {"features_extractor_kwargs": {"cnn_output_dim": 16}}


def actions_of(algorithm):
    return KEYS if algorithm in (*GREEDY, MaskablePPO) else ARM


def assert_reads(model, folder):
    model.save(folder / "agent.zip")
    source = read_agent(folder / "agent.zip")
    assert source.card.algorithm == type(model).__name__
    observations = draw(model.get_env().observation_space, 50)
    assert_alike(source, model, observations)
    assert len(outputs_of(source, model, observations).unique()) > 2, (
        "a test of nothing: all observations are worth the same"
    )
    return source


@pytest.mark.parametrize("algorithm", ALL, ids=lambda algorithm: algorithm.__name__)
def test_an_agent_from_a_zip_acts_and_values_as_the_one_that_was_saved(algorithm, tmp_path):
    assert_reads(untrained(algorithm, FLAT, actions_of(algorithm)), tmp_path)


@pytest.mark.parametrize("algorithm", ALL, ids=lambda algorithm: algorithm.__name__)
def test_a_model_in_memory_acts_and_values_as_itself(algorithm):
    model = untrained(algorithm, FLAT, actions_of(algorithm))
    assert_alike(read_live(model, "live"), model, draw(FLAT, 50))


@pytest.mark.parametrize(
    ("algorithm", "policy_kwargs"),
    [
        (PPO, {"net_arch": []}),
        (PPO, {"net_arch": [8, 4, 6], "activation_fn": nn.ReLU}),
        (A2C, {"net_arch": {"pi": [8, 4], "vf": [6]}, "activation_fn": nn.ELU}),
        (A2C, {"net_arch": {"pi": [], "vf": [6]}, "activation_fn": nn.GELU}),
        (TRPO, {"net_arch": {"pi": [8], "vf": []}, "activation_fn": nn.SiLU}),
        (SAC, {"net_arch": [8, 4], "activation_fn": nn.Tanh, "n_critics": 3}),
        (SAC, {"net_arch": {"pi": [4], "qf": [8, 6]}, "activation_fn": nn.LeakyReLU}),
        (TQC, {"net_arch": [4, 8, 6], "n_quantiles": 7, "n_critics": 3, "activation_fn": nn.Mish}),
        (TD3, {"net_arch": [], "activation_fn": nn.Softplus}),
        (TD3, {"net_arch": {"pi": [8, 8], "qf": [4]}, "activation_fn": nn.SELU, "n_critics": 1}),
        (DDPG, {"net_arch": [8, 4], "activation_fn": nn.Sigmoid}),
        (DQN, {"net_arch": []}),
        (DQN, {"net_arch": [8, 4, 6], "activation_fn": nn.Identity}),
        (QRDQN, {"net_arch": [8, 4], "n_quantiles": 5}),
        (QRDQN, {"net_arch": [], "n_quantiles": 1}),
    ],
)
def test_widths_depths_and_activations_are_read(algorithm, policy_kwargs, tmp_path):
    model = untrained(algorithm, FLAT, actions_of(algorithm), policy_kwargs=policy_kwargs)
    model.save(tmp_path / "agent.zip")
    assert_alike(read_agent(tmp_path / "agent.zip"), model, draw(FLAT, 50))


@pytest.mark.parametrize(
    "algorithm", [PPO, A2C, TRPO, MaskablePPO], ids=lambda algorithm: algorithm.__name__
)
@pytest.mark.parametrize(
    "actions",
    [KEYS, spaces.MultiDiscrete([2, 3, 2]), spaces.MultiBinary(3)],
    ids=lambda space: type(space).__name__,
)
def test_actions_that_are_choices_are_read(algorithm, actions, tmp_path):
    assert_reads(untrained(algorithm, FLAT, actions), tmp_path)


@pytest.mark.parametrize("algorithm", [PPO, *CONTINUOUS], ids=lambda algorithm: algorithm.__name__)
def test_actions_keep_their_own_bounds_and_shape(algorithm, tmp_path):
    uneven = spaces.Box(
        np.array([[-2.0, 0.0], [-0.1, -7.5]], np.float32),
        np.array([[3.0, 1 / 3], [0.1, 30.0]], np.float32),
    )
    source = assert_reads(untrained(algorithm, FLAT, uneven), tmp_path)
    assert source.actions == uneven


def test_actions_out_of_bounds_are_clipped_as_sb3_clips_them(tmp_path):
    model = untrained(PPO, FLAT, spaces.Box(-0.05, 0.1, (2,)))
    source = assert_reads(model, tmp_path)
    acted, _ = source.predict(draw(FLAT, 50), deterministic=True)
    assert (acted == -0.05).any()
    assert (acted == 0.1).any()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(6),
        spaces.MultiDiscrete([3, 4]),
        spaces.MultiBinary(5),
        spaces.Box(-1, 1, (3, 2)),
        spaces.Box(-1, 1, (2,), np.float64),
    ],
    ids=lambda space: f"{type(space).__name__}-{space.dtype}",
)
@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=lambda algorithm: algorithm.__name__)
def test_observations_of_every_type_are_read(algorithm, space, tmp_path):
    assert_reads(untrained(algorithm, space, KEYS), tmp_path)


@pytest.mark.parametrize(
    "algorithm", [PPO, SAC, TD3, DQN], ids=lambda algorithm: algorithm.__name__
)
def test_observations_of_images_and_numbers_together_are_read(algorithm, tmp_path):
    model = untrained(algorithm, ROW, actions_of(algorithm), policy_kwargs=COMBINED)
    source = assert_reads(model, tmp_path)
    one = {key: rows[0] for key, rows in draw(ROW, 1).items()}
    np.testing.assert_allclose(
        source.predict(one, deterministic=True)[0],
        model.predict(one, deterministic=True)[0],
        atol=1e-5,
    )


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
@pytest.mark.parametrize(
    "algorithm", [PPO, A2C, SAC, TQC, TD3], ids=lambda algorithm: algorithm.__name__
)
def test_convolutions_are_read_shared_or_not_between_policy_and_value(algorithm, shared, tmp_path):
    kwargs = {**CNN, "share_features_extractor": shared}
    assert_reads(
        untrained(algorithm, IMAGE, actions_of(algorithm), "CnnPolicy", policy_kwargs=kwargs),
        tmp_path,
    )


@pytest.mark.parametrize(
    "algorithm", [TRPO, MaskablePPO, DQN, QRDQN, DDPG], ids=lambda algorithm: algorithm.__name__
)
def test_convolutions_are_read_from_every_algorithm(algorithm, tmp_path):
    assert_reads(
        untrained(algorithm, IMAGE, actions_of(algorithm), "CnnPolicy", policy_kwargs=CNN), tmp_path
    )


def test_images_and_numbers_are_read_where_policy_and_value_see_with_their_own_eyes(tmp_path):
    kwargs = {**COMBINED, "share_features_extractor": False}
    assert_reads(untrained(PPO, ROW, KEYS, policy_kwargs=kwargs), tmp_path)


def test_images_that_were_not_divided_by_255_are_read_as_they_are(tmp_path):
    floats = spaces.Box(0.0, 1.0, (3, 36, 36))
    extractor = {
        "features_extractor_class": NatureCNN,
        "features_extractor_kwargs": {"features_dim": 16, "normalized_image": True},
    }
    kwargs = {"normalize_images": False, **extractor}
    source = assert_reads(untrained(PPO, floats, ARM, "CnnPolicy", policy_kwargs=kwargs), tmp_path)
    assert not source.card.normalize_images


def test_an_image_that_is_only_flattened_is_read(tmp_path):
    assert_reads(untrained(PPO, spaces.Box(0, 255, (4, 5, 3), np.uint8), ARM), tmp_path)


@pytest.mark.parametrize(
    ("algorithm", "policy_kwargs"),
    [
        *((algorithm, {}) for algorithm in (PPO, A2C, SAC, TQC)),
        *((algorithm, {"use_expln": True}) for algorithm in (PPO, A2C, SAC, TQC)),
        *((algorithm, {"full_std": False}) for algorithm in (PPO, A2C)),
    ],
)
def test_state_dependent_exploration_is_read(algorithm, policy_kwargs, tmp_path):
    assert_reads(
        untrained(algorithm, FLAT, ARM, use_sde=True, policy_kwargs=policy_kwargs), tmp_path
    )


def test_state_dependent_exploration_squashed_or_with_unclipped_means_is_read(tmp_path):
    assert_reads(
        untrained(
            PPO,
            FLAT,
            spaces.Box(-2.0, 0.5, (2,)),
            use_sde=True,
            policy_kwargs={"squash_output": True},
        ),
        tmp_path,
    )
    assert_reads(
        untrained(SAC, FLAT, ARM, use_sde=True, policy_kwargs={"clip_mean": 0.0}), tmp_path
    )
    assert_reads(
        untrained(SAC, FLAT, ARM, use_sde=True, policy_kwargs={"clip_mean": 0.05}), tmp_path
    )


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"use_sde": True},
        {"use_sde": True, "policy_kwargs": {"full_std": False, "use_expln": True}},
    ],
    ids=str,
)
def test_a_gaussian_is_as_wide_as_it_was(kwargs):
    wide = spaces.Box(-100.0, 100.0, (2,))
    model = untrained(A2C, FLAT, wide, **kwargs)
    observations = draw(FLAT, 50)
    mean, log_std = outputs_of(read_live(model, "live"), model, observations, "outputs").chunk(
        2, dim=1
    )
    gaussian = model.policy.get_distribution(
        model.policy.obs_to_tensor(observations)[0]
    ).distribution
    torch.testing.assert_close(mean, gaussian.mean.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(log_std.exp(), gaussian.stddev.detach(), atol=1e-5, rtol=1e-4)


def test_choices_are_as_likely_as_they_were():
    actions = spaces.MultiDiscrete([2, 3])
    model = untrained(PPO, FLAT, actions)
    observations = draw(FLAT, 50)
    computed = outputs_of(read_live(model, "live"), model, observations, "outputs")
    parts = model.policy.get_distribution(model.policy.obs_to_tensor(observations)[0]).distribution
    torch.testing.assert_close(computed, torch.cat([part.logits for part in parts], dim=1).detach())


def test_what_a_source_is_called_and_where_it_comes_from_is_in_its_card(tmp_path):
    model = untrained(PPO).learn(8)
    model.save(tmp_path / "my agent (2).zip")
    card = read_agent(tmp_path / "my agent (2).zip").card
    assert (card.name, card.algorithm, card.steps, card.seed, card.origin) == (
        "my-agent-2",
        "PPO",
        8,
        0,
        "my agent (2).zip",
    )
    assert read_agent(tmp_path / "my agent (2).zip", name="walker").name == "walker"


@pytest.mark.parametrize("name", ["../walker", "", "a b", ".hidden"])
def test_a_name_that_is_no_name_is_refused(name, tmp_path):
    model = untrained(PPO)
    model.save(tmp_path / "agent.zip")
    with pytest.raises(BadConfig, match=r"A source cannot be called '.*'; use letters, digits"):
        read_agent(tmp_path / "agent.zip", name=name)
    with pytest.raises(BadConfig, match="A source cannot be called"):
        read_live(model, name)


@pytest.mark.parametrize("algorithm", [PPO, SAC, DQN], ids=lambda algorithm: algorithm.__name__)
def test_the_statistics_of_vecnormalize_are_applied(algorithm, tmp_path):
    far = spaces.Box(
        np.array([-300.0, 5.0, -1e-3, 0.0], np.float32),
        np.array([500.0, 6.0, 1e-3, 1.0], np.float32),
    )
    vec = normalised(far, actions_of(algorithm), clip_obs=1.2)
    model = untrained(algorithm, far, env=vec)
    model.save(tmp_path / "agent.zip")
    vec.save(tmp_path / "statistics.pkl")
    observations = draw(far, 50)
    seen = vec.normalize_obs(observations)
    assert (np.abs(seen) == np.float32(1.2)).any(), "a test of nothing: no observation was clipped"
    for source in (
        read_agent(tmp_path / "agent.zip", tmp_path / "statistics.pkl"),
        read_live(model, "live"),
    ):
        assert_alike(source, model, observations, seen)


@pytest.mark.parametrize("keys", [["speed"], ["speed", "camera"]], ids=str)
def test_the_statistics_of_some_keys_are_applied_to_those(keys, tmp_path):
    space = spaces.Dict(
        {"speed": spaces.Box(-50.0, 5.0, (3,)), "gear": spaces.Discrete(4), "camera": IMAGE}
    )
    vec = normalised(space, ARM, norm_obs_keys=keys)
    model = untrained(PPO, space, env=vec, policy_kwargs=COMBINED)
    model.save(tmp_path / "agent.zip")
    vec.save(tmp_path / "agent.vecnormalize.pkl")
    observations = draw(vec.venv.observation_space, 50)
    for source in (read_agent(tmp_path / "agent.zip"), read_live(model, "live")):
        assert source.card.normalisation.keys == tuple(keys)
        assert_alike(source, model, observations, vec.normalize_obs(observations))


def test_a_vecnormalize_that_leaves_observations_alone_changes_nothing(tmp_path):
    vec = normalised(norm_obs=False)
    model = untrained(PPO, env=vec)
    model.save(tmp_path / "agent.zip")
    vec.save(tmp_path / "agent.vecnormalize.pkl")
    for source in (read_agent(tmp_path / "agent.zip"), read_live(model, "live")):
        assert source.card.normalisation is None
        assert_alike(source, model, draw(FLAT, 50))


def test_the_statistics_of_a_seeded_training_are_read(tmp_path):
    vec = normalised()
    vec.action_space.seed(3)
    vec.observation_space.sample()
    model = untrained(PPO, env=vec).learn(8)
    model.save(tmp_path / "agent.zip")
    vec.save(tmp_path / "agent.vecnormalize.pkl")
    observations = draw(FLAT, 50)
    assert_alike(
        read_agent(tmp_path / "agent.zip"), model, observations, vec.normalize_obs(observations)
    )
