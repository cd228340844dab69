"""Arguments and options that several commands share, and their texts as values."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hubrl.sources.source import Source

RunArgument = Annotated[Path, typer.Argument(help="Folder of a finished run.")]
OutArgument = Annotated[
    Path, typer.Argument(help="The zip to write, for PPO.load, A2C.load or DQN.load.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file or hub.")]
Episodes = Annotated[
    int, typer.Option(min=1, help="Episodes; actions are deterministic, in Atari games sampled.")
]
Kwargs = Annotated[
    list[str] | None, typer.Option("--kwargs", help="name=value for the task, repeatable; in YAML.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the episodes.")]
Atari = Annotated[
    bool, typer.Option("--atari", help="Put SB3's Atari preprocessing around the task.")
]


def read_agent_argument(text: str) -> "Source | str":
    """An agent by its location, perhaps with a companion; a run's has a card of its training."""
    from hubrl.experiments.finished_run import run_agent

    run = Path(text)
    finished = (run / "config.yaml").exists() and (run / "model.zip").exists()
    return run_agent(run) if finished else text


def parse_indices(text: str) -> list[int]:
    """Whole numbers as `0-16` or `3,1,-1`."""
    try:
        if found := re.fullmatch(r"(\d+)-(\d+)", text):
            return list(range(int(found[1]), int(found[2]) + 1))
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} was given; expected whole numbers like 0-16 or 3,1,2."
        ) from error


def parse_observes(text: str | None) -> str | list[int] | list[str] | None:
    """Entries of a flat observation, or one or several keys of a Dict."""
    if text and text.lstrip("-")[:1].isdigit():
        return parse_indices(text)
    return text.split(",") if text and "," in text else text


def parse_constants(text: str | None) -> dict[int, float] | None:
    """Values of entries as `27=1`, `27-110=0` or several of them, `26=1,27-32=0`."""
    constants: dict[int, float] = {}
    for part in text.split(",") if text else []:
        entries, _, value = part.partition("=")
        try:
            constants |= dict.fromkeys(parse_indices(entries), float(value))
        except ValueError as error:
            raise typer.BadParameter(
                f"--constants {text!r} was given; expected entries and values like 26=1,27-32=0."
            ) from error
    return constants or None


def parse_steps(text: str, before: int) -> int:
    """A number of steps as `100_000`, or as `+100_000` on top of those before."""
    digits = text.removeprefix("+").replace("_", "")
    if not digits.isdecimal() or int(digits) == 0:
        raise typer.BadParameter(f"--steps {text!r} was given; expected 100_000 or +100_000.")
    return int(digits) + (before if text.startswith("+") else 0)


def parse_widths(text: str) -> list[int]:
    """Widths as `64,64`; empty for no hidden layer."""
    parts = text.split(",") if text else []
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--net-arch {text!r} was given; expected widths like 64,64.")
    return [int(part) for part in parts]


def parse_kwargs(given: list[str] | None) -> dict[str, Any]:
    """Keyword arguments from `name=value` texts."""
    from hubrl.experiments.config import assign

    kwargs: dict[str, Any] = {}
    for text in given or []:
        assign(kwargs, text)
    return kwargs


def parse_seeds(text: str) -> list[int]:
    """Seeds as `1-5` or `1,3,8`."""
    if found := re.fullmatch(r"(\d+)-(\d+)", text):
        seeds = list(range(int(found[1]), int(found[2]) + 1))
    else:
        seeds = [int(part) for part in text.split(",") if part.isdecimal()]
    if not seeds or ("," in text and len(seeds) != len(text.split(","))):
        raise typer.BadParameter(f"--seeds {text!r} was given; expected seeds as 1-5 or 1,3,8.")
    return seeds
