"""Zoo-Tuning of NatureCNNs: what is aligned, and in bfloat16 nearly the numbers of float32."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from toys import CHOOSE, IMAGE, Toy, tiny, tiny_hub
from zoo_cases import BOTH

from hubrl.methods import create
from hubrl.methods.zoo_tuning import layer_name, layers_in
from hubrl.routing.target import TargetSpec

GAME = Toy(spaces.Box(0, 255, (44, 44, 3), np.uint8), CHOOSE)


def method_of(name, precision="float32", **options):
    space = tiny(PPO, GAME).observation_space
    sources = list(tiny_hub(GAME, (PPO, PPO)))
    made = create(name, sources, TargetSpec(space, precision=precision), options)
    torch.manual_seed(0)
    for layer in layers_in(made.pathways).values():
        if layer.gates is not None:
            torch.nn.init.normal_(layer.gates.excite.weight)
            torch.nn.init.normal_(layer.gates.squeeze.weight)
    return made


def pixels(rows=16):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (rows, 3, 44, 44), dtype=torch.uint8, generator=generator)


@BOTH
def test_where_there_are_convolutions_these_alone_are_aligned(name):
    reader = "encoder.trunks.readers.0"
    layers = {
        layer_name(path): layer for path, layer in layers_in(method_of(name).pathways).items()
    }
    aligned = {path for path, layer in layers.items() if layer.alignment is not None}
    assert aligned == {f"{reader}.convs.{place}" for place in (0, 2, 4)}
    assert f"{reader}.linear.0" in layers
    unaligned = layers_in(method_of(name, align=False).pathways).values()
    assert all(layer.alignment is None for layer in unaligned)


@BOTH
@pytest.mark.parametrize("gate", [True, False])
def test_bfloat16_has_nearly_the_features_gates_and_gradients_of_float32(name, gate):
    plain, precise = (method_of(name, each, gate=gate) for each in ("float32", "bfloat16"))
    precise.load_state_dict(plain.state_dict())
    assert precise.pathways.reads_bytes
    assert not plain.pathways.reads_bytes
    expected, found = plain(pixels().float() / 255).features, precise(pixels()).features
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert not torch.equal(found, expected)
    for method, features in ((plain, expected), (precise, found)):
        features.square().sum().backward()
        for layer in layers_in(method.pathways).values():
            layer.train()
    for (path, own), other in zip(plain.named_parameters(), precise.parameters(), strict=True):
        if own.grad is None:
            assert other.grad is None
            continue
        assert other.grad.dtype == torch.float32
        assert (other.grad - own.grad).norm() < 0.06 * own.grad.norm() + 1e-6, path
    for layer, other in zip(
        layers_in(plain.pathways).values(), layers_in(precise.pathways).values(), strict=True
    ):
        torch.testing.assert_close(other.mean_gates, layer.mean_gates, atol=0.01, rtol=0.01)


@BOTH
def test_bytes_give_the_features_of_divided_images_to_the_last_bit(name):
    made = method_of(name, "bfloat16")
    divided = made(pixels().float() / 255).features
    assert torch.equal(made(pixels()).features, divided)
    with torch.no_grad():
        torch.testing.assert_close(made(pixels()).features, divided, msg="merged once")


@pytest.mark.parametrize("level", ["features", "outputs"])
def test_the_ratio_of_lite_is_one_in_bfloat16_too(level):
    game = Toy(IMAGE, CHOOSE)
    made = tiny_hub(game, (PPO, PPO)).agent(
        PPO, "lite-zoo-tuning", level=level, precision="bfloat16"
    )
    model = PPO(env=game, seed=1, device="cpu", n_steps=64, batch_size=64, **made)
    model.set_logger(configure(None, []))
    _, callback = model._setup_learn(64)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    model.policy.set_training_mode(True)
    batch = next(model.rollout_buffer.get(64))
    _, log_prob, _ = model.policy.evaluate_actions(
        batch.observations, batch.actions.long().flatten()
    )
    torch.testing.assert_close(log_prob, batch.old_log_prob, atol=1e-5, rtol=0)
