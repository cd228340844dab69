"""Progressive networks against numbers worked out by hand."""

import pytest
import torch
from gymnasium import spaces
from small_methods import ROWS, method_of, sharper, stirred
from stable_baselines3 import PPO
from torch import nn
from toys import IMAGE, Toy, tiny, tiny_hub

from hubrl import BadConfig, Hub, SpaceMismatch


def deep(*widths, seed=0, activation=nn.Tanh):
    return tiny(PPO, Toy(), seed, net_arch=list(widths), activation_fn=activation)


def progressive_by_hand(method, hub, rows, act=torch.tanh):
    """`h_i = act(W_i h_{i-1} + U_i act(V_i [alpha_j h_{i-1}^j]))`, layer by layer."""
    columns = []
    for source in hub:
        read, computed = rows, []
        for layer in source.encoder.hidden[::2]:
            read = act(read @ layer.weight.T + layer.bias)
            computed.append(read)
        columns.append(computed)
    read, adapted = rows, None
    for index, layer in enumerate(method.column):
        before = layer(read)
        if adapted is not None:
            before = before + adapted @ method.laterals[index - 1].weight.T
        read = act(before)
        adapter = method.adapters[index]
        received = torch.cat(
            [scale * column[index] for scale, column in zip(adapter.scales, columns, strict=True)],
            dim=1,
        )
        adapted = act(received @ adapter.squeeze.weight.T + adapter.squeeze.bias)
    return torch.cat([read, adapted], dim=1)


def test_progressive_columns_by_hand():
    hub = sharper(Hub.from_agents([deep(8, 7, 6), deep(8, 5, 4, seed=1)]))
    method = stirred(method_of("progressive", hub, "features"))
    assert method.features_dim == 2 * 6
    torch.testing.assert_close(method(ROWS).features, progressive_by_hand(method, hub, ROWS))


def test_progressive_scales_start_at_a_tenth_and_are_logged():
    method = method_of("progressive", Hub.from_agents([deep(8, 7), deep(8, 7, seed=1)]), "features")
    expected = {
        f"progressive/scale/{layer}/ppo-{index}": 0.1 for layer in (0, 1) for index in (0, 1)
    }
    assert method.measures() == pytest.approx(expected)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("layer", [0, 2])
def test_every_column_is_read_at_every_layer_including_the_first(which, layer):
    hub = Hub.from_agents([deep(8, 7), deep(8, 7, seed=1)])
    method = stirred(method_of("progressive", hub, "features"))
    before = method(ROWS).features
    hub[which].encoder.hidden[layer].weight.add_(1.0)
    after = method(ROWS).features
    assert not torch.allclose(before[:, 7:], after[:, 7:]), "the head hears the last layer"
    assert torch.allclose(before[:, :7], after[:, :7]) == (layer == 2), (
        "the new column hears what was before its own"
    )


def test_progressive_columns_of_images_are_read_by_pointwise_convolutions():
    env = Toy(IMAGE)
    space = tiny(PPO, env).observation_space
    method = method_of("progressive", tiny_hub(env, (PPO, PPO)), "features", space=space)
    assert [type(layer) for layer in method.column] == [nn.Conv2d] * 3 + [nn.Linear] * 2
    assert [adapter.squeeze.kernel_size for adapter in method.adapters[:3]] == [(1, 1)] * 3
    assert [adapter.squeeze.in_channels for adapter in method.adapters[:3]] == [64, 128, 128]
    method(torch.rand(3, *space.shape)).features.square().sum().backward()
    assert all(
        parameter.grad.abs().max() > 0
        for name, parameter in method.named_parameters()
        if "bias" not in name
    )


def test_progressive_reads_what_its_sources_select_of_the_targets_observations():
    wide = spaces.Box(-10.0, 10.0, (6,))
    hub = Hub(
        [
            source.adapted(observes=range(4))
            for source in Hub.from_agents([deep(8), deep(8, seed=1)])
        ]
    )
    method = method_of("progressive", hub, "features", space=wide)
    assert method(torch.randn(5, 6)).features.shape == (5, 16)


def test_columns_that_cannot_stand_side_by_side_are_refused():
    with pytest.raises(
        SpaceMismatch,
        match="of one depth, and source 'ppo-1' has 2 layers where 'ppo-0' has 1; leave it out",
    ):
        method_of("progressive", Hub.from_agents([deep(8), deep(8, 8, seed=1)]), "features")
    with pytest.raises(
        SpaceMismatch, match="that end in a linear one, and source 'ppo-0' has none; leave it out"
    ):
        method_of("progressive", Hub.from_agents([deep()]), "features")
    with pytest.raises(BadConfig, match="Method 'progressive' needs a column; the hub has none"):
        method_of("progressive", [], "features")
