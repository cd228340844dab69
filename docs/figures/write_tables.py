"""The tables of results in README and docs, from the rows of the studies.

`python docs/figures/write_tables.py` writes them.

A page has `<!-- table: NAME -->` and `<!-- /table -->` where the table of that name in `TABLES`
belongs; the text between them is replaced. `tests/test_docs.py` fails where a page is older than
`results/`.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from hubrl.experiments.statistics import estimate, mean_return
from hubrl.experiments.study_config import read_study
from hubrl.experiments.tables import HUB_METHOD, TRAINED_SINGLES, returns_by_method

REPOSITORY = Path(__file__).parents[2]
RESULTS = REPOSITORY / "results"
STUDIES = REPOSITORY / "configs" / "studies"

Runs = dict[str, list[float]]
"""Evaluated returns of each method's runs on one target with one hub."""


class Case(NamedTuple):
    """A target with a hub, and its description in words."""

    task: str
    hub: str
    title: str


ONE_SUFFICES = [
    Case("gravity", "two", "HalfCheetah, gravity x1.5"),
    Case("dead-foot", "two", "HalfCheetah, one motor dead"),
    Case("weak-motors", "two", "HalfCheetah, motors at 60 %"),
    Case("gravity", "five", "gravity x1.5, five sources"),
    Case("walker", "walkers", "Walker2d, gravity x1.25"),
    Case("biped", "bipeds", "BipedalWalker"),
    Case("mountain-car", "cars", "MountainCar"),
    Case("lander-ppo", "landers", "LunarLander, PPO"),
    Case("lander", "landers", "LunarLander, DQN"),
]
SEVERAL_NEEDED = [
    Case("reversing-cued", "mirrored", "a motor changes its sign, observed"),
    Case("reversing-hidden", "mirrored", "a motor changes its sign, hidden"),
    Case("shuttle", "shuttle", "the paid direction changes"),
]
NONE_FITS = [
    Case("backward", "two", "HalfCheetah, backward"),
    Case("gravity", "random", "gravity x1.5, random networks"),
    Case("plateau", "poor", "HalfCheetah, one poor source"),
]
GROUPS = {
    "one source suffices": ONE_SUFFICES,
    "several are needed": SEVERAL_NEEDED,
    "none fits, or only a poor one": NONE_FITS,
}
"""All targets of the pathway study, by the question they answer."""

FIRST_SCREEN = [
    ONE_SUFFICES[0],
    ONE_SUFFICES[7],
    SEVERAL_NEEDED[0],
    SEVERAL_NEEDED[2],
    NONE_FITS[0],
    NONE_FITS[2],
]
"""The README's rows: two of each group, one where the hub does well and one where it does less
well."""

UNTUNED = [
    Case("mediocre", "mediocre", "HalfCheetah, gravity x1.25, three mediocre sources"),
    Case("walker-motors", "walkers", "Walker2d, motors at 80 %"),
    Case("slippery", "five", "HalfCheetah on ice (friction 0.3), five sources"),
    Case("acrobot", "acrobots", "Acrobot with other links"),
    Case("cartpole", "cartpoles", "CartPole, heavy and long"),
]
TRUST = {
    **{
        case.title: (case, case)
        for case in [*ONE_SUFFICES[:3], *ONE_SUFFICES[4:7], *SEVERAL_NEEDED, *NONE_FITS[::2]]
    },
    "gravity x1.5, five sources": (ONE_SUFFICES[3], Case("gravity-five", "five", "")),
    "LunarLander, PPO": (ONE_SUFFICES[7], Case("lander", "landers", "")),
    "gravity x1.5, random networks": (NONE_FITS[1], Case("gravity-random", "random", "")),
    "HalfCheetah, gravity x1.25, three mediocre sources": (UNTUNED[0], UNTUNED[0]),
    "CartPole, heavy and long": (UNTUNED[4], UNTUNED[4]),
}
"""Targets of `trust.yaml`: in the earlier studies, and in that one."""

