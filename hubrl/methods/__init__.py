"""Transfer methods, one file each; importing this package registers them all."""

from hubrl.methods import hub_pathway, scratch, single, uniform
from hubrl.methods.base import Method, Routed, available, check_options, create, find, options_of, register

__all__ = [
    "Method",
    "Routed",
    "available",
    "check_options",
    "create",
    "find",
    "hub_pathway",
    "options_of",
    "register",
    "scratch",
    "single",
    "uniform",
]
