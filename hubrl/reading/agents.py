"""Entry points for every form of an agent: zip, folder, weights with a card, live model."""

import io
import os
import re
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from hubrl.errors import BadConfig, BadFile, SpaceMismatch
from hubrl.formats.cached_space import OBSERVATION
from hubrl.formats.cards import NAME_PATTERN, Declared, Normalisation, SourceCard, read_card
from hubrl.formats.files import is_there
from hubrl.formats.limits import DEFAULT_LIMITS, UNLIMITED, Limits
from hubrl.formats.spaces import describe
from hubrl.reading.check_size import check_parameters
from hubrl.reading.hugging_face import local_copy
from hubrl.reading.live_check import check_live
from hubrl.reading.locations import (
    AgentLocation,
    Location,
    Repository,
    is_remote,
    parse_repository,
    split_pair,
)
from hubrl.reading.sb3_zip import read_archive
from hubrl.reading.vecnormalize import VecNormalizeStatistics, read_statistics
from hubrl.reading.weights import is_saved_policy, read_weights
from hubrl.sources.source import Source

STATISTICS_NAMES = ("vecnormalize.pkl", "vec_normalize.pkl")

NO_AGENTS = ("train_eval_metrics.zip",)
"""Zips beside an agent in the RL Zoo's uploads to Hugging Face."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar")

CARD_SUFFIXES = (".yaml", ".yml")

KNOWN_PACKAGES = ("stable_baselines3.", "sb3_contrib.", "torch.", "builtins", "abc", "typing")
"""Packages whose classes have the same outputs as SB3's policies."""

COMPUTES = frozenset(
    ("forward", "_predict", "extract_features", "get_distribution", "_get_action_dist_from_latent")
)
"""Methods of a policy on which its actions depend."""

NO_AGENT = (
    "is no agent: expected an SB3 zip, a folder with one, a source's card, or weights with a card."
)

LOG_STD = "action.log_std"


def read_agent(
    path: AgentLocation,
    companion: Location | None = None,
    *,
    name: str | None = None,
    frozen: bool = True,
    limits: Limits = DEFAULT_LIMITS,
) -> Source:
    """Read one source from a file or folder, as plain data and weights alone.

    Args:
        path: An SB3 zip; a folder with an agent's zip (an RL Zoo run, a Hugging Face download, a
            run of hubrl) or with one source of a hub; a source's card (`.yaml`) or the same path
            without a suffix; bare weights (`.pth`, `.pt`, `.tar`, `.safetensors`) with a card;
            `hf://owner/name`, a repository of Hugging Face, or a file in it,
            `hf://owner/name/file.zip@revision`; or one of these and its companion, as a tuple or
            as `"agent.zip,statistics.pkl"`.
        companion: For a zip VecNormalize's file, which is found beside the zip if it is called as
            SB3, the RL Zoo or Hugging Face call it; for bare weights their card, which is found
            beside them if it has the same stem.
        name: Name of the source; by default its card's name or the file's, or the folder's where
            the file is `model.zip`; of a repository its own.
        frozen: Whether training will leave it as it is.
        limits: Limits on its files; wider ones for an agent that is trusted.

    Raises:
        BadFile: If a file is missing, damaged, hostile, or does not match its card, or cannot be
            downloaded.
        BadConfig: If a source cannot have the name, or a location is misspelled.
        SpaceMismatch: If the statistics are of another shape than the observations.
    """
    _check_name(name)
    path, companion = split_pair(path, companion)
    with ExitStack() as copies:
        local = copies.enter_context(local_copy(path))
        beside = None if companion is None else copies.enter_context(local_copy(companion))
        if name is None and is_remote(path):
            name = _repository_name(parse_repository(path))
        return _read_local(local, beside, name, frozen=frozen, limits=limits)


def _repository_name(repository: Repository) -> str | None:
    """The name of a repository's agent, where its file has none of its own."""
    named = repository.file and PurePosixPath(repository.file).stem != "model"
    return None if named else tidy(repository.name.rpartition("/")[2])


