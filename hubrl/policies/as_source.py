"""Agents trained at the level of outputs, as sources of the next hub."""

from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from hubrl.formats.cards import SourceCard
from hubrl.methods.base import Routed
from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.on_policy.distributions import mixed_categorical
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.sources.action_params import greedy, width
from hubrl.sources.networks import Networks, register_network
from hubrl.sources.preprocessing import Observations
from hubrl.sources.trunks import ACTIVATIONS


class HubActor(nn.Module):
    """Encoder of an agent over a hub: its own features, then its action parameters."""

    def __init__(self, policy: HubActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Actor's last hidden layer beside the likeliest pathway's action parameters."""
        policy = self.policy
        latent = policy.mlp_extractor.forward_actor(policy.pi_features_extractor(observations))
        action_params = distribution_parameters(policy, policy.route(observations))
        return torch.cat([latent, action_params], dim=1)


def distribution_parameters(
    policy: HubActorCriticPolicy, routed: Routed
) -> Float[Tensor, "batch outputs"]:
    """Action parameters whose mode is the action of `predict`: the heaviest pathway's.

    For Discrete without commitments, log-probabilities of the mixture.
    """
    params, logs = routed.pathway_outputs, routed.log_weights
    if params is None or logs is None or policy.aggregation != "mixture":
        return routed.features
    if isinstance(policy.action_space, spaces.Discrete) and not policy.commits:
        return mixed_categorical(params, logs).distribution.logits
    best = logs.argmax(dim=1)
    return params[torch.arange(len(best), device=best.device), best]


class LastColumns(nn.Module):
    """Head of an agent whose features end with its action parameters."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch columns"]:
        """The last columns."""
        return features[:, -self.columns :]


class HubGreedyActor(nn.Module):
    """Encoder of a DQN over a hub: the best pathway's action, as action parameters."""

    def __init__(self, policy: HubDQNPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Log-probabilities of the greedy action."""
        policy = self.policy
        rows = next(iter(observations.values())) if isinstance(observations, dict) else observations
        best = torch.full((len(rows),), policy.selection.evaluation_arm, device=rows.device)
        action = policy.choose(observations, best)
        return greedy(nn.functional.one_hot(action, int(policy.action_space.n)).float())


def build_hub_q_actor(card: SourceCard, **policy_kwargs: Any) -> Networks:
    """Networks of a DQN trained at the level of outputs."""
    actions = card.actions
    assert isinstance(actions, spaces.Discrete)
    policy = HubDQNPolicy(
        card.observations, actions, lambda _: 0.0, **_with_activation(policy_kwargs)
    )
    del policy.optimizer
    return Networks(HubGreedyActor(policy), LastColumns(width(actions)))


def _with_activation(policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    if "activation_fn" in policy_kwargs:
        policy_kwargs["activation_fn"] = ACTIVATIONS[policy_kwargs["activation_fn"]]
    return policy_kwargs


def build_hub_actor(card: SourceCard, **policy_kwargs: Any) -> Networks:
    """Networks of an actor-critic agent trained at the level of outputs."""
    actions = card.actions
    assert actions is not None
    policy = HubActorCriticPolicy(
        card.observations, actions, lambda _: 0.0, **_with_activation(policy_kwargs)
    )
    del policy.optimizer  # it would keep a second copy of the weights that freezing replaces
    return Networks(HubActor(policy), LastColumns(width(actions)))


register_network(HubActorCriticPolicy.plain_module, build_hub_actor)
register_network(HubDQNPolicy.plain_module, build_hub_q_actor)
