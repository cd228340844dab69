"""Make a hub of sources trained by `agents.train_source` or `hubrl train`, with measured returns.

    python -m agents.bundle cheetah low-gravity heavy weak-front
    python -m agents.bundle atari pong riverraid seaquest spaceinvaders --episodes 30 --half

writes `agents/sources/cheetah`; `hubrl hub check agents/sources/cheetah` plays every source again
and compares.
"""

import json
import shlex
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import typer

from hubrl import Hub, Source, load_agent
from hubrl.experiments.evaluation import play
from hubrl.experiments.finished_run import run_agent
from hubrl.sources.pretrained import to_half
from hubrl.tasks.make_env import make_env


def main(
    hub: str,
    names: list[str],
    trained: Path = Path("runs/sources"),
    folder: Path = Path("agents/sources"),
    episodes: int = 20,
    *,
    half: bool = False,
) -> None:
    """Read the agents, play their own tasks, complete their cards, save the hub.

    Args:
        hub: The hub's name.
        names: The sources' names, in order; their folders' too.
        trained: Folder of the agents of `agents.train_source`, or of `hubrl train --runs`.
        folder: Folder of the hubs.
        episodes: Episodes behind each card's return.
        half: Whether weights are rounded to float16 before they are played and saved.
    """
    torch.set_num_threads(1)
    sources = [completed(trained / name, name, episodes, half=half) for name in names]
    Hub(sources).save(folder / hub, overwrite=True, half=half)


def completed(here: Path, name: str, episodes: int, *, half: bool) -> Source:
    """One source, its card completed by the task of its training and its return there."""
    source = _of_run(here) if (here / "config.yaml").exists() else _of_script(here)
    tensors = source.tensors()
    if half:
        tensors = {key: to_half(tensor).to(tensor.dtype) for key, tensor in tensors.items()}
    card = source.card.model_copy(update={"name": name, "sha256": None})
    source = Source.from_card(card, tensors)
    assert card.task is not None
    seed = (card.seed or 0) + 1000
    preprocessing = card.task_preprocessing or "none"
    with closing(
        make_env(
            card.task,
            card.task_kwargs,
            n_envs=min(episodes, 10),
            seed=seed,
            preprocessing=preprocessing,
        )
    ) as env:
        played = play(source, env, episodes, name=name)
        game = env.get_attr("unwrapped")[0]
        meanings = (
            tuple(game.get_action_meanings()) if hasattr(game, "get_action_meanings") else None
        )
    print(f"{name}: {played.mean:.1f} ± {played.std:.1f} over {episodes} episodes")
    measured = {
        "episodes": episodes,
        "return_mean": round(played.mean, 1),
        "return_std": round(played.std, 1),
    }
    card = card.model_copy(update={**measured, "licence": "MIT", "action_meanings": meanings})
    return Source.from_card(card, tensors)


def _of_run(here: Path) -> Source:
    """The agent of a finished run of `hubrl train`."""
    source = run_agent(here)
    _, *arguments = shlex.split((here / "command.txt").read_text(encoding="utf-8"))
    source.card = source.card.model_copy(update={"origin": shlex.join(["hubrl", *arguments])})
    return source


def _of_script(here: Path) -> Source:
    """The agent that `agents.train_source` trained."""
    source = load_agent(here / "agent.zip")
    training: dict[str, Any] = json.loads((here / "training.json").read_text(encoding="utf-8"))
    trained = {key: training[key] for key in ("task", "task_kwargs", "seed")}
    source.card = source.card.model_copy(
        update={**trained, "task_preprocessing": "none", "origin": training["command"]}
    )
    return source


if __name__ == "__main__":
    typer.run(main)
