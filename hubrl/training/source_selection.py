"""Selection among arms while PPO or A2C trains."""

from typing import Any

import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.selection.arm_selection import ArmSelection
from hubrl.training.episodes import EpisodeReturns


class SourceSelection:
    """The part of a training that decides which arm plays each episode.

    Args:
        model: PPO or A2C.
        policy: Its policy.
        selection: The policy's selection.
        total: Environment steps of the whole training.
        goes_on: Whether an earlier `learn` goes on.
        state: The `state` of an earlier selection whose episodes were broken off; none where they
            go on too.
    """

    def __init__(
        self,
        model: OnPolicyAlgorithm,
        policy: HubActorCriticPolicy,
        selection: ArmSelection,
        total: int,
        *,
        goes_on: bool,
        state: dict[str, Any] | None = None,
    ) -> None:
        env = model.get_env()
        assert env is not None
        self.model, self.policy, self.selection, self.total, self.env = (
            model,
            policy,
            selection,
            total,
            env,
        )
        was_swapped = selection.trial.is_swapped
        if not goes_on:
            selection.trial.begin()
            selection.records.restore_windows()
        if selection.trial.is_swapped != was_swapped:
            policy.swap_actor()
        selection.done = model.num_timesteps / total
        self.acted = np.zeros(selection.n_sources + 2)
        """Environment steps that each arm has played since they were last read."""
        self._begin(whole=not goes_on or state is not None)
        if state is not None:
            self.acted[:] = state["acted"]
            self.episodes.steps, self.episodes.episodes = state["episodes"]

    def state(self) -> dict[str, Any]:
        """What the policy does not hold, as plain data."""
        return {
            "acted": self.acted.tolist(),
            "episodes": [self.episodes.steps, self.episodes.episodes],
        }

    def _begin(self, *, whole: bool) -> None:
        self.episodes = EpisodeReturns(self.env, self.model.num_timesteps, whole=whole)
        if self.policy.commits:
            self.selection.begin(self.env.num_envs)

    def step(self, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        """Count one step; record the episodes that ended and choose the next ones."""
        if not self.policy.commits:
            return
        playing = self.selection.playing
        arms = np.where(playing < 0, self.selection.together, playing)
        self.acted += np.bincount(arms, minlength=len(self.acted))
        for env, value, whole, _ in self.episodes.step(
            rewards, dones, infos, self.model.num_timesteps
        ):
            if whole:
                self.selection.record(env, value, self.model.num_timesteps)
            self.selection.next_turn(env)

    def rollout_start(self) -> list[str]:
        """Let trust follow the records before a rollout; return what changed and why."""
        if not self.policy.commits:
            return []
        selection = self.selection
        was_swapped, was_settled = selection.trial.is_swapped, selection.is_settled
        changes = selection.update(self.model.num_timesteps, self.total, self.episodes.round_steps)
        for source in selection.joined:
            self.policy.method.admit(source)
        if selection.is_settled and not was_settled:
            self.policy.follow_selection()
            if selection.copied >= 0:
                self.policy.copy_source(selection.copied)
                self._restart_episodes()
        if selection.trial.is_swapped != was_swapped:
            self.policy.swap_actor()
            self._restart_episodes()
        return changes

    def _restart_episodes(self) -> None:
        """Begin new episodes: other parameters train, and their critic starts anew."""
        self.model._last_obs = self.env.reset()  # type: ignore[assignment]
        self.model._last_episode_starts = np.ones(self.env.num_envs, dtype=bool)
        self.policy.end_commitments(np.ones(self.env.num_envs, dtype=bool))
        self._begin(whole=True)

    def end(self) -> None:
        """Record what is going on where nothing else is known of its arm, and stop."""
        if self.policy.commits:
            self.selection.note_unfinished(self.episodes.sums, self.episodes.lengths)
        self.selection.end()
