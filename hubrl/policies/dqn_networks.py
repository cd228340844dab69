"""Q-networks of DQN over sources' outputs, and the teaching loss."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor
from torch.nn import functional

from hubrl.formats.hub_spec import HubSpec
from hubrl.methods import create
from hubrl.methods.base import Routed
from hubrl.routing.pathways import spec_sources
from hubrl.routing.target import TargetSpec
from hubrl.sources.heads import GreedyAction
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source


def teaching_loss(
    q_values: Float[Tensor, "batch actions"], taught: Int[Tensor, " batch"], temperature: float
) -> Float[Tensor, ""]:
    """Cross-entropy of a softmax over the learner's Q-values against a teacher's actions.

    Zero where the learner's softmax is certain of every taught action. The loss has no paper.

    Args:
        q_values: The learner's Q-values.
        taught: The teacher's action, row by row.
        temperature: Of the softmax, in units of the Q-values' spread over actions, so that the
            scale of returns does not matter.
    """
    several = q_values.shape[1] > 1  # one action has no spread
    spread = q_values.detach().std(dim=1, correction=int(several)).mean().clamp_min(1e-6)
    return functional.cross_entropy(q_values / (temperature * spread), taught)


class TaughtQNetwork(QNetwork):
    """SB3's Q-network with a teaching loss added to DQN's own."""

    teach: Callable[[PyTorchObs, Tensor], Tensor] | None = None

    def forward(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Q-values; in a gradient step with the teaching loss attached to their gradient."""
        q_values = super().forward(obs)
        return (
            self.teach(obs, q_values)
            if self.teach is not None and self.training and torch.is_grad_enabled()
            else q_values
        )


class RoutedQNetwork(QNetwork):
    """Q-values that a method computes from sources' outputs and SB3's own Q-network."""

    def __init__(self, *args: Any, spec: HubSpec, target: TargetSpec, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.method = create(spec.method, spec_sources(spec), target, spec.options)

    def forward(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """The method's Q-values."""
        preprocessed: Any = preprocess_obs(
            obs, self.observation_space, normalize_images=self.normalize_images
        )
        return self.values(preprocessed)

    def values(self, observations: Observations) -> Float[Tensor, "batch actions"]:
        """Q-values for observations as SB3 preprocesses them."""
        own: Tensor = self.q_net(self.features_extractor(observations))
        routed: Routed = self.method(observations, fresh=own)
        return routed.features


class SourceQNetwork(QNetwork):
    """Q-network of a source, all of whose parameters are trained further."""

    def __init__(self, *args: Any, source: Source, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.source = source
        del self.q_net, self.features_extractor

    def forward(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Current Q-values of the source."""
        preprocessed: Any = preprocess_obs(
            obs, self.observation_space, normalize_images=self.normalize_images
        )
        return self.values(preprocessed)

    def values(self, observations: Observations) -> Float[Tensor, "batch actions"]:
        """Q-values for observations as SB3 preprocesses them."""
        assert isinstance(self.source.action, GreedyAction)
        return self.source.action.q_values(self.source.features(observations))
