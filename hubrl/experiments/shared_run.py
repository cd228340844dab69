"""A finished run's agent on Hugging Face: weights, card, learning curve and video."""

import shutil
import tempfile
from pathlib import Path

import numpy as np

from hubrl.experiments.finished_run import FinishedRun, run_agent
from hubrl.hub import Hub
from hubrl.sharing import agent_model_card, push_folder

CURVE = "learning_curve.png"

VIDEO = "replay.mp4"
"""Name under which Hugging Face plays a video on the model's page."""


def push_run(
    folder: Path,
    repository: str,
    *,
    video: Path | None = None,
    licence: str | None = None,
    private: bool = False,
    message: str | None = None,
) -> str:
    """Write a finished run's agent to a repository, as a hub of one source with a model card.

    Args:
        folder: The run's folder.
        repository: `owner/name`.
        video: A video of the agent; by default the run's newest, if it has one.
        licence: The agent's licence; by default the one that all its sources have.
        private: Whether a repository that is made is private.
        message: Message of the commit.

    Returns:
        Location of the commit, `hf://owner/name@commit`.

    Raises:
        BadFile: If the run is not finished, or the repository cannot be written to.
        BadConfig: If the repository is misspelled, or huggingface_hub is not installed.
    """
    run, agent = FinishedRun(folder), run_agent(folder)
    video = video or max(
        folder.glob("**/*.mp4"), key=lambda path: path.stat().st_mtime, default=None
    )
    with tempfile.TemporaryDirectory() as parent:
        made = Path(parent) / "agent"
        Hub([agent]).save(made)
        if video is not None:
            shutil.copyfile(video, made / VIDEO)
        text = agent_model_card(
            repository,
            agent.card,
            [source.card for source in run.hub or ()],
            # The run's own copy of its hub, and no path of this machine.
            {**run.config.to_dict(), **({"hub": "hub"} if run.config.hub else {})},
            licence=licence,
            curve=CURVE if draw_curve(folder / "evaluations.npz", made / CURVE) else None,
            video=VIDEO if video is not None else None,
        )
        (made / "README.md").write_text(text, encoding="utf-8")
        return push_folder(made, repository, private=private, message=message)


def draw_curve(evaluations: Path, out: Path) -> bool:
    """Draw the returns of a run's evaluations by steps; false without them or matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not evaluations.exists():
        return False
    saved = np.load(evaluations, allow_pickle=False)
    steps, returns = saved["timesteps"], saved["results"]
    mean, std = returns.mean(axis=1), returns.std(axis=1)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, mean)
    axes.fill_between(steps, mean - std, mean + std, alpha=0.2)
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return, ± std over episodes")
    figure.savefig(out, dpi=120)
    return True