def _read_local(
    path: Path, companion: Path | None, name: str | None, *, frozen: bool, limits: Limits
) -> Source:
    folder = is_there(path, folder=True) and not _is_card(path)
    path = _agent_in(path) if folder else _with_suffix(path)
    if path.suffix == ".zip" and not _is_card(companion):
        return _zipped(path, companion, name, frozen=frozen, limits=limits)
    if _is_card(path):
        path, companion = path.with_suffix(".safetensors"), path
    card_path = companion or _card_beside(path)
    if companion is None and not is_there(card_path) and is_saved_policy(path, limits):
        return _zipped(path, None, name, frozen=frozen, limits=limits)
    if companion is None and not is_there(card_path):
        raise BadFile(_no_card(path, card_path))
    return _bare(path, card_path, name, frozen=frozen, limits=limits)


def _no_card(path: Path, card_path: Path) -> str:
    """Sentence about weights without a card, or a file that is none."""
    if path.suffix not in WEIGHT_SUFFIXES:
        return f"{path} {NO_AGENT}"
    if not is_there(path):
        return f"There is no file {path}."
    return (
        f"{path} is no zip or policy that SB3 saved, and there is no card {card_path} of its "
        "weights; write one, as in agents/cards, or make a hubrl.Source from your own modules."
    )


def _with_suffix(path: Path) -> Path:
    """The card or the zip of a path without a suffix, as SB3's `load` completes a path."""
    if is_there(path):
        return path
    candidates = [Path(f"{path}{suffix}") for suffix in (".yaml", ".yml", ".zip")]
    return next((candidate for candidate in candidates if is_there(candidate)), path)


def _is_card(path: Path | None) -> bool:
    return path is not None and path.suffix in CARD_SUFFIXES


def _card_beside(path: Path) -> Path:
    """The card of bare weights: of the same stem, or of the same name with `.yaml` behind it."""
    own = path.with_suffix(".yaml")
    candidates = [own, path.with_suffix(".yml"), Path(f"{path}.yaml"), Path(f"{path}.yml")]
    found = next((candidate for candidate in candidates if is_there(candidate)), None)
    if found is None and path.suffix not in WEIGHT_SUFFIXES and not is_there(path):
        raise BadFile(f"{path} {NO_AGENT}")
    return found or own


def _zipped(
    path: Path, companion: Path | None, name: str | None, *, frozen: bool, limits: Limits
) -> Source:
    stem = path.resolve().parent.name if path.stem == "model" else path.stem
    card, tensors = read_archive(path, name or tidy(stem), limits)
    beside = companion or _statistics_beside(path)
    return _normalised(
        card, tensors, read_statistics(beside, limits) if beside else None, frozen=frozen
    )


def read_live(model: BaseAlgorithm, name: str, *, frozen: bool = True) -> Source:
    """Read one source from a model in memory, with the statistics of its VecNormalize if any.

    Args:
        model: Any of the algorithms that hubrl reads from zips.
        name: Name of the source.
        frozen: Whether training will leave it as it is.

    Raises:
        BadFile: If its network is not one of SB3's, or a module of it was exchanged.
        BadConfig: If a source cannot have the name.
    """
    _check_name(name)
    saved = io.BytesIO()
    model.save(saved)
    saved.seek(0)
    card, tensors = read_archive(saved, name, UNLIMITED)
    check_live(model, Source.from_card(card, tensors))
    vec = model.get_vec_normalize_env()
    return _normalised(card, tensors, None if vec is None else live_statistics(vec), frozen=frozen)


