"""Tags of SB3's logger; `docs/concepts/metrics.md` has the formula of each."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import (
    CSVOutputFormat,
    HParam,
    HumanOutputFormat,
    JSONOutputFormat,
    Logger,
    TensorBoardOutputFormat,
)
from stable_baselines3.common.policies import BasePolicy

from hubrl.formats.hub_spec import HubSpec
from hubrl.formats.schema import write_yaml
from hubrl.methods.base import Method
from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.extractor import HubExtractor
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.selection.arm_selection import ArmSelection
from hubrl.selection.probe_verdict import Fate
from hubrl.training.halving import Halving
from hubrl.training.pathway_figures import draw_shares
from hubrl.training.probe import ProbeResult

# SB3's table cuts keys at 36 characters and refuses two that are then alike; names of sources can
# be long.
NO_TABLE = ("stdout", "log")
TENSORBOARD_ONLY = ("stdout", "log", "json", "csv")

DECISIONS = "trust/log"
"""Tag of the sentences about trust."""


class ActedSteps:
    """Steps of each pathway since the last reset.

    Nothing is counted where no single pathway acts: at the level of features, in a mean of
    outputs, and in a mixture whose steps no rollout buffer records. Random actions of DQN are
    steps without a pathway.

    Args:
        n_pathways: Number of pathways.
    """

    def __init__(self, n_pathways: int) -> None:
        self.counts: Int[np.ndarray, " pathways"] = np.zeros(n_pathways, dtype=np.int64)
        self.steps = 0
        self.history: list[tuple[int, Float[np.ndarray, " pathways"]]] = []
        """Environment steps and shares of every record so far."""

    def reset(self, now: int) -> None:
        """Keep the shares in the history, and start anew.

        Args:
            now: Environment steps so far.
        """
        if self.counts.any():
            self.history.append((now, self.shares()))
        self.counts[:] = 0
        self.steps = 0

    def add(self, policy: BasePolicy, n_envs: int) -> None:
        """Count one step of every parallel environment."""
        self.steps += n_envs
        if isinstance(policy, HubDQNPolicy):
            self.counts += policy.take_acted()
        elif isinstance(policy, HubActorCriticPolicy):
            acted = policy.last_record.acted
            if acted is not None:
                self.counts += np.bincount(acted.cpu().numpy(), minlength=len(self.counts))
            elif policy.fresh_alone:
                self.counts[-1] += n_envs

    def state(self) -> dict[str, Any]:
        """Everything that was counted, as plain data."""
        history = [(step, shares.tolist()) for step, shares in self.history]
        return {"counts": self.counts.tolist(), "steps": self.steps, "history": history}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from an earlier `state`."""
        self.counts[:] = state["counts"]
        self.steps = state["steps"]
        self.history = [(step, np.array(shares)) for step, shares in state["history"]]

    def shares(self) -> Float[np.ndarray, " pathways"]:
        """Share of the steps in which each pathway acted."""
        return self.counts / max(self.steps, 1)


def record_method(logger: Logger, method: Method) -> None:
    """Record a method's own measures, its loss and its pathway weights since the last record."""
    for tag, value in method.measures().items():
        logger.record(tag, value, exclude=NO_TABLE)
    sums = method.routing_stats.sums
    if sums.passes:
        logger.record(f"loss/{method.loss_name}", sums.loss / sums.passes)
    if (
        sums.rows
    ):  # none with methods without weights, and while off-policy algorithms act at random
        for index, name in enumerate(method.routing_stats.names):
            logger.record(
                f"pathway/weight/{name}", float(sums.weight[index]) / sums.rows, exclude=NO_TABLE
            )
            logger.record(
                f"pathway/active/{name}", float(sums.active[index]) / sums.rows, exclude=NO_TABLE
            )
            if len(sums.last):
                logger.record(
                    f"pathway/histogram/{name}",
                    sums.last[:, index].clone(),
                    exclude=TENSORBOARD_ONLY,
                )
        logger.record("pathway/entropy_nats", sums.entropy / sums.rows)
        logger.record("pathway/active_sources", float(sums.active.sum()) / sums.rows)
    _record_gradient(logger, method)
    method.routing_stats.reset()


