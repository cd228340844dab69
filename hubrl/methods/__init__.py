"""Transfer methods, one file each: adding a file here is adding a method."""

import importlib
import pkgutil

from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import available, check_options, create, find, options_of, register

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = [
    "Method",
    "Routed",
    "available",
    "check_options",
    "create",
    "find",
    "options_of",
    "register",
]
