"""The callback of a training with a hub: probe, selection, critic's warm-up, metrics."""

import warnings
from threading import get_ident
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.a2c import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO

from hubrl.errors import BadConfig, HubrlWarning
from hubrl.methods.base import Method
from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.dqn_exploration import PausedExploration, RunningLearn, explore_as_before
from hubrl.policies.extractor import parts_in, see_through_normalisation
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.policies.on_policy.rollout_buffer import install_rollout_buffer
from hubrl.policies.on_policy.step import TrainingState
from hubrl.selection.arm_selection import ArmSelection
from hubrl.training import metrics
from hubrl.training.critic_scaling import CriticScaling
from hubrl.training.episodes import EpisodeReturns
from hubrl.training.finite import FiniteCheck, check_step
from hubrl.training.probe import ProbeResult, probe
from hubrl.training.source_selection import SourceSelection

FEW_RANDOM = 0.2
"""Share of random actions up to which an episode says what its arm earns."""


class Decision(NamedTuple):
    """What was decided about trust, and why."""

    step: int
    """Environment steps when it was decided."""
    sentence: str


class HubCallback(BaseCallback):
    """Probe, selection among arms, denormalised observations for the sources, and metrics.

    A training whose observations, rewards, actions or weights are NaN or infinite ends with
    `NotFinite`, before anything is learned from them.

    `docs/concepts/metrics.md` has the formula of every tag. All shares are of the steps that
    `learn` is called for, with those before if `reset_num_timesteps=False`.

    Args:
        probe_share: Share of the training's steps that a probe may take before it, counted among
            them; 0 for no probe. Only models that aggregate outputs and have a fresh pathway are
            probed, once.
        warmup_share: Share of the training's steps behind the probe in which only the critic
            learns; actors that are good already would be spoiled by advantages of a critic that has
            learned nothing. None where every source was dropped.
        log_every: Environment steps between two records, over all parallel environments.
        verbose: 1 to print what the probe measured and what is decided later; `decisions` holds the
            same, and the logger gets it as text.

    Raises:
        BadConfig: If a share is none.
    """

    def __init__(
        self,
        probe_share: float = 0.02,
        warmup_share: float = 0.02,
        log_every: int = 1000,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        _check_shares(probe_share=probe_share, warmup_share=warmup_share)
        self.probe_share = probe_share
        self.warmup_share = warmup_share
        self.log_every = log_every
        self.probe_result: ProbeResult | None = None
        self.decisions: list[Decision] = []
        """Every decision about trust so far."""
        self._logged_at = 0
        self._selection: SourceSelection | None = None
        self._scaling: CriticScaling | None = None
        self._episodes: EpisodeReturns | None = None
        self._acted = metrics.ActedSteps(0)
        self._evaluates = -1
        self._records_steps = False
        self._finite: FiniteCheck | None = None
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a training needs beside its model to go on elsewhere, as plain data.

        Raises:
            NotFinite: If a weight is not finite, so that nothing can go on from it.
        """
        if self._finite is not None:
            self._finite.check_weights(every=True)
        return {
            "logged_at": self._logged_at,
            "evaluates": self._evaluates,
            "acted": self._acted.state(),
            "selection": None if self._selection is None else self._selection.state(),
            "scaling": None if self._scaling is None else self._scaling.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the `state_dict` of an earlier callback, in environments that begin anew.

        To be called before `learn(reset_num_timesteps=False)` of the model that was saved with it.
        """
        self._restored = state

    def _on_training_start(self) -> None:
        model, policy = self.model, self.model.policy
        # SB3 updates it when the first rollout is over, and saves it with the model.
        model._update_current_progress_remaining(
            model.num_timesteps, self.locals["total_timesteps"]
        )
        self._goes_on = model.num_timesteps > 0
        restored, self._restored = self._restored, None
        see_through_normalisation(policy, self.training_env)
        # Looked up once: off-policy algorithms begin a rollout every few steps.
        self._methods = parts_in(policy, Method)  # type: ignore[type-abstract]
        if not self._methods and not isinstance(policy, HubDQNPolicy):
            warnings.warn(NO_HUB.format(type(model).__name__), HubrlWarning, stacklevel=2)
            self._finite = None
        else:
            self._finite = FiniteCheck(model)
            self._finite.begin(self.training_env)
        self._logged_at = model.num_timesteps
        if isinstance(policy, HubDQNPolicy | HubActorCriticPolicy):
            self._acted = metrics.ActedSteps(len(_pathway_names(policy)))
            selection = policy.selection if self._goes_on else None
            self._evaluates = -1 if selection is None else selection.evaluation_arm
        if restored is None:
            metrics.record_hub(self.logger, model)
        else:
            self._logged_at, self._evaluates = restored["logged_at"], restored["evaluates"]
            self._acted.restore(restored["acted"])
        if isinstance(policy, HubActorCriticPolicy):
            if not isinstance(model, PPO | A2C):
                name = type(model).__name__
                raise BadConfig(
                    f"What hub.agent makes for PPO or A2C was given to {name}; use "
                    f"hub.agent({name})."
                )
            self._start_on_policy(model, policy, restored or {})
        if isinstance(model, DQN) and isinstance(policy, HubDQNPolicy):
            self._start_dqn(model, policy, whole=not self._goes_on or restored is not None)

    def _start_on_policy(
        self, model: OnPolicyAlgorithm, policy: HubActorCriticPolicy, restored: dict[str, Any]
    ) -> None:
        self._records_steps = install_rollout_buffer(model, policy)
        if self._records_steps:
            policy.enable_commitment()
        policy.end_commitments(np.ones(self.training_env.num_envs, dtype=bool))
        if (
            policy.method.awaits_probe and not self._goes_on and model._n_updates == 0
        ):  # what has learned is not probed
            self._probe(model, policy)
        if policy.selection is not None:
            total = self.locals["total_timesteps"]
            self._selection = SourceSelection(
                model,
                policy,
                policy.selection,
                total,
                goes_on=self._goes_on,
                state=restored.get("selection"),
            )
        # Of the critic that is to learn.
        self._scaling = CriticScaling(model, policy, restored.get("scaling"))
        if not self._goes_on:
            self._warm_up(policy)

    def _start_dqn(self, model: DQN, policy: HubDQNPolicy, *, whole: bool) -> None:
        policy.begin(self.training_env.num_envs, RunningLearn(model))
        self._episodes = EpisodeReturns(self.training_env, model.num_timesteps, whole=whole)
        explore_as_before(model)
        schedule = PausedExploration(
            model.exploration_schedule, lambda: policy.deterministic_episode
        )
        model.exploration_schedule = schedule
        if policy.deterministic_episode:
            model.exploration_rate = 0.0

    def _probe(self, model: OnPolicyAlgorithm, policy: HubActorCriticPolicy) -> None:
        # Whole episodes choose what is copied, because segments show their beginning alone.
        share = 0.0 if policy.method.copies_source else self.probe_share
        budget = int(share * (self.locals["total_timesteps"] - model.num_timesteps))
        self.probe_result = result = probe(model, budget) if budget else None
        if result is None:
            if policy.selection is not None:
                policy.selection.doubt_all()
                policy.follow_selection()
            if share:
                self._report_no_probe(budget, policy)
            return
        model.num_timesteps += result.steps
        self.num_timesteps = model.num_timesteps
        model._last_obs = self.training_env.reset()  # type: ignore[assignment]
        model._last_episode_starts = np.ones(self.training_env.num_envs, dtype=bool)
        metrics.record_probe(self.logger, result)
        self._tell([metrics.describe_probe(result)])

    def _tell(self, changes: list[str]) -> None:
        """Keep and log sentences about trust, and print them at `verbose=1`."""
        self.decisions += [Decision(self.model.num_timesteps, change) for change in changes]
        metrics.record_changes(self.logger, changes)
        for change in changes if self.verbose else ():
            print(f"[{self.model.num_timesteps} steps] {change}")  # noqa: T201 - as SB3's callbacks do at verbose=1

    def _report_no_probe(self, budget: int, policy: HubActorCriticPolicy) -> None:
        """Report that segments decide nothing; as a warning too where sentences are not printed."""
        instead = "whole episodes decide" if policy.selection is not None else "nothing decides"
        sentence = f"No probe: {budget} steps are too few for it; {instead} whom to trust."
        self._tell([sentence])
        if not self.verbose:
            remedy = "train for longer, or give HubCallback a greater probe_share"
            warnings.warn(f"{sentence} For a probe {remedy}.", HubrlWarning, stacklevel=2)

    def _warm_up(self, policy: HubActorCriticPolicy) -> None:
        """From now on only the critic learns, for a while."""
        now = self.model.num_timesteps
        policy.get_buffer("warm_until").fill_(
            now + self.warmup_share * (self.locals["total_timesteps"] - now)
        )

    def _on_rollout_start(self) -> None:
        policy = self.model.policy
        if self._finite is not None:
            self._finite.check_weights()
        if isinstance(policy, HubActorCriticPolicy):
            assert isinstance(self.model, OnPolicyAlgorithm)
            self._follow_selection(policy)
            policy.training_state = _training_state(
                self.model, policy, records_steps=self._records_steps
            )
        elif isinstance(policy, HubDQNPolicy):
            policy.update_progress(self.model._current_progress_remaining)
        else:
            for method in self._methods:
                method.update_progress(self.model._current_progress_remaining)
        see_through_normalisation(policy, self.training_env)

    def _follow_selection(self, policy: HubActorCriticPolicy) -> None:
        """Let the policy follow what is decided between an update and the next rollout."""
        if self._selection is None or self._scaling is None:
            return
        selection = self._selection.selection
        was_swapped, was_copied = selection.trial.is_swapped, selection.copied >= 0
        self._tell(self._selection.rollout_start())
        is_swapped = selection.trial.is_swapped
        is_new_copy = selection.copied >= 0 and not was_copied
        if is_swapped != was_swapped or is_new_copy:
            self._scaling.restart()
        if (was_swapped and not is_swapped) or is_new_copy:
            self._warm_up(policy)

    def _on_step(self) -> bool:
        policy, rewards, dones = self.model.policy, self.locals["rewards"], self.locals["dones"]
        if self._finite is not None:
            observations, infos = self.locals["new_obs"], self.locals["infos"]
            check_step(self.training_env, observations, rewards, dones, infos, self.num_timesteps)
        if isinstance(policy, HubActorCriticPolicy) and self._scaling is not None:
            if dones.any():
                policy.end_commitments(dones)
            self._scaling.returns.add(rewards, dones)
            if self._selection is not None:
                self._selection.step(rewards, dones, self.locals["infos"])
        if len(self._acted.counts):
            self._acted.add(policy, len(dones))
        if isinstance(policy, HubDQNPolicy) and self._episodes is not None:
            assert isinstance(self.model, DQN)
            telling = self.model.exploration_rate <= max(
                FEW_RANDOM, self.model.exploration_final_eps
            )
            for env, value, whole, began in self._episodes.step(
                rewards, dones, self.locals["infos"], self.model.num_timesteps
            ):
                counts = telling and whole and began >= self.model.learning_starts
                policy.ended(env, value, self.model.num_timesteps, counts=counts)
        return True

    def _on_rollout_end(self) -> None:
        policy = self.model.policy
        if isinstance(policy, HubActorCriticPolicy) and self._scaling is not None:
            self._scaling.rollout_end()
        if self.model.num_timesteps - self._logged_at < self.log_every:
            return
        self._logged_at = self.model.num_timesteps
        if isinstance(policy, HubDQNPolicy | HubActorCriticPolicy):
            self._record_pathways(policy)
        if self._selection is not None:
            metrics.record_selection(self.logger, self._selection.selection, self._selection.acted)
            self._selection.acted[:] = 0
        for method in self._methods[:1]:
            metrics.record_method(self.logger, method)

    def _record_pathways(self, policy: HubDQNPolicy | HubActorCriticPolicy) -> None:
        names, now = _pathway_names(policy), self.model.num_timesteps
        metrics.record_acted(self.logger, names, self._acted, now)
        self._follow_evaluation_arm(policy.selection)
        if isinstance(policy, HubActorCriticPolicy):
            metrics.record_stds(self.logger, policy)
        else:
            metrics.record_selection(self.logger, policy.selection)
            for index, name in enumerate(policy.pathways.names):
                acts = float(index == policy.selection.evaluation_arm)
                self.logger.record(f"pathway/weight/{name}", acts, exclude=metrics.NO_TABLE)

    def _follow_evaluation_arm(self, selection: ArmSelection | None) -> None:
        """Report when another arm acts in evaluation."""
        if selection is None or not selection.has_episodes:
            return
        if selection.evaluation_arm != self._evaluates:
            self._evaluates = selection.evaluation_arm
            self._tell([metrics.describe_evaluation_arm(selection)])

    def _on_training_end(self) -> None:
        policy = self.model.policy
        if isinstance(self.model, DQN):
            explore_as_before(self.model)
        if isinstance(policy, HubDQNPolicy):
            policy.end()
        if self._selection is not None:
            _warn_if_too_short(self._selection.selection, self.num_timesteps)
            self._selection.end()
        if isinstance(policy, HubDQNPolicy | HubActorCriticPolicy):
            self._follow_evaluation_arm(policy.selection)
            names, now = _pathway_names(policy), self.model.num_timesteps
            metrics.draw_acted(self.logger, names, self._acted, now)
        if isinstance(policy, HubActorCriticPolicy):
            policy.training_state = TrainingState()
            policy.end_update()
        see_through_normalisation(policy, self.training_env)  # by the statistics that are saved
        if self._finite is not None:
            self._finite.end()


NO_HUB = (
    "HubCallback was given to a {} that learns through no hub, and does nothing; make the model "
    "with hub.agent or hub.policy_kwargs, or leave the callback out."
)
TOO_SHORT = (
    "A training of {} steps ended before {} had played a whole episode, so the agent was chosen by "
    "less than that; train for longer, or with fewer parallel environments."
)


def _pathway_names(policy: HubDQNPolicy | HubActorCriticPolicy) -> list[str]:
    pathways = policy.pathways if isinstance(policy, HubDQNPolicy) else policy.method.pathways
    return pathways.names


def _check_shares(**shares: Any) -> None:
    if isinstance(shares["probe_share"], dict):
        # SB3 takes a class for a function, and calls it with its local variables.
        raise BadConfig(
            "The class HubCallback was given as a callback; expected an object: "
            "callback=HubCallback()."
        )
    for name, share in shares.items():
        if not isinstance(share, int | float) or not 0 <= share < 1:
            raise BadConfig(
                f"{name}={share!r} was given; expected a share of the training's steps, at "
                "least 0 and below 1."
            )


def _training_state(
    model: OnPolicyAlgorithm, policy: HubActorCriticPolicy, *, records_steps: bool
) -> TrainingState:
    """State of the training that holds for the next rollout and its update."""
    fresh_trains = policy.selection is not None and policy.selection.trial.fresh_claims
    return TrainingState(
        progress_remaining=model._current_progress_remaining,
        has_callback=True,
        records_steps=records_steps,
        critic_only=model.num_timesteps < float(policy.get_buffer("warm_until"))
        and (not fresh_trains or policy.is_copy),
        fused_update=records_steps and isinstance(model, PPO),
        entropy_gradient=not records_steps or model.ent_coef != 0,
        thread=get_ident(),
    )


def _warn_if_too_short(selection: ArmSelection, steps: int) -> None:
    """Warn where sources have not played a whole episode, so that segments alone decide."""
    untried = [selection.records.names[source] for source in selection.unplayed]
    if untried:
        warnings.warn(TOO_SHORT.format(steps, ", ".join(untried)), HubrlWarning, stacklevel=2)
