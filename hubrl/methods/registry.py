"""The registry of methods, and checks of their options."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

from hubrl.errors import BadConfig, UnknownName, unknown
from hubrl.methods.base import Method, QLearning
from hubrl.routing.target import TargetSpec
from hubrl.sources import action_params
from hubrl.sources.source import Source

_methods: dict[str, type[Method]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Class decorator that registers a method under a name, in configs and everywhere else.

    Raises:
        BadConfig: If another method has the name.
    """

    def add(method: type[Method]) -> type[Method]:
        if _methods.get(name, method) is not method:
            raise BadConfig(f"Another method is registered as {name!r}; choose another name.")
        _methods[name] = method
        method.method_name = name
        return method

    return add


def available() -> list[str]:
    """Names of all registered methods, sorted."""
    return sorted(_methods)


def find(name: str) -> type[Method]:
    """The method of a name.

    Raises:
        UnknownName: If there is none.
    """
    if name not in _methods:
        raise UnknownName(unknown("method", name, _methods))
    return _methods[name]


def options_of(name: str) -> dict[str, inspect.Parameter]:
    """Options of a method: the keyword-only arguments of its constructor."""
    parameters = inspect.signature(find(name).__init__).parameters
    return {
        key: parameter
        for key, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def check_options(name: str, options: Collection[str], also: Collection[str] = ()) -> None:
    """Refuse options that a method does not have.

    Args:
        name: The method's name.
        options: Names of the options given.
        also: Names of further options that are known, such as a policy's.

    Raises:
        UnknownName: With the nearest option that it has.
    """
    known = [*options_of(name), *also]
    for option in options:
        if option not in known:
            raise UnknownName(unknown(f"option of method {name!r}", option, known))


def plain_values(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method with NumPy's numbers as Python's, checked against their annotations.

    Raises:
        BadConfig: If a value cannot be, with the option, the value and what is expected.
    """
    hints = get_type_hints(find(name).__init__, include_extras=True)
    plain = {
        option: given.item() if isinstance(given, np.generic) else given
        for option, given in options.items()
    }
    for option, value in plain.items():
        try:
            TypeAdapter(hints[option]).validate_python(value, strict=True)
        except ValidationError as error:
            reason = error.errors()[0]["msg"]
            raise BadConfig(
                f"{option}={value!r} was given for method {name!r}: {reason}."
            ) from error
    return plain


def check_level(name: str, level: action_params.Level) -> None:
    """Refuse a level at which a method does not serve.

    Raises:
        BadConfig: With the levels it has.
    """
    levels = find(name).levels
    if level not in levels:
        raise BadConfig(
            f"Method {name!r} was asked to work at the level of {level}; it works at the level of "
            f"{' or '.join(levels)} alone."
        )


def check_cached(name: str, *, tuned: bool) -> None:
    """Refuse stored features where sources change or a method needs more of them.

    Raises:
        BadConfig: With the reason, and what to do.
    """
    method = find(name)
    if tuned or method.tunes:
        raise BadConfig(
            f"cached=True was given for method {name!r} with sources that are trained further; "
            "leave one of them out."
        )
    if not method.needs_only_features:
        raise BadConfig(
            f"cached=True was given for method {name!r}, which is not made of frozen sources' "
            "features alone; leave it out."
        )


def q_learning(name: str, options: Mapping[str, Any], *, tuned: bool) -> QLearning | None:
    """Service of a method to DQN at the level of outputs; None for none.

    Sources explore for the learner only if they are frozen and the method has no options.
    """
    service = find(name).q_learning
    return None if service == "explorers" and (options or tuned) else service


def check_q_learning(name: str, options: Mapping[str, Any], *, tuned: bool) -> None:
    """Refuse a method that does not serve DQN at the level of outputs.

    Raises:
        BadConfig: With the methods that do.
    """
    if q_learning(name, options, tuned=tuned) is not None:
        return
    others = [other for other in available() if find(other).q_learning not in (None, "explorers")]
    explorers = [other for other in available() if find(other).q_learning == "explorers"]
    remedy = "level='features'" if "features" in find(name).levels else "one of these"
    raise BadConfig(
        f"DQN cannot use outputs through method {name!r} as it was given, but through "
        f"{', '.join(map(repr, explorers))} without options and with frozen sources, and "
        f"{', '.join(map(repr, others))}; use {remedy}."
    )


def create(
    name: str, sources: Sequence[Source], target: TargetSpec, options: dict[str, Any]
) -> Method:
    """A method by its name.

    Raises:
        UnknownName: If there is no such method or option.
        BadConfig: If an option's value cannot be, or the method does not serve at the level.
        SpaceMismatch: If a source does not fit the target.
    """
    check_options(name, options)
    options = plain_values(name, options)
    check_level(name, target.level)
    return find(name)(sources, target, **options)  # type: ignore[arg-type, call-arg]
