"""Actor of the policy over sources' outputs: from routing to an action distribution."""

from functools import partial
from typing import cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from stable_baselines3.common.distributions import (
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
)
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from hubrl.errors import NotFinite
from hubrl.methods.base import Routed, RoutedMethod
from hubrl.nn.losses import inject
from hubrl.policies.on_policy.distributions import (
    CommittedDistribution,
    MixtureDistribution,
    PathwayDistribution,
    mixed_categorical,
)
from hubrl.policies.on_policy.head import CommittedHead
from hubrl.policies.on_policy.pathway_networks import PathwayNetworks
from hubrl.policies.on_policy.step import Choice, StepContext, encode_solo
from hubrl.routing.weights import certain_log_weights, transition_log_probs
from hubrl.sources import action_params
from hubrl.sources.preprocessing import Observations


def check_output(params: Tensor | np.ndarray) -> None:
    """Refuse an output with NaN, of which the likeliest action would be any.

    Raises:
        NotFinite: If there is one.
    """
    missing = np.isnan(params) if isinstance(params, np.ndarray) else params.isnan()
    if bool(missing.any()):
        raise NotFinite(
            "The policy's networks compute NaN for an observation; it may be too great for float32."
        )


class PathwayActor(PathwayNetworks):
    """Pathway weights, action parameters and action distributions of the policy's networks."""

    def route(self, observations: Observations) -> Routed:
        """Routing of observations as SB3 preprocesses them, without noise, as in `predict`."""
        latent = self.mlp_extractor.forward_actor(self.pi_features_extractor(observations))
        pathway = self.evaluation_pathway
        if pathway < 0:
            routed = self._route(StepContext(observations, exploring=False), latent)
            return routed._replace(whole=routed.features)
        alone = torch.full((len(latent),), pathway, device=latent.device)
        only_fresh = pathway == self.fresh_index
        context = StepContext(
            observations, exploring=False, previous=encode_solo(alone), only_fresh=only_fresh
        )
        routed = self._route(context, latent)
        routed = routed._replace(
            log_weights=certain_log_weights(alone, len(self.method.pathways.names))
        )
        if only_fresh:
            fresh = cast("Tensor", self.fresh_params(latent))
            # The router gives the fresh pathway no weight while the hub plays, so that its routed
            # output is not the one that acts.
            before = cast("Tensor", routed.pathway_outputs)
            routed = routed._replace(
                pathway_outputs=torch.cat([before[:, :-1], fresh[:, None]], dim=1)
            )
        return routed._replace(whole=routed.features)

    @torch.no_grad()
    def act_as(self, obs: PyTorchObs, pathway: Int[Tensor, " batch"]) -> np.ndarray:
        """Actions of one candidate per row, not corrected, with its own standard deviation.

        Args:
            obs: Observations as tensors, not yet preprocessed.
            pathway: Position among the method's `probe_candidates`, row by row.
        """
        observations = self.preprocess(obs)
        latent = self.mlp_extractor.forward_actor(self.pi_features_extractor(observations))
        candidates = self.method.probe_candidates
        active = nn.functional.one_hot(pathway, len(candidates.names)).bool()
        params = candidates.compute_outputs(observations, active, self.fresh_params(latent))
        rows = params.gather(1, pathway[:, None, None].expand(-1, 1, params.shape[2])).squeeze(1)
        return action_params.get_actions(rows, self.action_space, deterministic=False)

    def follow_selection(self) -> None:
        """Apply the selection of sources to the method: its pathways, and the router's start."""
        assert self.selection is not None
        members = self.selection.candidates
        kept = [index in members for index in range(self.selection.n_sources)]
        start = self.selection.router_start
        if self.method.pathways.has_fresh:
            kept.append(not members or self.outputs.fresh_joins)
            start = [*start, -self.selection.settings.most_lag if members else 0.0]
        self.method.apply_probe(kept, start)

    def choose(self, head: CommittedHead, context: StepContext, deterministic: bool) -> Choice:
        """Pathway and action of a step, without its value and log-probability."""
        features = self.pi_features_extractor(context.observations)
        if not head.reads_features:
            features = self.mlp_extractor.forward_actor(features)
        fused = head.fused
        if head.routing is None:
            rows = self.weigh(context)
        else:
            read = head.routing.router.read(context.observations)
            rows = head.hidden[2].forward(read)[-1]
        return head.choose(
            head.hidden[1].forward(features)[-1],
            head.route(rows, context, fused),
            partial(self.select_output, context),
            context,
            fused,
            deterministic=deterministic,
        )

    def select_output(
        self, context: StepContext, acted: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch outputs"]:
        """Own output of the source that acts in each row, computed for it alone."""
        return self.method.pathways.selected_output(acted, context.observations)

    def weigh(self, context: StepContext) -> Float[Tensor, "batch pathways"]:
        """Log pathway weights, or a fixed commitment's transition; the routing loss is attached."""
        assert isinstance(self.method, RoutedMethod)
        (log_weights, _), loss = self.method.compute_weights(
            context.observations, self._noise(context)
        )
        logs = self._with_loss(Routed(None, loss, None, log_weights), context).log_weights
        assert logs is not None
        if self.stay_logit is not None or self.outputs.hold == 1:
            return logs
        assert context.previous is not None
        return transition_log_probs(logs, context.previous)

    def draw(
        self, context: StepContext, latent: Float[Tensor, "batch latent"], deterministic: bool
    ) -> tuple[Tensor, Distribution]:
        """Actions and their distribution; `context.acted` is set where one pathway acts."""
        distribution = self.make_distribution(context, latent)
        actions = distribution.get_actions(deterministic=deterministic)
        if isinstance(distribution, CommittedDistribution):
            context.acted = distribution.acted
        return actions, distribution

    def make_distribution(
        self, context: StepContext, latent: Float[Tensor, "batch latent"]
    ) -> Distribution:
        """Action distribution of all pathways, or of the fresh one where it acts in all rows.

        Args:
            context: The step's inputs.
            latent: Last hidden layer of the actor.
        """
        assert isinstance(self.action_space, spaces.Box | spaces.Discrete)
        if context.only_fresh:
            return self._fresh_distribution(context, latent)
        routed = self._with_loss(self._route(context, latent), context)
        params, logs = routed.pathway_outputs, routed.log_weights
        if params is None or logs is None or self.aggregation != "mixture":
            return self._whole_distribution(routed.features)
        if self.commits and context.previous is None and context.acted is None:
            # No step of a training: the density of an action, whichever pathway acts.
            return MixtureDistribution(self.action_space).proba_distribution(params, logs)
        if self.commits:
            transition = self._transition(logs, context, latent)
            committed: PathwayDistribution = CommittedDistribution(self.action_space)
            assert isinstance(committed, CommittedDistribution)
            return committed.given(context.acted, context.deterministic).proba_distribution(
                params, transition
            )
        if isinstance(self.action_space, spaces.Discrete):
            return mixed_categorical(params, logs)
        return MixtureDistribution(self.action_space).proba_distribution(params, logs)

    def count_fresh(
        self, n_rows: int, device: torch.device, *, exploring: bool
    ) -> Float[Tensor, "batch pathways"]:
        """Log pathway weights where the fresh pathway acts alone, added to the routing stats."""
        n_pathways = len(self.method.pathways.names)
        logs = certain_log_weights(torch.full((n_rows,), n_pathways - 1, device=device), n_pathways)
        self._count(logs, exploring=exploring)
        return logs

    def _route(self, context: StepContext, latent: Float[Tensor, "batch latent"]) -> Routed:
        by_snapshot = self.acts_by_snapshot and not context.exploring and not context.only_fresh
        read = self._hub_latent(context.observations, latent) if by_snapshot else latent
        fresh = self.fresh_params(read, of_snapshot=by_snapshot)
        routed: Routed = self.method(
            context.observations,
            fresh=fresh,
            noise=self._noise(context),
            source_outputs=context.source_outputs,
        )
        if routed.pathway_outputs is None or routed.log_weights is None:
            return routed
        return routed._replace(
            pathway_outputs=self._with_residual(routed.pathway_outputs, context, latent), whole=None
        )

    def _noise(self, context: StepContext) -> Float[Tensor, "batch pathways"] | None:
        """Router's noise: as recorded, or by the rollout's key; none where it is off."""
        if not context.exploring or context.noise is not None:
            return context.noise
        noise = self.method.draw_noise(context.observations, int(self.get_buffer("noise_key")))
        if noise is None or context.deterministic is None:
            return noise
        return noise.masked_fill(context.deterministic[:, None], 0.0)

    def _hub_latent(
        self, observations: Observations, latent: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch latent"]:
        """Last hidden layer for correction and commitment; the snapshot's in the fresh trial."""
        if not self.acts_by_snapshot or self.actor_snapshot is None:
            return latent
        return self.actor_snapshot.latent(observations)

    def _with_residual(
        self, params: Float[Tensor, "batch pathways outputs"], context: StepContext, latent: Tensor
    ) -> Float[Tensor, "batch pathways outputs"]:
        if self.residual is None:
            return params
        n_sources = len(self.method.pathways.sources)
        correction = self.residual(self._hub_latent(context.observations, latent))
        if self.selection is not None and context.solo is not None:
            # Solo episodes judge a pathway without correction.
            correction = correction.masked_fill(context.solo[:, None], 0.0)
        own, correction = params[:, :n_sources], correction[:, None]
        if isinstance(self.action_space, spaces.Discrete):
            return torch.cat([own + correction, params[:, n_sources:]], dim=1)
        mean, log_std = own.chunk(2, dim=2)
        # In units of the standard deviation, so that a sharp source is moved gently.
        corrected = torch.cat([mean + correction * log_std.detach().exp(), log_std], dim=2)
        return torch.cat([corrected, params[:, n_sources:]], dim=1)

    def _transition(
        self,
        logs: Float[Tensor, "batch pathways"],
        context: StepContext,
        latent: Float[Tensor, "batch latent"],
    ) -> Float[Tensor, "batch pathways"]:
        """Log-probabilities of the pathway given the previous one, or without commitment."""
        if context.previous is None:
            return logs
        if self.stay_logit is not None or self.outputs.hold > 1:
            read = self._hub_latent(context.observations, latent)
            stay = None if self.stay_logit is None else self.stay_logit(read)
            logs = transition_log_probs(logs, context.previous, stay)
        if self.selection is None or context.solo is None:
            return logs
        if context.acted is not None:
            # In a solo episode the pathway acts with certainty.
            return logs.masked_fill(context.solo[:, None], 0.0)
        if not bool(context.solo.any()):
            return logs
        certain = certain_log_weights(encode_solo(context.previous), logs.shape[1])
        return torch.where(context.solo[:, None], certain, logs)

    def _fresh_distribution(
        self, context: StepContext, latent: Float[Tensor, "batch latent"]
    ) -> Distribution:
        fresh = self.fresh_params(latent)
        assert fresh is not None
        assert isinstance(self.action_space, spaces.Box | spaces.Discrete)
        logs = self.count_fresh(len(fresh), fresh.device, exploring=context.exploring)
        committed = CommittedDistribution(self.action_space).given(
            context.acted, context.deterministic
        )
        return committed.proba_distribution(fresh[:, None], logs)

    def _whole_distribution(self, params: Float[Tensor, "batch outputs"]) -> Distribution:
        if isinstance(self.action_space, spaces.Discrete):
            return CategoricalDistribution(params.shape[1]).proba_distribution(params)
        mean, log_std = params.chunk(2, dim=1)
        return DiagGaussianDistribution(get_action_dim(self.action_space)).proba_distribution(
            mean, log_std
        )

    def _with_loss(self, routed: Routed, context: StepContext) -> Routed:
        """Routing with its loss attached where the actor learns, added to the routing stats."""
        learning = self.training and torch.is_grad_enabled() and not context.critic_only
        loss = routed.loss if learning else None
        self._count(routed.log_weights, loss, exploring=context.exploring)
        if not learning or not routed.loss.requires_grad:
            return routed
        if routed.log_weights is None:
            return routed._replace(whole=inject(routed.features, routed.loss))
        return routed._replace(log_weights=inject(routed.log_weights, routed.loss))

    def _count(
        self,
        log_weights: Float[Tensor, "batch pathways"] | None,
        loss: Float[Tensor, ""] | None = None,
        *,
        exploring: bool,
    ) -> None:
        # Weights of rollouts only: an update repeats their rows in every epoch.
        counts = exploring and not self.training
        self.method.routing_stats.add(log_weights if counts else None, loss)
