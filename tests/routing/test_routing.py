"""Routing by hand: noise that replays, top-k that is stable, weights, dispatch."""

import math

import pytest
import torch
from gymnasium import spaces
from toys import PARTS, VECTOR

from hubrl.routing.router import Router, replayable_noise
from hubrl.routing.weights import aggregate, dispatch, pathway_weights, stable_top_k

ALL = torch.ones(3, dtype=torch.bool)


def test_noise_is_standard_normal():
    noise = replayable_noise(torch.randn(50_000, 3), key=5, n=2).double()
    assert noise.mean().abs() < 0.015
    assert abs(noise.var() - 1) < 0.03
    assert (noise**3).mean().abs() < 0.05
    assert abs((noise**4).mean() - 3) < 0.15
    assert abs((noise.abs() < 1).double().mean() - math.erf(1 / math.sqrt(2))) < 0.01


def test_noise_of_neighbouring_rows_is_normal_too():
    rows = torch.arange(100_000, dtype=torch.float32)[:, None] / 1000
    noise = replayable_noise(rows, key=0, n=1).double()
    assert noise.mean().abs() < 0.015
    assert abs(noise.var() - 1) < 0.03
    assert torch.corrcoef(torch.stack([noise[:-1, 0], noise[1:, 0]]))[0, 1].abs() < 0.015


def test_noise_replays_for_the_same_row_and_key_wherever_the_row_stands():
    rows = torch.randn(20, 4)
    noise = replayable_noise(rows, key=3, n=3)
    turned = torch.randperm(20)
    assert torch.equal(replayable_noise(rows.clone(), key=3, n=3), noise)
    assert torch.equal(replayable_noise(rows[turned], key=3, n=3), noise[turned])
    assert torch.equal(replayable_noise(rows[:1], key=3, n=3), noise[:1])


def test_noise_differs_for_another_key_and_for_another_row():
    rows = torch.randn(1000, 4)
    noise = replayable_noise(rows, key=3, n=2)
    nudged = rows.clone()
    nudged[:, 2] = torch.nextafter(nudged[:, 2], torch.tensor(torch.inf))
    for other in (
        replayable_noise(rows, key=4, n=2),
        replayable_noise(nudged, key=3, n=2),
        replayable_noise(rows.flip(1), key=3, n=2),
    ):
        assert (other != noise).float().mean() > 0.999
        assert torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1].abs() < 0.1


def test_noise_of_images_comes_from_their_bytes():
    images = torch.randint(0, 256, (6, 4 * 84 * 84), dtype=torch.uint8)
    noise = replayable_noise(images, key=3, n=2)
    assert noise.dtype == torch.float32
    assert torch.equal(replayable_noise(images[2:3], key=3, n=2), noise[2:3])
    assert len(noise.unique()) == noise.numel()
    darker = images.clone()
    darker[:, :100] = 0  # a spot in one frame
    assert (replayable_noise(darker, key=3, n=2) != noise).all()


def test_noise_columns_are_independent_of_one_another():
    noise = replayable_noise(torch.randn(100_000, 2), key=1, n=4)
    off_diagonal = torch.corrcoef(noise.T) - torch.eye(4)
    assert off_diagonal.abs().max() < 0.015
    squares = torch.corrcoef(noise.square().T) - torch.eye(4)
    assert squares.abs().max() < 0.015


def test_top_k_takes_the_first_of_equals():
    z = torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 2.0], [3.0, 1.0, 3.0]])
    assert stable_top_k(z, 1).tolist() == [
        [True, False, False],
        [False, True, False],
        [True, False, False],
    ]
    assert stable_top_k(z, 2).tolist() == [
        [True, True, False],
        [False, True, True],
        [True, False, True],
    ]
    assert stable_top_k(z, 3).all()


@pytest.mark.parametrize("k", [1, 2, 70])
def test_top_k_of_many_is_that_of_a_stable_sort(k):
    z = torch.randn(50, 200)
    z[10:20] = z[10:20].round()  # with equals
    z[20:30] = z[20:30].round().masked_fill(torch.rand(10, 200) < 0.9, -torch.inf)
    order = z.argsort(dim=1, descending=True, stable=True)
    expected = torch.zeros_like(z, dtype=torch.bool).scatter(1, order[:, :k], True)
    assert torch.equal(stable_top_k(z, k), expected)


def test_pathway_weights_are_a_softmax_over_the_active():
    logs, active = pathway_weights(torch.tensor([[0.0, math.log(3.0), -5.0]]), 2, ALL)
    torch.testing.assert_close(logs.exp(), torch.tensor([[0.25, 0.75, 0.0]]))
    assert active.tolist() == [[True, True, False]]


def test_pathway_weights_sum_to_one_and_are_zero_for_dropped_pathways():
    trusted = torch.tensor([True, False, True])
    for k in (1, 2, 3):
        logs, active = pathway_weights(torch.randn(50, 3) * 10, k, trusted)
        torch.testing.assert_close(logs.exp().sum(dim=1), torch.ones(50))
        assert (logs[:, 1] == -torch.inf).all()
        assert not active[:, 1].any()
        assert (active.sum(dim=1) == min(k, 2)).all()