def read_live_policy(policy: BasePolicy, name: str, *, frozen: bool = True) -> Source:
    """Read one source from a policy in memory without an algorithm, as of imitation learning.

    Args:
        policy: A policy of SB3.
        name: Name of the source.
        frozen: Whether training will leave it as it is.

    Raises:
        BadFile: If its network is not one of SB3's.
        BadConfig: If a source cannot have the name.
    """
    _check_name(name)
    saved = io.BytesIO()
    own = [kind for kind in type(policy).__mro__ if not kind.__module__.startswith(KNOWN_PACKAGES)]
    changed = sorted({name for kind in own for name in vars(kind) if name in COMPUTES})
    if changed:
        raise BadFile(
            f"The policy {name!r} computes its own {changed[0]}; make a hubrl.Source from your "
            "own modules instead."
        )
    policy.save(cast("Any", saved))  # torch.save takes a stream as well as a path
    card, tensors = read_archive(saved, name, UNLIMITED)
    return Source.from_card(card, tensors, frozen=frozen)


def live_statistics(vec: VecNormalize) -> VecNormalizeStatistics:
    """The current statistics of a VecNormalize in memory."""
    if not vec.norm_obs:
        return VecNormalizeStatistics(None, vec.clip_obs, vec.epsilon)
    means = vec.obs_rms if isinstance(vec.obs_rms, dict) else {"": vec.obs_rms}
    return VecNormalizeStatistics(
        {key: (rms.mean.copy(), rms.var.copy()) for key, rms in means.items()},
        vec.clip_obs,
        vec.epsilon,
    )


def tidy(stem: str) -> str:
    """The name of a source, from a file's stem."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._") or "agent"


def _check_name(name: str | None) -> None:
    if name is not None and not re.fullmatch(NAME_PATTERN, name):
        raise BadConfig(
            f"A source cannot be called {name!r}; use letters, digits, '.', '_' and '-', and "
            "begin with a letter or a digit."
        )


def _bare(path: Path, card_path: Path, name: str | None, *, frozen: bool, limits: Limits) -> Source:
    card = read_card(card_path, limits)
    tensors = read_weights(path, card.sha256, limits)
    if card.weights:
        missing = sorted(set(card.weights.values()) - set(tensors))
        if missing:
            raise BadFile(
                f"{path} holds no weights {missing[0]!r}, which its card {card_path} names."
            )
        tensors = _flat_log_std({new: tensors[old] for new, old in card.weights.items()}, card)
        card = card.model_copy(update={"weights": {}, "sha256": None})
    check_parameters(card, tensors)
    return Source.from_card(
        card.model_copy(update={"name": name}) if name else card, tensors, frozen=frozen
    )


def _flat_log_std(tensors: dict[str, Tensor], card: SourceCard) -> dict[str, Tensor]:
    """CleanRL's `actor_logstd`, `(1, actions)`, in the shape of SB3's `log_std`, `(actions,)`."""
    head = card.network.action if isinstance(card.network, Declared) else None
    row = tensors.get(LOG_STD)
    if head is None or head.log_std != "parameter" or row is None or row.ndim != 2 or len(row) != 1:
        return tensors
    return {**tensors, LOG_STD: row.squeeze(0)}


def _normalised(
    card: SourceCard,
    tensors: dict[str, Tensor],
    read: VecNormalizeStatistics | None,
    *,
    frozen: bool,
) -> Source:
    if read is None or read.statistics is None:
        return Source.from_card(card, tensors, frozen=frozen)
    # Beside cached features an observation had a key of its own; without them it has none.
    keys = tuple(read.statistics)
    if keys == (OBSERVATION,) and not isinstance(card.observations, spaces.Dict):
        keys = ("",)
    how = Normalisation(keys=keys, clip=read.clip, epsilon=read.epsilon)
    tensors = dict(tensors)
    parts = _parts(card)
    for index, (key, moments) in enumerate(zip(keys, read.statistics.values(), strict=True)):
        for name, values in zip(("mean", "var"), moments, strict=True):
            exact = _stacked(np.asarray(values, dtype=np.float64), parts.get(key), card.name)
            tensors[f"normaliser.{name}_{index}"] = torch.as_tensor(exact)
    return Source.from_card(card.model_copy(update={"normalisation": how}), tensors, frozen=frozen)


def _parts(card: SourceCard) -> dict[str, spaces.Space[Any]]:
    """The parts of an agent's observation by key; one under an empty key where it is no Dict."""
    space = card.observations
    return dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}