def _record_gradient(logger: Logger, method: Method) -> None:
    """Record the router's gradient of the last update; SB3 clears it before the next."""
    router = method.router
    norms = (
        [] if router is None else [p.grad.norm() for p in router.parameters() if p.grad is not None]
    )
    if norms:
        logger.record("router/gradient_norm", float(torch.stack(norms).norm()))


def record_selection(
    logger: Logger, selection: ArmSelection, acted: np.ndarray | None = None
) -> None:
    """Record what every arm earned, which acts in evaluation, and which played.

    Args:
        logger: SB3's logger.
        selection: The selection.
        acted: Environment steps that each arm played since the last record.
    """
    evaluates = selection.evaluation_arm
    for arm, name in enumerate(selection.records.names[: selection.untrained]):
        count = selection.records.count(arm)
        if count:
            logger.record(f"trust/episodes/{name}", count, exclude=NO_TABLE)
            logger.record(
                f"trust/return/{name}", selection.records.mean_return(arm), exclude=NO_TABLE
            )
        logger.record(f"trust/evaluates/{name}", float(arm == evaluates), exclude=NO_TABLE)
        if acted is not None and acted.sum():
            logger.record(f"trust/played/{name}", float(acted[arm] / acted.sum()), exclude=NO_TABLE)
    ahead, behind = selection.trial.forecasts
    if ahead == ahead:
        logger.record("trust/forecast/fresh", ahead, exclude=NO_TABLE)
        logger.record("trust/forecast/hub", behind, exclude=NO_TABLE)


def record_acted(logger: Logger, names: Sequence[str], acted: ActedSteps, now: int) -> None:
    """Record the share of environment steps in which each pathway acted since the last record."""
    if acted.counts.any():
        for name, share in zip(names, acted.shares(), strict=True):
            logger.record(f"pathway/acted/{name}", float(share), exclude=NO_TABLE)
    acted.reset(now)


def draw_acted(logger: Logger, names: Sequence[str], acted: ActedSteps, now: int) -> None:
    """Write the figure of who acted to TensorBoard, where that and matplotlib are there.

    SB3 writes nothing of its own accord after a training's end, so the figure goes straight to the
    writer.
    """
    writers = [
        one.writer for one in logger.output_formats if isinstance(one, TensorBoardOutputFormat)
    ]
    if not writers or not acted.history or find_spec("matplotlib") is None:
        return
    steps = [step for step, _ in acted.history]
    shares = np.stack([row for _, row in acted.history]).T
    figure = draw_shares(steps, dict(zip(names, shares, strict=True)))
    for writer in writers:
        writer.add_figure("pathway/acted", figure, now, close=False)


def record_stds(logger: Logger, policy: HubActorCriticPolicy) -> None:
    """Record each pathway's mean standard deviation over actions, where it is learned."""
    if not isinstance(policy.action_space, spaces.Box):
        return
    names = policy.method.pathways.names
    log_stds = dict(zip(names, policy.method.pathways.log_stds, strict=False))
    if policy.method.pathways.has_fresh:
        log_stds[names[-1]] = policy.log_std
    for name, log_std in log_stds.items():
        std = float(log_std.detach().exp().mean())
        logger.record(f"pathway/std/{name}", std, exclude=NO_TABLE)


def record_probe(logger: Logger, result: ProbeResult) -> None:
    """Record what a probe measured, and its verdict on each source."""
    logger.record("probe/steps", result.steps)
    for name, returns in result.returns.items():
        logger.record(f"probe/return/{name}", float(np.mean(returns)), exclude=NO_TABLE)
    for name, fate in result.fates.items():
        logger.record(f"probe/verdict/{name}", VERDICTS[fate], exclude=NO_TABLE)


def record_changes(logger: Logger, changes: list[str]) -> None:
    """Record sentences about trust as text, after those that are not written yet."""
    if changes:
        waiting = logger.name_to_value.get(DECISIONS)
        lines = [*([waiting] if isinstance(waiting, str) else []), *changes]
        logger.record(DECISIONS, "  \n".join(lines), exclude=TENSORBOARD_ONLY)


