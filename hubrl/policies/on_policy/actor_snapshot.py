"""Stored actor and critic of the hub, for the trial in which the fresh pathway trains alone."""

import copy
from typing import cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from hubrl.nn.freezing import copy_weights, freeze
from hubrl.nn.popart import PopArtLinear
from hubrl.sources.preprocessing import Observations


class ActorSnapshot(nn.Module):
    """A frozen copy of SB3's actor and critic.

    Args:
        policy: The policy whose actor and critic are copied.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.parts = copy.deepcopy(learning_parts(policy))
        freeze(self.parts)

    @torch.no_grad()
    def swap(self, policy: ActorCriticPolicy) -> None:
        """Swap the copy with the policy's actor and critic, and reset their optimizer state.

        The fresh pathway starts from untrained parameters: hidden layers that correct sources, and
        a critic trained on sources' states, are of no use to it.
        """
        learning = learning_parts(policy)
        now = copy.deepcopy(learning)
        copy_weights(self.parts, learning)
        copy_weights(now, self.parts)
        for parameter in learning.parameters():
            policy.optimizer.state.pop(parameter, None)
        if isinstance(policy.value_net, PopArtLinear):
            policy.value_net.clear_units()

    def latent(self, observations: Observations) -> Float[Tensor, "batch latent"]:
        """The actor's last hidden layer."""
        extractor, hidden, *_ = self.parts
        latent: Tensor = hidden(extractor(observations))
        return latent

    @property
    def action_net(self) -> nn.Module:
        """The actor's last layer."""
        return self.parts[2]

    @property
    def log_std(self) -> Tensor:
        """Logarithm of the actor's standard deviation, where actions are continuous."""
        log_std: Tensor = cast("nn.ParameterList", self.parts[3])[0]
        return log_std


def learning_parts(policy: ActorCriticPolicy) -> nn.ModuleList:
    """Extractors, hidden and last layers of SB3's actor and critic, and for Box `log_std`."""
    hidden = policy.mlp_extractor
    std = [policy.log_std] if isinstance(policy.action_space, spaces.Box) else []
    actor = [
        policy.pi_features_extractor,
        hidden.policy_net,
        policy.action_net,
        nn.ParameterList(std),
    ]
    critic = [hidden.value_net, policy.value_net]
    return nn.ModuleList(
        [
            *actor,
            *critic,
            *([] if policy.share_features_extractor else [policy.vf_features_extractor]),
        ]
    )
