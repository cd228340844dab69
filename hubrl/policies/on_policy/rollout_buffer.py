"""SB3's rollout buffer with a record of every step of a hub's policy.

A frozen source's output for an observation is the same in every epoch of an update. So it is stored
with the transition, as the few numbers that it is, and the update computes no source at all.
"""

from collections.abc import Generator
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from hubrl.policies.on_policy.step import RecordedBatch, StepRecord


@runtime_checkable
class RecordingPolicy(Protocol):
    """A policy whose `forward` leaves a record beside what SB3 stores."""

    @property
    def last_record(self) -> StepRecord:
        """The record of the last `forward`, a row an environment; `add` reads it right behind it."""

    def begin_rollout(self) -> None:
        """Forget the last rollout: what was told of it, and what was computed from weights that are other ones by now."""


class HubRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer, whose minibatches hold the policy's record of their steps (`RecordedBatch`)."""

    __module__ = "hubrl"  # saved files name the class by this

    policy: RecordingPolicy | None = None

    def reset(self) -> None:
        """Forget the last rollout."""
        super().reset()
        self.records: dict[str, np.ndarray] = {}
        if self.policy is not None:
            self.policy.begin_rollout()

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add a step and the policy's record of it; zeros for what only some steps record."""
        if self.policy is not None:
            for name, rows in self.policy.last_record.tensors().items():
                array = rows.cpu().numpy()
                if name not in self.records:
                    self.records[name] = np.zeros(
                        (self.buffer_size, *array.shape), dtype=array.dtype
                    )
                self.records[name][self.pos] = array
        super().add(*args, **kwargs)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Minibatches, whose observations come with their record."""
        if not self.generator_ready:
            # SB3 gives what has no dimension of its own one.
            flat = {name: self.swap_and_flatten(array) for name, array in self.records.items()}
            self.records = {
                name: rows if self.records[name].ndim > 2 else rows[:, 0]
                for name, rows in flat.items()
            }
        yield from super().get(batch_size)

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        samples = super()._get_samples(batch_inds, env)
        if self.policy is None:
            return samples
        record = {
            name: torch.as_tensor(array[batch_inds], device=self.device)
            for name, array in self.records.items()
        }
        batch: Any = RecordedBatch(samples.observations, StepRecord(**record))
        return samples._replace(observations=batch)


class HubDictRolloutBuffer(HubRolloutBuffer, DictRolloutBuffer):
    """The same for Dict observations."""

    __module__ = "hubrl"  # saved files name the class by this


def install_rollout_buffer(model: OnPolicyAlgorithm, policy: RecordingPolicy) -> bool:
    """Let a model's rollout buffer record the steps of its policy; False if it has a buffer of the user's own."""
    old = model.rollout_buffer
    if isinstance(old, HubRolloutBuffer):
        old.policy = policy
        return True
    made: dict[type, type[HubRolloutBuffer]] = {
        RolloutBuffer: HubRolloutBuffer,
        DictRolloutBuffer: HubDictRolloutBuffer,
    }
    if type(old) not in made:
        return False
    new = made[type(old)](
        old.buffer_size,
        old.observation_space,
        old.action_space,
        device=old.device,
        gae_lambda=old.gae_lambda,
        gamma=old.gamma,
        n_envs=old.n_envs,
    )
    new.policy = policy
    model.rollout_buffer = new
    return True
