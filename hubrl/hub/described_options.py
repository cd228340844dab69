"""Options of a method and of its policy in words: name, type, default, meaning."""

import inspect
import re
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from hubrl.hub.algorithm_kwargs import own_options
from hubrl.methods import find, options_of
from hubrl.policies.dqn import TeachingOptions
from hubrl.policies.on_policy.options import OutputOptions

DRAWN = ("aggregation", "hold", "release", "judging_share", "trial_share", "fresh_joins")
"""Options of policies that draw a pathway, and so of no use where the method combines them all."""

WORDS = {
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    NoneType: "none",
    tuple: "list of names",
}

BOUNDS = {
    Ge: ("ge", "of at least"),
    Gt: ("gt", "above"),
    Le: ("le", "of at most"),
    Lt: ("lt", "below"),
}


class DescribedOption(NamedTuple):
    """One option of `Hub.agent`, as it is printed."""

    name: str
    kind: str
    """Its type in words, with the bounds of numbers."""
    default: Any
    """The value that `Hub.agent` uses unless it is given."""
    meaning: str


class DescribedMethod(NamedTuple):
    """A method with all options that `Hub.agent` takes for it."""

    name: str
    summary: str
    levels: tuple[str, ...]
    method_options: list[DescribedOption]
    output_options: list[DescribedOption]
    """Options of the policy of PPO and A2C; none for a method of features alone."""
    dqn_options: list[DescribedOption]
    """Options of the policy of DQN; none where DQN has features alone."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        plain = self._asdict()
        for field in ("method_options", "output_options", "dqn_options"):
            plain[field] = [option._asdict() for option in plain[field]]
        return plain


def describe_method(name: str) -> DescribedMethod:
    """A method and its options, in words.

    Raises:
        UnknownName: If there is no such method.
    """
    method = find(name)
    outputs = "outputs" in method.levels
    return DescribedMethod(
        name,
        method.summary,
        tuple(method.levels),
        _method_options(name),
        _policy_options(name, OutputOptions) if outputs else [],
        _policy_options(name, TeachingOptions) if outputs and method.q_learning else [],
    )


def _method_options(name: str) -> list[DescribedOption]:
    hints = get_type_hints(find(name).__init__, include_extras=True)
    meanings = _documented_arguments(find(name))
    return [
        DescribedOption(
            option, type_in_words(hints[option]), parameter.default, meanings.get(option, "")
        )
        for option, parameter in options_of(name).items()
    ]


def _policy_options(
    name: str, kind: type[OutputOptions | TeachingOptions]
) -> list[DescribedOption]:
    method = find(name)
    without: set[str] = set(DRAWN) if method.aggregation else set()
    if method.keeps_source_std:
        without.add("source_std")
    own = own_options(kind, name, {}, {})
    hints = get_type_hints(kind, include_extras=True)
    return [
        DescribedOption(
            option,
            type_in_words(hints[option]),
            getattr(own, option),
            _one_line(field.description or ""),
        )
        for option, field in kind.model_fields.items()
        if option not in without or kind is TeachingOptions
    ]


def _documented_arguments(method: type) -> dict[str, str]:
    """Texts of the `Args:` of a class and of those it inherits from, by argument."""
    texts: dict[str, str] = {}
    for one in reversed(method.__mro__):
        _, _, arguments = inspect.cleandoc(one.__doc__ or "").partition("Args:\n")
        section = re.split(r"\n(?=\S)", arguments)[0]
        found = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
        texts |= {argument: _one_line(text) for argument, text in found}
    return texts


def _one_line(text: str) -> str:
    return " ".join(text.split())


def type_in_words(annotation: Any) -> str:
    """A type as a reader of YAML would name it: `whole number of at least 1, or none`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = " and ".join(_bounds(inner[1:]))
        return f"{type_in_words(inner[0])} {bounds}".rstrip()
    if origin in (Union, UnionType):
        return _listed([type_in_words(one) for one in inner])
    if origin is Literal:
        return _listed([str(value) for value in inner])
    return WORDS.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))


def _listed(words: list[str]) -> str:
    """Words as `a`, `a or b`, `a, b or c`; the bounds of a number are set off by a comma."""
    if len(words) == 1:
        return words[0]
    bounded = any(" of at " in word or " above " in word or " below " in word for word in words)
    return f"{', '.join(words[:-1])}{', or ' if bounded else ' or '}{words[-1]}"


def _bounds(metadata: tuple[Any, ...]) -> list[str]:
    """Bounds of a number in words."""
    every = [one for info in metadata if isinstance(info, FieldInfo) for one in info.metadata]
    return [
        f"{words} {getattr(one, attribute):g}"
        for one in every
        for bound, (attribute, words) in BOUNDS.items()
        if isinstance(one, bound)
    ]