FLOOR = {
    "cheetah-3k": "HalfCheetah, no whole episode",
    "cheetah-8k": "HalfCheetah, one episode an environment",
    "cheetah-five": "HalfCheetah, five sources",
    "cheetah-mediocre": "HalfCheetah, three mediocre sources",
    "walker": "Walker2d, gravity x1.25",
    "biped": "BipedalWalker",
    "pendulum": "Pendulum, g = 9",
    "mountain-car": "MountainCar",
    "cartpole": "CartPole, heavy and long",
    "cartpole-dqn": "CartPole, heavy and long, DQN",
    "lander": "LunarLander, other gravity and wind",
}
"""Targets of `floor.yaml`."""

VARIANTS = {
    "mode3": "mode 3",
    "mode2": "mode 2",
    "mode5": "mode 5",
    "difficulty1": "difficulty 1",
    "sticky": "sticky actions",
}
VARIANT_METHODS = {
    "random": "random play",
    "zero-shot": "best source, untouched",
    "scratch": "scratch",
    "finetune": "`finetune` of SpaceInvaders' agent, as nobody knows beforehand",
    "finetune-features": "the same, its encoder alone",
    "probe-commit": "`probe-commit`",
    "hub-pathway": "`hub-pathway`",
    "warm-start": "`warm-start`",
}
"""Targets and methods of `atari_variants.yaml`."""

ABLATED = [Case("gravity", "two", "gravity"), Case("reversing-cued", "mirrored", "sign")]

CHANGES = {
    HUB_METHOD: "none",
    "features": '`level="features"`',
    "averaged": '`aggregation="mean"`',
    "top-1": "`top_k=1`",
    "top-2": "`top_k=2`, and so no judging of arms",
    "no-residual": "`residual=False`",
    "drawn-at-every-step": "`hold=1`: a pathway drawn in every step",
    "held-30": "`hold=30`",
    "held-fixed": '`release="fixed"`: exactly 5 steps',
    "no-noise": "`noise=False`",
    "no-exploration-loss": "`explore_coef=0`",
    "more-exploration-loss": "`explore_coef=0.01`: ten times as much",
    "exploitation": "`tuned=True`: sources trained further",
    "no-probe": "`HubCallback(probe_share=0)`",
    "no-warm-up": "`HubCallback(warmup_share=0)`",
    "no-fresh-pathway": "`fresh=False`, and so no probe",
    "fresh-from-the-start": "`fresh_joins=True`",
}
"""Methods of the ablation, as a user would write them."""


def read_runs(study: str) -> pd.DataFrame:
    """Every finished run of a study."""
    return pd.read_csv(RESULTS / study / "runs.csv", dtype={"config": str})


def cell(values: list[float] | None) -> str:
    """Interquartile mean with its interval; empty without runs."""
    return re.sub(r"-0(?![\d.])", "0", str(estimate(values))) if values else ""


def mean_cell(values: list[float] | None) -> str:
    """Interquartile mean alone."""
    return f"{mean_return(values):.0f}" if values else ""


def best_trained(runs: Runs) -> list[float] | None:
    """The best method that trains one source: chosen by a probe, or the best in hindsight."""
    rivals = [
        values
        for name, values in runs.items()
        if name.startswith((*TRAINED_SINGLES, "probe-commit"))
    ]
    return max(rivals, key=mean_return, default=None)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def runs_of(table: pd.DataFrame, case: Case) -> Runs:
    """A target's runs."""
    return returns_by_method(table, case.task, case.hub)


def first_screen() -> str:
    """The README's table: at most six rows."""
    table = read_runs("pathway")
    rows = []
    for case in FIRST_SCREEN:
        runs = runs_of(table, case)
        values = [
            runs.get("scratch"),
            runs.get("zero-shot"),
            best_trained(runs),
            runs.get(HUB_METHOD),
        ]
        rows.append([case.title, *map(cell, values)])
    return markdown(
        ["target", "scratch", "best source, untouched", "best source, trained", "**hub**"], rows
    )


