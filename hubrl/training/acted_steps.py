"""Environment steps in which each pathway acted while a model trains."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from stable_baselines3.common.policies import BasePolicy

from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.on_policy.policy import HubActorCriticPolicy


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
