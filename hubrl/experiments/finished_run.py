"""What a finished run is good for: playing, exporting, distilling. Nothing in its folder is unpickled."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from stable_baselines3.a2c import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO

from hubrl.errors import BadFile, OutputExists
from hubrl.experiments.checkpoints import model_bytes
from hubrl.experiments.config import RunConfig, read_config
from hubrl.experiments.evaluation import Played, play
from hubrl.experiments.run import EVALUATION_SEED, build_model, hub_of, plain_policy, raw_env
from hubrl.export.distill import distill
from hubrl.export.plain_model import Exported, export
from hubrl.formats.cached_space import vecnormalize_kwargs
from hubrl.formats.files import write_atomically
from hubrl.reading import read_agent
from hubrl.reading.vecnormalize import read_statistics
from hubrl.sources.source import Source

STATISTICS = "vecnormalize.pkl"


def run_agent(run: Path) -> Source:
    """A finished run's agent as a source, with its statistics, and with a card that says what it was trained on.

    Raises:
        BadFile: If the run is not finished, or its agent cannot be read.
    """
    _check_finished(run)
    source = read_agent(run / "model.zip")
    config = read_config(run / "config.yaml")
    trained = {"task": config.task, "task_kwargs": config.task_kwargs, "task_preprocessing": config.preprocessing, "seed": config.seed}
    try:
        result = json.loads((run / "result.json").read_text(encoding="utf-8"))
        worth = {"steps": "steps", "episodes": "eval_episodes", "return_mean": "eval_mean", "return_std": "eval_std"}
        trained |= {field: result[key] for field, key in worth.items()}
    except (OSError, ValueError, KeyError) as error:
        raise BadFile(
            f"{run / 'result.json'} is missing or damaged; `hubrl train {run}` goes on with a run that is not finished."
        ) from error
    source.card = source.card.model_copy(update=trained)
    return source


def run_model(run: Path, config: RunConfig, env: VecEnv) -> BaseAlgorithm:
    """A finished run's agent as SB3's algorithm, with the memory that it has where pathways are held.

    Args:
        run: The run's folder.
        config: Its config.
        env: Environments of its task, see `run_env`.

    Raises:
        BadFile: If the run is not finished, or its agent cannot be read.
    """
    _check_finished(run)
    model = build_model(config, env, hub_of(config))
    try:
        _, parameters, _ = load_from_zip_file(run / "model.zip", device=model.device, load_data=False)
        model.set_parameters(parameters, exact_match=True, device=model.device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BadFile(f"{run / 'model.zip'} is damaged or not of {run / 'config.yaml'} ({error}).") from error
    return model


def run_env(run: Path, config: RunConfig, *, episodes: int | None = None, seed: int | None = None, cached: bool = True) -> VecEnv:
    """Environments of a finished run's task, under its VecNormalize with fixed statistics if it has one.

    Args:
        run: The run's folder.
        config: Its config.
        episodes: How many will be played; as many as the config says if not given.
        seed: Of the episodes; behind the run's own if not given.
        cached: Whether observations come with what the sources said of them, if the agent learned so.

    Raises:
        BadFile: If the statistics cannot be read.
    """
    env = raw_env(config, episodes=episodes, seed=seed, cached=cached and config.cached)
    if not (run / STATISTICS).exists():
        return env
    read = read_statistics(run / STATISTICS)
    if read.statistics is None:
        return env
    how = vecnormalize_kwargs(env.observation_space)
    vec = VecNormalize(env, training=False, norm_reward=False, clip_obs=read.clip, epsilon=read.epsilon, **how)
    for key, (mean, var) in read.statistics.items():
        rms = vec.obs_rms[key] if isinstance(vec.obs_rms, dict) else vec.obs_rms
        rms.mean, rms.var = mean, var
    return vec


def evaluate_run(run: Path, episodes: int, seed: int = EVALUATION_SEED, on_step: Callable[[int], None] = lambda done: None) -> Played:
    """Episodes of a finished run's agent on its own task, played deterministically; with drawn actions in Atari games.

    Raises:
        BadFile: If the run is not finished, or its agent cannot be read.
    """
    config = read_config(run / "config.yaml")
    with closing(run_env(run, config, episodes=episodes, seed=seed)) as env:
        model = run_model(run, config, env)
        env.seed(seed)  # SB3 seeds the environments that an algorithm is built with
        return play(model, env, episodes, name=run.name, on_step=on_step)


def export_run(run: Path, out: Path, *, overwrite: bool = False) -> Exported:
    """Merge a finished run's agent into one ordinary SB3 agent; its VecNormalize, if any, is written beside it.

    Raises:
        NotPlainError: If no one network of SB3's shapes says the same.
        BadFile: If the run is not finished, or its agent cannot be read.
        OutputExists: If the file exists and may not be replaced.
    """
    _check_free(out, overwrite=overwrite)
    exported = export(run_agent(run))
    _write(run, out, exported.model)
    return exported


class Distilled(NamedTuple):
    """An ordinary SB3 agent that was taught."""

    model: BaseAlgorithm
    before: Played
    """Episodes of its teacher."""
    after: Played
    """The same episodes, played by it."""


def distill_run(
    run: Path,
    out: Path,
    *,
    steps: int = 100_000,
    net_arch: Sequence[int] = (256, 256),
    episodes: int = 20,
    seed: int = 0,
    overwrite: bool = False,
    on_step: Callable[[int], None] = lambda done: None,
) -> Distilled:
    """Train one ordinary SB3 agent to do what a finished run's agent does, and play both.

    The student is a DQN if the run's agent is one, an A2C if it is one, and otherwise a PPO.

    Args:
        run: The run's folder.
        out: The student's zip.
        steps: Environment steps from which it learns.
        net_arch: Widths of its hidden layers.
        episodes: Episodes that each of them plays.
        seed: Of the student.
        overwrite: Whether a file that is there is replaced.
        on_step: Told how many steps are done.

    Raises:
        BadFile: If the run is not finished, or its agent cannot be read.
        OutputExists: If the file exists and may not be replaced.
        SpaceMismatch: If actions are neither Box nor Discrete.
    """
    _check_free(out, overwrite=overwrite)
    config = read_config(run / "config.yaml")
    own, plain = (run_env(run, config, episodes=config.n_envs, seed=config.seed, cached=cached) for cached in (True, False))
    with closing(own), closing(plain) as env:
        set_random_seed(seed)
        teacher = run_model(run, config, own)
        kind = next((known for known in (DQN, A2C) if isinstance(teacher, known)), PPO)
        small: dict[str, Any] = {"buffer_size": 1} if kind is DQN else {}
        kwargs = {"net_arch": list(net_arch)}
        student = kind(plain_policy(kind, env), env, policy_kwargs=kwargs, seed=seed, device=config.device, **small)
        seen = student.get_env()  # images are transposed there
        assert seen is not None
        distill(teacher, student, seen, steps=steps, seed=seed, on_step=on_step)
    _write(run, out, student)
    with closing(run_env(run, config, episodes=episodes, seed=EVALUATION_SEED, cached=False)) as env:
        # What was taught is what the teacher does deterministically, in Atari games too.
        both = (teacher, run.name), (student, out.stem)
        before, after = (play(agent, env, episodes, name=name, deterministic=True) for agent, name in both)
    return Distilled(student, before, after)


def _write(run: Path, out: Path, model: BaseAlgorithm) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    beside = out.with_name(f"{out.stem}.{STATISTICS}")
    config = read_config(run / "config.yaml")
    if config.cached and config.normalize:
        # Its statistics are of observations beside what was heard; the plain agent's are of observations alone.
        with closing(run_env(run, config, episodes=1, cached=False)) as env:
            if isinstance(env, VecNormalize):
                env.save(str(beside))
    elif (run / STATISTICS).exists():
        shutil.copyfile(run / STATISTICS, beside)
    write_atomically(out, model_bytes(model))


def _check_finished(run: Path) -> None:
    if not (run / "config.yaml").exists():
        raise BadFile(f"{run} is no run: it has no config.yaml.")
    if not (run / "model.zip").exists():
        raise BadFile(f"{run} has no model.zip; finish it with `hubrl train {run}`.")


def _check_free(out: Path, *, overwrite: bool) -> None:
    if out.suffix != ".zip":
        raise OutputExists(f"{out} was given; expected the name of a zip, as plain.zip.")
    if out.exists() and not overwrite:
        raise OutputExists(f"{out} exists; choose another name or allow overwriting with --overwrite.")
