"""Agents from the zip files that SB3 and sb3-contrib save, from plain JSON and weights alone."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from hubrl.errors import BadFile
from hubrl.formats.cards import ActionHead, Declared, Layers, Registered, SourceCard, ValueHead
from hubrl.formats.limits import DEFAULT_LIMITS, Limits
from hubrl.formats.spaces import SpaceDict, space_from_dict
from hubrl.reading.check_size import check_hub
from hubrl.reading.sb3_archive import HUB_DQN, HUB_POLICY, Archive, class_name
from hubrl.reading.sb3_weights import OWN_NETWORK, StateDict, without_wrappers
from hubrl.reading.self_test import check_against_sb3

KNOWN_EXTRACTORS = (
    "stable_baselines3.common.torch_layers.FlattenExtractor",
    "stable_baselines3.common.torch_layers.NatureCNN",
    "stable_baselines3.common.torch_layers.CombinedExtractor",
    "hubrl.HubExtractor",
    "hubrl.BF16NatureCNN",
)


def read_archive(
    path: Path | io.BytesIO, name: str, limits: Limits = DEFAULT_LIMITS
) -> tuple[SourceCard, dict[str, Tensor]]:
    """The card and the weights of the agent in an SB3 zip; nothing in it is executed.

    Args:
        path: The zip, as a file or in memory.
        name: Name of the source.
        limits: Limits on the file.

    Raises:
        BadFile: If the file is missing, damaged, hostile, or holds a network that SB3 does not
            have.
    """
    archive = Archive(path, name, limits)
    try:
        return _read(archive, path, name)
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:160]
        raise BadFile(
            f"{archive.path} describes an agent that cannot be ({type(error).__name__}: {reason})."
        ) from error


def _read(
    archive: Archive, path: Path | io.BytesIO, name: str
) -> tuple[SourceCard, dict[str, Tensor]]:
    fields: dict[str, Any] = {
        "name": name,
        "algorithm": archive.algorithm,
        "observation_space": archive.space("observation"),
        "action_space": archive.space("action"),
        "normalize_images": bool(archive.policy_kwargs.get("normalize_images", True)),
        "steps": _whole(archive.data.get("num_timesteps")),
        "seed": _whole(archive.data.get("seed")),
        "origin": path.name if isinstance(path, Path) else None,
    }
    if archive.policy_module in (HUB_POLICY, HUB_DQN):
        check_hub(
            archive.policy_kwargs, archive.policy_kwargs.get("hub"), archive.tensors, archive.limits
        )
        network = Registered(
            kind="registered", builder=archive.policy_module, kwargs=hub_kwargs(archive)
        )
        return SourceCard(network=network, **fields), {
            f"encoder.policy.{k}": v for k, v in archive.tensors.items()
        }
    _refuse_custom(archive)
    if archive.hub is not None:
        check_hub({}, archive.hub, archive.tensors, archive.limits)
    weights = StateDict(without_wrappers(archive.tensors), str(archive.path))
    network_card = read_network(weights, archive, fields["observation_space"])
    card, tensors = SourceCard(network=network_card, **fields), weights.finish()
    sde = {"use_sde": True} if archive.data.get("use_sde") is True else {}
    arguments = {**archive.policy_kwargs, **sde}
    check_against_sb3(archive.policy_module, arguments, weights.tensors, card, tensors)
    return card, tensors


def hub_kwargs(archive: Archive) -> dict[str, Any]:
    """Keyword arguments of a policy over a hub's outputs, as plain data.

    Raises:
        BadFile: If one of them is not plain data.
    """
    kwargs = {
        key: value
        for key, value in archive.policy_kwargs.items()
        if not key.startswith((":", "optimizer"))
    }
    if "activation_fn" in kwargs:
        kwargs["activation_fn"] = archive.activation
    odd = [key for key, value in kwargs.items() if isinstance(value, str) and value.startswith("<")]
    if odd:
        raise BadFile(
            f"{archive.path} was trained with the policy argument {odd[0]}={kwargs[odd[0]]}, "
            f"which is not plain data; {OWN_NETWORK}."
        )
    return kwargs


def _refuse_custom(archive: Archive) -> None:
    extractor = class_name(
        archive.policy_kwargs.get("features_extractor_class", KNOWN_EXTRACTORS[0])
    )
    if extractor not in KNOWN_EXTRACTORS:
        raise BadFile(
            f"{archive.path} has a features extractor of its own ({extractor}), which hubrl "
            f"cannot declare; {OWN_NETWORK}."
        )


def read_network(weights: StateDict, archive: Archive, observation_space: SpaceDict) -> Declared:
    """Take the parts of a source out of SB3's state dict."""
    keys = list(observation_space["spaces"]) if observation_space["type"] == "Dict" else [""]
    match archive.algorithm:
        case "DQN" | "QRDQN":
            network = _q_network(weights, archive, keys)
        case "SAC" | "TQC" | "TD3" | "DDPG":
            network = _actor_critic(weights, archive, keys)
        case _:
            network = _on_policy(weights, archive, keys)
    if archive.hub is None:
        return network
    # As a source this agent reads raw observations, not cached features.
    return network.model_copy(
        update={"hub": {key: value for key, value in archive.hub.items() if key != "cached"}}
    )


