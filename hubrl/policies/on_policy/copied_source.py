"""A source's network, copied into SB3's own actor and critic."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from hubrl.errors import SpaceMismatch
from hubrl.formats.cards import ActionHead, Declared, SourceCard, Trunk
from hubrl.nn.popart import PopArtLinear
from hubrl.policies.on_policy.actor_snapshot import learning_parts
from hubrl.sources.heads import GaussianAction, StateValue
from hubrl.sources.layers import Kernel, kernels
from hubrl.sources.source import Source
from hubrl.sources.trunks import ACTIVATIONS, NATURE

UNKNOWN_LOGIT = -10.0
"""Bias of an action that the source does not have, so that its copy hardly ever chooses it at
first [new]."""


def shape_to_copy(cards: Sequence[SourceCard]) -> dict[str, Any]:
    """Layers like those of the first source that can be copied, as SB3's keyword arguments.

    Empty where there is none.
    """
    for card in cards:
        head = _declared_head(card)
        if head is not None and head.kind in ("categorical", "gaussian"):
            return _shape_of(cast("Declared", card.network))
    return {}


def shape_of_copy(card: SourceCard, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Layers like a source's, as SB3's keyword arguments.

    None where the source cannot be copied, or not into a network of the given arguments.

    Args:
        card: The source's card.
        given: SB3's keyword arguments as they were given.
    """
    network = card.network
    if _card_problem(card, normalize_images=given.get("normalize_images", True)) is not None:
        return None
    if not isinstance(network, Declared) or not all(map(_is_sb3s, network.trunks.values())):
        return None
    shape = _shape_of(network)
    agrees = all(_agree(name, given[name], own) for name, own in shape.items() if name in given)
    return shape if agrees else None


def _agree(name: str, given: Any, own: Any) -> bool:
    """Whether a keyword argument that was given leaves the actor its shape."""
    if name == "net_arch":
        actor = given.get("pi", []) if isinstance(given, dict) else given
        return actor is not None and list(actor) == own["pi"]
    if name == "features_extractor_kwargs":
        return bool({**own, **given} == {**given, **own})
    return bool(given == own)


def _is_sb3s(trunk: Trunk) -> bool:
    """Whether a trunk is a NatureCNN, or flattens alone."""
    convs = [(conv.channels, conv.kernel, conv.stride) for conv in trunk.convs]
    padded = any(conv.padding for conv in trunk.convs)
    nature = convs == list(NATURE) and not padded and trunk.activation == "relu"
    return nature if trunk.linear is not None else not convs


def _declared_head(card: SourceCard) -> ActionHead | None:
    return card.network.action if isinstance(card.network, Declared) else None


def _shape_of(network: Declared) -> dict[str, Any]:
    widths = list(network.hidden.widths)
    value = network.value
    reads_trunk = value is not None and value.kind == "state" and value.trunk == "shared"
    critic = list(value.layers.widths) if value is not None and reads_trunk else widths
    shape: dict[str, Any] = {"net_arch": {"pi": widths, "vf": critic}}
    if widths:
        shape["activation_fn"] = ACTIVATIONS[network.hidden.activation]
    images = {trunk.linear for trunk in network.trunks.values() if trunk.convs and trunk.linear}
    if len(images) == 1:
        name = "features_dim" if "" in network.trunks else "cnn_output_dim"
        shape["features_extractor_kwargs"] = {name: images.pop()}
    return shape


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
    problems = [problem_of_copy(policy, source, meanings) for source in sources]
    if all(problems):
        raise SpaceMismatch(
            "Method 'warm-start' goes on from a copy of a source, and source "
            f"{sources[0].name!r} {problems[0]}; use method 'hub-pathway'."
        )
    return [problem is None for problem in problems]


def copy_source(
    policy: ActorCriticPolicy, source: Source, meanings: tuple[str, ...] | None
) -> None:
    """Copy a source's layers, and reset the optimizer's state of actor and critic.

    Arguments as of `copy_layers`.
    """
    copy_layers(policy, source, meanings)
    for parameter in learning_parts(policy).parameters():
        policy.optimizer.state.pop(parameter, None)
    if isinstance(policy.value_net, PopArtLinear):
        policy.value_net.clear_units()


