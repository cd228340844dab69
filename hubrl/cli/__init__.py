"""The command line `hubrl`: a thin layer over the library."""

from hubrl.cli.app import main

__all__ = ["main"]
