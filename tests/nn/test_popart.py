"""A critic in units of the returns: by hand, and in training."""

import math

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import STEER, VECTOR, Toy, target, tiny_hub

from hubrl import HubCallback
from hubrl.nn.optimizers import HubAdam
from hubrl.nn.popart import MIN_RELATIVE_STD, DiscountedReturns, PopArtLinear


def test_a_head_computes_its_layers_values_until_it_is_rescaled():
    layer, rows = nn.Linear(3, 1), torch.randn(5, 3)
    head = PopArtLinear(layer)
    assert torch.equal(head(rows), layer(rows))
    assert head.weight is layer.weight
    assert not head.rescaled
    head.rescale(100.0, 20.0)
    torch.testing.assert_close(head(rows), layer(rows) * 20 + 100)
    torch.testing.assert_close(head.to_linear()(rows), head(rows))


def test_values_stay_the_same_when_a_head_is_rescaled_again():
    head, rows = PopArtLinear(nn.Linear(3, 1)), torch.randn(5, 3)
    head.rescale(100.0, 20.0)
    before = head(rows).detach()
    head.rescale(-7.0, 3.0)
    torch.testing.assert_close(head(rows), before)
    assert (float(head.shift), float(head.scale)) == (-7.0, 3.0)


def test_a_squared_error_is_learned_as_if_values_and_returns_were_divided_by_the_scale():
    head, rows, returns = (
        PopArtLinear(nn.Linear(3, 1)),
        torch.randn(5, 3),
        300 + 50 * torch.randn(5, 1),
    )
    head.rescale(300.0, 50.0)
    (head(rows) - returns).square().mean().backward()
    found = head.weight.grad.clone()
    head.weight.grad = None
    (
        nn.functional.linear(rows, head.weight, head.bias) - (returns - 300) / 50
    ).square().mean().backward()
    torch.testing.assert_close(found, head.weight.grad)


def test_returns_are_summed_up_with_a_discount_and_anew_in_every_episode():
    returns = DiscountedReturns(2, 0.5)
    returns.add(np.array([1.0, 2.0]), np.array([False, True]))
    returns.add(np.array([1.0, 2.0]), np.array([False, False]))
    sums = [1.0, 2.0, 1.5, 2.0]
    assert returns.moments() == pytest.approx((np.mean(sums), np.std(sums)))
    returns.add(np.array([0.25, 0.0]), np.array([False, False]))
    later = [1.0, 1.0]
    mean = (np.mean(sums) + np.mean(later)) / 2
    square = (np.mean(np.square(sums)) + np.mean(np.square(later))) / 2
    assert returns.moments() == pytest.approx((mean, math.sqrt(square - mean**2)))


def test_an_even_gait_has_a_spread_all_the_same_and_no_rewards_have_none():
    returns = DiscountedReturns(1, 0.0)
    returns.add(np.array([5.0]), np.array([False]))
    assert returns.moments() == pytest.approx((5.0, MIN_RELATIVE_STD * 5))
    assert DiscountedReturns(1, 0.9).moments() == (0.0, 0.0)


def test_parameters_that_are_stepped_together_go_where_those_go_that_are_not():
    torch.manual_seed(0)
    start = [torch.randn(3, 2), torch.randn(2), torch.randn(())]
    ends = []
    for optimizer_class in (HubAdam, torch.optim.Adam):
        parameters = [nn.Parameter(tensor.clone()) for tensor in start]
        optimizer = optimizer_class(parameters, lr=1e-2, eps=1e-5)
        if isinstance(optimizer, HubAdam):
            optimizer.use_torch_kernel()
        for step in range(20):
            for parameter in parameters:
                parameter.grad = (parameter.detach() - step).sin()
            optimizer.step()
        ends.append(parameters)
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize("how", [{}, {"fused": True}, {"foreach": True}, {"fused": False}])
def test_adam_steps_by_its_own_options(how):
    parameter = nn.Parameter(torch.ones(3))
    optimizer = HubAdam([parameter], lr=1e-2, **how)
    fused = how.get("fused", "foreach" not in how)
    assert bool(optimizer.param_groups[0]["fused"]) == fused
    if how:
        optimizer.use_torch_kernel()
        assert bool(optimizer.param_groups[0]["fused"]) == fused, (
            "values that were computed before are not changed"
        )
    parameter.grad = torch.ones(3)
    optimizer.step()
    optimizer.use_torch_kernel()
    assert bool(optimizer.param_groups[0]["fused"]) == fused, (
        "steps do not change their kind on the way"
    )


class Rich(Toy):
    """Every step earns a thousand."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 1000.0, *rest


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_a_critic_is_scaled_to_the_returns_from_the_first_rollout_on(algorithm, tmp_path):
    env = make_vec_env(lambda: Rich(VECTOR, STEER), n_envs=2, seed=0)
    values = []

    class Watch(BaseCallback):
        def _on_rollout_end(self):
            values.append(self.model.rollout_buffer.values.mean())

        def _on_step(self):
            return True

    def trained(**options):
        values.clear()
        model = target(algorithm, env, tiny_hub(Toy()).agent(algorithm, **options), gamma=0.8)
        model.learn(128, callback=[HubCallback(probe_share=0), Watch()])
        return model

    model = trained()
    assert values[0] > 1000
    head = model.policy.value_net
    assert head.rescaled
    model.save(tmp_path / "model.zip")
    rows = torch.randn(4, 4)
    torch.testing.assert_close(
        algorithm.load(tmp_path / "model.zip", device="cpu").policy.predict_values(rows),
        model.policy.predict_values(rows),
    )
    trained(scale_values=False)
    assert abs(values[0]) < 100


def test_a_hub_whose_sources_were_dropped_is_not_rescaled():
    env = make_vec_env(lambda: Rich(VECTOR, STEER), n_envs=2, seed=0)
    model = target(PPO, env, tiny_hub(Toy()).agent(PPO))
    model.policy.method.apply_probe([False, False, True], [0.0] * 3)
    model.learn(64, callback=HubCallback(probe_share=0))
    assert not model.policy.value_net.rescaled


def test_a_critic_that_has_learned_keeps_its_values_when_it_is_rescaled_later():
    head, rows = PopArtLinear(nn.Linear(3, 1)), torch.randn(5, 3)
    before = head(rows).detach()
    head.rescale(100.0, 20.0, learned=True)
    assert head.rescaled
    torch.testing.assert_close(head(rows), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learned", [False, True])
def test_only_a_new_critic_jumps_to_what_returns_are(learned, monkeypatch):
    """A2C updates before returns were seen for long enough; PPO's first rollout here is long enough."""
    env = make_vec_env(lambda: Toy(VECTOR, STEER, length=10_000), n_envs=2, seed=0)
    algorithm, n_steps = (A2C, 5) if learned else (PPO, 256)
    model, calls = (
        target(algorithm, env, tiny_hub(Toy(VECTOR, STEER)).agent(algorithm), n_steps=n_steps),
        [],
    )
    rescale = PopArtLinear.rescale

    def spy(head, mean, std, **how):
        calls.append(how["learned"])
        rescale(head, mean, std, **how)

    monkeypatch.setattr(PopArtLinear, "rescale", spy)
    model.learn(1024, HubCallback(probe_share=0.0))
    assert calls[0] is learned