def test_dropped_pathways_do_not_use_up_the_top_k():
    logs, active = pathway_weights(
        torch.tensor([[9.0, 1.0, 2.0]]), 1, torch.tensor([False, True, True])
    )
    assert active.tolist() == [[False, False, True]]
    assert logs.exp().tolist() == [[0.0, 0.0, 1.0]]


def test_gradients_of_pathway_weights_are_finite_where_pathways_are_not_active():
    z = torch.randn(8, 3, requires_grad=True)
    logs, active = pathway_weights(z, 2, torch.tensor([True, False, True]))
    (
        (logs.exp() * torch.randn(8, 3)).sum()
        + torch.logsumexp(logs + torch.randn(8, 3), dim=1).sum()
        + logs[active].sum()
    ).backward()
    assert torch.isfinite(z.grad).all()
    assert (z.grad[:, 1] == 0).all()


def test_dispatch_computes_active_rows_alone():
    seen = {"a": 0, "b": 0, "c": 0}

    def counting_pathway(name, factor):
        def compute(rows):
            seen[name] += len(rows)
            return rows * factor

        return compute

    observations = torch.arange(1.0, 9.0).view(4, 2)
    active = torch.tensor([[1, 1, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]]).bool()
    outputs_of_each = dispatch(
        [counting_pathway("a", 1), counting_pathway("b", 10), counting_pathway("c", 100)],
        observations,
        active,
        2,
    )
    assert seen == {"a": 2, "b": 4, "c": 0}
    assert outputs_of_each[:, 0].tolist() == [[1, 2], [0, 0], [5, 6], [0, 0]]
    assert torch.equal(outputs_of_each[:, 1], observations * 10)
    assert (outputs_of_each[:, 2] == 0).all()


def test_dispatch_takes_rows_of_every_part_of_a_dict():
    observations = {"x": torch.arange(3.0)[:, None], "y": torch.arange(3.0, 6.0)[:, None]}
    active = torch.tensor([[True], [False], [True]])
    outputs_of_each = dispatch([lambda parts: parts["x"] + parts["y"]], observations, active, 1)
    assert outputs_of_each.flatten().tolist() == [3.0, 0.0, 7.0]


def test_gradients_reach_a_pathway_from_its_rows_alone():
    layer = torch.nn.Linear(2, 1, bias=False)
    rows = torch.tensor([[1.0, 0.0], [10.0, 0.0]])
    dispatch([layer], rows, torch.tensor([[True], [False]]), 1).sum().backward()
    assert layer.weight.grad.tolist() == [[1.0, 0.0]]


def test_aggregation_is_the_weighted_sum():
    outputs_of_each = torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])
    torch.testing.assert_close(
        aggregate(outputs_of_each, torch.tensor([[0.25, 0.75]])), torch.tensor([[2.5, 5.0]])
    )


@pytest.mark.parametrize("space", [VECTOR, PARTS, spaces.Discrete(4)])
def test_a_new_router_has_equal_weights(space):
    channel_first = spaces.Box(0, 255, (3, 36, 36), "uint8")
    space = (
        spaces.Dict({"camera": channel_first, "joints": VECTOR})
        if isinstance(space, spaces.Dict)
        else space
    )
    router = Router(space, n_pathways=3, hidden_dim=8)
    rows = (
        {"camera": torch.rand(5, 3, 36, 36), "joints": torch.randn(5, 4)}
        if isinstance(space, spaces.Dict)
        else torch.randn(5, 4)
    )
    assert (router(rows) == 0).all()
    assert router(rows, router.draw_noise(rows, 1)).abs().min() > 0
    assert torch.equal(router.draw_noise(rows, 1), router.draw_noise(rows, 1))
    assert not torch.equal(router.draw_noise(rows, 1), router.draw_noise(rows, 2))


def test_observations_of_any_unit_leave_the_router_sensitive():
    router = Router(VECTOR, n_pathways=2, hidden_dim=8)
    torch.nn.init.normal_(router.mean.weight)
    far = torch.tensor([[1e4, -1e4, 1e3, 0.0], [2e4, -1e4, 1e3, 0.0]])
    z = router(far, None)
    assert not torch.equal(z[0], z[1])


def test_two_of_eight_active_pathways_cost_two_of_eight():
    rows, counted = torch.randn(64, 4), [0] * 8

    def counting_pathway(index):
        def compute(seen):
            counted[index] += len(seen)
            return seen[:, :2] * index

        return compute

    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    log_weights, active = pathway_weights(z, 2, torch.ones(8, dtype=torch.bool))
    outputs_of_each = dispatch([counting_pathway(index) for index in range(8)], rows, active, 2)
    assert sum(counted) == 2 * 64, "rows through encoders, as many as through two of them"
    assert counted == active.sum(dim=0).tolist()
    assert (log_weights.isfinite() == active).all()
    assert (outputs_of_each[~active] == 0).all()
