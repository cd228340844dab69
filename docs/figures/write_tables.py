"""The tables of results in README and docs, from the rows of the studies.

`python docs/figures/write_tables.py` writes them.

A page has `<!-- table: NAME -->` and `<!-- /table -->` where the table of that name in `TABLES`
belongs; the text between them is replaced. `tests/test_docs.py` fails where a page is older than
`results/`.
"""

import re
from collections.abc import Callable
from pathlib import Path

from study_rows import (
    GROUPS,
    NONE_FITS,
    ONE_SUFFICES,
    REPOSITORY,
    SEVERAL_NEEDED,
    UNTUNED,
    Case,
    Runs,
    cell,
    markdown,
    mean_cell,
    read_runs,
    runs_of,
)
from trust_tables import floor, trust, trust_ablation

from hubrl.experiments.statistics import mean_return
from hubrl.experiments.tables import HUB_METHOD, TRAINED_SINGLES

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


def best_trained(runs: Runs) -> list[float] | None:
    """The best method that trains one source: chosen by a probe, or the best in hindsight."""
    rivals = [
        values
        for name, values in runs.items()
        if name.startswith((*TRAINED_SINGLES, "probe-commit"))
    ]
    return max(rivals, key=mean_return, default=None)


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


def gates() -> str:
    """Gates that start at zero, beside scratch."""
    table = read_runs("atari_gates")
    names = {"random": "random play", "scratch": "scratch", "zero-gates": "`zero-gates`"}
    rows = []
    for task, runs in table.groupby("task"):
        for method, name in names.items():
            own = runs[runs["method"] == method]
            columns = ("first_quarter_return", "mean_train_return", "eval_return")
            cells = (mean_cell(own[column].dropna().tolist()) for column in columns)
            if len(own):
                rows.append([str(task), name, *cells, str(len(own))])
    header = ["game", "", "first quarter", "in training", "at the end, 30 games", "seeds"]
    return markdown(header, rows)


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
        trust_ablation,
        variants,
        gates,
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
