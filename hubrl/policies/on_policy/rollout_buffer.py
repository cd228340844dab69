"""SB3's rollout buffer with a record of every step of a hub's policy.

A frozen source's output for an observation is the same in every epoch of an update. It is stored
with the transition, a few numbers, so that the update computes no source at all.
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
    """Policy whose `forward` leaves a record of the step."""

    @property
    def last_record(self) -> StepRecord:
        """Record of the last `forward`, a row per environment; `add` reads it right after."""

    def begin_rollout(self) -> None:
        """Drop the training state and everything computed from parameters of the last rollout."""


class HubRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer, whose minibatches come with the record of their steps."""

    __module__ = "hubrl"  # saved files name the class by this

    policy: RecordingPolicy | None = None

    def reset(self) -> None:
        """Drop the last rollout."""
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
        """Minibatches with a `RecordedBatch` as observations."""
        if not self.generator_ready:
            # SB3's `swap_and_flatten` (common/buffers.py) gives rows of one number a dimension.
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
    """`HubRolloutBuffer` for Dict observations."""

    __module__ = "hubrl"  # saved files name the class by this


def install_rollout_buffer(model: OnPolicyAlgorithm, policy: RecordingPolicy) -> bool:
    """Make a model's rollout buffer record its policy's steps; false for a user's own buffer."""
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
