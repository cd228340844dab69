"""The register of methods, and checks of their options."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

from hubrl.errors import BadConfig, UnknownName, unknown
from hubrl.methods.base import Method
from hubrl.routing.target import Target
from hubrl.sources import action_params
from hubrl.sources.source import Source

_methods: dict[str, type["Method"]] = {}


def register(name: str) -> Callable[[type[Method]], type[Method]]:
    """Make a method known by a name, in configs and everywhere else.

    Raises:
        BadConfig: If another method has the name.
    """

    def keep(method: type[Method]) -> type[Method]:
        if _methods.get(name, method) is not method:
            raise BadConfig(f"Another method is registered as {name!r}; choose another name.")
        _methods[name] = method
        method.method_name = name
        return method

    return keep


def available() -> list[str]:
    """The names of all registered methods, sorted."""
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
    """A method's options: the keyword-only arguments of its constructor."""
    parameters = inspect.signature(find(name).__init__).parameters
    return {key: parameter for key, parameter in parameters.items() if parameter.kind is inspect.Parameter.KEYWORD_ONLY}


def check_options(name: str, options: Collection[str], also: Collection[str] = ()) -> None:
    """Refuse options that a method does not have.

    Args:
        name: The method's name.
        options: The names of the options given.
        also: Options of what the method works in, which are known too.

    Raises:
        UnknownName: Naming the nearest option that it has.
    """
    known = [*options_of(name), *also]
    for option in options:
        if option not in known:
            raise UnknownName(unknown(f"option of method {name!r}", option, known))


def plain_values(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options with NumPy's numbers as Python's; values that they cannot have, by their annotations, are refused.

    Raises:
        BadConfig: Naming the option, what was given and what is expected.
    """
    hints = get_type_hints(find(name).__init__, include_extras=True)
    plain = {option: given.item() if isinstance(given, np.generic) else given for option, given in options.items()}
    for option, value in plain.items():
        try:
            TypeAdapter(hints[option]).validate_python(value, strict=True)
        except ValidationError as error:
            raise BadConfig(f"{option}={value!r} was given for method {name!r}: {error.errors()[0]['msg']}.") from error
    return plain


def check_level(name: str, level: action_params.Level) -> None:
    """Refuse a level at which a method does not serve.

    Raises:
        BadConfig: Saying which levels it has.
    """
    levels = find(name).levels
    if level not in levels:
        raise BadConfig(f"Method {name!r} was asked to work at the level of {level}; it works at the level of {' or '.join(levels)} alone.")


def check_cached(name: str, *, tuned: bool) -> None:
    """Refuse features that were computed before where they do not serve.

    Raises:
        BadConfig: Saying why, and what to do.
    """
    method = find(name)
    if tuned or method.tunes:
        raise BadConfig(f"cached=True was given for method {name!r} with sources that are trained further; leave one of them out.")
    if not method.takes_heard:
        raise BadConfig(f"cached=True was given for method {name!r}, which is not made of frozen sources' features alone; leave it out.")


def create(name: str, sources: Sequence[Source], target: Target, options: dict[str, Any]) -> Method:
    """Build a method by its name.

    Raises:
        UnknownName: If there is no such method or option.
        BadConfig: If an option's value cannot be, or the method does not serve at the target's level.
        SpaceMismatch: If a source does not fit the target.
    """
    check_options(name, options)
    options = plain_values(name, options)
    check_level(name, target.level)
    return find(name)(sources, target, **options)  # type: ignore[arg-type, call-arg]
