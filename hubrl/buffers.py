"""SB3's rollout buffer, which also remembers what a hub's policy heard and chose at every step.

A frozen source says the same of the same observation in every epoch of an update. So what was said is stored with the
transition, as the few numbers that it is, and the update computes no source at all: by the one that acted, which is stored
beside it, or by all where all are asked again.
"""

from collections.abc import Generator
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

Memory = dict[str, Tensor]
"""What is remembered of a step, by name, row by row."""


class Remembering(Protocol):
    """A policy that has something to remember beside what SB3 stores."""

    @property
    def memory(self) -> Memory:
        """What the last `forward` wants to be reminded of; one row for every environment."""

    def recall(self, observations: Any, memory: Memory) -> None:
        """Be reminded, before `evaluate_actions` is called with these very observations."""


class HubRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer with a policy's memory of each step."""

    policy: Remembering | None = None

    def reset(self) -> None:
        """Forget the last rollout."""
        super().reset()
        self.memories: dict[str, np.ndarray] = {}

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Add a step, with what the policy remembers of it."""
        if self.policy is not None:
            for name, rows in self.policy.memory.items():
                array = rows.cpu().numpy()
                if name not in self.memories:
                    self.memories[name] = np.zeros((self.buffer_size, *array.shape), dtype=array.dtype)
                self.memories[name][self.pos] = array
        super().add(*args, **kwargs)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Minibatches, each after the policy was reminded of it."""
        if not self.generator_ready:
            # SB3 gives what has no dimension of its own one.
            flat = {name: self.swap_and_flatten(array) for name, array in self.memories.items()}
            self.memories = {name: rows if self.memories[name].ndim > 2 else rows[:, 0] for name, rows in flat.items()}
        yield from super().get(batch_size)

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        samples = super()._get_samples(batch_inds, env)
        if self.policy is not None and self.memories:
            memory = {name: torch.as_tensor(array[batch_inds], device=self.device) for name, array in self.memories.items()}
            self.policy.recall(samples.observations, memory)
        return samples


class HubDictRolloutBuffer(HubRolloutBuffer, DictRolloutBuffer):
    """The same for Dict observations."""


def remember_steps(model: OnPolicyAlgorithm, policy: Remembering) -> bool:
    """Let a model's rollout buffer remember for its policy; False if it has a buffer of the user's own."""
    old = model.rollout_buffer
    if isinstance(old, HubRolloutBuffer):
        old.policy = policy
        return True
    made: dict[type, type[HubRolloutBuffer]] = {RolloutBuffer: HubRolloutBuffer, DictRolloutBuffer: HubDictRolloutBuffer}
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
