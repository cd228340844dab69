"""The devices of torch, of which a name may be given that is not there."""

import torch

from hubrl.errors import BadConfig


def check_device(name: str | torch.device, what: str = "device") -> None:
    """Refuse a device that is not there, for which SB3 would take the CPU or fail in torch.

    Args:
        name: A device as SB3 names it; `auto` is a GPU if there is one.
        what: What was given, as the subject of the message.

    Raises:
        BadConfig: If torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise BadConfig(
            f"{what}: {name!r} is no device of torch; expected auto, cpu, cuda or the like."
        ) from error
    if device.type == "cpu":
        return
    if device.type == "cuda":
        found = torch.cuda.device_count()
        there = f"torch has {found} CUDA devices" if (device.index or 0) >= found else ""
    else:
        there = "" if _computes(device) else f"torch has no {device.type} here"
    if there:
        raise BadConfig(f"{what}: {name} was given and {there}; use auto, cpu or another.")


def _computes(device: torch.device) -> bool:
    """Whether numbers can be added on a device; torch's `meta` has none."""
    try:
        return float(torch.ones(1, device=device).add(1).cpu()) == 2
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        return False


def present_device(name: str) -> str:
    """The device, or `auto` where this machine has none of that name."""
    try:
        check_device(name)
    except BadConfig:
        return "auto"
    return name