def describe_probe(result: ProbeResult) -> str:
    """A probe's result, a line for each pathway."""
    lines = [f"Probe: {result.steps} steps in segments of {result.segment}."]
    if result.halving is not None:
        lines.append(f"  {_describe_halving(result, result.halving)}")
    for name, returns in result.returns.items():
        spread = (
            np.std(returns, ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else float("nan")
        )
        fate = REASONS[result.fates[name]] if name in result.fates else "untrained networks"
        lines.append(
            f"  {name}: {np.mean(returns):.1f} ± {spread:.1f} over {len(returns)} segments, {fate}"
        )
    return "\n".join(lines)


def _describe_halving(result: ProbeResult, halving: Halving) -> str:
    sizes = ", ".join(str(size) for size in halving.rounds)
    dropped = sum(fate is Fate.DROPPED for fate in result.fates.values())
    aside = sum(fate is Fate.SET_ASIDE for fate in result.fates.values())
    return (
        f"Of {len(result.fates)} sources {dropped} are dropped and {aside} set aside, to be judged "
        f"later in whole episodes if any: rounds of {sizes} sources took {halving.steps} of these "
        f"steps, and {len(result.fates) - len(halving.set_aside)} sources were left."
    )


VERDICTS = {
    Fate.DROPPED: "dropped",
    Fate.DEFERRED: "deferred",
    Fate.DOUBTED: "in doubt",
    Fate.KEPT: "kept",
    Fate.SET_ASIDE: "set aside",
}
"""Words for each `Fate`."""

REASONS = {
    Fate.DROPPED: "dropped: clearly no better than untrained networks",
    Fate.DEFERRED: "deferred: clearly worse than the best source",
    Fate.DOUBTED: "in doubt: whole episodes decide",
    Fate.KEPT: "kept: clearly better than untrained networks",
}
"""What each `Fate` means."""


def describe_evaluation_arm(selection: ArmSelection) -> str:
    """The arm that acts in evaluation, and the returns by which it was chosen."""
    arm, records = selection.evaluation_arm, selection.records
    sentence = f"{records.names[arm]} acts in evaluation from now on: {_on_record(selection, arm)}"
    source = selection.best_source
    if source is None or source == arm or not records.count(source):
        return f"{sentence}."
    return f"{sentence}; the best source, {records.names[source]}, {_on_record(selection, source)}."


def describe_arms(policy: torch.nn.Module) -> dict[str, dict[str, Any]]:
    """Verdict, returns on record and role in evaluation of every arm, as plain data.

    Empty for a policy without arms.
    """
    selection = getattr(policy, "selection", None)
    if not isinstance(selection, ArmSelection):
        return {}
    arms: dict[str, dict[str, Any]] = {}
    for arm, name in enumerate(selection.records.names[: selection.untrained]):
        is_source = arm < selection.n_sources
        arms[name] = {
            "verdict": VERDICTS[selection.fate(arm)] if is_source else None,
            "returns": selection.records.returns(arm),
            "evaluates": arm == selection.evaluation_arm,
        }
    return arms


def _on_record(selection: ArmSelection, arm: int) -> str:
    count = selection.records.count(arm)
    if not count:
        return "no whole episode yet"
    episodes = "episode" if count == 1 else "episodes"
    return f"{selection.records.mean_return(arm):.4g} over {count} {episodes}"


def record_hub(logger: Logger, model: BaseAlgorithm) -> None:
    """Record the hub's cards as text, and what TensorBoard compares runs by."""
    spec = hub_spec(model.policy)
    tables = HumanOutputFormat | JSONOutputFormat | CSVOutputFormat
    if spec is None or all(isinstance(one, tables) for one in logger.output_formats):
        return  # nobody reads them, and the cards of many sources take seconds to write
    card = "\n".join(f"    {line}" for line in write_yaml(spec.to_dict()).splitlines())
    logger.record("hub/card", card, exclude=TENSORBOARD_ONLY)
    options = {
        f"options/{key}": value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in spec.options.items()
    }
    hparams: dict[str, Any] = {
        "algorithm": type(model).__name__,
        "method": spec.method,
        "sources": ", ".join(source.name for source in spec.sources),
        "tuned": spec.tuned,
        **options,
    }
    metrics: dict[str, float] = {"rollout/ep_rew_mean": 0.0, "pathway/entropy_nats": 0.0}
    logger.record("hparams", HParam(hparams, metrics), exclude=TENSORBOARD_ONLY)


def hub_spec(policy: torch.nn.Module) -> HubSpec | None:
    """The hub that a policy was built with, if any."""
    found = (
        part.spec
        for part in policy.modules()
        if isinstance(part, HubActorCriticPolicy | HubDQNPolicy | HubExtractor)
    )
    return next(found, None)