def _on_policy(weights: StateDict, archive: Archive, keys: list[str]) -> Declared:
    activation = archive.activation
    own = weights.has("vf_features_extractor.") and not archive.policy_kwargs.get(
        "share_features_extractor", True
    )
    policy_trunk = "pi_features_extractor" if own else "features_extractor"
    trunks = weights.trunks(policy_trunk, "encoder.trunks", keys)
    shared = "mlp_extractor.shared_net"
    hidden, _ = weights.linears((shared, "mlp_extractor.policy_net"), "encoder.hidden")
    value = _state_value(weights, archive, keys, own=own)
    weights.ignore_copies(
        policy_trunk, "features_extractor", "pi_features_extractor", "vf_features_extractor"
    )
    return Declared(
        kind="declared",
        trunks=trunks,
        hidden=Layers(widths=hidden, activation=activation),
        action=_on_policy_head(weights, archive),
        value=value,
    )


def _state_value(
    weights: StateDict, archive: Archive, keys: list[str], *, own: bool
) -> ValueHead | None:
    """The critic; none if the agent was stripped of it."""
    if not weights.has("value_net.") and not weights.has("mlp_extractor.value_net."):
        weights.ignore("vf_features_extractor.")
        return None
    if own:
        weights.trunks("vf_features_extractor", "critic.trunks", keys)
    widths, _ = weights.linears(
        ("mlp_extractor.shared_net", "mlp_extractor.value_net"), "critic.hidden"
    )
    weights.linear("value_net", "critic.value")
    layers = Layers(widths=widths, activation=archive.activation)
    return ValueHead(kind="state", trunk="own" if own else "shared", layers=layers)


def _on_policy_head(weights: StateDict, archive: Archive) -> ActionHead:
    if "log_std" not in weights:
        weights.linear("action_net", "action.logits")
        if archive.algorithm == "MaskablePPO" and archive.space("action")["type"] == "MultiBinary":
            # sb3-contrib gives every bit two logits (`maskable/distributions.py`); only their
            # difference counts.
            for name in ("action.logits.weight", "action.logits.bias"):
                pairs = weights.renamed[name]
                weights.renamed[name] = pairs[1::2] - pairs[::2]
        return ActionHead(kind="categorical")
    weights.linear("action_net", "action.mean")
    log_std = weights.take("log_std", "action.log_std")
    squashed = bool(archive.policy_kwargs.get("squash_output", False))
    if squashed and log_std.ndim == 1:
        _check_unsquashed(archive)
        squashed = False
    return _gaussian(archive, log_std, squashed=squashed, mean_clip=None)


def _check_unsquashed(archive: Archive) -> None:
    """Refuse `squash_output` without gSDE where it has two meanings.

    SB3 before 2.2 accepted it and had no tanh: rollouts clipped the Gaussian's actions, `predict`
    stretched them to the bounds. Both are the same for bounds of -1 and 1.

    Raises:
        BadFile: If the bounds are others.
    """
    space = space_from_dict(archive.space("action"))
    if not (isinstance(space, spaces.Box) and np.all(space.low == -1) and np.all(space.high == 1)):
        raise BadFile(
            f"{archive.path} has squash_output=True without use_sde, which SB3 before 2.2 read "
            "in two ways, and action bounds other than -1 and 1; train it again "
            "without squash_output."
        )


