"""Sources act as SB3 does where spaces are unusual: the right value for each published mistake."""

import json
import zipfile

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import STEER, VECTOR, Toy, target, tiny

from hubrl import BadFile, Hub, SpaceMismatch, load_agent
from hubrl.experiments.evaluation import check_playable
from hubrl.reading import read_live

ROWS = np.random.default_rng(0).uniform(-3, 3, (60, 4)).astype(np.float32)
IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)


def steep(model):
    """The model with a head that makes differences show."""
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if name.startswith(("action_net.weight", "actor.mu.", "q_net.q_net.2.weight")):
                parameter.mul_(30)
    return model


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN, QRDQN, MaskablePPO])
@pytest.mark.parametrize("start", [-1, 2])
def test_discrete_actions_begin_at_zero_whatever_the_start(algorithm, start):
    model = steep(tiny(algorithm, Toy(VECTOR, spaces.Discrete(3, start=start))))
    source = read_live(model, "a")
    expected = model.predict(ROWS, deterministic=True)[0]
    assert source.predict(ROWS, deterministic=True)[0].tolist() == expected.tolist()
    assert set(source.predict(ROWS)[0].tolist()) <= {0, 1, 2}


@pytest.mark.parametrize("algorithm", [PPO, SAC, TD3])
@pytest.mark.parametrize(
    "actions",
    [
        spaces.Box(-10, 10, (3,), np.int64),
        spaces.Box(0, 20, (3,), np.int8),
        spaces.Box(-2, 2, (2,), np.float16),
    ],
    ids=str,
)
def test_actions_of_a_box_are_not_rounded_to_its_dtype(algorithm, actions):
    model = tiny(algorithm, Toy(VECTOR, actions))
    expected, actual = (
        agent.predict(ROWS, deterministic=True)[0] for agent in (model, read_live(model, "a"))
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    assert np.any(actual != np.trunc(actual))


def test_bytes_that_are_no_image_are_not_divided_by_255():
    ram, more = spaces.Box(0, 255, (8,), np.uint8), spaces.Box(0, 255, (10,), np.uint8)
    model = steep(tiny(PPO, Toy(ram, spaces.Discrete(4)), activation_fn=nn.ReLU))
    rows = np.random.default_rng(1).integers(0, 256, (60, 10), dtype=np.uint8)
    adapted = read_live(model, "ram").adapted(observes=range(8))
    expected = model.predict(rows[:, :8], deterministic=True)[0].tolist()
    assert adapted.predict(rows, deterministic=True)[0].tolist() == expected
    hubbed = target(PPO, Toy(more, spaces.Discrete(4)), Hub([adapted]).agent(PPO, "single"))
    assert hubbed.predict(rows, deterministic=True)[0].tolist() == expected


def with_squash_output(model, path):
    model.save(path / "plain.zip")
    with (
        zipfile.ZipFile(path / "plain.zip") as old,
        zipfile.ZipFile(path / "squashed.zip", "w") as new,
    ):
        for name in old.namelist():
            raw = old.read(name)
            if name == "data":
                raw = json.dumps(
                    {**json.loads(raw), "policy_kwargs": {"squash_output": True}}
                ).encode()
            new.writestr(name, raw)
    return path / "squashed.zip"


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_squash_output_without_gsde_is_the_clipped_gaussian_that_was_trained(algorithm, tmp_path):
    model = steep(tiny(algorithm, Toy()))
    source = load_agent(with_squash_output(model, tmp_path))
    expected = model.predict(ROWS, deterministic=True)[0]
    np.testing.assert_allclose(
        source.predict(ROWS, deterministic=True)[0], expected, rtol=1e-5, atol=1e-6
    )


def test_squash_output_without_gsde_is_refused_where_it_has_two_meanings(tmp_path):
    path = with_squash_output(tiny(PPO, Toy(VECTOR, spaces.Box(-2.0, 2.0, (2,)))), tmp_path)
    with pytest.raises(
        BadFile, match="squash_output=True without use_sde, .* train it again without squash_output"
    ):
        load_agent(path)


def other_bounds():
    return Toy(VECTOR, spaces.Box(-2.0, 2.0, (2,)))


def test_a_target_with_other_action_bounds_is_refused_at_its_outputs():
    hub = Hub([read_live(tiny(PPO, Toy()), "a")])
    sentence = "The target's actions go from -2 to 2, those of source 'a' from -1 to 1; put the target under gymnasium.wrappers.RescaleAction"
    with pytest.raises(SpaceMismatch, match=sentence):
        target(PPO, other_bounds(), hub.agent(PPO))
    target(PPO, other_bounds(), hub.agent(PPO, level="features"))
    ones = np.ones(2, np.float32)
    target(PPO, gym.wrappers.RescaleAction(other_bounds(), -ones, ones), hub.agent(PPO))


def test_a_task_with_other_action_bounds_is_not_played():
    source = read_live(tiny(PPO, Toy()), "a")
    check_playable(source, make_vec_env(Toy))
    with pytest.raises(
        SpaceMismatch, match="The task's actions go from -2 to 2, those of source 'a' from -1 to 1"
    ):
        check_playable(source, make_vec_env(other_bounds))


def exchanged(algorithm, change, actions=STEER, **kwargs):
    model = steep(tiny(algorithm, Toy(VECTOR, actions), **kwargs))
    change(model.policy)
    return model


def leakier(policy):
    for part in policy.modules():
        if isinstance(part, nn.LeakyReLU):
            part.negative_slope = 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: exchanged(
            PPO, lambda policy: policy.mlp_extractor.policy_net.__setitem__(1, nn.ReLU())
        ),
        lambda: exchanged(PPO, leakier, activation_fn=nn.LeakyReLU),
        lambda: exchanged(SAC, lambda policy: policy.actor.latent_pi.__setitem__(1, nn.Tanh())),
        lambda: exchanged(
            DQN, lambda policy: policy.q_net.q_net.__setitem__(1, nn.ELU()), spaces.Discrete(3)
        ),
        lambda: exchanged(
            PPO,
            lambda policy: policy.mlp_extractor.policy_net.__setitem__(1, nn.ReLU()),
            spaces.Discrete(3),
        ),
    ],
)
def test_a_live_model_with_an_exchanged_module_is_refused(make):
    with pytest.raises(
        BadFile, match="computes other actions than SB3's network .*; a module was exchanged"
    ):
        read_live(make(), "a")


