"""What was stored, routed and aggregated as one operation: the same numbers as one operation after another."""

import pytest
import torch
from sb3_contrib import TRPO
from toys import IMAGE, Toy, target, tiny_hub

from hubrl import BadConfig, CachedVecEnv
from hubrl.methods import create
from hubrl.methods.hub_pathway import HubPathway
from hubrl.nn.losses import inject
from hubrl.routing.target import TargetSpec


def made(**options):
    torch.manual_seed(0)
    space = Toy(IMAGE).observation_space
    channels_first = type(space)(0, 255, (3, 36, 36), space.dtype)
    sources = list(tiny_hub(Toy(IMAGE)))
    method = create(
        "hub-pathway",
        sources,
        TargetSpec(channels_first),
        {"fresh": False, "router_reads": "features", **options},
    )
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return method.train()


def learnt(method, stored):
    """Features, log-weights, loss, and the gradients of a loss of the features and of the exploration loss."""
    routed = method(stored, source_outputs=stored)
    features = (
        inject(routed.features, routed.loss) if routed.loss.requires_grad else routed.features
    )
    outer = torch.linspace(-1, 1, features.numel()).view_as(features)
    return [
        routed.features,
        routed.log_weights,
        routed.loss,
        *torch.autograd.grad((features * outer).sum(), list(parameters(method))),
    ]


def parameters(method):
    return [
        parameter
        for name, parameter in method.named_parameters()
        if not name.startswith("router.spread")
    ]


def test_the_fused_operation_computes_and_learns_the_same(monkeypatch):
    method = made(explore_coef=0.7)
    stored = torch.randn(9, sum(method.pathways.widths))
    assert method._is_fused
    one = learnt(method, stored)
    monkeypatch.setattr(HubPathway, "_is_fused", False)
    many = learnt(method, stored)
    assert len(one) == len(many) == 3 + 4 + 2 + 4
    for found, wanted in zip(one, many, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"fresh": True}, {"top_k": 1}, {"explore_coef": 0.0}])
def test_other_options_are_not_fused(options):
    assert not made(**options)._is_fused


def test_a_hub_with_dropped_sources_is_not_fused():
    method = made()
    method.apply_probe([True, False], [0.0, 0.0])
    assert not method._is_fused


def test_an_algorithm_that_differentiates_its_gradient_is_refused():
    hub = tiny_hub(Toy(IMAGE))
    options = {"fresh": False, "router_reads": "features", "cached": True, "explore_coef": 0.001}
    kwargs = hub.agent(TRPO, **options)
    model = target(TRPO, CachedVecEnv(Toy(IMAGE), kwargs), kwargs)
    with pytest.raises(
        BadConfig,
        match=r"\(TRPO does\), through which a loss cannot be injected; set explore_coef=0",
    ):
        model.learn(64)