def _gaussian(
    archive: Archive, log_std: Tensor, *, squashed: bool, mean_clip: float | None
) -> ActionHead:
    sde = log_std.ndim == 2
    return ActionHead(
        kind="squashed-gaussian" if squashed else "gaussian",
        log_std="sde" if sde else "parameter",
        log_std_width=int(log_std.shape[1]) if sde else None,
        expln=bool(archive.policy_kwargs.get("use_expln", False)),
        mean_clip=mean_clip,
    )


def _q_network(weights: StateDict, archive: Archive, keys: list[str]) -> Declared:
    net = "q_net" if archive.algorithm == "DQN" else "quantile_net"
    trunks = weights.trunks(f"{net}.features_extractor", "encoder.trunks", keys)
    hidden, last = weights.linears((f"{net}.{net}",), "encoder.hidden", drop_last=True)
    outputs = weights.linear(last or f"{net}.{net}.0", "action.q")
    weights.ignore(f"{net}_target.")
    actions = int(archive.space("action")["n"])
    quantiles = outputs // actions if archive.algorithm == "QRDQN" else None
    kind = "q-values" if quantiles is None else "quantiles"
    return Declared(
        kind="declared",
        trunks=trunks,
        hidden=Layers(widths=hidden, activation=archive.activation),
        action=ActionHead(kind=kind, quantiles=quantiles),
    )


def _actor_critic(weights: StateDict, archive: Archive, keys: list[str]) -> Declared:
    activation = archive.activation
    trunks = weights.trunks("actor.features_extractor", "encoder.trunks", keys)
    deterministic = archive.algorithm in ("TD3", "DDPG")
    stack = "actor.mu" if deterministic else "actor.latent_pi"
    hidden, last = weights.linears((stack,), "encoder.hidden", drop_last=deterministic)
    action = _deterministic(weights, last) if deterministic else _squashed(weights, archive)
    value = _critics(
        weights,
        archive,
        keys,
        shared=bool(archive.policy_kwargs.get("share_features_extractor", False)),
    )
    weights.ignore("critic_target.", "actor_target.")
    weights.ignore_copies("actor.features_extractor", "critic.features_extractor")
    return Declared(
        kind="declared",
        trunks=trunks,
        hidden=Layers(widths=hidden, activation=activation),
        action=action,
        value=value,
    )


def _deterministic(weights: StateDict, last: str | None) -> ActionHead:
    weights.linear(last or "actor.mu.0", "action.mean")
    return ActionHead(kind="deterministic")


def _squashed(weights: StateDict, archive: Archive) -> ActionHead:
    if "actor.log_std" not in weights:
        weights.linear("actor.mu", "action.mean")
        weights.linear("actor.log_std", "action.log_std")
        return ActionHead(kind="squashed-gaussian", log_std="linear")
    clip = float(archive.policy_kwargs.get("clip_mean", 2.0))
    weights.linear("actor.mu.0" if clip > 0 else "actor.mu", "action.mean")
    log_std = weights.take("actor.log_std", "action.log_std", dims=2)
    return _gaussian(archive, log_std, squashed=True, mean_clip=clip if clip > 0 else None)


def _critics(
    weights: StateDict, archive: Archive, keys: list[str], *, shared: bool
) -> ValueHead | None:
    if not weights.has("critic."):
        return None
    if not shared:
        weights.trunks("critic.features_extractor", "critic.trunks", keys)
    critics, quantiles = 0, 1
    hidden: tuple[int, ...] = ()
    while weights.has(f"critic.qf{critics}."):
        new = f"critic.critics.{critics}"
        hidden, last = weights.linears((f"critic.qf{critics}",), new, drop_last=True)
        quantiles = weights.linear(str(last), f"{new}.{2 * len(hidden)}")
        critics += 1
    trunk = "shared" if shared else "own"
    return ValueHead(
        kind="action",
        trunk=trunk,
        layers=Layers(widths=hidden, activation=archive.activation),
        critics=critics,
        quantiles=quantiles,
    )


def _whole(number: Any) -> int | None:
    return (
        number
        if isinstance(number, int) and not isinstance(number, bool) and abs(number) < 2**63
        else None
    )