def _stacked(values: np.ndarray, part: spaces.Space[Any] | None, name: str) -> np.ndarray:
    """Statistics of one observation, for an agent that reads a stack of them.

    The RL Zoo puts VecFrameStack around VecNormalize, which so sees single observations. A stack
    that is not full yet holds zeros, which are means there, and raw zeros for the source.

    Raises:
        SpaceMismatch: If the observation is no stack of such observations.
    """
    shape = () if part is None else tuple(part.shape or ())
    if part is None or values.shape == shape:
        return values
    if values.ndim == len(shape) == 1 and shape[0] % values.size == 0:
        return np.tile(values, shape[0] // values.size)
    raise SpaceMismatch(
        f"The statistics are of shape {values.shape}, agent {name!r} observes {describe(part)}; "
        "if it was trained with VecFrameStack around VecNormalize, hubrl reads that order for flat "
        "observations alone, so put VecNormalize around VecFrameStack."
    )


def _agent_in(folder: Path) -> Path:
    """The agent's zip in a folder, or the card of the only source in a hub's folder.

    The first of: a zip with a folder of its own name (RL Zoo), the only zip, the usual names.
    """
    zips = _zips(folder)
    named = [path for path in zips if path.with_suffix("").is_dir()]
    usual = [
        folder / f"{stem}.zip"
        for stem in ("model", "agent", "best_model")
        if is_there(folder / f"{stem}.zip")
    ]
    cards = [] if zips else _cards_with_weights(folder)
    for candidates in (named, zips if len(zips) == 1 else [], usual, cards):
        if candidates and (candidates is not cards or len(cards) == 1):
            return candidates[0]
    if cards:
        raise BadFile(
            f"{folder} is a hub of {len(cards)} sources; read it with Hub.load, or name one of "
            f"its sources, as {folder}/{cards[0].name}."
        )
    example = f", as {folder}/{zips[0].name}" if zips else ""
    raise BadFile(
        f"The folder {folder} holds {len(zips)} zips and none is clearly the agent; name the "
        f"zip itself{example}."
    )


def _cards_with_weights(folder: Path) -> list[Path]:
    """The cards of a folder that have weights beside them."""
    weights = sorted(folder.glob("*.safetensors"))
    cards = [path.with_suffix(suffix) for path in weights for suffix in CARD_SUFFIXES]
    return [card for card in cards if is_there(card)]


def _zips(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.zip") if path.name not in NO_AGENTS)


def _statistics_beside(path: Path) -> Path | None:
    """VecNormalize's file that belongs to a zip, by the usual names; None without one.

    A general name counts only if the folder holds no other agent.
    """
    folder, stem = path.parent, path.stem
    checkpoint = re.sub(r"^(.*)_(\d+_steps)$", r"\1_vecnormalize_\2.pkl", stem)
    named = [folder / f"{stem}.{name}" for name in STATISTICS_NAMES] + [
        folder / stem / name for name in STATISTICS_NAMES
    ]
    zoo = (
        [found for name in STATISTICS_NAMES for found in folder.glob(f"*/{name}")]
        if stem == "best_model"
        else []
    )
    alone = len(_zips(folder)) == 1
    general = (
        [folder / name for name in STATISTICS_NAMES] if alone or stem in ("model", "agent") else []
    )
    # A device or a pipe of such a name is refused when it is read, and not passed over.
    there = (
        found for found in [folder / checkpoint, *named, *zoo, *general] if os.path.lexists(found)
    )
    return next(
        (found for found in there if found != path and not is_there(found, folder=True)), None
    )
