"""`predict` of the policy over sources' outputs: one pathway alone, or committed ones."""

from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Int
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from hubrl.nn.manual_gradients import MAX_NUMPY_PRODUCTS, fits_numpy
from hubrl.policies.on_policy.distributions import draw_action
from hubrl.policies.on_policy.numpy_actor import NumpyActor
from hubrl.policies.on_policy.pathway_actor import PathwayActor, check_output
from hubrl.policies.on_policy.step import CommitmentState, PredictState, StepContext
from hubrl.policies.predict_lock import PredictLock, refuse_other_threads
from hubrl.routing.weights import n_rows
from hubrl.sources.observation_batch import check_no_nan
from hubrl.sources.preprocessing import Observations


class PredictingActor(PathwayActor):
    """The actor as SB3's `predict` asks it. Arguments as of `HubActorCriticPolicy`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._predicting = PredictLock()
        self._numpy_actor: NumpyActor | None = None

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: PredictState | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, PredictState | None]:
        """SB3's `predict`; the state holds committed pathways and their steps so far.

        Threads may share the policy, but not with one that trains it.

        Args:
            observation: One observation, or a batch.
            state: State from the last call; none at the start.
            episode_start: Rows in which an episode begins, so that no pathway is committed.
            deterministic: Whether to take the likeliest action of the likeliest pathway.

        Raises:
            BadConfig: If the state is of another number of observations, or another thread trains
                the policy.
            NotFinite: If the observation has NaN, or the networks compute NaN for it.
        """
        check_no_nan(observation, "The policy")
        refuse_other_threads(self, self.training_state.thread)
        with self._predicting:
            if not self.commits or isinstance(observation, tuple):  # a tuple is refused by SB3
                actions, state = super().predict(observation, state, episode_start, deterministic)
                check_output(torch.as_tensor(actions))
                return actions, state
            return self._predict_committed(observation, state, episode_start, deterministic)

    def _predict_committed(
        self, observation: Any, state: Any, episode_start: np.ndarray | None, deterministic: bool
    ) -> tuple[np.ndarray, PredictState]:
        self.set_training_mode(False)
        if state is None:
            self._head = None  # layers may have been replaced or hooked since
        tensor, is_batch = self.obs_to_tensor(observation)
        commitment = CommitmentState.restored(n_rows(tensor), state, episode_start)
        with torch.no_grad():
            drawn = self._committed_actions(tensor, commitment, deterministic)
        actions = drawn.cpu().numpy().reshape((-1, *self.action_space.shape))  # type: ignore[misc,arg-type]
        if isinstance(self.action_space, spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        return actions if is_batch else actions.squeeze(axis=0), commitment.predict_state

    def _committed_actions(
        self, obs: PyTorchObs, commitment: CommitmentState, deterministic: bool
    ) -> Tensor:
        """Actions of `predict`: of the evaluation's pathway, else of the committed ones."""
        observations, solo = self.preprocess(obs), self.evaluation_pathway
        actor = self._find_actor(observations)
        if solo >= 0:
            commitment.commit(solo)
            return actor.solo_actions(observations, solo, deterministic=deterministic)
        bound = commitment.binding(self.most_steps)
        actions, acted = actor.committed_actions(observations, bound, deterministic=deterministic)
        if acted is not None:
            commitment.advance(acted, bound)
        return actions

    def _find_actor(self, observations: Observations) -> "PredictingActor | NumpyActor":
        """The policy itself, or its networks' faster twin where that serves."""
        may_serve = isinstance(observations, Tensor) and fits_numpy(observations, 0)
        if not may_serve or self.acts_by_snapshot:
            return self
        twin = self._numpy_actor
        if twin is None or not twin.watched.is_current:
            twin = NumpyActor(self) if NumpyActor.supports(self) else None
            self._numpy_actor = twin
        products = 0 if twin is None else n_rows(observations) * twin.largest
        return self if twin is None or products > MAX_NUMPY_PRODUCTS else twin

    def solo_actions(
        self, observations: Observations, pathway: int, *, deterministic: bool
    ) -> Tensor:
        """Actions of one pathway alone, without correction; no other is computed.

        Raises:
            NotFinite: If its output has NaN.
        """
        assert isinstance(self.action_space, spaces.Box | spaces.Discrete)
        if pathway == self.fresh_index:
            latent = self.mlp_extractor.forward_actor(self.pi_features_extractor(observations))
            params = cast("Tensor", self.fresh_params(latent))
        else:
            params = self.method.pathways.sources[pathway](observations)
        check_output(params)
        return draw_action(params, self.action_space, deterministic=deterministic)

    def committed_actions(
        self,
        observations: Observations,
        previous: Int[np.ndarray, " batch"],
        *,
        deterministic: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Actions of all pathways together, and which acted; none where none was drawn.

        Args:
            observations: As SB3 preprocesses them.
            previous: Committed pathways, -1 for none.
            deterministic: Whether to take the likeliest action of the likeliest pathway.

        Raises:
            NotFinite: If the acting pathway's output has NaN.
        """
        before = torch.as_tensor(previous, device=self.device)
        context = StepContext(observations, exploring=False, previous=before)
        head = self.current_head(context)
        if head is None:
            latent = self.mlp_extractor.forward_actor(self.pi_features_extractor(observations))
            return self.draw(context, latent, deterministic)[0], context.acted
        choice = self.choose(head, context, deterministic)
        check_output(choice.params.params)
        return choice.actions, choice.acted
