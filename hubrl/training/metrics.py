"""Tags of SB3's logger; `docs/concepts/metrics.md` has the formula of each."""

from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import HParam, Logger

from hubrl.formats.hub_spec import HubSpec
from hubrl.formats.schema import write_yaml
from hubrl.methods.base import Method
from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.extractor import HubExtractor
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.selection.arm_selection import ArmSelection
from hubrl.training.probe import ProbeResult

# SB3's table cuts keys at 36 characters and refuses two that are then alike; names of sources can
# be long.
NO_TABLE = ("stdout", "log")
TENSORBOARD_ONLY = ("stdout", "log", "json", "csv")


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
                    f"pathway/weights/{name}", sums.last[:, index].clone(), exclude=TENSORBOARD_ONLY
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
    for arm, name in enumerate(selection.records.names[: selection.untrained]):
        count = selection.records.count(arm)
        if count:
            logger.record(f"trust/episodes/{name}", count, exclude=NO_TABLE)
            logger.record(
                f"trust/return/{name}", selection.records.mean_return(arm), exclude=NO_TABLE
            )
        logger.record(
            f"trust/evaluates/{name}", float(arm == selection.evaluation_arm), exclude=NO_TABLE
        )
        if acted is not None and acted.sum():
            logger.record(f"trust/played/{name}", float(acted[arm] / acted.sum()), exclude=NO_TABLE)
    ahead, behind = selection.trial.forecasts
    if ahead == ahead:
        logger.record("trust/forecast/fresh", ahead, exclude=NO_TABLE)
        logger.record("trust/forecast/hub", behind, exclude=NO_TABLE)


def record_probe(logger: Logger, result: ProbeResult) -> None:
    """Record what a probe measured, and how far it trusts each pathway (`Fate`)."""
    logger.record("probe/steps", result.steps)
    for name, returns in result.returns.items():
        logger.record(f"probe/return/{name}", float(np.mean(returns)), exclude=NO_TABLE)
        if name in result.fates:
            logger.record(f"probe/fate/{name}", int(result.fates[name]), exclude=NO_TABLE)


def record_changes(logger: Logger, changes: list[str]) -> None:
    """Record sentences about trust as text."""
    if changes:
        logger.record("trust/log", "  \n".join(changes), exclude=TENSORBOARD_ONLY)


def describe_probe(result: ProbeResult) -> str:
    """A probe's result, a line for each pathway."""
    lines = [f"Probe: {result.steps} steps in segments of {result.segment}."]
    for name, returns in result.returns.items():
        spread = (
            np.std(returns, ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else float("nan")
        )
        fate = FATES[result.fates[name]] if name in result.fates else "untrained networks"
        lines.append(
            f"  {name}: {np.mean(returns):.1f} ± {spread:.1f} over {len(returns)} segments, {fate}"
        )
    return "\n".join(lines)


FATES = (
    "dropped: clearly no better than untrained networks",
    "deferred: clearly worse than the best source",
    "in doubt: whole episodes decide",
    "kept: clearly better than untrained networks",
)
"""What each `Fate` means."""


def record_hub(logger: Logger, model: BaseAlgorithm) -> None:
    """Record the hub's cards as text, and what TensorBoard compares runs by."""
    spec = hub_spec(model.policy)
    if spec is None:
        return
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
