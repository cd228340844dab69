"""Losses of transfer against numbers worked out by hand, and how they reach an algorithm."""

import math

import pytest
import torch

from hubrl.errors import BadConfig
from hubrl.nn.losses import inject
from hubrl.routing.weights import entropy_nats, exploration_entropy

EQUAL = torch.full((6, 4), 0.25)
ONE = torch.eye(4)[[1]].expand(6, -1)


def test_exploration_entropy_is_zero_for_one_pathway_and_least_for_equal_ones():
    assert exploration_entropy(ONE).item() == pytest.approx(0.0, abs=1e-6)
    assert exploration_entropy(EQUAL).item() == pytest.approx(-math.log(4))


def test_exploration_entropy_is_of_the_mean_and_not_of_the_rows():
    assert exploration_entropy(torch.eye(4)).item() == pytest.approx(-math.log(4))
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert exploration_entropy(weights).item() == pytest.approx(
        0.75 * math.log(0.75) + 0.25 * math.log(0.25)
    )


def test_entropy_is_zero_for_one_pathway_and_the_logarithm_of_their_number_for_equal_ones():
    torch.testing.assert_close(entropy_nats(ONE), torch.zeros(6))
    torch.testing.assert_close(entropy_nats(EQUAL), torch.full((6,), math.log(4)))


@pytest.mark.parametrize("loss", [exploration_entropy])
def test_gradients_are_finite_for_pathways_without_weight(loss):
    weights = ONE.clone().requires_grad_()
    loss(weights).backward()
    assert torch.isfinite(weights.grad).all()


@pytest.mark.parametrize("loss", [exploration_entropy])
def test_a_step_down_the_gradient_spreads_the_weights(loss):
    z = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
    before = loss(z.softmax(dim=1))
    before.backward()
    assert loss((z - 0.1 * z.grad).softmax(dim=1)) < before


def test_an_injected_loss_has_the_gradient_of_the_explicit_sum():
    parameter = torch.randn(5, 3, requires_grad=True)
    inputs, factors = torch.randn(7, 5), torch.randn(7, 3)

    def losses():
        weights = (inputs @ parameter).softmax(dim=1)
        return weights, 0.3 * exploration_entropy(weights)

    weights, extra = losses()
    ((weights * factors).square().mean() + extra).backward()
    explicit, parameter.grad = parameter.grad, None
    weights, extra = losses()
    carried = inject(weights, extra)
    assert torch.equal(carried, weights)
    (carried * factors).square().mean().backward()
    torch.testing.assert_close(parameter.grad, explicit)


def test_an_injected_loss_arrives_even_where_the_carrier_counts_for_nothing():
    parameter = torch.ones(3, requires_grad=True)
    (0 * inject(parameter * 2, parameter.square().sum())).sum().backward()
    assert parameter.grad.tolist() == [2.0, 2.0, 2.0]


def test_injecting_under_a_gradient_that_is_differentiated_again_is_refused():
    parameter = torch.ones(3, requires_grad=True)
    loss = inject(parameter.square(), parameter.sum()).sum()
    with pytest.raises(BadConfig, match="set explore_coef=0"):
        torch.autograd.grad(loss, parameter, create_graph=True)
