"""The critic's units: the value head is scaled by the discounted returns of the training."""

from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor

from hubrl.nn.popart import DiscountedReturns, PopArtLinear
from hubrl.policies.on_policy.policy import HubActorCriticPolicy


class CriticScaling:
    """Discounted rewards from now on, and the units of the critic that follow from them.

    Args:
        model: PPO or A2C.
        policy: Its policy.
        state: The `state` of an earlier scaling, whose episodes were broken off.
    """

    def __init__(
        self,
        model: OnPolicyAlgorithm,
        policy: HubActorCriticPolicy,
        state: Sequence[float] | None = None,
    ) -> None:
        self.model, self.policy = model, policy
        self.restart()
        if state is not None:
            self.returns.restore(state)

    def state(self) -> list[float]:
        """The measured returns, as plain numbers."""
        return self.returns.state()

    def restart(self) -> None:
        """Measure anew, from what the critic knows of earlier rewards."""
        head = self.policy.value_net
        known = head.units if isinstance(head, PopArtLinear) and head.rescaled else None
        self.returns = DiscountedReturns(self.model.n_envs, self.model.gamma, known)
        """Every step of the environments is added to them."""

    def rollout_end(self) -> None:
        """Rescale the value head; the first time, compute the rollout's values again."""
        head = self.policy.value_net
        if (
            not isinstance(head, PopArtLinear)
            or (self.policy.fresh_alone and not head.rescaled and not self.policy.is_copy)
            or not self.returns.ready
        ):
            return
        first = not head.rescaled
        mean, std = self.returns.moments()
        if std == 0.0:
            return
        learned = head.weight in self.policy.optimizer.state or self.policy.critic_was_copied
        head.rescale(mean, std, learned=learned)
        if first:
            recompute_values(self.model)


def recompute_values(model: OnPolicyAlgorithm) -> None:
    """Compute the values of a rollout again, and advantages from them.

    What SB3 added to the rewards where an episode ran out of time stays as the critic first had it.
    """
    buffer, policy = model.rollout_buffer, model.policy
    with torch.no_grad():
        for step in range(buffer.buffer_size):
            seen: Any = buffer.observations
            seen = (
                {key: rows[step] for key, rows in seen.items()}
                if isinstance(seen, dict)
                else seen[step]
            )
            buffer.values[step] = (
                policy.predict_values(obs_as_tensor(seen, model.device)).cpu().numpy().flatten()
            )
        last: Any = model._last_obs
        last_values = policy.predict_values(obs_as_tensor(last, model.device))
    assert model._last_episode_starts is not None
    buffer.compute_returns_and_advantage(last_values=last_values, dones=model._last_episode_starts)
