"""The policy for PPO and A2C in which the sources' own heads speak."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn
from torch.distributions import Categorical

from hubrl import speech
from hubrl.cards import Plain
from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.losses import inject
from hubrl.methods import create
from hubrl.methods.base import Method, Routed
from hubrl.networks import Observations
from hubrl.pathways import FRESH, Target, spec_sources
from hubrl.routing import ZeroLinear, aggregate, log_weights
from hubrl.spaces import describe
from hubrl.spec import HubSpec, parse_spec


class Outputs(Plain):
    """Options of the level of outputs, beside those of the method."""

    aggregation: Literal["mixture", "mean"] = "mixture"
    """`mixture`: one pathway is drawn by its weight at every step and acts; `mean`: the weighted mean of what they say."""
    residual: bool = True
    """Whether a learned correction, zero at the start, is added to what the sources say."""
    source_std: float | None = 0.05
    """Standard deviation at which each source's pathway starts, learned from there; none: the source's own."""


class Hearing:
    """The observations that an action distribution is being asked for, and whether exploration is on."""

    def __init__(self, observations: Observations, *, exploring: bool) -> None:
        self.observations = observations
        self.exploring = exploring


class HubActorCriticPolicy(ActorCriticPolicy):
    """SB3's actor-critic policy, whose actor is one pathway among the sources.

    Everything that SB3's policy builds is built first and unchanged: it is the fresh pathway and the critic. The hub
    is added behind it and draws on no random number of the surrounding generator, so that with every source dropped
    what is left is SB3's policy, bit for bit.

    Args:
        observation_space: The target's observations.
        action_space: The target's actions: Box or Discrete.
        lr_schedule: SB3's learning rate schedule.
        args: SB3's positional arguments.
        hub: What `Hub.agent` makes: the sources' cards, the method and its options, as plain data.
        outputs: Options of the level of outputs, see `Outputs`.
        kwargs: SB3's keyword arguments (`net_arch`, `activation_fn`, ...); they shape the fresh pathway and the critic.

    Raises:
        SpaceMismatch: If a source does not fit the target's observations or actions.
        BadConfig: If the hub or an option cannot be, or state-dependent exploration is asked for.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        hub: HubSpec | dict[str, Any],
        outputs: Outputs | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("use_sde"):
            raise BadConfig("use_sde=True was given; pathways have standard deviations of their own, leave it out.")
        if not isinstance(action_space, spaces.Box | spaces.Discrete):
            raise SpaceMismatch(
                f"The target acts in {describe(action_space)}; outputs are mixed for Box and Discrete, use level='features'."
            )
        self.spec = parse_spec(hub)
        self.outputs = outputs if isinstance(outputs, Outputs) else Outputs.model_validate(outputs or {})
        self._hearing: Hearing | None = None
        kwargs.setdefault("features_extractor_class", _extractor_for(observation_space))
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    @property
    def fresh_alone(self) -> bool:
        """Whether every source was dropped, so that this is SB3's policy and nothing else."""
        return self.method.fresh_alone

    def route(self, observations: Observations) -> Routed:
        """What the hub makes of observations as SB3 preprocesses them, without noise."""
        features = self.pi_features_extractor(observations)
        latent_pi = self.mlp_extractor.forward_actor(features)
        return self._route(Hearing(observations, exploring=False), latent_pi)

    @torch.no_grad()
    def act_as(self, obs: PyTorchObs, pathway: Int[Tensor, " batch"]) -> np.ndarray:
        """Actions that one pathway a row would take, drawn with its own standard deviation.

        Args:
            obs: Observations as tensors, not yet preprocessed.
            pathway: Position of the pathway, row by row.
        """
        observations: Any = preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)
        latent_pi = self.mlp_extractor.forward_actor(self.pi_features_extractor(observations))
        active = nn.functional.one_hot(pathway, len(self.method.pathways.names)).bool()
        said = self._with_residual(self.method.pathways.speak(observations, active, self._fresh_speech(latent_pi)), latent_pi)
        rows = said.gather(1, pathway[:, None, None].expand(-1, 1, said.shape[2])).squeeze(1)
        return speech.act(rows, self.action_space, deterministic=False)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log-probabilities for a rollout."""
        with self._hear(obs, exploring=True):
            return super().forward(obs, deterministic)  # type: ignore[arg-type]

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropy for an update, under the rollout's noise."""
        with self._hear(obs, exploring=True):
            return super().evaluate_actions(obs, actions)

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The action distribution without the router's noise, as `predict` uses it."""
        with self._hear(obs, exploring=False):
            return super().get_distribution(obs)

    def train(self, mode: bool = True) -> "HubActorCriticPolicy":
        """`nn.Module.train`; going back to a rollout after an update draws new noise."""
        if self.training and not mode and hasattr(self, "noise_key"):
            self.get_buffer("noise_key").add_(1)
        return super().train(mode)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        with torch.random.fork_rng(devices=[]):
            self._build_hub()
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _build_hub(self) -> None:
        target = Target(self.observation_space, "outputs", self.action_space, self.outputs.source_std)
        self.method: Method = create(self.spec.method, spec_sources(self.spec), target, self.spec.options)
        self.register_buffer("noise_key", torch.randint(2**31, ()))
        self.residual = None
        if self.outputs.residual and len(self.method.pathways.sources):
            self.residual = ZeroLinear(self.mlp_extractor.latent_dim_pi, get_action_width(self.action_space))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "hub": self.spec.plain(), "outputs": self.outputs.plain()}

    @contextmanager
    def _hear(self, obs: PyTorchObs, *, exploring: bool) -> Iterator[None]:
        """Keep the observations at hand while SB3's code asks for the distribution that follows from them."""
        preprocessed: Any = preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)
        self._hearing = Hearing(preprocessed, exploring=exploring)
        try:
            yield
        finally:
            self._hearing = None

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        if self.fresh_alone:
            self.method.tally.count(_all_for_last(len(latent_pi), len(self.method.pathways.names)))
            return super()._get_action_dist_from_latent(latent_pi)
        assert self._hearing is not None
        routed = self._route(self._hearing, latent_pi)
        learning = self.training and torch.is_grad_enabled()
        weights = routed.weights
        if learning and routed.loss.requires_grad:
            weights = inject(weights, routed.loss)
        self.method.tally.count(routed.weights, routed.loss if learning else None)
        return self._distribution(routed.speech, weights)

    def _route(self, hearing: Hearing, latent_pi: Tensor) -> Routed:
        key = int(self.get_buffer("noise_key")) if hearing.exploring else None
        routed: Routed = self.method(hearing.observations, fresh=self._fresh_speech(latent_pi), noise_key=key)
        return routed._replace(speech=self._with_residual(routed.speech, latent_pi))

    def _with_residual(self, said: Float[Tensor, "batch pathways outputs"], latent_pi: Tensor) -> Tensor:
        if self.residual is None:
            return said
        n_sources = len(self.method.pathways.sources)
        corrected = self._corrected(said[:, :n_sources], self.residual(latent_pi)[:, None])
        return torch.cat([corrected, said[:, n_sources:]], dim=1)

    def _corrected(self, said: Float[Tensor, "batch sources outputs"], correction: Float[Tensor, "batch 1 actions"]) -> Tensor:
        """Add the correction; to means in units of their standard deviation, so that a sharp source is moved gently."""
        if isinstance(self.action_space, spaces.Discrete):
            return said + correction
        mean, log_std = said.chunk(2, dim=2)
        return torch.cat([mean + correction * log_std.detach().exp(), log_std], dim=2)

    def _fresh_speech(self, latent_pi: Tensor) -> Float[Tensor, "batch outputs"] | None:
        if self.method.pathways.names[-1] != FRESH:
            return None
        said: Tensor = self.action_net(latent_pi)
        if isinstance(self.action_space, spaces.Discrete):
            return nn.functional.log_softmax(said, dim=1)
        return torch.cat([said, self.log_std.expand_as(said)], dim=1)

    def distribution_parameters(self, routed: Routed) -> Float[Tensor, "batch outputs"]:
        """The aggregated action distribution as speech: log-probabilities, or mean and log standard deviation."""
        if isinstance(self.action_space, spaces.Discrete):
            distribution = self._distribution(routed.speech, routed.weights)
            assert isinstance(distribution, CategoricalDistribution)
            return distribution.distribution.logits
        return aggregate(routed.speech, routed.weights)

    def _distribution(self, said: Float[Tensor, "batch pathways outputs"], weights: Float[Tensor, "batch pathways"]) -> Distribution:
        mean = aggregate(said, weights)
        if isinstance(self.action_space, spaces.Discrete):
            return _categorical(said, weights, mean, mixture=self.outputs.aggregation == "mixture")
        if self.outputs.aggregation == "mixture":
            return MixtureDistribution(get_action_dim(self.action_space)).proba_distribution(said, weights)
        centre, log_std = mean.chunk(2, dim=1)
        return DiagGaussianDistribution(get_action_dim(self.action_space)).proba_distribution(centre, log_std)


