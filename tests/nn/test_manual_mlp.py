"""Gradients by hand against torch's own."""

import pytest
import torch
from torch import nn

from hubrl.nn.manual_gradients import ManualMLP, linear, linear_gradients


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_outputs_and_gradients_equal_torchs(activation):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 7), activation(), nn.Linear(7, 3), activation())
    rows, outer = torch.randn(11, 5, requires_grad=True), torch.randn(11, 3)
    expected = layers(rows)
    wanted = torch.autograd.grad(expected, [rows, *layers.parameters()], outer)
    perceptron = ManualMLP(layers)
    with torch.no_grad():
        computed = perceptron.forward(rows)
        of_rows, of_parameters = perceptron.backward(computed, outer, inputs=True)
    torch.testing.assert_close(computed[-1], expected)
    for found, each in zip([of_rows, *of_parameters], wanted, strict=True):
        torch.testing.assert_close(found, each)
    assert perceptron.backward(computed, outer, inputs=False)[0] is None


def test_without_layers_the_output_is_the_input():
    rows = torch.randn(4, 2)
    perceptron = ManualMLP(nn.Sequential())
    assert perceptron.forward(rows) == [rows]
    assert perceptron.backward([rows], rows, inputs=True) == (rows, [])


def test_the_gradients_of_a_linear_layer_are_a_product_and_a_sum():
    layer = nn.Linear(2, 1)
    rows, outer = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0], [10.0]])
    weight, bias = linear_gradients(outer, rows)
    assert weight.tolist() == [[31.0, 42.0]]
    assert bias.tolist() == [11.0]
    torch.testing.assert_close(linear(rows, layer), layer(rows))


@pytest.mark.parametrize(
    ("layers", "serves"),
    [
        (nn.Sequential(), True),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), True),
        (nn.Sequential(nn.Linear(2, 2), nn.ELU()), False),
        (nn.Sequential(nn.Linear(2, 2)), False),
        (nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh()), False),
        (nn.Sequential(nn.LayerNorm(2), nn.Tanh()), False),
        (nn.Linear(2, 2), False),
    ],
)
def test_only_layers_with_known_derivatives_are_supported(layers, serves):
    assert ManualMLP.supports(layers) is serves


def test_layers_with_hooks_are_left_to_torch():
    layers = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    layers[0].register_forward_hook(lambda module, given, computed: None)
    assert not ManualMLP.supports(layers)