@torch.no_grad()
def copy_layers(
    policy: ActorCriticPolicy, source: Source, meanings: tuple[str, ...] | None
) -> None:
    """Copy a source's layers into SB3's actor, and its value layers into the critic if they fit.

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
    if _reads_features(source.critic) and not policy.share_features_extractor:
        policy.vf_features_extractor.load_state_dict(policy.pi_features_extractor.state_dict())
    for layer, given in critic_layers(policy, source):
        _copy(layer, given.weight, given.bias)


def _reads_features(critic: nn.Module | None) -> bool:
    """Whether a critic reads the actor's features, and not those of an extractor of its own."""
    return isinstance(critic, StateValue) and critic.trunks is None


def critic_layers(policy: ActorCriticPolicy, source: Source) -> list[tuple[Kernel, Kernel]]:
    """Layers of SB3's critic beside those of a source's that fit them; empty if they do not."""
    critic = source.critic
    if not isinstance(critic, StateValue) or not _reads_features(critic):
        return []
    own = [*_layers(critic.hidden), critic.value]
    wanted = [*_layers(policy.mlp_extractor.value_net), policy.value_net]
    if [layer.weight.shape for layer in own] != [layer.weight.shape for layer in wanted]:
        return []
    activations = _activations([critic.hidden]), _activations([policy.mlp_extractor.value_net])
    return list(zip(wanted, own, strict=True)) if activations[0] == activations[1] else []


def _card_problem(card: SourceCard, *, normalize_images: bool) -> str | None:
    """The part of `problem_of_copy` that shows in a source's card."""
    head = _declared_head(card)
    if head is None or head.kind not in ("categorical", "gaussian", "squashed-gaussian"):
        return "does not act by logits or by a Gaussian"
    if isinstance(card.network, Declared) and card.network.hub is not None:
        return "reads observations through a hub"
    plain = head.kind == "gaussian" and head.log_std == "parameter" and head.mean_clip is None
    if head.kind != "categorical" and not plain:
        return "acts by a Gaussian with a bound or a standard deviation that PPO's does not have"
    if card.normalisation is not None or card.preprocessing or card.action_map is not None:
        return "changes its observations or its actions"
    if card.normalize_images != normalize_images:
        return "reads images on another scale"
    return None


def problem_of_copy(
    policy: ActorCriticPolicy, source: Source, meanings: tuple[str, ...] | None
) -> str | None:
    """Why a source's layers cannot become those of SB3's actor; None if they can."""
    card = source.card
    problem = _card_problem(card, normalize_images=policy.normalize_images)
    if problem is not None:
        return problem
    if _part_names(source.space) != _part_names(policy.observation_space):
        return "reads the parts of observations in another order"
    *own, head = (tuple(layer.weight.shape) for layer in kernels(source, head=True).values())
    *wanted, action_net = (tuple(layer.weight.shape) for layer in _actor_layers(policy))
    matched = card.action_meanings is not None and meanings is not None
    if own != wanted or head[1:] != action_net[1:] or (head != action_net and not matched):
        return (
            f"has layers of shapes {_listed([*own, head])}, and the agent has "
            f"{_listed([*wanted, action_net])}"
        )
    both = _activations([source.encoder]), _activations(actor_parts(policy))
    if both[0] != both[1]:
        return f"has activations {_listed(both[0])}, and the agent has {_listed(both[1])}"
    return None


def _part_names(space: spaces.Space[Any]) -> list[str]:
    return list(space.spaces) if isinstance(space, spaces.Dict) else []


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


def actor_parts(policy: ActorCriticPolicy) -> list[nn.Module]:
    """Features extractor, hidden and last layers of SB3's actor."""
    return [policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net]


def _actor_layers(policy: ActorCriticPolicy) -> list[Kernel]:
    return [layer for part in actor_parts(policy) for layer in _layers(part)]


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
