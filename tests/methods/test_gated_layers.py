"""Gated layers: kernels of several sources as one, with gates and alignment."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.utils import polyak_update
from torch import nn
from torch.nn import functional
from toys import STEER, Toy, tiny, tiny_hub
from zoo_cases import BOTH, gates_by_hand, load

from hubrl import BadConfig, Source, SpaceMismatch
from hubrl.methods import create
from hubrl.methods.gated_layers import GatedLayer, Gates
from hubrl.methods.lite_zoo_tuning import LiteLayer
from hubrl.routing.target import TargetSpec

KINDS = pytest.mark.parametrize("kind", ["linear", "conv"])


def layers_of(kind, count=3, **how):
    torch.manual_seed(0)
    return [
        nn.Linear(5, 4, **how)
        if kind == "linear"
        else nn.Conv2d(2, 4, 3, **({"stride": 2, "padding": 1} | how))
        for _ in range(count)
    ]


def rows_of(kind, count=6):
    return torch.randn(count, 5) if kind == "linear" else torch.randn(count, 2, 7, 7)


def layer_of(kind, layer=GatedLayer, count=3, align=True, gate=True, moved=True, **how):
    """A layer of several, away from where it starts."""
    made = layer(
        layers_of(kind, count, **how), 5 if kind == "linear" else 2, align=align, gate=gate
    )
    if moved:
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.5)
    return made


def one_by_one(made, rows, gates):
    """For every row the kernel `sum_i a_i T_i W_i`, made and applied for this row alone."""
    computed = []
    for row, row_gates in zip(rows, gates, strict=True):
        kernel, bias = 0.0, 0.0
        for index, gate in enumerate(row_gates):
            mixing = torch.eye(4) if made.alignment is None else made.alignment[index]
            kernel = kernel + gate * (mixing @ made.weight[index].flatten(1)).view_as(
                made.weight[index]
            )
            bias = bias + gate * (
                mixing @ (torch.zeros(4) if made.bias is None else made.bias[index])
            )
        conv = kernel.ndim == 4
        computed.append(
            functional.conv2d(row[None], kernel, bias, 2, 1)
            if conv
            else functional.linear(row[None], kernel, bias)
        )
    return torch.cat(computed)


@KINDS
@pytest.mark.parametrize("count", [1, 2, 3])
def test_gates_start_at_equal_shares(kind, count):
    made = layer_of(kind, count=count, moved=False)
    assert torch.equal(made.gates(rows_of(kind), made.start), torch.full((6, count), 1 / count))


@KINDS
@pytest.mark.parametrize("layer", [GatedLayer, LiteLayer])
@pytest.mark.parametrize("gate", [True, False])
def test_a_layer_that_starts_at_one_source_computes_what_that_source_computes(kind, layer, gate):
    made, rows = layer_of(kind, layer, gate=gate, moved=False), rows_of(kind)
    for index, source in enumerate(layers_of(kind)):
        made.set_start(torch.eye(3)[index])
        torch.testing.assert_close(made(rows), source(rows))
        torch.testing.assert_close(made.mean_gates, torch.eye(3)[index])


@KINDS
def test_gates_move_about_where_they_start(kind):
    made, rows = layer_of(kind), rows_of(kind)
    start = torch.tensor([1.0, 0.0, 0.0])
    made.set_start(start)
    gates = gates_by_hand(made.gates, rows, start)
    torch.testing.assert_close(made(rows), one_by_one(made, rows, gates), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.mean_gates, gates.mean(dim=0))


def test_gates_lie_within_one_share_of_where_they_start():
    gates = Gates(2, 2)
    gates.excite.bias.data.copy_(torch.tensor([3.0, 1 / 3]).log())
    rows = torch.randn(1, 2)
    torch.testing.assert_close(gates(rows, torch.tensor([0.5, 0.5])), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(gates(rows, torch.tensor([1.0, 0.0])), torch.tensor([[1.25, -0.25]]))


@pytest.mark.parametrize("n_rows", [3, 40])
def test_linear_layers_are_aligned_where_it_costs_less_with_equal_outputs(n_rows):
    made, rows = layer_of("linear"), rows_of("linear", n_rows)
    torch.testing.assert_close(
        made(rows), one_by_one(made, rows, gates_by_hand(made.gates, rows)), atol=1e-5, rtol=1e-5
    )


@KINDS
@pytest.mark.parametrize("align", [True, False])
def test_a_gated_layer_is_an_aggregated_kernel_for_every_row(kind, align):
    made, rows = layer_of(kind, align=align), rows_of(kind)
    gates = gates_by_hand(made.gates, rows)
    assert gates.std(dim=0).min() > 1e-3
    torch.testing.assert_close(made.gates(rows, made.start), gates)
    torch.testing.assert_close(made(rows), one_by_one(made, rows, gates), atol=1e-5, rtol=1e-5)


@KINDS
def test_without_gates_every_kernel_counts_the_same(kind):
    made, rows = layer_of(kind, gate=False), rows_of(kind)
    torch.testing.assert_close(
        made(rows), one_by_one(made, rows, torch.full((6, 3), 1 / 3)), atol=1e-5, rtol=1e-5
    )


@KINDS
def test_a_layer_without_biases_has_none(kind):
    made, rows = layer_of(kind, bias=False, align=False), rows_of(kind)
    assert made.bias is None
    expected = one_by_one(made, rows, gates_by_hand(made.gates, rows))
    torch.testing.assert_close(made(rows), expected, atol=1e-5, rtol=1e-5)


def test_a_convolution_keeps_its_geometry():
    for how in ({"dilation": 2}, {"stride": (1, 2), "padding": (2, 0)}):
        layers, rows = layers_of("conv", 1, **how), rows_of("conv")
        for layer in (GatedLayer, LiteLayer):
            made = layer(layers, 2, align=True, gate=False)
            torch.testing.assert_close(made(rows), layers[0](rows), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                made.to_plain_layer()(rows), layers[0](rows), atol=1e-5, rtol=1e-5
            )


def test_pointwise_convolutions_are_not_aligned():
    assert layer_of("conv", moved=False).alignment.shape == (3, 4, 4)
    pointwise = GatedLayer([nn.Conv2d(2, 4, 1)] * 2, 2, align=True, gate=True)
    assert pointwise.alignment is None
    assert GatedLayer([nn.Linear(1, 4)] * 2, 1, align=True, gate=True).alignment is not None


def test_what_was_flattened_behind_convolutions_is_pooled_by_channel():
    gates = Gates(3, 2)
    nn.init.normal_(gates.excite.weight)
    images, start = torch.randn(5, 3, 2, 4), torch.full((2,), 0.5)
    assert torch.equal(gates(images, start), gates(images.flatten(1), start))
    torch.testing.assert_close(gates(images.flatten(1), start), gates_by_hand(gates, images))
    shuffled = images.flatten(2)[:, :, torch.randperm(8)].flatten(1)
    torch.testing.assert_close(
        gates(shuffled, start), gates(images, start), msg="places within a channel do not matter"
    )


def test_the_layers_of_an_image_encoder_count_channels():
    env = Toy(spaces.Box(0, 255, (44, 44, 3), np.uint8))
    space = tiny(PPO, env).observation_space
    method = create(
        "zoo-tuning", list(tiny_hub(env, (PPO, PPO))), TargetSpec(space, "outputs", STEER), {}
    )
    found = {
        path.split(".source.")[1]: part
        for path, part in method.named_modules()
        if isinstance(part, GatedLayer)
    }
    reader = "encoder.trunks.readers.0"
    assert {name: layer.gates.channels for name, layer in found.items()} == {
        **{f"{reader}.convs.0": 3, f"{reader}.convs.2": 32, f"{reader}.convs.4": 64},
        **{f"{reader}.linear.0": 64, "encoder.hidden.0": 8, "action.mean": 8},
    }
    assert found[f"{reader}.linear.0"].weight.shape == (2, 8, 64 * 4)


@KINDS
def test_lite_gates_start_at_equal_shares_and_act_alike_in_training_and_evaluation(kind):
    made, rows = layer_of(kind, LiteLayer), rows_of(kind)
    assert torch.equal(made.running_gates, torch.full((3,), 1 / 3))
    made.running_gates.copy_(torch.tensor([0.7, -0.2, 0.4]))
    expected = one_by_one(made, rows, made.running_gates.expand(6, 3))
    learning = made.train()(rows)
    torch.testing.assert_close(learning, expected, atol=1e-5, rtol=1e-5)
    assert learning.requires_grad
    with torch.no_grad():
        assert torch.equal(made(rows), learning)
    made.eval()
    assert torch.equal(made(rows), made(rows))
    with torch.no_grad():
        torch.testing.assert_close(
            made(rows),
            one_by_one(made, rows, made.running_gates.expand(6, 3)),
            atol=1e-5,
            rtol=1e-5,
        )


@KINDS
def test_lite_acts_exactly_through_its_ensemble_in_a_gradient_step(kind):
    made, rows = layer_of(kind, LiteLayer), rows_of(kind)
    for seed in range(20):
        torch.manual_seed(seed)
        made.running_gates.copy_(torch.rand(3))
        nn.init.normal_(made.gates.excite.weight)
        learning = made.train()(rows)
        with torch.no_grad():
            assert torch.equal(made(rows), learning), (
                "PPO's ratio is 1 only if nothing is rounded otherwise"
            )


@KINDS
def test_the_gradient_of_lite_gates_is_that_of_the_batchs_mean(kind):
    made, rows = layer_of(kind, LiteLayer), rows_of(kind)
    made.running_gates.copy_(torch.tensor([0.7, -0.2, 0.4]))
    wanted = torch.randn_like(made(rows))
    of_gates, others = list(made.gates.parameters()), [made.weight, made.bias, made.alignment]
    found = torch.autograd.grad((made(rows) - wanted).square().sum(), [*of_gates, *others])
    ensemble = made.running_gates.clone().requires_grad_()
    loss = (one_by_one(made, rows, ensemble.expand(6, 3)) - wanted).square().sum()
    on_ensemble, *on_others = torch.autograd.grad(loss, [ensemble, *others])
    on_gates = torch.autograd.grad(
        gates_by_hand(made.gates, rows).mean(dim=0), of_gates, on_ensemble
    )
    assert all(gradient.abs().max() > 1e-3 for gradient in on_gates)
    for gradient, expected in zip(found, [*on_gates, *on_others], strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-4)


def straight_through(made, rows):
    """Lite's output by plain autograd: forward through `A`, the gates' gradient by their mean."""
    mean = made.gates(rows, made.start).mean(dim=0)
    ensemble = made.running_gates + (mean - mean.detach())
    identities = torch.eye(4, dtype=rows.dtype).expand(3, 4, 4)
    aligned = torch.einsum(
        "mpo,mo...->mp...", identities if made.alignment is None else made.alignment, made.weight
    )
    kernel = sum(gate * own for gate, own in zip(ensemble, aligned, strict=True))
    mixed = identities if made.alignment is None else made.alignment
    bias = sum(
        gate * (own @ each) for gate, own, each in zip(ensemble, mixed, made.bias, strict=True)
    )
    conv = kernel.ndim == 4
    return (
        functional.conv2d(rows, kernel, bias, 2, 1)
        if conv
        else functional.linear(rows, kernel, bias)
    )


@KINDS
@pytest.mark.parametrize("align", [True, False])
def test_lites_gradients_are_those_of_plain_autograd_in_double_precision(kind, align):
    made = layer_of(kind, LiteLayer, align=align).double()
    made.running_gates.copy_(torch.tensor([0.7, -0.2, 0.4]))
    rows = rows_of(kind).double().requires_grad_()
    learned = [*made.parameters(), rows]
    wanted = torch.randn_like(made(rows))
    found, expected = (
        torch.autograd.grad((outputs - wanted).square().sum(), learned)
        for outputs in (made(rows), straight_through(made, rows))
    )
    assert len(found) == 6 + align
    for gradient, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-3
        torch.testing.assert_close(gradient, other, atol=1e-12, rtol=1e-12)


def test_the_ensemble_advances_when_an_update_is_over():
    made = layer_of("linear", LiteLayer)
    batches = [torch.randn(6, 5), torch.randn(6, 5)]
    with torch.no_grad():
        mean = torch.stack([gates_by_hand(made.gates, rows).mean(dim=0) for rows in batches]).mean(
            dim=0
        )
        made(torch.randn(6, 5))
    for rows in batches:
        made(rows)
    assert torch.equal(made.running_gates, torch.full((3,), 1 / 3)), "not within an update"
    made.train(False)
    expected = 0.9 / 3 + 0.1 * mean
    assert (expected - 1 / 3).abs().max() > 1e-3
    torch.testing.assert_close(made.running_gates, expected)
    made(batches[0])
    made.train(True)
    made.train(False)
    torch.testing.assert_close(made.running_gates, expected, msg="nothing was learned since")


def change_in_place(layer, part):
    with torch.no_grad():
        part.add_(torch.randn_like(part))


def average(layer, part):
    polyak_update([torch.randn_like(part)], [part], 0.5)


def replace(layer, part):
    part.data = torch.randn_like(part)


@KINDS
@pytest.mark.parametrize("change", [change_in_place, average, load, replace])
@pytest.mark.parametrize("part", ["weight", "bias", "alignment", "running_gates"])
def test_a_lite_layer_is_never_stale(kind, change, part):
    made, rows = layer_of(kind, LiteLayer).eval(), rows_of(kind)
    with torch.no_grad():
        before = made(rows)
        for _ in range(3):
            change(made, getattr(made, part))
            after = made(rows)
            assert not torch.equal(after, before)
            torch.testing.assert_close(
                after, one_by_one(made, rows, made.running_gates.expand(6, 3)), atol=1e-4, rtol=1e-4
            )
            before = after


@KINDS
@pytest.mark.parametrize("align", [True, False])
def test_a_lite_layer_merges_to_a_plain_one(kind, align):
    made, rows = layer_of(kind, LiteLayer, align=align), rows_of(kind, 1000)
    made.running_gates.copy_(torch.tensor([0.5, 0.1, 0.6]))
    plain = made.to_plain_layer()
    assert type(plain) is (nn.Linear if kind == "linear" else nn.Conv2d)
    torch.testing.assert_close(plain(rows), made.eval()(rows), atol=1e-5, rtol=1e-5)


@KINDS
def test_only_gates_that_depend_on_nothing_merge(kind):
    rows = rows_of(kind, 1000)
    ungated = layer_of(kind, gate=False)
    torch.testing.assert_close(ungated.to_plain_layer()(rows), ungated(rows), atol=1e-5, rtol=1e-5)
    with pytest.raises(BadConfig, match="The gates of zoo-tuning depend on what each layer reads"):
        layer_of(kind).to_plain_layer()


@pytest.mark.parametrize("how", [{"groups": 2}, {"padding": 1, "padding_mode": "circular"}])
@BOTH
def test_convolutions_of_another_kind_are_refused(name, how):
    space = spaces.Box(0, 255, (2, 8, 8), np.uint8)
    encoders = [nn.Sequential(nn.Conv2d(2, 4, 3, **how), nn.ReLU(), nn.Flatten()) for _ in range(2)]
    sources = [
        Source(encoder=encoder, name=f"odd-{index}", observation_space=space)
        for index, encoder in enumerate(encoders)
    ]
    with pytest.raises(
        SpaceMismatch,
        match=f"Method '{name}' aggregates convolutions of one group padded by zeros, and source 'odd-0'",
    ):
        create(name, sources, TargetSpec(space), {})
