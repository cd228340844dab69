"""The environments of a run, in training and in evaluation."""

from pathlib import Path

from stable_baselines3.common.vec_env import VecEnv

from hubrl.errors import HubrlError
from hubrl.experiments.config import RunConfig
from hubrl.experiments.evaluation import MAX_ENVS
from hubrl.experiments.seeds import EVALUATION_SEED
from hubrl.hub import Hub
from hubrl.policies.cached import CachedVecEnv
from hubrl.tasks.make_env import make_env, normalized_env


def training_env(config: RunConfig, hub: Hub | None, monitor: Path | None, seed: int) -> VecEnv:
    """The environments of a training, cached and normalized by its config.

    Args:
        config: The run's config.
        hub: Its hub.
        monitor: Folder for Monitor's CSV files, if any.
        seed: Seed of the first; the others follow.
    """
    env = _with_cache(config, hub, _task_env(config, config.n_envs, seed, monitor))
    return (
        normalized_env(env, config.algorithm_kwargs.get("gamma", 0.99)) if config.normalize else env
    )


def evaluation_env(
    config: RunConfig,
    hub: Hub | None = None,
    *,
    episodes: int | None = None,
    seed: int | None = None,
) -> VecEnv:
    """The environments of an evaluation, without VecNormalize.

    Args:
        config: The run's config.
        hub: The sources whose features are cached, in a run with `cached: true`; no features
            without it.
        episodes: Number of episodes to come; the config's by default.
        seed: Seed of the episodes; `EVALUATION_SEED` above the run's by default.
    """
    seed = config.seed + EVALUATION_SEED if seed is None else seed
    return _with_cache(
        config, hub, _task_env(config, min(episodes or config.eval_episodes, MAX_ENVS), seed)
    )


def cached_env(config: RunConfig, hub: Hub, env: VecEnv) -> CachedVecEnv:
    """Environments whose observations come with the features of a hub's sources.

    Raises:
        BadConfig: If the value of an option is invalid.
        SpaceMismatch: If a source does not fit the task.
    """
    try:
        made = hub.policy_kwargs(
            config.method, cached=True, precision=config.precision, **config.options
        )
        return CachedVecEnv(env, made, config.device)
    except HubrlError:
        env.close()
        raise


def _with_cache(config: RunConfig, hub: Hub | None, env: VecEnv) -> VecEnv:
    return cached_env(config, hub, env) if config.cached and hub is not None else env


def _task_env(config: RunConfig, n_envs: int, seed: int, monitor: Path | None = None) -> VecEnv:
    preprocessing = config.preprocessing
    return make_env(
        config.task,
        config.task_kwargs,
        n_envs=n_envs,
        seed=seed,
        preprocessing=preprocessing,
        monitor=monitor,
    )
