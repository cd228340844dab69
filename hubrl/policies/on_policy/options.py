"""Options of a policy over sources' outputs, and their checks."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from hubrl.errors import BadConfig
from hubrl.formats.schema import Schema
from hubrl.formats.search import Between, OneOf
from hubrl.methods.base import Method


class OutputOptions(Schema):
    """Options of the level of outputs, beside those of the method."""

    aggregation: Literal["mixture", "mean"] = "mixture"
    """`mixture`: one pathway is drawn by its weight and acts; `mean`: the weighted mean of the
    pathways' outputs acts."""
    residual: Annotated[bool, OneOf((True, False))] = True
    """Whether a learned correction, zero at the start, is added to the sources' outputs."""
    source_std: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] | None,
        OneOf(("auto", 0.05, 0.1, 0.2)),
    ] = "auto"
    """Initial standard deviation of each source's pathway, learned from there. `auto`: the source's
    own if it is the same in all states, between 0.05 and 0.1, else 0.05; none: the source's own,
    not learned."""
    hold: Annotated[float, Field(ge=1), OneOf((1, 3, 5, 10, 20))] = 1
    """Steps that a drawn pathway acts (a mixture's commitment): exactly, or on average at the start
    where the end is learned. Needs HubCallback, which records them; without it pathways are drawn
    anew at every step."""
    release: Literal["fixed", "learned"] = "learned"
    """End of a commitment: after `hold` steps, or by a learned rule that starts there."""
    judging_share: Annotated[float, Field(ge=0, lt=1), Between(0.05, 0.5)] = 0.0
    """Share of the episodes that judge one source, or all pathways together, deterministically; 0
    for no selection among them. Needs HubCallback."""
    trial_share: Annotated[float, Field(ge=0, lt=1), OneOf((0.0, 0.1, 0.2))] = 0.1
    """Share of the training in which the fresh pathway trains alone, to predict whether it would
    earn more than the hub by the end; 0 for no trial, and none where two rounds of episodes do not
    fit. Needs `judging_share`."""
    fresh_joins: bool = False
    """Whether the fresh pathway is also a pathway of the hub, beside its sources. Needs
    `judging_share`."""
    action_meanings: tuple[str, ...] | None = None
    """Meanings of the target's discrete actions (`env.unwrapped.get_action_meanings()`), for
    sources whose cards name theirs too."""
    scale_values: bool = True
    """Whether the critic learns in units of the returns, which HubCallback measures
    (`hubrl.nn.popart`), where there are sources."""
    recall: bool = True
    """Whether frozen sources' outputs in a rollout are stored with it and not computed again in its
    update."""


def check_selection(aggregation: str, method: Method) -> None:
    """Check that arms can be judged: a pathway is drawn, and all are always computed.

    Raises:
        BadConfig: If not.
    """
    if aggregation != "mixture":
        raise BadConfig(
            "judging_share was given where no pathway is drawn; "
            "use aggregation='mixture', or leave it out."
        )
    if method.top_k < len(method.pathways.names):
        raise BadConfig(
            "judging_share was given with top_k, under which a pathway may not be computed; "
            "leave one of them out."
        )


def check_effect(given: Mapping[str, Any], own: OutputOptions, options: Mapping[str, Any]) -> None:
    """Check that every given option has an effect.

    Args:
        given: Options of the outputs as they were given.
        own: All options of the outputs, parsed.
        options: The method's options as they were given.

    Raises:
        BadConfig: If one has none.
    """
    if options.get("width") is not None:
        raise BadConfig(
            f"width={options['width']} was given at the level of outputs, "
            "which are as wide as the actions; use level='features', or leave it out."
        )
    if options.get("fresh") is False and (given.get("trial_share") or own.fresh_joins):
        raise BadConfig(
            "trial_share or fresh_joins was given with fresh=False, which leaves no fresh pathway; "
            "leave one of them out."
        )
    if "release" in given and own.hold == 1:
        raise BadConfig(
            f"release={own.release!r} was given with hold=1, which is no commitment; "
            "give a greater hold, or leave it out."
        )
    if given.get("trial_share") and own.judging_share == 0:
        raise BadConfig(
            f"trial_share={own.trial_share:g} was given where no arms are judged; "
            "give judging_share without top_k, aggregation='mean' or a method of one pathway, "
            "or leave it out."
        )
