"""Distillation of any agent into one ordinary SB3 agent, on the states that both visit.

In the first round the teacher acts, in the others its student; labels are always the teacher's
actions (DAgger, Ross et al. 2011).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.dqn import DQN
from torch import Tensor
from torch.nn import functional

from hubrl.errors import SpaceMismatch
from hubrl.formats.spaces import describe
from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.dqn_networks import teaching_loss

EPOCHS = (5, 5, 5, 5, 40)
"""Passes over all data after each round; the learning rate falls to zero in the last."""

BATCH = 256
LEARNING_RATE = 1e-3
TEMPERATURE = 0.3
"""Temperature of a Q-learning student's action probabilities, as in `TeachingOptions`."""

MIN_STD = 0.01
"""Least standard deviation of a student, which otherwise is its error."""


@dataclass
class Demonstrations:
    """Observations, the teacher's actions there and, if it has them, its values or Q-values."""

    observations: list[Any] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(actions) for actions in self.actions)

    def tensors(self, device: torch.device) -> tuple[Any, Tensor, Tensor | None]:
        """All rows as tensors."""
        parts = self.observations
        if isinstance(parts[0], dict):
            rows: Any = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
            observations: Any = {
                key: torch.as_tensor(part, device=device) for key, part in rows.items()
            }
        else:
            observations = torch.as_tensor(np.concatenate(parts), device=device)
        values = torch.cat(self.values).to(device) if self.values else None
        return observations, torch.as_tensor(np.concatenate(self.actions), device=device), values


def distill(
    teacher: BaseAlgorithm,
    student: BaseAlgorithm,
    env: VecEnv,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[int], None] = lambda done: None,
) -> BaseAlgorithm:
    """Train a plain agent to imitate a teacher.

    Labels are the teacher's deterministic actions, committed pathways included, and, where both
    have them, its values or Q-values.

    Args:
        teacher: The agent.
        student: A new PPO, A2C or DQN for the same spaces; it is trained in place.
        env: The task, with observations as both read them.
        steps: Environment steps, over all parallel environments and rounds.
        seed: Seed of the order of rows in training.
        on_step: Called with the number of finished steps.

    Returns:
        The student.

    Raises:
        SpaceMismatch: If actions are neither Box nor Discrete.
    """
    if not isinstance(env.action_space, spaces.Box | spaces.Discrete):
        raise SpaceMismatch(
            f"The agent acts in {describe(env.action_space)}; distillation needs Box or Discrete."
        )
    data, generator = Demonstrations(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.policy.parameters(), lr=LEARNING_RATE)
    for turn, epochs in enumerate(EPOCHS):
        actor = student if turn else teacher
        _collect(teacher, actor, env, data, steps // len(EPOCHS), on_step)
        final = turn == len(EPOCHS) - 1
        _fit(student, optimizer, data, generator, epochs, anneal=final)
    if isinstance(student, DQN):
        student.q_net_target.load_state_dict(student.q_net.state_dict())
    student.policy.set_training_mode(False)
    return student


@torch.no_grad()
def _collect(
    teacher: BaseAlgorithm,
    actor: BaseAlgorithm,
    env: VecEnv,
    data: Demonstrations,
    steps: int,
    on_step: Callable[[int], None],
) -> None:
    """Add the states of one actor with the teacher's labels."""
    observations: Any = env.reset()
    state: Any = None
    starts = np.ones(env.num_envs, dtype=bool)
    for _ in range(max(steps // env.num_envs, 1)):
        labels, state = teacher.predict(observations, state, starts, deterministic=True)
        data.observations.append(copy.deepcopy(observations))
        data.actions.append(labels)
        values = _teacher_values(teacher, observations)
        if values is not None:
            data.values.append(values)
        own = actor is teacher
        actions = labels if own else actor.predict(observations, deterministic=True)[0]
        observations, _, starts, _ = env.step(actions)
        on_step(len(data))


def _teacher_values(teacher: BaseAlgorithm, observations: Any) -> Tensor | None:
    """Values or Q-values, where they belong to the teacher's own policy."""
    policy = teacher.policy
    # Values of a recurrent policy depend on its hidden state.
    recurrent = "lstm_actor" in dict(policy.named_children())
    if isinstance(teacher, OnPolicyAlgorithm) and not recurrent:
        inputs = policy.obs_to_tensor(observations)[0]
        return cast("ActorCriticPolicy", policy).predict_values(inputs).cpu()
    routed = isinstance(policy, HubDQNPolicy) and len(policy.pathways.sources)
    if isinstance(teacher, DQN) and not routed:
        q_values: Tensor = teacher.q_net(policy.obs_to_tensor(observations)[0])
        return q_values.cpu()
    return None


def _fit(
    student: BaseAlgorithm,
    optimizer: torch.optim.Optimizer,
    data: Demonstrations,
    generator: torch.Generator,
    epochs: int,
    *,
    anneal: bool,
) -> None:
    observations, labels, values = data.tensors(student.device)
    student.policy.set_training_mode(True)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - epoch / epochs if anneal else 1.0)
        for rows in torch.randperm(len(data), generator=generator).split(BATCH):
            batch_values = None if values is None else values[rows]
            loss = _loss(student, _rows(observations, rows), labels[rows], batch_values)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    student.policy.set_training_mode(False)
    if isinstance(student.action_space, spaces.Box):
        _fit_std(cast("ActorCriticPolicy", student.policy), observations, labels)


def _rows(observations: Any, rows: Tensor) -> Any:
    if isinstance(observations, dict):
        return {key: part[rows] for key, part in observations.items()}
    return observations[rows]


def _loss(
    student: BaseAlgorithm, observations: Any, labels: Tensor, values: Tensor | None
) -> Float[Tensor, ""]:
    """Difference between a student and its teacher, in actions and values."""
    if isinstance(student, DQN):
        q_values = student.q_net(observations)
        loss = teaching_loss(q_values, labels.flatten(), TEMPERATURE)
        return loss if values is None else loss + functional.smooth_l1_loss(q_values, values)
    policy = cast("ActorCriticPolicy", student.policy)
    distribution: Any = policy.get_distribution(observations).distribution
    if isinstance(student.action_space, spaces.Discrete):
        loss = functional.cross_entropy(distribution.logits, labels.flatten())
    else:
        loss = functional.mse_loss(distribution.mean, labels.flatten(1))
    if values is None:
        return loss
    # In units of the values' standard deviation, so that their scale does not outweigh the actions.
    scale = values.std().clamp_min(1.0)
    return loss + functional.mse_loss(policy.predict_values(observations) / scale, values / scale)


@torch.no_grad()
def _fit_std(policy: ActorCriticPolicy, observations: Any, labels: Tensor) -> None:
    """Set the student's standard deviation to its error."""
    squares = []
    for rows in torch.arange(len(labels)).split(4096):
        distribution: Any = policy.get_distribution(_rows(observations, rows)).distribution
        squares.append((distribution.mean - labels[rows].flatten(1)).square())
    std = torch.cat(squares).mean(dim=0).sqrt().clamp_min(MIN_STD)
    policy.log_std.copy_(std.log().clamp_max(0.0))
