"""Options in words: every one has a type, the default that `Hub.agent` uses, and a meaning."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from hubrl.hub.described_options import describe_method, type_in_words
from hubrl.methods import available


@pytest.mark.parametrize("name", available())
def test_every_option_of_a_method_has_a_type_in_words_and_a_meaning(name):
    method = describe_method(name)
    for option in (*method.method_options, *method.output_options, *method.dqn_options):
        assert option.meaning, option.name
        assert option.kind, option.name
        assert not any(sign in option.kind for sign in "[]()"), option.kind


def test_defaults_are_those_of_hub_agent():
    options = {option.name: option for option in describe_method("hub-pathway").output_options}
    assert (options["hold"].default, options["judging_share"].default) == (5.0, 0.1)
    (hold,) = (one for one in describe_method("single").output_options if one.name == "hold")
    assert hold.default == 5.0
    names = {option.name for option in describe_method("uniform").output_options}
    assert not names & {"hold", "aggregation"}, "it draws no pathway"
    assert describe_method("concat").output_options == []


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "whole number"),
        (bool, "true or false"),
        (int | None, "whole number or none"),
        (Literal["mixture", "mean"], "mixture or mean"),
        (tuple[str, ...], "list of names"),
        (Annotated[float, Field(ge=0, lt=1)], "number of at least 0 and below 1"),
        (
            Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] | None,
            "number above 0, auto, or none",
        ),
    ],
    ids=str,
)
def test_types_are_words(annotation, words):
    assert type_in_words(annotation) == words
