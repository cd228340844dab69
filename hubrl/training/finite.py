"""Check of a training for NaN and infinity, before they are learned from or sent to a task.

One such number makes every weight NaN in the next update, and a training over discrete actions goes
on without an error. The checks read what SB3 has in memory anyway: a step's observations and
rewards, the policy's outputs, and the weights after an update.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import recursive_getattr
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hubrl.errors import NotFinite

STEPS_BETWEEN = 256
"""Environment steps between two looks at every weight, at least."""

ACTING_NETWORKS = ("actor", "q_net", "quantile_net")
"""Networks by which SB3's policies without `forward` act."""


class FiniteCheck:
    """Refusal of a training's NaN and infinity, from `begin` to `end`.

    Args:
        model: The model that learns.
    """

    def __init__(self, model: BaseAlgorithm) -> None:
        self.model = model
        self._updates = -1
        self._looked_at_all: int | None = None
        self._hook: RemovableHandle | None = None

    def begin(self, env: VecEnv) -> None:
        """Check the first observations, and the policy's outputs from now on.

        Args:
            env: The training's environments.

        Raises:
            NotFinite: If an observation is not finite.
        """
        network = _acting_network(self.model.policy)
        if network is not None:
            self._hook = network.register_forward_hook(self._check_outputs)
        check_observations(env, self.model._last_obs, self.model.num_timesteps)

    def check_weights(self, *, every: bool = False) -> None:
        """Check the weights, if they were updated since the last call.

        A loss that is not finite makes the first and last weights of its optimizer NaN; the others
        are looked at less often where updates follow upon each other.

        Args:
            every: Whether to look at every weight now.

        Raises:
            NotFinite: If one is not finite.
        """
        updates, now = getattr(self.model, "_n_updates", 0), self.model.num_timesteps
        if updates == self._updates:
            return
        self._updates = updates
        if every or self._looked_at_all is None or now - self._looked_at_all >= STEPS_BETWEEN:
            self._looked_at_all, every = now, True
        if all(_finite_tensor(weight) for weight in _weights(self.model, every=every)):
            return
        raise NotFinite(
            f"The weights of the policy were NaN or infinite after the update before step "
            f"{self.model.num_timesteps}; use a smaller learning_rate, or smaller rewards or "
            "observations, and go on from a model that was saved before."
        )

    def end(self) -> None:
        """Check the last update's weights, and the policy's outputs no longer.

        Raises:
            NotFinite: If a weight is not finite.
        """
        if self._hook is not None:
            self._hook.remove()
        self._updates = -1
        self.check_weights(every=True)

    def _check_outputs(self, network: nn.Module, inputs: Any, outputs: Any) -> None:
        """Refuse an action, value or Q-value that is not finite, before the action is sent."""
        if network.training:
            return
        for tensor in outputs if isinstance(outputs, tuple) else (outputs,):
            if not isinstance(tensor, Tensor) or _finite_tensor(tensor):
                continue
            row = _first_row(_array(tensor))
            raise NotFinite(
                f"The policy's output for environment {row} at step {self.model.num_timesteps} is "
                "NaN or infinite, and no action was sent; its observation may be too great for "
                "float32."
            )


def check_step(
    env: VecEnv,
    observations: Any,
    rewards: np.ndarray,
    dones: np.ndarray,
    infos: Sequence[Mapping[str, Any]],
    now: int,
) -> None:
    """Refuse a step of an environment that returned NaN or infinity.

    Args:
        env: The environments.
        observations: Their new observations.
        rewards: Their rewards.
        dones: Whether their episodes ended.
        infos: Their infos, with the last observations of episodes that ended.
        now: Environment steps so far.

    Raises:
        NotFinite: With what was not finite, in which environment and at which step.
    """
    check_observations(env, observations, now)
    for row in map(int, np.flatnonzero(dones)):
        if not _finite(infos[row].get("terminal_observation")):
            raise NotFinite(_sentence(env, "last observation of an episode", row, now))
    if not _finite(rewards):
        vec = unwrap_vec_normalize(env)
        raw = rewards if vec is None else vec.get_original_reward()
        raise NotFinite(_sentence(env, "reward", _first_row(raw), now))


def check_observations(env: VecEnv, observations: Any, now: int) -> None:
    """Refuse observations with NaN or infinity.

    Args:
        env: The environments.
        observations: One row for each environment.
        now: Environment steps so far.

    Raises:
        NotFinite: With the environment and the step.
    """
    if _finite(observations):
        return
    vec = unwrap_vec_normalize(env)
    # Statistics with a NaN make every normalised observation NaN; the original ones show which was.
    raw = None if vec is None else vec.get_original_obs()
    for key, part in (*_parts(raw), *_parts(observations)):
        if not _finite(part):
            what = f"observation {key!r}" if key else "observation"
            raise NotFinite(_sentence(env, what, _first_row(part), now))


def _sentence(env: VecEnv, what: str, row: int, now: int) -> str:
    remedy = "mend the environment, or replace such numbers in a wrapper"
    if unwrap_vec_normalize(env) is not None:
        remedy += "; VecNormalize's statistics hold it too, so load those that were saved before"
    return (
        f"The {what} of environment {row} at step {now} is NaN or infinite, and nothing was "
        f"learned from it; {remedy}."
    )


def _finite(values: Any) -> bool:
    """Whether an observation, a Dict of them, or an array has no NaN and no infinity."""
    return all(
        part.dtype.kind != "f" or bool(np.isfinite(part).all()) for _, part in _parts(values)
    )


def _parts(values: Any) -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(values, Mapping):
        yield from ((key, np.asarray(part)) for key, part in values.items())
    elif values is not None:
        yield "", np.asarray(values)


def _first_row(values: np.ndarray) -> int:
    rows = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    return int(np.argmin(rows))


def _acting_network(policy: nn.Module) -> nn.Module | None:
    """Module whose outputs are a rollout's actions, or values that determine them."""
    if isinstance(policy, ActorCriticPolicy):
        return policy
    found = (getattr(policy, name, None) for name in ACTING_NETWORKS)
    return next((network for network in found if isinstance(network, nn.Module)), None)


def _weights(model: BaseAlgorithm, *, every: bool) -> Iterator[Tensor]:
    """Weights that the model's optimizers train; the first and last of each group, or all."""
    for name in model._get_torch_save_params()[0]:
        if name.endswith("optimizer"):
            for group in recursive_getattr(model, name).param_groups:
                own = group["params"]
                yield from own if every else (own[0], own[-1])


def _finite_tensor(tensor: Tensor) -> bool:
    # A tenth of the time of torch's own functions for a few numbers.
    return bool(np.logical_and.reduce(np.isfinite(_array(tensor)), axis=None))


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().float().cpu().numpy()
    return array