def targets() -> str:
    """Every target of the pathway study."""
    table = read_runs("pathway")
    rows = []
    for group, cases in GROUPS.items():
        for index, case in enumerate(cases):
            runs = runs_of(table, case)
            values = [
                runs.get("scratch"),
                runs.get("zero-shot"),
                best_trained(runs),
                runs.get("oracle"),
                runs.get(HUB_METHOD),
            ]
            rows.append(
                [
                    group if index == 0 else "",
                    case.title,
                    *map(cell, values),
                    str(len(runs.get(HUB_METHOD, []))),
                ]
            )
    return markdown(
        [
            "",
            "target",
            "scratch",
            "best source, untouched",
            "best source, trained",
            "oracle",
            "**hub**",
            "seeds",
        ],
        rows,
    )


def normalised() -> str:
    """Scratch and the hub, with and without VecNormalize."""
    table = read_runs("pathway")
    methods = ["scratch", "scratch-normalized", HUB_METHOD, f"{HUB_METHOD}-normalized"]
    rows = [
        [case.title, *(cell(runs_of(table, case).get(method)) for method in methods)]
        for case in (*SEVERAL_NEEDED, NONE_FITS[2])
    ]
    return markdown(
        ["target", "scratch", "scratch, `normalize: true`", "hub", "hub, `normalize: true`"], rows
    )


def controls() -> str:
    """The trained hub, and the same hub with a blinded router."""
    table = read_runs("pathway")
    methods = [
        HUB_METHOD,
        f"{HUB_METHOD}:mean-weights",
        f"{HUB_METHOD}:shuffled-input",
        "zero-shot",
        "fresh-from-the-start",
    ]
    rows = [
        [case.title, *(cell(runs_of(table, case).get(method)) for method in methods)]
        for case in SEVERAL_NEEDED
    ]
    header = [
        "target",
        "hub",
        "its mean weights",
        "another environment's observation",
        "best source, untouched",
        "`fresh_joins=True`",
    ]
    return markdown(header, rows)


def trust() -> str:
    """The hub before and after trust was simplified, beside its rivals."""
    before, now = (pd.concat(map(read_runs, names)) for names in (["pathway", "unseen"], ["trust"]))
    rows = []
    for title, (case, renamed) in TRUST.items():
        runs, new = runs_of(before, case), runs_of(now, renamed)[HUB_METHOD]
        rivals = [runs[name] for name in (*TRAINED_SINGLES, "probe-commit") if name in runs]
        best = max(rivals, key=mean_return, default=None)
        rows.append(
            [
                title,
                cell(runs.get("scratch")),
                cell(runs.get("zero-shot")),
                cell(best),
                cell(runs.get(HUB_METHOD)),
                cell(new),
                str(len(new)),
            ]
        )
    header = [
        "target",
        "scratch",
        "best source, untouched",
        "best rival, trained",
        "hub before",
        "**hub now**",
        "seeds now",
    ]
    return markdown(header, rows)


def floor() -> str:
    """How often the agent is clearly worse than the best source untouched."""
    table, study = read_runs("floor"), read_study(STUDIES / "floor.yaml")
    rows = []
    for case, title in FLOOR.items():
        fields, of_case = study.fields(case), table[table["task"] == case]
        hub = of_case[of_case["method"] == HUB_METHOD]
        if hub.empty:
            continue
        played = of_case[of_case["method"].str.startswith("zero-shot:")]
        episodes = fields["eval_episodes"]
        best, error = best_source(played, episodes)
        errors = np.hypot(error, hub["eval_std"] / np.sqrt(episodes))
        below = best - hub["eval_return"] > 2 * errors
        rows.append(
            [
                title,
                f"{fields['steps']:,}",
                f"{best:.0f}" if error < 1 else f"{best:.0f} ± {error:.0f}",
                spread(hub["eval_return"]),
                f"{int(below.sum())} of {len(hub)}",
            ]
        )
    header = ["target", "steps", "best source, untouched", "hub-pathway", "clearly below"]
    return markdown(header, rows)


