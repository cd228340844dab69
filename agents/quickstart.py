"""The quickstart: every source untouched, training from scratch, and training through a hub.

    python -m agents.quickstart

Prints a table and what happened, draws `runs/quickstart/curves.png`, and writes
`runs/quickstart/summary.json` and the report `runs/quickstart/hub-pathway/report.html`.
"""

import json
import multiprocessing
import shutil
import time
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.managers import DictProxy
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import typer
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from stable_baselines3.common.callbacks import BaseCallback

from hubrl import Hub
from hubrl.experiments.config import RunConfig, read_config
from hubrl.experiments.evaluation import Played, play
from hubrl.experiments.run import start_run, train
from hubrl.reports.explain import explain
from hubrl.reports.run_log import RunLog, aligned
from hubrl.reports.run_page import write_run_page
from hubrl.tasks.make_env import make_env
from hubrl.training.pathway_figures import pathway_colors

mpl.use("Agg")

from matplotlib import pyplot as plt

METHODS = ("scratch", "hub-pathway")

Curve = tuple[np.ndarray, np.ndarray]


class Report(BaseCallback):
    """Callback that writes a training's progress for another process."""

    def __init__(self, done: "DictProxy[str, int]", name: str) -> None:
        super().__init__()
        self.done, self.name = done, name

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.done[self.name] = self.model.num_timesteps


def main(
    config: Path = Path("configs/quickstart.yaml"),
    steps: int | None = None,
    folder: Path = Path("runs/quickstart"),
) -> None:
    """Compare, print, draw, and write the summary.

    Args:
        config: The training; its method is varied.
        steps: Environment steps, if other than the config's.
        folder: Folder of the results; those of an earlier quickstart are replaced.
    """
    began = time.perf_counter()
    settings = read_config(config, [f"steps={steps}"] if steps else [])
    shutil.rmtree(folder, ignore_errors=True)
    results = train_side_by_side(config, settings, folder)
    hub = Hub.load(folder / "hub-pathway" / "hub")
    console = Console()
    with console.status("Playing the sources, untouched"):
        untouched = [untouched_play(source_name, hub, settings) for source_name in hub.names]
    summary = summarise(untouched, results, folder, settings, time.perf_counter() - began)
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    draw(untouched, folder, settings)
    console.print(table(summary))
    console.print(
        f"One seed: a first look, and no claim. Curves: {folder / 'curves.png'}. Numbers: "
        f"{folder / 'summary.json'}."
    )
    console.print(f"Look further: tensorboard --logdir {folder}")
    report = write_run_page(folder / "hub-pathway")
    lines = [
        *explain(RunLog(folder / "hub-pathway")),
        f"The whole report of the hub's training: open {report} in a browser.",
    ]
    console.print("\n".join(lines), soft_wrap=True, highlight=False)


def train_side_by_side(
    config: Path, settings: RunConfig, folder: Path
) -> dict[str, dict[str, Any]]:
    """Train every method in a process of its own, with live progress."""
    with multiprocessing.Manager() as manager:
        done: DictProxy[str, int] = manager.dict()
        with ProcessPoolExecutor(
            len(METHODS), mp_context=multiprocessing.get_context("spawn")
        ) as pool:
            futures = {
                name: pool.submit(train_one, config, name, settings.steps, folder, done)
                for name in METHODS
            }
            watch(futures, done, settings.steps)
            return {name: future.result() for name, future in futures.items()}


def watch(
    futures: "dict[str, Future[dict[str, Any]]]", done: "DictProxy[str, int]", steps: int
) -> None:
    """Show bars until every training is done."""
    columns = (
        *Progress.get_default_columns(),
        TimeElapsedColumn(),
        TextColumn("{task.completed:.0f} steps"),
    )
    with Progress(*columns) as bars:
        tasks = {name: bars.add_task(name, total=steps) for name in futures}
        while not all(future.done() for future in futures.values()):
            for name, task in tasks.items():
                bars.update(task, completed=steps if futures[name].done() else done.get(name, 0))
            time.sleep(0.5)
        for task in tasks.values():
            bars.update(task, completed=steps)


