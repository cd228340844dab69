"""Exploration of a DQN whose sources play whole episodes, and the state of its training."""

import sys
import weakref
from collections.abc import Callable

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.dqn import DQN


class PausedExploration:
    """DQN's exploration schedule, at zero in episodes that measure a pathway's return.

    It is pickled as the schedule that it wraps, so that a saved model loads with that.

    Args:
        schedule: SB3's own, from the remaining progress of the training to the share of random
            actions.
        deterministic: Whether the current episode is to be without random actions.
    """

    def __init__(self, schedule: Schedule, deterministic: Callable[[], bool]) -> None:
        self.schedule, self.deterministic = schedule, deterministic

    def __call__(self, progress_remaining: float) -> float:
        """Share of random actions."""
        return 0.0 if self.deterministic() else self.schedule(progress_remaining)

    def __reduce__(self) -> tuple[Callable[[Schedule], Schedule], tuple[Schedule]]:
        return _itself, (self.schedule,)


class RunningLearn:
    """Check whether one call of `learn` still runs.

    SB3 calls no hook where Ctrl-C, or a callback that raises, ends it.

    Args:
        model: The model whose `learn` is running now.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self._model, self._start_time = weakref.ref(model), model.start_time

    def __call__(self) -> bool:
        """Whether that call of `learn` is on the stack."""
        model, frame = self._model(), sys._getframe(1)
        if model is None or model.start_time != self._start_time:
            return False
        while frame.f_code.co_name != "learn" or frame.f_locals.get("self") is not model:
            if frame.f_back is None:
                return False
            frame = frame.f_back
        return True


def never() -> bool:
    """False: no call of `learn` runs."""
    return False


def _itself(schedule: Schedule) -> Schedule:
    return schedule


def explore_as_before(model: DQN) -> None:
    """Undo the pauses of a training, also of one that was interrupted."""
    if isinstance(model.exploration_schedule, PausedExploration):
        model.exploration_schedule = model.exploration_schedule.schedule
