"""An Atari hub of unlike sources: a published encoder of another architecture, read by its card, beside an SB3 agent."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from torch.nn import functional

from hubrl import Hub
from hubrl.errors import BadFile, SpaceMismatch
from hubrl.reading import read_agent
from hubrl.sources.preprocessing import apply_steps
from hubrl.tasks.make_env import make_env

CARD = Path(__file__).parents[1] / "agents" / "cards" / "baby-a3c.yaml"

TINY = {
    PPO: {"n_steps": 16, "batch_size": 16, "n_epochs": 1},
    DQN: {
        "buffer_size": 64,
        "learning_starts": 8,
        "train_freq": 4,
        "batch_size": 8,
        "target_update_interval": 16,
    },
}


@pytest.fixture(params=["made-here", "pong", "breakout"])
def weights(request, tmp_path):
    """A file of baby-a3c's form: one with random weights, and the published ones where they are at hand."""
    if request.param == "made-here":
        torch.save(random_weights(), tmp_path / "made-here.tar")
        return tmp_path / "made-here.tar"
    return (
        request.getfixturevalue("checkpoints") / "baby-a3c" / f"babya3c-{request.param}-v4-80.tar"
    )


@pytest.fixture
def env():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    env = make_env("envs.atari:hubrl/Pong-v0", preprocessing="atari")
    yield env
    env.close()


def random_weights():
    torch.manual_seed(0)
    shapes = {f"conv{n}.weight": (32, 1 if n == 1 else 32, 3, 3) for n in range(1, 5)}
    shapes |= {f"conv{n}.bias": (32,) for n in range(1, 5)}
    shapes |= {"gru.weight_ih": (768, 800), "actor_linear.weight": (6, 256)}
    return {name: 0.1 * torch.randn(shape) for name, shape in shapes.items()}


def published_encoder(weights, images):
    """The convolutions of baby-a3c, as its own code has them."""
    for n in range(1, 5):
        images = functional.elu(
            functional.conv2d(
                images, weights[f"conv{n}.weight"], weights[f"conv{n}.bias"], stride=2, padding=1
            )
        )
    return images.flatten(1)


def test_the_card_reads_the_encoder_and_leaves_the_rest(weights):
    source = read_agent(weights, CARD, name="baby-a3c")
    images = torch.rand(3, 4, 84, 84)
    features = source.features(images)
    assert features.shape == (3, source.width) == (3, 800)
    assert features.isfinite().all()
    seen = apply_steps(images, source.card.preprocessing)
    assert seen.shape == (3, 1, 80, 80)
    expected = published_encoder(torch.load(weights, weights_only=True), seen)
    torch.testing.assert_close(features, expected)


def test_the_encoder_alone_is_refused_for_its_missing_actions(weights):
    source = read_agent(weights, CARD, name="baby-a3c")
    assert source.actions is None
    with pytest.raises(SpaceMismatch, match="encoder alone"):
        source.outputs(torch.rand(1, 4, 84, 84))
    with pytest.raises(SpaceMismatch, match="encoder alone"):
        source.predict(np.zeros((4, 84, 84), np.uint8))


def test_the_encoder_sees_the_last_frame_between_the_scores_with_full_contrast(weights):
    source = read_agent(weights, CARD)
    images = torch.rand(2, 4, 84, 84)
    features = source.features(images)
    elsewhere = images.clone()
    elsewhere[:, :3] = 0
    elsewhere[:, 3, :14] = elsewhere[:, 3, 78:] = 0
    torch.testing.assert_close(source.features(elsewhere), features)
    torch.testing.assert_close(source.features(0.2 + 0.5 * images), features, rtol=1e-3, atol=1e-3)
    images[:, 3, 14:46] = 0
    assert not torch.allclose(source.features(images), features, atol=1e-2)


def test_a_screen_of_one_colour_gives_finite_features(weights):
    assert read_agent(weights, CARD).features(torch.full((1, 4, 84, 84), 0.5)).isfinite().all()


def test_the_encoder_accepts_sb3s_stack_and_refuses_what_it_cannot_read(weights):
    source = read_agent(weights, CARD)
    assert source.accepts(spaces.Box(0, 255, (4, 84, 84), np.uint8))
    assert not source.accepts(spaces.Box(-1, 1, (17,)))


def test_the_encoder_refuses_an_image_that_ends_before_its_crop(weights):
    assert not read_agent(weights, CARD).accepts(spaces.Box(0, 255, (4, 40, 40), np.uint8))


def test_weights_of_another_network_are_refused(tmp_path):
    other = random_weights() | {"conv4.weight": torch.zeros(16, 32, 3, 3)}
    torch.save(other, tmp_path / "other.tar")
    with pytest.raises(
        BadFile,
        match=r"convs\.6\.weight has shape \(16, 32, 3, 3\), the card says \(32, 32, 3, 3\)",
    ):
        read_agent(tmp_path / "other.tar", CARD)
    del other["conv4.weight"]
    torch.save(other, tmp_path / "fewer.tar")
    with pytest.raises(BadFile, match=r"holds no weights 'conv4\.weight'"):
        read_agent(tmp_path / "fewer.tar", CARD)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_hub_with_a_nature_cnn_trains_and_leaves_the_sources_as_they_were(
    weights, env, algorithm, tmp_path
):
    other = DQN if algorithm is PPO else PPO
    nature = other("CnnPolicy", env, seed=0, device="cpu", **TINY[other])
    hub = Hub.from_agents([nature, (weights, CARD)], names=["nature", "baby-a3c"])
    before = {name: hub[name].tensors() for name in hub.names}
    model = algorithm(
        env=env,
        seed=0,
        device="cpu",
        **TINY[algorithm],
        **hub.agent(algorithm, level="features", width=32),
    )
    model.learn(32)
    assert model.num_timesteps >= 32
    for name in hub.names:
        for weight, tensor in hub[name].tensors().items():
            assert torch.equal(tensor, before[name][weight]), f"{name}: {weight}"
    observation = env.reset()
    model.save(tmp_path / "target.zip")
    again = algorithm.load(tmp_path / "target.zip", device="cpu")
    np.testing.assert_array_equal(
        again.predict(observation, deterministic=True)[0],
        model.predict(observation, deterministic=True)[0],
    )


def test_a_hub_with_an_encoder_alone_is_used_at_the_features(weights, env):
    hub = Hub.from_agents(
        [PPO("CnnPolicy", env, device="cpu", **TINY[PPO]), (weights, CARD)],
        names=["nature", "baby-a3c"],
    )
    assert "features_extractor_kwargs" in hub.agent(PPO)["policy_kwargs"]
    with pytest.raises(
        SpaceMismatch,
        match="'baby-a3c' is an encoder alone and has no outputs; use level='features'",
    ):
        PPO(env=env, device="cpu", **hub.agent(PPO, level="outputs"))
