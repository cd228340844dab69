"""What a policy at the level of outputs is told, asks, and keeps in mind from step to step."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from hubrl.errors import BadConfig
from hubrl.formats.schema import Schema
from hubrl.methods.base import Method
from hubrl.sources.preprocessing import Observations

Rows = TypeVar("Rows", int, Tensor, np.ndarray)

ALONE = -2
"""What is at most this, in place of who acted before, says who plays the episode alone, see `solo`."""


def solo(pathway: Rows) -> Rows:
    """What says, in place of who acted before, that a pathway plays the episode alone; and of what says so, which pathway."""
    return ALONE - pathway


class Outputs(Schema):
    """Options of the level of outputs, beside those of the method."""

    aggregation: Literal["mixture", "mean"] = "mixture"
    """`mixture`: one pathway is drawn by its weight at every step and acts; `mean`: the weighted mean of what they say."""
    residual: bool = True
    """Whether a learned correction, zero at the start, is added to what the sources say."""
    source_std: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] | None = "auto"
    """Standard deviation at which each source's pathway starts, learned from there. `auto`: the source's own if it is one for
    all states, between 0.05 and 0.1, else 0.05; none: the source's own, not learned."""
    hold: Annotated[float, Field(ge=1)] = 1
    """How many steps a pathway that was drawn acts (a mixture's commitment): exactly, or in the mean at the start where it is
    learned. Needs a callback that stores who acted; without it pathways are drawn anew at every step."""
    release: Literal["fixed", "learned"] = "learned"
    """How a held pathway lets go: after `hold` steps, or by a learned rule that starts there."""
    judging_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the episodes that judge one source, or all pathways together, deterministically; 0 for no selection among
    them. Needs HubCallback."""
    trial_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training in which the fresh pathway trains alone, to show whether it would come further than the hub by
    the end; 0 for no trial, and none where two rounds of episodes do not fit. Needs `judging_share`."""
    fresh_joins: bool = False
    """Whether the fresh pathway is also a pathway of the hub, beside its sources. Needs `judging_share`."""
    action_meanings: tuple[str, ...] | None = None
    """What the target's discrete actions mean (`env.unwrapped.get_action_meanings()`), for sources whose cards say so too."""
    scale_values: bool = True
    """Whether the critic speaks in units of the returns, which HubCallback measures (see `hubrl.nn.popart`), where there are sources."""
    recall: bool = True
    """Whether what frozen sources said in a rollout is stored with it and not computed again in its update."""


@dataclass
class Hearing:
    """What an action distribution is being asked for."""

    observations: Observations
    exploring: bool
    """Whether the router's noise is on."""
    heard: Float[Tensor, "batch sources outputs"] | None = None
    """What the sources said of these observations, where that is remembered."""
    said: Float[Tensor, "batch outputs"] | None = None
    """What the source that acted said of them itself, where that is remembered."""
    previous: Int[Tensor, " batch"] | None = None
    """Who acted before; -1 where nobody is held."""
    acted: Int[Tensor, " batch"] | None = None
    """Who acted, where it is drawn or known already."""
    calm: Bool[Tensor, " batch"] | None = None
    """Who is to act without noise, in a rollout."""
    noise: Float[Tensor, "batch pathways"] | None = None
    """The router's noise, where that is remembered."""
    only_fresh: bool | None = None
    """Whether the fresh pathway plays alone in all rows; none where nobody has looked."""

    @property
    def n_rows(self) -> int:
        """How many observations there are."""
        return len(next(iter(self.observations.values())) if isinstance(self.observations, dict) else self.observations)

    @property
    def alone(self) -> Bool[Tensor, " batch"] | None:
        """In which rows a pathway plays its episode alone; none where nothing is known of who acted before."""
        return None if self.previous is None else self.previous <= ALONE


class Holding:
    """Who is held in each of some environments, and for how many steps."""

    def __init__(self, n_envs: int) -> None:
        self.pathway: Int[np.ndarray, " envs"] = np.full(n_envs, -1)
        self.steps: Int[np.ndarray, " envs"] = np.zeros(n_envs, dtype=np.int64)

    def release(self, rows: Bool[np.ndarray, " envs"]) -> None:
        """Nobody is held any more in these."""
        self.pathway = np.where(rows, -1, self.pathway)

    def acted(self, drawn: Int[Tensor, " envs"], previous: Int[np.ndarray, " envs"]) -> None:
        """These acted in the last step, and those before bound them; -1 where the choice was free."""
        self.steps = np.where(previous >= 0, self.steps + 1, 1)
        self.pathway = drawn.cpu().numpy()


def check_selection(aggregation: str, method: Method) -> None:
    """Refuse to judge arms where no pathway is drawn, or some are not always computed.

    Raises:
        BadConfig: Saying what to leave out.
    """
    if aggregation != "mixture":
        raise BadConfig("judging_share was given where no pathway is drawn; use aggregation='mixture', or leave it out.")
    if method.top_k < len(method.pathways.names):
        raise BadConfig("judging_share was given with top_k, under which a pathway may not be computed; leave one of them out.")


def check_effect(given: Mapping[str, Any], own: Outputs, options: Mapping[str, Any]) -> None:
    """Refuse what was asked for and would change nothing.

    Args:
        given: Options of the outputs as they were given.
        own: The options that come of them.
        options: The method's options as they were given.

    Raises:
        BadConfig: Saying which, and what to leave out.
    """
    if options.get("width") is not None:
        raise BadConfig(
            f"width={options['width']} was given at the level of outputs, which are as wide as the actions; use level='features', or "
            "leave it out."
        )
    if options.get("fresh") is False and (given.get("trial_share") or own.fresh_joins):
        raise BadConfig("trial_share or fresh_joins was given with fresh=False, which leaves no fresh pathway; leave one of them out.")
    if "release" in given and own.hold == 1:
        raise BadConfig(f"release={own.release!r} was given with hold=1, which holds nobody; give a greater hold, or leave it out.")
    if given.get("trial_share") and own.judging_share == 0:
        raise BadConfig(
            f"trial_share={own.trial_share:g} was given where no arms are judged; give judging_share without top_k, "
            "aggregation='mean' or a method of one pathway, or leave it out."
        )
