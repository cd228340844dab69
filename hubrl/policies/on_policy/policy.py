"""Policy of PPO and A2C over the outputs of sources."""

import inspect
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from jaxtyping import Float
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from hubrl.errors import BadConfig
from hubrl.nn.optimizers import HubAdam
from hubrl.policies.extractor import warn_without_callback
from hubrl.policies.on_policy.fused_head import evaluate_fused
from hubrl.policies.on_policy.head import CommittedHead
from hubrl.policies.on_policy.predicting_actor import PredictingActor
from hubrl.policies.on_policy.step import (
    HeadInputs,
    PolicyStep,
    RecordedBatch,
    RolloutCommitments,
    StepContext,
    StepRecord,
    TrainingState,
    encode_solo,
)
from hubrl.routing.weights import n_rows
from hubrl.sources.preprocessing import Observations


class HubActorCriticPolicy(PredictingActor):
    """SB3's actor-critic policy, whose actor is the fresh pathway beside the sources.

    Args:
        observation_space: The target's observations.
        action_space: The target's actions: Box or Discrete.
        lr_schedule: SB3's learning rate schedule.
        args: SB3's positional arguments.
        hub: Plain data from `Hub.agent`: the sources' cards, the method and its options.
        outputs: Options of the level of outputs, see `OutputOptions`.
        kwargs: SB3's keyword arguments (`net_arch`, `activation_fn`, ...), for the fresh pathway
            and the critic.

    Raises:
        SpaceMismatch: If a source does not fit the target's observations or actions.
        BadConfig: If the hub or an option is not valid, or `use_sde` is given.
    """

    __module__ = "hubrl"  # saved files name the class by this
    plain_module: ClassVar[str] = "hubrl.HubActorCriticPolicy"
    """Name by which its zip is read without unpickling."""
    _noise_generator: np.random.Generator | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.last_record = StepRecord()
        """Record of the last rollout step; the rollout buffer reads it right after `forward`."""
        self._commitments = RolloutCommitments()
        self._was_checked = False
        super().__init__(*args, **kwargs)

    def enable_commitment(self) -> None:
        """Commit to pathways from now on, because a rollout buffer records those that act."""
        if self.committed is not None:
            self.committed.fill_(True)
            self._is_committed = True

    def end_commitments(self, ended: np.ndarray) -> None:
        """End the commitments of environments whose episode ended."""
        self._commitments.end(np.asarray(ended, dtype=bool))

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log-probabilities for a rollout, or outside a training.

        Outside a training whose steps are recorded no pathway is committed and the router has no
        noise: a pathway is drawn for every row, and log-probabilities are those of
        `get_distribution`, of the mixture.

        Raises:
            BadConfig: If a training goes on with commitments that no rollout buffer records.
        """
        self.last_record = StepRecord()
        if self.fresh_alone:
            self._check_arrived()
            self.count_fresh(n_rows(obs), self.device, exploring=True)
            return super().forward(cast("Tensor", obs), deterministic)
        context = self._rollout_context(obs)
        head = self.current_head(context)
        if head is None:
            latent, critic_latent = self.extract_latents(context.observations)
            values = self.value_net(critic_latent)
            actions, distribution = self.draw(context, latent, deterministic)
            log_prob = distribution.log_prob(actions)
        else:
            choice, values, log_prob, _ = self._decide(head, context, deterministic)
            actions, context.acted = choice.actions, choice.acted
            if self._keeps_outputs:
                context.source_outputs, context.selected_output = None, choice.selected_output
        self._commitments.advance(context)
        if self._training_state.records_steps:
            self.last_record = context.record()
        return actions.reshape((-1, *self.action_space.shape)), values, log_prob  # type: ignore[misc]

    def evaluate_actions(
        self, obs: PyTorchObs | RecordedBatch, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropy for an update, under the rollout's noise.

        Outside a training whose steps are recorded, log-probabilities are those of
        `get_distribution`: of the mixture, whichever pathway acted.

        Raises:
            BadConfig: If steps of the training are recorded and these observations have no record.
        """
        obs, record = self._split(obs)
        if not self._was_checked:
            self._was_checked = True
            scratch = self.fresh_alone and not self.is_copy
            needs_callback = not (scratch or self._training_state.has_callback)
            warn_without_callback(self, needs_callback=needs_callback)
        if self.fresh_alone:
            return self._evaluate_alone(obs, actions)
        critic_only = self._training_state.critic_only
        exploring = record.acted is not None or not self.commits
        context = StepContext.of_record(
            self.preprocess(obs), record, exploring=exploring, critic_only=critic_only
        )
        context.only_fresh = self._was_only_fresh(record)
        values, log_prob, entropy = self._evaluate(context, actions)
        if record.deterministic is not None:
            # A deterministic action is no sample of its distribution, and gives it no gradient.
            log_prob = torch.where(record.deterministic, log_prob.detach(), log_prob)
        if critic_only:
            # The ratio is 1 and has no gradient: only the critic learns.
            return values, log_prob.detach(), None if entropy is None else entropy.detach()
        return values, log_prob, entropy

    def _evaluate_alone(
        self, obs: PyTorchObs, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """SB3's values, log-probabilities and entropy of the fresh pathway alone.

        While only the critic of a copy learns, they have no gradient for its actor.
        """
        self._check_arrived()
        self.end_update()
        if not (self._training_state.critic_only and self.is_copy):
            return super().evaluate_actions(cast("Tensor", obs), actions)
        latent, critic_latent = self.extract_latents(self.preprocess(obs))
        with torch.no_grad():
            distribution = self._get_action_dist_from_latent(latent)
            log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        return self.value_net(critic_latent), log_prob, entropy

    def extract_both(self, observations: Observations) -> tuple[Tensor, Tensor]:
        """Features of the actor and of the critic; while only the critic learns, for it alone."""
        actor, critic = super().extract_both(observations)
        if self.share_features_extractor and self._training_state.critic_only and self.is_copy:
            # What acts well already must not change with what the critic learns.
            critic = critic.detach()
        return actor, critic

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """Action distribution of all pathways, without the router's noise and commitments.

        Its log-probabilities are those of the mixture, whichever pathway acted.
        """
        if self.fresh_alone:
            self._check_arrived()
            return super().get_distribution(cast("Tensor", obs))
        context = StepContext(self.preprocess(obs), exploring=False)
        latent = self.mlp_extractor.forward_actor(self.pi_features_extractor(context.observations))
        return self.make_distribution(context, latent)

    def begin_rollout(self) -> None:
        """Drop the state of the last rollout; parameters and trusted sources may have changed.

        `HubRolloutBuffer.reset` calls it, so that an interrupted training leaves no state to the
        next.
        """
        self._head = None
        self.last_record = StepRecord()
        self.training_state = TrainingState()

    def train(self, mode: bool = True) -> "HubActorCriticPolicy":
        """`nn.Module.train`; from an update back to a rollout, with a new key of the noise."""
        if self.training == mode:
            # SB3 calls it before every step; a walk through all modules of all sources would take
            # as long as they do.
            return self
        self._head = None
        if self.training:
            self.end_update()
            # The rollout's state ends with its update, complete or interrupted.
            self.training_state = TrainingState()
            self._commitments.some_fresh = False
        if self.training and hasattr(self, "noise_key"):
            self.get_buffer("noise_key").add_(1)
            self._noise_generator = None
        if mode and self.fresh_alone and isinstance(self.optimizer, HubAdam):
            self.optimizer.use_torch_kernel()
        return super().train(mode)

    def _check_arrived(self) -> None:
        """Check that the weights of a copied source were there, or were loaded.

        Raises:
            SourcesNotLoaded: If neither.
        """
        for source in self._awaited:
            source.check_loaded()

    @property
    def _keeps_outputs(self) -> bool:
        """Whether sources' outputs are recorded in a rollout, for its update."""
        return self._training_state.records_steps and self.outputs.recall and not self.spec.tuned

    def _split(self, obs: PyTorchObs | RecordedBatch) -> tuple[PyTorchObs, StepRecord]:
        """Observations and the record of their steps; an empty one where none is recorded."""
        if isinstance(obs, RecordedBatch):
            return obs.observations, obs.record
        in_update = self.training and self._training_state.records_steps
        if in_update and not self.fresh_alone and (self.commits or self.method.noisy):
            raise BadConfig(
                "evaluate_actions was given observations without a record of the acting pathways "
                "and the noise; during a training with HubCallback pass the observations that the "
                "rollout buffer yields, not a copy, and after one that was interrupted call "
                "policy.set_training_mode(False)."
            )
        return obs, StepRecord()

    def _was_only_fresh(self, record: StepRecord) -> bool:
        """Whether the fresh pathway played alone in all rows, so that no other is computed."""
        some_fresh = self._commitments.some_fresh or not self._training_state.fused_update
        codes = record.previous if self.commits and some_fresh else None
        return codes is not None and not bool((codes != encode_solo(self.fresh_index)).any())

    def _rollout_context(self, obs: PyTorchObs) -> StepContext:
        """Inputs of a rollout step: committed pathways, recorded outputs of sources, noise."""
        records, commits = self._training_state.records_steps, self.commits
        context = StepContext(self.preprocess(obs), exploring=records or not commits)
        if commits:
            self._bind(context)
        if not records or context.only_fresh:
            return context
        method = self.method
        # All sources together cost little more than one, unless some are not active.
        selects = method.top_k < len(method.pathways.names) and self.current_head(context)
        if self._keeps_outputs and not selects:
            alone = [] if self.selection is None else self.selection.playing.tolist()
            # Where every arm plays alone, no other source is needed; and one that a probe set aside
            # plays alone before it is trusted.
            routes = min(alone, default=-1) < 0
            wanted = [
                index in alone or (routes and trusted)
                for index, trusted in enumerate(method.trusted_pathways)
            ]
            context.source_outputs = method.pathways.compute_source_outputs(
                context.observations, wanted
            )
        if method.noisy:
            context.noise = self._draw_noise(context)
        return context

    def _decide(self, head: CommittedHead, context: StepContext, deterministic: bool) -> PolicyStep:
        """Step of a rollout with pathway and action drawn; its weights are counted for the logs."""
        select = partial(self.select_output, context)
        rows = self._head_inputs(head, context)
        step = head.decide(rows, select, context, deterministic=deterministic)
        if head.routing is not None and context.exploring and not self.training:
            self.method.routing_stats.add(step.computed.routed.log_weights)
        return step

    def _head_inputs(self, head: CommittedHead, context: StepContext) -> HeadInputs:
        """Inputs of the head: features, or last hidden layers where torch computes those."""
        observations, routing = context.observations, head.routing
        extract = self.extract_both if head.reads_features else self.extract_latents
        actor, critic = extract(observations)
        if routing is None:
            rows = self.weigh(context)
        elif routing.explore_coef == 0 and context.solo is not None and bool(context.solo.all()):
            # Every arm plays alone, so that no weight and no gradient of the router counts.
            rows = actor.new_zeros(len(actor), routing.router.width)
        else:
            rows = routing.router.read(observations)
        return HeadInputs(critic, actor, rows)

    def _draw_noise(self, context: StepContext) -> Float[Tensor, "batch pathways"]:
        """Random noise of the router for a recorded step."""
        if self._noise_generator is None:
            self._noise_generator = np.random.default_rng(int(self.get_buffer("noise_key")))
        shape = context.n_rows, len(self.method.pathways.names)
        noise = torch.as_tensor(
            self._noise_generator.standard_normal(shape, dtype=np.float32), device=self.device
        )
        return (
            noise
            if context.deterministic is None
            else noise.masked_fill(context.deterministic[:, None], 0.0)
        )

    def _bind(self, context: StepContext) -> None:
        """Set the committed pathways and solo episodes of a rollout step's inputs."""
        if not self._training_state.records_steps:
            if _collects_rollouts(self):
                raise BadConfig(
                    "This model was trained with commitments to pathways and no rollout buffer "
                    "records them; pass HubCallback() to go on."
                )
            return
        selection = self.selection
        playing = None if selection is None else selection.playing
        self._commitments.bind(context, playing, self.most_steps, self.fresh_index)
        if selection is not None and not self.draws_in_evaluation and selection.deterministic.any():
            # Arrays are made anew for every turn: before the step is stored, the next episodes have
            # begun.
            context.deterministic = torch.as_tensor(selection.deterministic, device=self.device)

    def _evaluate(
        self, context: StepContext, actions: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropy; by the head where acting pathways are known."""
        head = self.current_head(context)
        if head is None or context.acted is None:
            self.end_update()
            latent, critic_latent = self.extract_latents(context.observations)
            distribution = self.make_distribution(context, latent)
            values = self.value_net(critic_latent)
            return values, distribution.log_prob(actions), distribution.entropy()
        if self._training_state.fused_update:
            self.pack_parameters(head)
        select = partial(self.select_output, context)
        selected = head.selected_output(context.acted, select, context)
        step = evaluate_fused(head, self._head_inputs(head, context), selected, context, actions)
        if step.loss is not None:
            self.method.routing_stats.add(None, step.loss.detach())
        # SB3 estimates a missing entropy by the mean of -log_prob, with a gradient that is wasted
        # where its coefficient is zero; the detached estimate has none.
        entropy = None if self._training_state.entropy_gradient else -step.log_prob.detach()
        return step.values, step.log_prob, entropy


def _collects_rollouts(policy: HubActorCriticPolicy) -> bool:
    """Whether an algorithm of SB3 calls the policy for a rollout, and not a user for one's own."""
    frame = inspect.currentframe()
    while frame is not None:
        collects = frame.f_code is OnPolicyAlgorithm.collect_rollouts.__code__
        if collects and frame.f_locals["self"].policy is policy:
            return True
        frame = frame.f_back
    return False
