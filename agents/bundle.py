"""Make a hub of sources that `agents.train_source` trained, with cards that say what each was measured to be worth.

    python -m agents.bundle cheetah low-gravity heavy weak-front

writes `agents/sources/cheetah`; `hubrl hub check agents/sources/cheetah` plays every source again and compares.
"""

import json
from pathlib import Path

import torch
import typer

from hubrl import Hub, Source, load_agent
from hubrl.evaluation import play
from hubrl.tasks import make_env


def main(
    hub: str, names: list[str], trained: Path = Path("runs/sources"), folder: Path = Path("agents/sources"), episodes: int = 20
) -> None:
    """Read the agents, play their own tasks, complete their cards, save the hub.

    Args:
        hub: The hub's name.
        names: The sources' names, in order.
        trained: Where `agents.train_source` left them.
        folder: Where hubs are kept.
        episodes: Episodes behind each card's return.
    """
    sources = [completed(trained / name, name, episodes) for name in names]
    Hub(sources).save(folder / hub, overwrite=True)


def completed(here: Path, name: str, episodes: int) -> Source:
    """One source, its card completed by what it was trained on and what it earns there."""
    source = load_agent(here / "agent.zip", name=name)
    training = json.loads((here / "training.json").read_text(encoding="utf-8"))
    torch.set_num_threads(1)
    env = make_env(training["task"], training["task_kwargs"], n_envs=min(episodes, 10), seed=training["seed"] + 1000)
    played = play(source, env, episodes, name=name)
    print(f"{name}: {played.mean:.1f} ± {played.std:.1f} over {episodes} episodes")
    card = source.card.model_copy(
        update={
            "task": training["task"],
            "task_kwargs": training["task_kwargs"],
            "seed": training["seed"],
            "episodes": episodes,
            "return_mean": round(played.mean, 1),
            "return_std": round(played.std, 1),
            "licence": "MIT",
            "origin": training["command"],
        }
    )
    return Source.from_card(card, source.tensors())


if __name__ == "__main__":
    typer.run(main)