@pytest.mark.parametrize("shape", [(7, 7, 3), (3, 35, 35)], ids=str)
@pytest.mark.parametrize(
    ("algorithm", "method"), [(PPO, "hub-pathway"), (PPO, "single"), (DQN, "hub-pathway")]
)
def test_images_too_small_for_convolutions_are_flattened(shape, algorithm, method):
    env = Toy(spaces.Box(0, 255, shape, np.uint8), spaces.Discrete(3))
    hub = Hub(
        [read_live(PPO("MlpPolicy", env, device="cpu", policy_kwargs={"net_arch": [8]}), "small")]
    )
    model = target(algorithm, env, hub.agent(algorithm, method))
    model.learn(32)
    features = target(algorithm, env, {"policy": "MlpPolicy", "policy_kwargs": hub.policy_kwargs()})
    features.learn(32)


def unscaled(algorithm, observations=IMAGE, name="raw"):
    policy = "MultiInputPolicy" if isinstance(observations, spaces.Dict) else "CnnPolicy"
    kwargs = {"net_arch": [8], "normalize_images": False}
    env = Toy(observations, spaces.Discrete(4))
    return read_live(
        steep(
            algorithm(policy, env, device="cpu", seed=0, policy_kwargs=kwargs, **SMALL[algorithm])
        ),
        name,
    )


SMALL = {PPO: {"n_steps": 16, "batch_size": 8}, DQN: {"buffer_size": 50, "learning_starts": 4}}


@pytest.mark.parametrize(
    "observations", [IMAGE, spaces.Dict({"image": IMAGE, "joints": VECTOR})], ids=["image", "dict"]
)
@pytest.mark.parametrize(
    ("algorithm", "level"), [(PPO, "outputs"), (PPO, "features"), (DQN, "features")]
)
def test_images_reach_sources_in_a_hub_on_the_scale_that_they_learned_from(
    algorithm, level, observations
):
    source, env = unscaled(PPO, observations), Toy(observations, spaces.Discrete(4))
    model = target(
        algorithm, env, Hub([source]).agent(algorithm, "single", level=level), **SMALL[algorithm]
    )
    env.reset(seed=3)
    rows = [env._observe(observations) for _ in range(8)]
    batch = (
        {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        if isinstance(rows[0], dict)
        else np.stack(rows)
    )
    tensors, _ = model.policy.obs_to_tensor(batch)
    if level == "outputs":
        assert (
            model.predict(batch, deterministic=True)[0].tolist()
            == source.predict(batch, deterministic=True)[0].tolist()
        )
        return
    network = model.policy.q_net if algorithm is DQN else model.policy
    extractor = network.features_extractor
    actual = network.extract_features(tensors, extractor)
    expected = extractor(
        {key: part.float() for key, part in tensors.items()}
        if isinstance(tensors, dict)
        else tensors.float()
    )
    torch.testing.assert_close(actual, expected)


def test_sources_of_different_image_scales_are_no_hub():
    env = Toy(IMAGE, spaces.Discrete(4))
    scaled = read_live(
        tiny(PPO, Toy(spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.Discrete(4))), "scaled"
    )
    hub = Hub([unscaled(PPO), scaled])
    with pytest.raises(
        SpaceMismatch, match="Some sources read images from 0 to 1 and some from 0 to 255"
    ):
        hub.agent(PPO)
    with pytest.raises(
        SpaceMismatch, match="Some sources read images from 0 to 1 and some from 0 to 255"
    ):
        hub.policy_kwargs()
    target(PPO, env, Hub([scaled]).agent(PPO))


def test_images_that_sb3_does_not_divide_are_refused():
    scaled = read_live(
        tiny(PPO, Toy(spaces.Box(0, 255, (36, 36, 3), np.uint8), spaces.Discrete(4))), "scaled"
    )
    floats = Toy(spaces.Box(0, 255, (3, 36, 36), np.float32), spaces.Discrete(4))
    with pytest.raises(
        SpaceMismatch,
        match="learned from uint8 images, which SB3 divides by 255; .* Let the target observe uint8",
    ):
        target(PPO, floats, Hub([scaled]).agent(PPO))
