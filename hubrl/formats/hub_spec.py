"""The hub of a saved target, as plain data in its policy's keyword arguments."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from hubrl.errors import BadConfig, check_format
from hubrl.formats.cards import SourceCard, parse_card
from hubrl.formats.schema import Schema, first_problem

SPEC_FORMAT = 1

Precision = Literal["float32", "bfloat16"]
"""Number format of encoders' convolutions."""


class HubSpec(Schema):
    """A hub, a method and its options; everything but weights."""

    format: int = SPEC_FORMAT
    sources: tuple[SourceCard, ...]
    method: str
    options: dict[str, Any] = {}
    """Options of the method, by name."""
    tuned: bool = False
    """Whether the sources are trained further; otherwise they stay as they are, bit for bit."""
    source_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Learning rate of tuned sources, as a factor on the algorithm's."""
    cached: bool = False
    """Whether observations hold the sources' features (`hubrl.CachedVecEnv`)."""
    precision: Precision = "float32"
    """Number format in which encoders are computed."""

    def plain(self) -> dict[str, Any]:
        """Plain data for keyword arguments: JSON can hold it, and equality is unambiguous."""
        return {**super().to_dict(), "sources": [card.to_dict() for card in self.sources]}


def parse_spec(plain: object) -> HubSpec:
    """The spec in a policy's keyword arguments.

    Raises:
        BadConfig: If it is not one.
        BadFile: If it is of a newer format.
    """
    if isinstance(plain, HubSpec):
        return plain
    if not isinstance(plain, dict):
        raise BadConfig(
            f"hub={plain!r} was given; expected what Hub.policy_kwargs or Hub.agent makes."
        )
    check_format(plain, SPEC_FORMAT, "The model was saved with a hub")
    cards = [parse_card(card, "a saved hub") for card in plain.get("sources", [])]
    try:
        return HubSpec.model_validate({**plain, "sources": cards})
    except ValidationError as error:
        raise BadConfig(f"The saved hub is not one: {first_problem(error)}.") from error
