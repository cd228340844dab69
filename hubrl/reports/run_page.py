"""The report of one run."""

import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from hubrl import __version__
from hubrl.errors import SpaceMismatch
from hubrl.experiments.evaluation import play
from hubrl.experiments.run_envs import evaluation_env
from hubrl.formats.files import write_atomically
from hubrl.formats.schema import write_yaml
from hubrl.reports import page, plots
from hubrl.reports.explain import explain
from hubrl.reports.run_log import LEVELS, RunLog, decimals, in_words, with_spread
from hubrl.training.pathway_figures import pathway_colors

PAGE = "report.html"


def write_run_page(folder: Path, out: Path | None = None) -> Path:
    """Write the report of a finished run as one HTML page; nothing is trained or played.

    Args:
        folder: The run's folder.
        out: The page; `report.html` in the run's folder by default.

    Returns:
        The page.

    Raises:
        BadFile: If the run is not finished, or a file of it is damaged.
    """
    log = RunLog(folder)
    config = log.config
    lead = f"{config.algorithm.upper()} with {config.method} on {log.task}, seed {config.seed}"
    parts = [
        page.facts(_facts(log)),
        page.section("What happened", "", page.story(explain(log))),
        _returns(log),
        _video(log),
        _acted(log),
        _trust(log),
        _sources(log),
        _record(log),
    ]
    text = page.page(log.title, lead, parts, plots.script(), f"Made by hubrl {__version__}.")
    place = out or folder / PAGE
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, text)
    return place


def play_sources(
    folder: Path, episodes: int, on_step: Callable[[str, int], None] = lambda name, done: None
) -> None:
    """Play every source of a run untouched on its task, for the levels of its report.

    Args:
        folder: The run's folder.
        episodes: Episodes of each.
        on_step: Called with a source's name and its finished episodes.
    """
    log = RunLog(folder)
    played: dict[str, list[float]] = {}
    for source in log.hub or ():
        name = source.name
        with closing(evaluation_env(log.config, episodes=episodes)) as env:
            try:
                played[name] = play(source, env, episodes, on_step=partial(on_step, name)).returns
            except SpaceMismatch:
                continue  # an encoder alone, or of other actions: it has no level
    write_atomically(folder / LEVELS, json.dumps(played, indent=2) + "\n")


def _facts(log: RunLog) -> list[tuple[str, str]]:
    result = log.result
    shown = [("return at the end", with_spread(result.eval_mean, result.eval_std))]
    if log.best_source is not None:
        level = float(np.mean(log.levels[log.best_source]))
        gain = f"{result.eval_mean - level:+.{decimals(level)}f}"
        shown.append((f"over {log.best_source}, the best source", gain))
    acting = next((in_words(arm.name) for arm in log.arms if arm.evaluates), None)
    if acting is not None:
        shown.append(("acts in evaluation", acting))
    shown.append(("environment steps", f"{result.steps:,}"))
    shown.append(("steps a second", f"{result.steps_per_s:.0f}"))
    return shown


def _returns(log: RunLog) -> str:
    note = (
        "Evaluations are deterministic (drawn in Atari games), with a band of one standard "
        "deviation over episodes. Dashed: what each source earns untouched."
    )
    missing = ""
    if log.sources and log.best_source is None:
        missing = (
            '<p class="note">The training did not measure its sources; '
            "<code>hubrl report RUN --play 5</code> plays them.</p>"
        )
    return page.section("Return", note, plots.div(plots.returns(log), "returns"), missing)


def _video(log: RunLog) -> str:
    found = page.videos(log.folder)
    note = "Bars: pathway weights. The name under the picture is the pathway that acts."
    return page.section("Video", note, *found)


def _acted(log: RunLog) -> str:
    weights = log.by_name("pathway/weight/")
    acted = plots.div(plots.stacked(log.acted, "share of steps"), "acted") if log.acted else ""
    routed = plots.div(plots.stacked(weights, "mean weight"), "weights") if weights else ""
    return page.section(
        "Who acted",
        "Share of the training's steps in which each pathway chose the action.",
        acted,
    ) + page.section(
        "Pathway weights",
        "The router's mean weights, before commitments and episodes of one pathway count.",
        routed,
    )


def _trust(log: RunLog) -> str:
    earned = log.by_name("trust/return/")
    colors = pathway_colors(log.sources)
    probed = {name: f"{one.values[0]:.4g}" for name, one in log.by_name("probe/return/").items()}
    rows = [
        (
            in_words(arm.name),
            *([probed.get(arm.name, "")] if probed else []),
            arm.verdict or "",
            str(len(arm.returns)),
            f"{arm.mean:.4g}" if arm.returns else "",
            "yes" if arm.evaluates else "",
        )
        for arm in log.arms
    ]
    first = ("arm", "a segment") if probed else ("arm",)
    header = (*first, "verdict", "episodes", "mean return", "acts in evaluation")
    lines = plots.lines(earned, "mean return on record", log.sources) if earned else None
    decisions = [f"{step:,} steps: {sentence}" for step, sentence in log.decisions]
    return page.section(
        "Trust, and why",
        "Each arm's mean return on record while the training went on, and every decision.",
        page.table(header, rows, [colors.get(arm.name) for arm in log.arms]),
        plots.div(lines, "trust") if lines is not None else "",
        page.story(decisions),
    )


def _sources(log: RunLog) -> str:
    if log.hub is None:
        return ""
    cards = [page.folded(source.name, write_yaml(source.card.to_dict())) for source in log.hub]
    return page.section("Sources", "The cards of the hub.", *cards)


def _record(log: RunLog) -> str:
    versions = [(name, value) for name, value in log.versions.items() if value]
    return page.section(
        "Record",
        "Everything needed to repeat the run.",
        page.folded("config.yaml", (log.folder / "config.yaml").read_text(encoding="utf-8")),
        page.folded("command.txt", log.command),
        page.folded("result.json", log.result.model_dump_json(indent=2)),
        page.table(("package", "version"), versions),
    )
