"""The target's side of a hub: its spaces, and whether a source fits them."""

from dataclasses import dataclass
from typing import Any, Literal

from gymnasium import spaces

from hubrl.errors import SpaceMismatch
from hubrl.formats.hub_spec import Precision
from hubrl.formats.spaces import describe, differing_bounds, fits
from hubrl.sources import action_params
from hubrl.sources.observation_batch import image_scale_problem
from hubrl.sources.source import Source


@dataclass(frozen=True)
class TargetSpec:
    """Spaces of the target, and the level at which it uses the sources."""

    observation_space: spaces.Space[Any]
    level: action_params.Level = "features"
    action_space: spaces.Space[Any] | None = None
    """Action space; needed at the level of outputs."""
    source_std: float | Literal["auto"] | None = None
    """Initial standard deviation of each source's pathway at the level of outputs, learned from
    there; `auto`: by `initial_std`; None: the source's own, not learned."""
    action_meanings: tuple[str, ...] | None = None
    """Names of the discrete actions at the level of outputs, which match those of sources."""
    precision: Precision = "float32"
    """Precision of NatureCNNs."""


def check_meanings(
    meanings: tuple[str, ...] | None, space: spaces.Space[Any]
) -> tuple[str, ...] | None:
    """Action names, refused if they are not one for each discrete action.

    Raises:
        SpaceMismatch: If their number differs.
    """
    if meanings is not None and (
        not isinstance(space, spaces.Discrete) or len(meanings) != space.n
    ):
        raise SpaceMismatch(
            f"{len(meanings)} action_meanings were given, the target acts in {describe(space)}."
        )
    return meanings


def check_fit(source: Source, target: TargetSpec) -> None:
    """Refuse a source that cannot read the target's observations or act in its actions.

    Raises:
        SpaceMismatch: With both spaces and a remedy.
    """
    if not source.accepts(target.observation_space):
        raise SpaceMismatch(
            f"The target observes {describe(target.observation_space)}, source {source.name!r} "
            f"observes {describe(source.space)}; leave it out, or, if they share their entries, "
            "take source.adapted(observes=...) where the target observes more and "
            "source.adapted(constants=...) where it observes less (`hubrl hub add`)."
        )
    problem = image_scale_problem(source.card, target.observation_space)
    if problem is not None:
        raise SpaceMismatch(f"Source {source.name!r} {problem}")
    if target.level == "outputs":
        _check_actions(source, target)


def _check_actions(source: Source, target: TargetSpec) -> None:
    assert target.action_space is not None
    if source.actions is None:
        raise SpaceMismatch(
            f"Source {source.name!r} is an encoder alone and has no outputs; use level='features'."
        )
    own, wanted = source.card.action_meanings, target.action_meanings
    if own is not None and wanted is not None:
        if not set(own) & set(wanted) - {"NOOP"}:
            raise SpaceMismatch(
                f"Source {source.name!r} knows none of the target's actions {', '.join(wanted)}; "
                "use level='features'."
            )
        return
    if not fits(source.actions, target.action_space):
        pair = (source.actions, target.action_space)
        discrete = all(isinstance(space, spaces.Discrete) for space in pair)
        hint = ", or say what the actions of both mean (action_meanings)" if discrete else ""
        raise SpaceMismatch(
            f"The target acts in {describe(target.action_space)}, source {source.name!r} in "
            f"{describe(source.actions)}; use level='features'{hint}."
        )
    bounds = differing_bounds(target.action_space, source.actions)
    if bounds is not None:
        raise SpaceMismatch(
            f"The target's actions go from {bounds[0]}, those of source {source.name!r} from "
            f"{bounds[1]}; put the target under gymnasium.wrappers.RescaleAction, or use "
            "level='features'."
        )
