"""Self-test of reading: a zip's source computes what SB3's own policy computes with its weights.

SB3's policy is built in the sizes that were read from the weights, with the arguments that the zip
names as plain data, and loads the zip's tensors. What reading assumes about a network, its
preprocessing and its actions is so compared with SB3's own code. Zips that the installed SB3 cannot
rebuild are not compared: of other versions, of classes of their own, stripped, or over a hub.
"""

import importlib
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import Tensor

from hubrl.errors import BadFile, HubrlError
from hubrl.formats.cards import Declared, SourceCard
from hubrl.reading.live_check import same_outputs
from hubrl.sources.source import Source
from hubrl.sources.trunks import ACTIVATIONS

ROWS = 8
"""Most observations that are compared; each costs as much as one of a training."""

SAMPLED = 2**20
"""Most numbers in the observations that are compared, unless one has more."""

MOST_WEIGHTS = 2**26
"""Numbers of weights above which a zip is not compared, for its memory."""

CLASSES = {
    "stable_baselines3.common.policies": "ActorCriticPolicy",
    "sb3_contrib.common.maskable.policies": "MaskableActorCriticPolicy",
    "stable_baselines3.dqn.policies": "DQNPolicy",
    "stable_baselines3.sac.policies": "SACPolicy",
    "stable_baselines3.td3.policies": "TD3Policy",
    "sb3_contrib.qrdqn.policies": "QRDQNPolicy",
    "sb3_contrib.tqc.policies": "TQCPolicy",
}
"""Policy of each module that is read; the extractor is an argument."""

ARGUMENTS = (
    "full_std",
    "use_expln",
    "squash_output",
    "share_features_extractor",
    "normalize_images",
    "clip_mean",
    "use_sde",
)
"""Arguments beside the networks' sizes that change what a policy computes."""

NAMED_ACTIVATIONS = {activation.__name__: activation for activation in ACTIVATIONS.values()}
"""Activations by torch's names."""

_CANNOT = (
    RuntimeError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    NotImplementedError,
    ImportError,
    HubrlError,
)
"""Errors of SB3 on arguments or weights of which it makes no policy."""


def check_against_sb3(
    module: str,
    arguments: dict[str, Any],
    original: dict[str, Tensor],
    card: SourceCard,
    tensors: dict[str, Tensor],
) -> None:
    """Refuse a source that computes other actions than SB3's policy, where SB3 can rebuild it.

    Args:
        module: Module of the policy's class, one of those that are read.
        arguments: The policy's keyword arguments as plain data, and `use_sde`.
        original: The weights by SB3's names.
        card: The card that was read.
        tensors: The weights by hubrl's names.

    Raises:
        BadFile: If they differ, or the weights do not fit the card.
    """
    network = card.network
    if not isinstance(network, Declared) or network.hub is not None or network.action is None:
        return
    if sum(tensor.numel() for tensor in original.values()) > MOST_WEIGHTS:
        return
    with torch.random.fork_rng(devices=[]):
        source = Source.from_card(card, tensors)
        try:
            policy = _rebuild(module, arguments, original, card, network)
            numbers = get_flattened_obs_dim(card.observations)
            same = same_outputs(policy, source, max(1, min(ROWS, SAMPLED // numbers)))
        except _CANNOT:
            return
    if same is False:
        raise BadFile(
            f"The agent {source.name!r} computes other actions in SB3 than hubrl reads from its "
            "file; make a hubrl.Source from its policy's modules instead, and please report it."
        )


def _rebuild(
    module: str,
    arguments: dict[str, Any],
    tensors: dict[str, Tensor],
    card: SourceCard,
    network: Declared,
) -> BasePolicy:
    """SB3's policy with the weights of a zip, which it shares."""
    kwargs = {name: arguments[name] for name in ARGUMENTS if name in arguments}
    kwargs |= {**_sizes(network), **_extractor(card, network)}
    if "activation_fn" in arguments:
        name = str(arguments["activation_fn"]).rsplit(".", 1)[-1].rstrip("'>")
        kwargs["activation_fn"] = NAMED_ACTIVATIONS[name]
    policy_class = getattr(importlib.import_module(module), CLASSES[module])
    policy: BasePolicy = policy_class(card.observations, card.actions, _no_rate, **kwargs)
    policy.load_state_dict(tensors)
    policy.set_training_mode(False)
    return policy


def _sizes(network: Declared) -> dict[str, Any]:
    """Arguments for the sizes of the networks, as the weights have them."""
    actor, head, value = list(network.hidden.widths), network.action, network.value
    if head is not None and head.kind in ("q-values", "quantiles"):
        return {"net_arch": actor, **({"n_quantiles": head.quantiles} if head.quantiles else {})}
    if value is None:
        raise ValueError("an agent without a critic")
    critic = list(value.layers.widths)
    if value.kind == "state":
        return {"net_arch": {"pi": actor, "vf": critic}, "ortho_init": False}
    quantiles = {"n_quantiles": value.quantiles} if value.quantiles > 1 else {}
    return {"net_arch": {"pi": actor, "qf": critic}, "n_critics": value.critics, **quantiles}


def _extractor(card: SourceCard, network: Declared) -> dict[str, Any]:
    """The features extractor and its arguments, by the trunks that were read."""
    widths = [trunk.linear for trunk in network.trunks.values() if trunk.convs]
    if isinstance(card.observations, spaces.Dict):
        own = {"cnn_output_dim": widths[0]} if widths else {}
        return {"features_extractor_class": CombinedExtractor, "features_extractor_kwargs": own}
    if not widths:
        return {"features_extractor_class": FlattenExtractor}
    return {
        "features_extractor_class": NatureCNN,
        "features_extractor_kwargs": {"features_dim": widths[0]},
    }


def _no_rate(_: float) -> float:
    return 0.0
