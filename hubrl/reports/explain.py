"""A run in plain words: who was tried, kept and dropped, why, and what was gained."""

import numpy as np

from hubrl.methods import available, find
from hubrl.reports.run_log import Arm, RunLog, decimals, in_words, with_spread
from hubrl.routing.pathways import FRESH
from hubrl.selection.arm_evidence import TOGETHER_ARM

MEANINGS = {
    "kept": "kept",
    "dropped": "dropped, each of its segments earned less than those of untrained networks",
    "deferred": "deferred, its segments were clearly worse than those of the best source",
    "set aside": "set aside, as others earned more in short segments",
    "in doubt": "in doubt, too few or too poor episodes to tell it from an untrained network",
}
"""Verdicts on sources, with their reasons."""


def explain(log: RunLog) -> list[str]:
    """About ten sentences, one a line."""
    return [
        _what(log),
        _sources(log),
        *_tried(log),
        *_turning_points(log),
        *_acted(log),
        *_evaluates(log),
        *_gained(log),
        *_overtook(log),
    ]


def _what(log: RunLog) -> str:
    config, steps, seconds = log.config, log.result.steps, log.result.wall_s
    return (
        f"{log.title}: {config.algorithm.upper()} with {config.method} trained on {log.task} for "
        f"{steps:,} steps in {seconds:.0f} seconds (seed {config.seed})."
    )


def _sources(log: RunLog) -> str:
    if not log.sources:
        return "There was no hub: it trained from scratch."
    method = log.config.method
    tunes = log.config.tuned or (method in available() and find(method).tunes)
    tuned = "trained further" if tunes else "frozen"
    return f"Its hub has {len(log.sources)} sources, {tuned}: {', '.join(log.sources)}."


def _tried(log: RunLog) -> list[str]:
    """A sentence for each source with a record or a verdict."""
    probed = {name: series.values[0] for name, series in log.by_name("probe/return/").items()}
    lines = []
    arms = [arm for arm in log.arms if arm.name in log.sources]
    waiting = [arm for arm in arms if arm.verdict == "set aside" and not arm.returns]
    for arm in arms:
        if arm in waiting:
            continue
        parts = []
        if arm.name in probed:
            parts.append(f"{probed[arm.name]:.4g} a segment in the probe")
        if arm.returns:
            parts.append(f"{_returns(arm)} in whole episodes")
        tried = f"earned {' and '.join(parts)}" if parts else "was not tried"
        lines.append(f"{arm.name} {tried}: {MEANINGS[arm.verdict or 'kept']}.")
    if waiting:
        more = "1 more was" if len(waiting) == 1 else f"{len(waiting)} more were"
        lines.append(f"{more} {MEANINGS['set aside']}, and played no whole episode.")
    if FRESH in probed and lines:
        lines.append(f"Untrained networks earned {probed[FRESH]:.4g} a segment.")
    if log.sources and not lines:
        lines.append("This method judges no sources: all of them took part from the beginning.")
    return lines


def _returns(arm: Arm) -> str:
    episodes = "episode" if len(arm.returns) == 1 else "episodes"
    return f"{arm.mean:.4g} ({len(arm.returns)} {episodes})"


def _turning_points(log: RunLog) -> list[str]:
    """Decisions about doubt and about the fresh pathway's trial."""
    words = ("No source earns", "fresh pathway is expected", "no room for a trial")
    return [
        f"After {step:,} steps: {sentence[0].lower()}{sentence[1:]}"
        for step, sentence in log.decisions
        if any(word in sentence for word in words)
    ]


def _acted(log: RunLog) -> list[str]:
    if not log.acted:
        return []
    shares = _percent(log.shares_acted())
    last = _percent(log.shares_acted(begin=0.9))
    return [f"Steps in training were played by {shares}; in the last tenth by {last}."]


def _percent(shares: dict[str, float]) -> str:
    ranked = sorted(shares.items(), key=lambda item: -item[1])
    shown = [f"{name} {share:.0%}" for name, share in ranked if share >= 0.005]
    return ", ".join(shown) or "random actions"


def _evaluates(log: RunLog) -> list[str]:
    arm = next((arm for arm in log.arms if arm.evaluates), None)
    if arm is None:
        return []
    if arm.name in log.sources:
        reason = "no arm that learned has clearly earned more"
        return [f"The saved agent acts as {arm.name}, uncorrected: {reason}."]
    what = {TOGETHER_ARM: "routes between the sources and corrects them", FRESH: "uses no source"}
    return [f"The saved agent acts as {in_words(arm.name)}: it {what[arm.name]}."]


def _gained(log: RunLog) -> list[str]:
    """The final return, and its difference from the best source untouched."""
    result = log.result
    count = result.eval_episodes
    final = f"{with_spread(result.eval_mean, result.eval_std)} over {count} episodes"
    ends = f"At the end it earned {final}"
    best = log.best_source
    if best is None:
        unknown = f"how its sources do untouched is not known: `hubrl report {log.folder} --play 5`"
        return [f"{ends}." if not log.sources else f"{ends}; {unknown}."]
    level = float(np.mean(log.levels[best]))
    difference = result.eval_mean - level
    shown, relation = abs(difference), "more" if difference >= 0 else "less"
    compared = f"{shown:.{decimals(level)}f} {relation} than"
    noise = (
        result.eval_std / np.sqrt(count),
        np.std(log.levels[best]) / np.sqrt(len(log.levels[best])),
    )
    doubt = ", a difference within their noise" if abs(difference) < 2 * np.hypot(*noise) else ""
    return [
        f"{ends}, {compared} {best}, the best source untouched "
        f"({level:.4g} over {len(log.levels[best])}){doubt}."
    ]


def _overtook(log: RunLog) -> list[str]:
    """When evaluations first passed the best source, if ever; nothing of a source that acts."""
    steps, returns = log.evaluations
    acts = any(arm.evaluates and arm.name in log.sources for arm in log.arms)
    if log.best_source is None or not len(steps) or acts:
        return []
    above = returns.mean(axis=1) > float(np.mean(log.levels[log.best_source]))
    if not above.any():
        return ["No evaluation was above the best source untouched."]
    first = int(steps[int(np.argmax(above))])
    return [
        f"{int(above.sum())} of {len(steps)} evaluations were above the best source, the first "
        f"after {first:,} steps."
    ]
