"""The time of a training by part: emulator, sources, policy, update, and SB3 around them."""

import time
from collections import defaultdict
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from hubrl.bench.workloads import Learner, find_cache

REST = "sb3"
"""The part of everything that is in no other: buffers, copies, callbacks, logs."""

PARTS = {
    "emulator": "the environments' steps",
    "sources": "features of frozen sources, where they are computed once a step",
    "policy": "the policy in rollouts; sources too, where they are computed in it",
    "update": "forward and backward of updates, and SB3's code between them",
    "optimizer": "the optimizer's steps",
    REST: "buffers, copies, callbacks, logs",
}
"""The parts of a training, and their meanings."""


class Profiler:
    """The sum of the time between calls by part; a part inside another counts for itself alone."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self._parts = [REST]
        self._since = time.perf_counter()

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Count the time of an object's method as a part, from now on."""
        original = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._turn()
            self._parts.append(part)
            try:
                return original(*args, **kwargs)
            finally:
                self._turn()
                self._parts.pop()

        setattr(owner, method, timed)

    def start(self) -> None:
        """Begin to count from zero."""
        self.spent.clear()
        self._since = time.perf_counter()

    def stop(self) -> dict[str, float]:
        """Seconds by part."""
        self._turn()
        return dict(self.spent)

    def _turn(self) -> None:
        now = time.perf_counter()
        self.spent[self._parts[-1]] += now - self._since
        self._since = now


def profile(learner: Learner, steps: int) -> dict[str, float]:
    """Milliseconds of an environment step by part, over at least this many steps of a training."""
    profiler = Profiler()
    _watch(profiler, learner.model, learner.env)
    learner.measure(1)
    before = learner.model.num_timesteps
    profiler.start()
    learner.measure(steps)
    spent, done = profiler.stop(), learner.model.num_timesteps - before
    return {part: 1000 * spent.get(part, 0.0) / done for part in PARTS}


def _watch(profiler: Profiler, model: BaseAlgorithm, env: VecEnv) -> None:
    for method in ("step_async", "step_wait", "reset"):
        profiler.watch(env, method, "emulator")
    cached = find_cache(model)
    if cached is not None:
        profiler.watch(cached, "compute_features", "sources")
    # PPO's rollouts call the policy and DQN's predict with it; neither is called in updates.
    for method in ("forward", "predict", "predict_values"):
        if hasattr(model.policy, method):
            profiler.watch(model.policy, method, "policy")
    profiler.watch(model, "train", "update")
    profiler.watch(model.policy.optimizer, "step", "optimizer")