def best_source(played: pd.DataFrame, episodes: int) -> tuple[float, float]:
    """Mean return of the best of several sources and its standard error, over all seeds at once.

    The best of each seed apart would be the luckiest.

    Args:
        played: Evaluations of each source, untouched.
        episodes: Episodes of an evaluation.
    """
    each = played.groupby("method")
    best = each["eval_return"].mean().idxmax()
    runs = each.get_group(best)
    variance = runs["eval_std"].pow(2).mean() / (episodes * len(runs))
    return float(runs["eval_return"].mean()), float(np.sqrt(variance))


def variants() -> str:
    """Variants of SpaceInvaders: returns in training and at the end."""
    table = read_runs("atari_variants")
    rows = []
    for task, title in VARIANTS.items():
        for method, name in VARIANT_METHODS.items():
            runs = table[(table["task"] == task) & (table["method"] == method)]
            if len(runs):
                trained = runs["mean_train_return"].dropna().tolist()
                at_end = cell(runs["eval_return"].tolist())
                rows.append([title, name, cell(trained), at_end, str(len(runs))])
    return markdown(["target", "", "in training", "at the end, 30 games", "seeds"], rows)


def spread(values: pd.Series) -> str:
    """The least and the greatest of some returns."""
    least, greatest = f"{values.min():.0f}", f"{values.max():.0f}"
    return least if least == greatest else f"{least} to {greatest}"


def ablation() -> str:
    """One option changed at a time."""
    table = read_runs("pathway_ablation")
    phases = {"at the end": "eval_return", "in training": "mean_train_return"}
    header = ["change", *(f"{case.title}: {phase}" for case in ABLATED for phase in phases)]
    rows = []
    for method, change in CHANGES.items():
        of_method = [
            table[(table["task"] == case.task) & (table["method"] == method)] for case in ABLATED
        ]
        rows.append(
            [
                change,
                *(
                    mean_cell(runs[column].dropna().tolist())
                    for runs in of_method
                    for column in phases.values()
                ),
            ]
        )
    return markdown(header, rows)


def untuned() -> str:
    """Targets on which nothing was chosen."""
    table = read_runs("unseen")
    rows = []
    for case in UNTUNED:
        runs = runs_of(table, case)
        rows.append(
            [
                case.title,
                *(
                    cell(runs.get(name))
                    for name in ("scratch", "zero-shot", "probe-commit", HUB_METHOD)
                ),
            ]
        )
        if f"{HUB_METHOD}-0.1" in runs:
            rows.append(
                [
                    "the same with `source_std=0.1`",
                    "",
                    "",
                    cell(runs.get("probe-commit-0.1")),
                    cell(runs[f"{HUB_METHOD}-0.1"]),
                ]
            )
    return markdown(
        ["target", "scratch", "best source, untouched", "probe-commit", "**hub**"], rows
    )


TABLES: dict[str, Callable[[], str]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        first_screen,
        targets,
        normalised,
        controls,
        trust,
        floor,
        variants,
        ablation,
        untuned,
    )
}
"""Function that writes each table, by the table's name."""

MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """A page's text with the tables that its marks name."""
    return MARKED.sub(lambda marks: f"{marks[1]}{TABLES[marks[2]]()}\n{marks[3]}", text)


def marked_pages() -> list[Path]:
    """Pages with a marked table."""
    pages = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return [page for page in pages if MARKED.search(page.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for marked in marked_pages():
        marked.write_text(with_tables(marked.read_text(encoding="utf-8")), encoding="utf-8")
