"""Tables of what trust reaches, of its floor, and of what each of its rules is worth."""

import numpy as np
import pandas as pd
from study_rows import (
    NONE_FITS,
    ONE_SUFFICES,
    SEVERAL_NEEDED,
    STUDIES,
    UNTUNED,
    Case,
    cell,
    markdown,
    mean_cell,
    read_runs,
    runs_of,
)

from hubrl.experiments.statistics import mean_return
from hubrl.experiments.study_config import read_study
from hubrl.experiments.tables import HUB_METHOD, TRAINED_SINGLES

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

LEFT_OUT = {
    "no-selection": "no judging of arms: `judging_share=0`",
    "no-probe": "no segments: `HubCallback(probe_share=0)`",
    "no-trial": "no trial of the fresh pathway: `trial_share=0`",
    "fresh-joins": "the fresh pathway joins: `fresh_joins=True`",
    "std-0.05": "`source_std=0.05`",
    "std-0.1": "`source_std=0.1`",
}
"""Methods of `trust.yaml` that leave a rule out, as a user would write them."""


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


def trust_ablation() -> str:
    """What leaving a rule out does, on the seeds that both were trained with."""
    table, titles = read_runs("trust"), {case.task: title for title, (_, case) in TRUST.items()}
    rows = []
    for method, change in LEFT_OUT.items():
        for task, runs in table[table["method"] == method].groupby("task"):
            full = table[(table["task"] == task) & (table["method"] == HUB_METHOD)]
            full = full[full["seed"].isin(runs["seed"])]
            measured = ("first_quarter_return", "mean_train_return", "eval_return")
            pairs = (
                mean_cell(side[column].tolist()) for column in measured for side in (full, runs)
            )
            rows.append([change, titles[str(task)], *pairs, str(len(runs))])
    phases = ("first quarter", "training", "at the end")
    columns = (f"{phase}, {which}" for phase in phases for which in ("with", "without"))
    return markdown(["left out or set", "target", *columns, "seeds"], rows)


def spread(values: pd.Series) -> str:
    """The least and the greatest of some returns."""
    least, greatest = f"{values.min():.0f}", f"{values.max():.0f}"
    return least if least == greatest else f"{least} to {greatest}"