class MixtureDistribution(Distribution):
    """A mixture of Gaussians: one pathway is drawn by its weight and acts with its own standard deviation.

    The likelihood is that of the mixture, summed over pathways, so that ratios are exact without storing who acted.
    The mode is the mean of the pathway with the greatest weight: good gaits are chosen between, never averaged.
    """

    def __init__(self, action_dim: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.action_dim = action_dim

    def proba_distribution_net(self, *args: Any, **kwargs: Any) -> nn.Module:
        """There is none: the pathways speak for themselves."""
        raise BadConfig("A mixture of pathways has no network of its own.")

    def proba_distribution(
        self, speech: Float[Tensor, "batch pathways outputs"], weights: Float[Tensor, "batch pathways"]
    ) -> "MixtureDistribution":
        """The mixture of what the pathways say, by their weights."""
        self.mean, self.log_std = speech.chunk(2, dim=2)
        self.log_weights = log_weights(weights)
        return self

    def log_prob(self, actions: Float[Tensor, "batch actions"]) -> Float[Tensor, " batch"]:
        """Logarithm of the mixture's density."""
        each = torch.distributions.Normal(self.mean, self.log_std.exp()).log_prob(actions[:, None]).sum(dim=2)
        return torch.logsumexp(self.log_weights + each, dim=1)

    def entropy(self) -> Tensor | None:
        """None: there is no closed form, and SB3 then estimates it by the mean negative log-probability."""
        return None

    def sample(self) -> Float[Tensor, "batch actions"]:
        """Draw a pathway, then its action."""
        drawn = Categorical(logits=self.log_weights).sample()
        mean, log_std = self._of(drawn, self.mean), self._of(drawn, self.log_std)
        return torch.normal(mean, log_std.exp())

    def mode(self) -> Float[Tensor, "batch actions"]:
        """The mean of the pathway with the greatest weight."""
        return self._of(self.log_weights.argmax(dim=1), self.mean)

    def actions_from_params(self, speech: Tensor, weights: Tensor, deterministic: bool = False) -> Tensor:
        """Actions for what pathways say."""
        return self.proba_distribution(speech, weights).get_actions(deterministic=deterministic)

    def log_prob_from_params(self, speech: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Actions for what pathways say, and their log-probabilities."""
        actions = self.actions_from_params(speech, weights)
        return actions, self.log_prob(actions)

    @staticmethod
    def _of(pathway: Tensor, values: Tensor) -> Tensor:
        return values.gather(1, pathway[:, None, None].expand(-1, 1, values.shape[2])).squeeze(1)


def get_action_width(space: spaces.Space[Any]) -> int:
    """How many numbers a correction of what a source says has: one an action dimension, or one a choice."""
    return int(space.n) if isinstance(space, spaces.Discrete) else get_action_dim(space)


def _all_for_last(n_rows: int, n_pathways: int) -> Float[Tensor, "batch pathways"]:
    """Pathway weights where the last has all the say."""
    return torch.eye(n_pathways)[-1].expand(n_rows, -1)


def _categorical(speech: Tensor, weights: Tensor, mean: Tensor, *, mixture: bool) -> Distribution:
    """Discrete actions: a mixture of the pathways' probabilities, or the weighted mean of their logits."""
    normal = nn.functional.log_softmax(speech, dim=2)
    logits = torch.logsumexp(log_weights(weights)[:, :, None] + normal, dim=1) if mixture else mean
    return CategoricalDistribution(logits.shape[1]).proba_distribution(logits)


def _extractor_for(space: spaces.Space[Any]) -> type:
    if isinstance(space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if isinstance(space, spaces.Box) and is_image_space(space) else FlattenExtractor
