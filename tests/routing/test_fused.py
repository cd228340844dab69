"""What was heard, routed and aggregated as one operation: the same numbers as one operation after another."""

import pytest
import torch
from sb3_contrib import TRPO
from toys import IMAGE, Toy, target, tiny_hub

from hubrl import BadConfig, CachedVecEnv
from hubrl.methods import create
from hubrl.methods.hub_pathway import HubPathway
from hubrl.nn.losses import inject
from hubrl.routing.target import Target


def made(**options):
    torch.manual_seed(0)
    space = Toy(IMAGE).observation_space
    channels_first = type(space)(0, 255, (3, 36, 36), space.dtype)
    sources = list(tiny_hub(Toy(IMAGE)))
    method = create("hub-pathway", sources, Target(channels_first), {"fresh": False, "router_reads": "features", **options})
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return method.train()


def learnt(method, heard):
    """Features, log-weights, loss, and the gradients of a loss of the features and of the exploration loss."""
    with method.pathways.reminded(heard):
        routed = method(heard)
    features = inject(routed.features, routed.loss) if routed.loss.requires_grad else routed.features
    outer = torch.linspace(-1, 1, features.numel()).view_as(features)
    return [routed.features, routed.log_weights, routed.loss, *torch.autograd.grad((features * outer).sum(), list(parameters(method)))]


def parameters(method):
    return [parameter for name, parameter in method.named_parameters() if not name.startswith("router.spread")]


def test_one_operation_says_and_learns_what_many_do(monkeypatch):
    method = made(explore_coef=0.7)
    heard = torch.randn(9, sum(method.pathways.widths))
    assert method._is_plain
    one = learnt(method, heard)
    monkeypatch.setattr(HubPathway, "_is_plain", False)
    many = learnt(method, heard)
    assert len(one) == len(many) == 3 + 4 + 2 + 4
    for found, wanted in zip(one, many, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"fresh": True}, {"top_k": 1}, {"explore_coef": 0.0}])
def test_whatever_else_goes_one_operation_after_another(options):
    assert not made(**options)._is_plain


def test_who_was_dropped_is_not_among_them():
    method = made()
    method.trust([True, False], [0.0, 0.0])
    assert not method._is_plain


def test_an_algorithm_that_differentiates_its_gradient_is_told_so():
    hub = tiny_hub(Toy(IMAGE))
    options = {"fresh": False, "router_reads": "features", "cached": True}
    kwargs = hub.agent(TRPO, **options)
    model = target(TRPO, CachedVecEnv(Toy(IMAGE), kwargs), kwargs)
    with pytest.raises(BadConfig, match=r"\(TRPO does\), through which a loss cannot be injected; set explore_coef=0"):
        model.learn(64)
