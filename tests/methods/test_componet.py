"""CompoNet against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from small_methods import ACTIONS, ROWS, method_of, sharper, stirred, two
from stable_baselines3 import DQN, PPO
from torch import nn
from toys import CHOOSE, IMAGE, PARTS, STEER, Toy, target, tiny, tiny_hub

from hubrl.methods.componet import attention, position_encodings


def test_attention_by_hand():
    weights = attention(
        torch.tensor([[1.0, 1.0]]), torch.tensor([[[1.0, 1.0], [0.0, 0.0], [-1.0, 0.0]]])
    )
    scores = [math.exp(score / math.sqrt(2)) for score in (2.0, 0.0, -1.0)]
    assert weights[0].tolist() == pytest.approx([score / sum(scores) for score in scores])


def test_position_encodings_by_hand():
    expected = [[math.sin(p), math.cos(p), math.sin(p / 10_000 ** (2 / 3))] for p in (0.0, 1.0)]
    torch.testing.assert_close(position_encodings(2, 3), torch.tensor(expected))


def componet_by_hand(method, state, computed):
    """One row at a time, by the paper's equations."""
    out = []
    places, d = method.places, method.output_query.out_features
    for h, phi in zip(state, computed, strict=True):
        n = len(phi)
        scores = method.output_key(phi + places[:n]) @ method.output_query(h) / math.sqrt(d)
        proposed = scores.softmax(dim=0) @ phi
        seen = torch.cat([phi, proposed[None]])
        scores = method.input_key(seen + places) @ method.input_query(h) / math.sqrt(d)
        found = scores.softmax(dim=0) @ method.input_value(seen)
        out.append(proposed + method.internal(torch.cat([found, h])))
    return torch.stack(out)


@ACTIONS
def test_componet_attends_proposes_and_corrects(actions):
    hub = two(actions)
    method = stirred(method_of("componet", hub, actions=actions, hidden_dim=5))
    fresh = torch.randn(6, method.pathways.width)
    computed = torch.stack([source.outputs(ROWS) for source in hub], dim=1)
    does = computed[:, :, :2] if actions is STEER else computed.exp()
    expected = componet_by_hand(method, ROWS, does)
    if actions is STEER:
        expected = torch.cat([expected, fresh[:, 2:]], dim=1)
    torch.testing.assert_close(method(ROWS, fresh=fresh).features, expected, atol=1e-5, rtol=1e-5)
    shares = method.measures()
    assert list(shares) == ["componet/attention/ppo-0", "componet/attention/ppo-1"]
    assert sum(shares.values()) == pytest.approx(1.0)


def test_without_its_internal_policy_componet_does_something_between_what_its_sources_do():
    hub = sharper(two())
    method = stirred(method_of("componet", hub))
    nn.init.zeros_(method.internal[-1].weight)
    nn.init.zeros_(method.internal[-1].bias)
    means = torch.stack([source.outputs(ROWS)[:, :2] for source in hub])
    does = method(ROWS, fresh=torch.zeros(6, 4)).features[:, :2]
    assert (does >= means.amin(dim=0) - 1e-5).all()
    assert (does <= means.amax(dim=0) + 1e-5).all()


@pytest.mark.parametrize("observations", [IMAGE, PARTS], ids=["image", "dict"])
def test_componet_encodes_images_and_dicts(observations):
    env = Toy(observations)
    space = tiny(PPO, env).observation_space
    method = method_of("componet", tiny_hub(env, (PPO, PPO)), space=space)
    parts = space.spaces if observations is PARTS else {"": space}
    rows = {key: torch.rand(3, *part.shape) for key, part in parts.items()}
    loss = (
        method(rows if observations is PARTS else rows[""], fresh=torch.zeros(3, 4))
        .features.square()
        .sum()
    )
    loss.backward()
    assert all(
        parameter.grad.abs().max() > 0
        for parameter in method.encoder.parameters()
        if parameter.ndim > 1
    )


def test_componets_output_is_dqns_q_values():
    model = target(
        DQN, Toy(actions=CHOOSE), two(CHOOSE, (PPO, DQN)).agent(DQN, "componet"), learning_rate=1e-2
    ).learn(100)
    computed = torch.stack([source.outputs(ROWS) for source in two(CHOOSE, (PPO, DQN))], dim=1)
    expected = componet_by_hand(model.q_net.method, ROWS, computed.exp())
    torch.testing.assert_close(model.q_net(ROWS), expected, atol=1e-5, rtol=1e-5)
    assert np.array_equal(
        model.predict(ROWS.numpy(), deterministic=True)[0], expected.argmax(dim=1)
    )
