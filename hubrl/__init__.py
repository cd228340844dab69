"""Transfer in reinforcement learning: a new SB3 agent learns from a hub of pretrained ones."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hubrl.public import *  # noqa: F403 - type checkers and the documentation read them here

try:
    __version__ = version("hubrl")
except PackageNotFoundError:  # a checkout that was not installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> object:
    """A public name, imported at the first use of any, so that `hubrl --help` waits for no torch.

    Raises:
        AttributeError: If the package offers no such name.
    """
    if not name.startswith("__") or name == "__all__":
        public = import_module("hubrl.public")
        offered = {one: getattr(public, one) for one in public.__all__}
        globals().update(offered, __all__=public.__all__)
        if name in globals():
            return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, for completion in a notebook."""
    return sorted({*globals(), *import_module("hubrl.public").__all__})
