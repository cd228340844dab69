"""From any agent to one ordinary SB3 agent that does what it does: distillation on the states that both visit.

In the first round the teacher acts, in the others its student; in all the teacher says what it
would do (DAgger, Ross et al. 2011).
"""

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
from hubrl.q_policies import HubDQNPolicy, teaching_loss

EPOCHS = (5, 5, 5, 5, 40)
"""Passes over all that was collected, after each round; in the last the learning rate falls to zero."""

BATCH = 256
LEARNING_RATE = 1e-3
TEMPERATURE = 0.3
"""Of a Q-learning student's choice, as in `Teaching`."""

LEAST_STD = 0.01
"""A student's standard deviation is what it misses its teacher by, but not less."""


@dataclass
class Lessons:
    """What was collected: states, what the teacher did there, and what it thought of them."""

    observations: list[Any] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)
    worth: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(len(actions) for actions in self.actions)

    def tensors(self, device: torch.device) -> tuple[Any, Tensor, Tensor | None]:
        """All rows one after the other."""
        first = self.observations[0]
        seen: Any = (
            {key: torch.as_tensor(np.concatenate([part[key] for part in self.observations]), device=device) for key in first}
            if isinstance(first, dict)
            else torch.as_tensor(np.concatenate(self.observations), device=device)
        )
        worth = torch.cat(self.worth).to(device) if self.worth else None
        return seen, torch.as_tensor(np.concatenate(self.actions), device=device), worth


def distill(
    teacher: BaseAlgorithm,
    student: BaseAlgorithm,
    env: VecEnv,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[int], None] = lambda done: None,
) -> BaseAlgorithm:
    """Train a plain agent to do what a teacher does.

    The teacher's deterministic actions are learned, with the memory that it has where pathways are
    held; and, where both have them, its values or Q-values.

    Args:
        teacher: The agent.
        student: A new PPO, A2C or DQN for the same spaces; it is trained in place.
        env: The task, with observations as both read them.
        steps: Environment steps, over all parallel environments and rounds.
        seed: Of the order in which rows are learned.
        on_step: Told how many steps are done.

    Returns:
        The student.

    Raises:
        SpaceMismatch: If actions are neither Box nor Discrete.
    """
    if not isinstance(env.action_space, spaces.Box | spaces.Discrete):
        raise SpaceMismatch(f"The agent acts in {describe(env.action_space)}; agents that act in Box or Discrete can be distilled.")
    lessons, generator = Lessons(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.policy.parameters(), lr=LEARNING_RATE)
    for turn, epochs in enumerate(EPOCHS):
        _collect(teacher, student if turn else teacher, env, lessons, steps // len(EPOCHS), on_step)
        last = turn == len(EPOCHS) - 1
        _learn(student, optimizer, lessons, generator, epochs, (lambda done: 1 - done) if last else (lambda done: 1.0))
    if isinstance(student, DQN):
        student.q_net_target.load_state_dict(student.q_net.state_dict())
    student.policy.set_training_mode(False)
    return student


@torch.no_grad()
def _collect(
    teacher: BaseAlgorithm, actor: BaseAlgorithm, env: VecEnv, lessons: Lessons, steps: int, on_step: Callable[[int], None]
) -> None:
    """Let one act and the teacher say what it would do."""
    observations: Any = env.reset()
    state: Any = None
    starts = np.ones(env.num_envs, dtype=bool)
    for _ in range(max(steps // env.num_envs, 1)):
        taught, state = teacher.predict(observations, state=state, episode_start=starts, deterministic=True)
        lessons.observations.append(
            {key: part.copy() for key, part in observations.items()} if isinstance(observations, dict) else observations.copy()
        )
        lessons.actions.append(taught)
        worth = _worth(teacher, observations)
        if worth is not None:
            lessons.worth.append(worth)
        actions = taught if actor is teacher else actor.predict(observations, deterministic=True)[0]
        observations, _, starts, _ = env.step(actions)
        on_step(len(lessons))


def _worth(teacher: BaseAlgorithm, observations: Any) -> Tensor | None:
    """Values or Q-values, where the teacher acts by its own."""
    policy = teacher.policy
    recurrent = "lstm_actor" in dict(policy.named_children())  # its values depend on what it remembers
    if isinstance(teacher, OnPolicyAlgorithm) and not recurrent:
        values: Tensor = cast("ActorCriticPolicy", policy).predict_values(policy.obs_to_tensor(observations)[0])
        return values.cpu()
    if isinstance(teacher, DQN) and not (isinstance(policy, HubDQNPolicy) and len(policy.pathways.sources)):
        q_values: Tensor = teacher.q_net(policy.obs_to_tensor(observations)[0])
        return q_values.cpu()
    return None


def _learn(
    student: BaseAlgorithm,
    optimizer: torch.optim.Optimizer,
    lessons: Lessons,
    generator: torch.Generator,
    epochs: int,
    rate: Callable[[float], float],
) -> None:
    seen, taught, worth = lessons.tensors(student.device)
    student.policy.set_training_mode(True)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate(epoch / epochs)
        for rows in torch.randperm(len(lessons), generator=generator).split(BATCH):
            batch = {key: part[rows] for key, part in seen.items()} if isinstance(seen, dict) else seen[rows]
            loss = _loss(student, batch, taught[rows], None if worth is None else worth[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    student.policy.set_training_mode(False)
    if isinstance(student.action_space, spaces.Box):
        _spread(cast("ActorCriticPolicy", student.policy), seen, taught)


def _loss(student: BaseAlgorithm, batch: Any, taught: Tensor, worth: Tensor | None) -> Float[Tensor, ""]:
    """How far the student is from what it was taught."""
    if isinstance(student, DQN):
        q_values = student.q_net(batch)
        loss = teaching_loss(q_values, taught.flatten(), TEMPERATURE)
        return loss if worth is None else loss + functional.smooth_l1_loss(q_values, worth)
    policy = cast("ActorCriticPolicy", student.policy)
    said: Any = policy.get_distribution(batch).distribution
    if isinstance(student.action_space, spaces.Discrete):
        loss = functional.cross_entropy(said.logits, taught.flatten())
    else:
        loss = functional.mse_loss(said.mean, taught.flatten(1))
    if worth is None:
        return loss
    # In units of the values' spread, so that their scale does not drown the actions.
    scale = worth.std().clamp_min(1.0)
    return loss + functional.mse_loss(policy.predict_values(batch) / scale, worth / scale)


@torch.no_grad()
def _spread(policy: ActorCriticPolicy, seen: Any, taught: Tensor) -> None:
    """Let the student's standard deviation be what it misses its teacher by."""
    squares = []
    for rows in torch.arange(len(taught)).split(4096):
        batch = {key: part[rows] for key, part in seen.items()} if isinstance(seen, dict) else seen[rows]
        said: Any = policy.get_distribution(batch).distribution
        squares.append((said.mean - taught[rows].flatten(1)).square())
    policy.log_std.copy_(torch.cat(squares).mean(dim=0).sqrt().clamp_min(LEAST_STD).log().clamp_max(0.0))