def train_one(
    config: Path, method: str, steps: int, folder: Path, done: "DictProxy[str, int]"
) -> dict[str, Any]:
    """One training, in its own process."""
    run = start_run(
        config,
        [f"method={method}", f"steps={steps}", *(["options={}"] if method == "scratch" else [])],
        folder,
        method,
    )
    return train(run, [Report(done, method)])


def untouched_play(name: str, hub: Hub, settings: RunConfig) -> Played:
    """Returns of a source on the target before any training."""
    env = make_env(settings.task, settings.task_kwargs, n_envs=5, seed=settings.seed)
    played = play(hub[name], env, 5, name=name)
    env.close()
    return played


def summarise(
    untouched: list[Played],
    results: dict[str, dict[str, Any]],
    folder: Path,
    settings: RunConfig,
    wall: float,
) -> dict[str, Any]:
    """Everything the table shows, as plain data."""
    return {
        "task": settings.task,
        "task_kwargs": settings.task_kwargs,
        "steps": settings.steps,
        "seed": settings.seed,
        "untouched": {
            one.name: {
                "mean": round(one.mean, 1),
                "std": round(one.std, 1),
                "episodes": len(one.returns),
            }
            for one in untouched
        },
        "trained": {
            name: {
                "curve_mean": round(float(np.mean(evaluations(folder / name)[1])), 1),
                "final_mean": round(result["eval_mean"], 1),
                "final_std": round(result["eval_std"], 1),
                "episodes": result["eval_episodes"],
                "probe_steps": result["probe_steps"],
                "steps_per_s": result["steps_per_s"],
            }
            for name, result in results.items()
        },
        "wall_s": round(wall, 1),
    }


def table(summary: dict[str, Any]) -> Table:
    """The summary as a table for the terminal."""
    made = Table(
        "",
        "steps",
        "mean of the curve",
        "return at the end",
        "± std",
        "steps/s",
        title=f"{summary['task']} {summary['task_kwargs']}",
    )
    for name, one in summary["untouched"].items():
        made.add_row(f"{name}, untouched", "0", "", f"{one['mean']:.0f}", f"{one['std']:.0f}", "")
    for name, one in summary["trained"].items():
        steps, speed = str(summary["steps"]), f"{one['steps_per_s']:.0f}"
        made.add_row(
            name,
            steps,
            f"{one['curve_mean']:.0f}",
            f"{one['final_mean']:.0f}",
            f"{one['final_std']:.0f}",
            speed,
        )
    return made


def evaluations(run: Path) -> Curve:
    """Steps and mean returns of a run's evaluations."""
    saved = np.load(run / "evaluations.npz")
    return saved["timesteps"], saved["results"].mean(axis=1)


def draw(untouched: list[Played], folder: Path, settings: RunConfig) -> None:
    """Learning curves, and under them who acted; a source has one colour in both."""
    colours = pathway_colors([one.name for one in untouched])
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 7), sharex=True, height_ratios=(3, 2), layout="constrained"
    )
    for name, style in zip(METHODS, ("--", "-"), strict=True):
        steps, returns = evaluations(folder / name)
        above.plot(steps, returns, style, color="black", marker="o", markersize=3, label=name)
    for one in untouched:
        above.axhline(
            one.mean, color=colours[one.name], linestyle=":", label=f"{one.name}, untouched"
        )
    above.set(
        ylabel="return (deterministic)",
        title=f"{settings.task.split(':')[-1]} {settings.task_kwargs}, seed {settings.seed}",
    )
    above.legend(fontsize="small")
    recorded, shares = aligned(RunLog(folder / "hub-pathway").acted)
    below.stackplot(
        recorded,
        *shares.values(),
        labels=list(shares),
        colors=[colours[name] for name in shares],
        linewidth=0,
    )
    below.set(xlabel="environment steps", ylabel="share of steps acted", ylim=(0, 1))
    below.legend(fontsize="small", loc="center right")
    figure.savefig(folder / "curves.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    typer.run(main)
