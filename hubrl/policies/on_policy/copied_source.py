"""A source's network, copied into SB3's own actor and critic."""

from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from hubrl.errors import SpaceMismatch
from hubrl.formats.cards import Declared, SourceCard
from hubrl.nn.popart import PopArtLinear
from hubrl.policies.on_policy.actor_snapshot import learning_parts
from hubrl.sources.heads import CategoricalAction, GaussianAction, StateValue
from hubrl.sources.layers import Kernel, kernels
from hubrl.sources.source import Source
from hubrl.sources.trunks import ACTIVATIONS

UNKNOWN_LOGIT = -10.0
"""Bias of an action that the source does not have, so that its copy hardly ever chooses it at
first [new]."""


def shape_to_copy(cards: Sequence[SourceCard]) -> dict[str, Any]:
    """Layers like those of the first source that can be copied, as SB3's keyword arguments.

    Empty where there is none.
    """
    for card in cards:
        network = card.network
        if not isinstance(network, Declared) or network.action is None:
            continue
        if network.action.kind in ("categorical", "gaussian"):
            widths = list(network.hidden.widths)
            shape: dict[str, Any] = {"net_arch": {"pi": widths, "vf": widths}}
            if widths:
                shape["activation_fn"] = ACTIVATIONS[network.hidden.activation]
            images = [trunk.linear for trunk in network.trunks.values() if trunk.linear is not None]
            if len(images) == len(network.trunks) == 1:
                shape["features_extractor_kwargs"] = {"features_dim": images[0]}
            return shape
    return {}


def check_copies(
    policy: ActorCriticPolicy, sources: Sequence[Source], meanings: tuple[str, ...] | None
) -> list[bool]:
    """Whether each source can be copied.

    Args:
        policy: SB3's policy.
        sources: The sources.
        meanings: Meanings of the target's discrete actions, if known.

    Raises:
        SpaceMismatch: If none can, with the first one and why.
    """
    problems = [_problem(policy, source, meanings) for source in sources]
    if all(problems):
        raise SpaceMismatch(
            "Method 'warm-start' goes on from a copy of a source, and source "
            f"{sources[0].name!r} {problems[0]}; use method 'hub-pathway'."
        )
    return [problem is None for problem in problems]


@torch.no_grad()
def copy_source(
    policy: ActorCriticPolicy, source: Source, meanings: tuple[str, ...] | None
) -> None:
    """Copy a source's layers into SB3's actor, and its value layers into the critic if they fit.

    The optimizer's state of both is reset.

    Args:
        policy: SB3's policy, of which `check_copies` said that it fits.
        source: The source.
        meanings: Meanings of the target's discrete actions, if known.
    """
    *own, head = kernels(source, head=True).values()
    *wanted, action_net = _actor_layers(policy)
    for layer, given in zip(wanted, own, strict=True):
        _copy(layer, given.weight, given.bias)
    weight, bias = _matched(head, source.card.action_meanings, meanings)
    _copy(action_net, weight, bias)
    action = source.action
    if isinstance(action, GaussianAction) and isinstance(action.log_std, Tensor):
        policy.log_std.copy_(action.log_std)
    _copy_critic(policy, source)
    for parameter in learning_parts(policy).parameters():
        policy.optimizer.state.pop(parameter, None)
    if isinstance(policy.value_net, PopArtLinear):
        policy.value_net.clear_units()


def _copy_critic(policy: ActorCriticPolicy, source: Source) -> None:
    """Copy the value layers of a critic that reads the actor's features, where they fit."""
    critic = source.critic
    if not isinstance(critic, StateValue) or critic.trunks is not None:
        return
    if not policy.share_features_extractor:
        policy.vf_features_extractor.load_state_dict(policy.pi_features_extractor.state_dict())
    own = [*_layers(critic.hidden), critic.value]
    wanted = [*_layers(policy.mlp_extractor.value_net), policy.value_net]
    if [layer.weight.shape for layer in own] == [layer.weight.shape for layer in wanted]:
        for layer, given in zip(wanted, own, strict=True):
            _copy(layer, given.weight, given.bias)


def _problem(
    policy: ActorCriticPolicy, source: Source, meanings: tuple[str, ...] | None
) -> str | None:
    """Why a source's layers cannot become those of SB3's actor; None if they can."""
    action, card = source.action, source.card
    if not isinstance(action, CategoricalAction | GaussianAction):
        return "does not act by logits or by a Gaussian"
    if isinstance(action, GaussianAction) and (
        action.head.kind != "gaussian"
        or action.head.log_std != "parameter"
        or action.head.mean_clip is not None
    ):
        return "acts by a Gaussian with a bound or a standard deviation that PPO's does not have"
    if source.normaliser is not None or card.preprocessing or card.action_map is not None:
        return "changes its observations or its actions"
    if card.normalize_images != policy.normalize_images:
        return "reads images on another scale"
    *own, head = (tuple(layer.weight.shape) for layer in kernels(source, head=True).values())
    *wanted, action_net = (tuple(layer.weight.shape) for layer in _actor_layers(policy))
    matched = card.action_meanings is not None and meanings is not None
    if own != wanted or head[1:] != action_net[1:] or (head != action_net and not matched):
        return (
            f"has layers of shapes {_listed([*own, head])}, and the agent has "
            f"{_listed([*wanted, action_net])}"
        )
    both = _activations([source.encoder]), _activations(_actor_parts(policy))
    if both[0] != both[1]:
        return f"has activations {_listed(both[0])}, and the agent has {_listed(both[1])}"
    return None


def _listed(shapes: Sequence[object]) -> str:
    return ", ".join(str(shape) for shape in shapes) or "none"


def _matched(
    head: Kernel, own: tuple[str, ...] | None, wanted: tuple[str, ...] | None
) -> tuple[Tensor, Tensor]:
    """Rows of the action head in the order of the target's actions."""
    given = head.weight.new_zeros(len(head.weight)) if head.bias is None else head.bias
    if own is None or wanted is None or own == wanted:
        return head.weight, given
    weight = head.weight.new_zeros(len(wanted), head.weight.shape[1])
    bias = head.weight.new_full((len(wanted),), UNKNOWN_LOGIT)
    for row, meaning in enumerate(wanted):
        if meaning in own:
            weight[row], bias[row] = head.weight[own.index(meaning)], given[own.index(meaning)]
    return weight, bias


def _actor_parts(policy: ActorCriticPolicy) -> list[nn.Module]:
    return [policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net]


def _actor_layers(policy: ActorCriticPolicy) -> list[Kernel]:
    return [layer for part in _actor_parts(policy) for layer in _layers(part)]


def _layers(part: nn.Module) -> list[Kernel]:
    return [layer for layer in part.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def _activations(parts: Sequence[nn.Module]) -> list[str]:
    kinds = tuple(kind for kind in ACTIVATIONS.values() if kind is not nn.Identity)
    modules = (module for part in parts for module in part.modules())
    return [type(module).__name__ for module in modules if isinstance(module, kinds)]


def _copy(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    assert isinstance(layer, nn.Linear | nn.Conv2d)
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)
