"""A training and its folder: everything needed to repeat it, watch it, resume it and judge it.

runs/<name>_<k>/
    config.yaml         resolved; `hubrl train <run>/config.yaml` repeats the run
    hub/                the sources it learned from
    command.txt         the command line
    versions.json       of Python and packages, and the git commit of the working directory
    tensorboard/        what TensorBoard shows
    monitor/            SB3's Monitor, one CSV an environment
    evaluations.npz     as SB3's EvalCallback writes it
    checkpoints/        the last two, until the run is finished
    model.zip           the agent, and vecnormalize.pkl beside it
    result.json         what came out; its presence says that the run is finished
"""

import csv
import importlib
import json
import math
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from hubrl.cached import CachedVecEnv
from hubrl.callbacks import HubCallback
from hubrl.errors import BadConfig, BadFile, HubrlError, OutputExists
from hubrl.experiments.checkpoints import CheckpointFolder, checkpoints_in, known_beside, model_bytes, restore_checkpoint
from hubrl.experiments.config import RunConfig, read_config
from hubrl.experiments.evaluation import PARALLEL, draws, own_randomness, play
from hubrl.formats.cached_space import vecnormalize_kwargs
from hubrl.formats.files import new_folder, write_atomically
from hubrl.formats.schema import write_yaml
from hubrl.hub import Hub, policy_name
from hubrl.precision import precise
from hubrl.sources.trunks import ACTIVATIONS
from hubrl.tasks.atari_vec_env import FRAME_SKIP
from hubrl.tasks.make_env import make_env, normalised
from hubrl.trust import Verdict

EVALUATION_SEED = 10_000
"""Added to a run's seed for the environments of its evaluations."""

SB3_PACKAGES = {"ppo": "PPO", "a2c": "A2C", "dqn": "DQN", "sac": "SAC", "td3": "TD3", "ddpg": "DDPG"}
CONTRIB_PACKAGES = {
    "qrdqn": "QRDQN",
    "tqc": "TQC",
    "trpo": "TRPO",
    "recurrent_ppo": "RecurrentPPO",
    "maskable_ppo": "MaskablePPO",
}

SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")
"""Arguments of SB3's algorithms that may change over the training."""

PACKAGES = ("hubrl", "stable-baselines3", "sb3-contrib", "torch", "gymnasium", "numpy", "ale-py", "mujoco")


def start_run(config_path: Path, overrides: Sequence[str], folder: Path, name: str | None = None) -> Path:
    """Make the folder of a new run from a config; nothing is trained yet.

    Args:
        config_path: The YAML file.
        overrides: `field=value` to put in.
        folder: Where runs live.
        name: The run's name; otherwise its config's with a number behind it.

    Raises:
        BadConfig: If the config cannot be what the user meant.
        BadFile: If the config, its hub or an agent cannot be read.
        OutputExists: If a run of the name exists.
    """
    if name is not None and Path(name).name != name:
        raise BadConfig(f"A run cannot be called {name!r}; give a name, and the folder it is to lie in with --runs.")
    config = read_config(config_path, list(overrides))
    stem = config_path.resolve().parent.name.rsplit("_", 1)[0] if config_path.stem == "config" else config_path.stem
    run = folder / name if name else _numbered(folder, stem)
    new_run(config, run)
    return run


def new_run(config: RunConfig, run: Path) -> None:
    """Make the folder of a new run; nothing is trained yet.

    Raises:
        BadFile: If its hub or an agent cannot be read.
        OutputExists: If the folder exists.
    """
    hub = hub_of(config)
    with new_folder(run) as making:
        if hub is not None:
            hub.save(making / "hub")
        resolved = config.model_copy(update={"hub": None if hub is None else Path("hub"), "agents": ()})
        # Defaults too: they may be others when the run is repeated.
        (making / "config.yaml").write_text(write_yaml(resolved.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
        (making / "command.txt").write_text(shlex.join(sys.argv) + "\n", encoding="utf-8")
        (making / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n", encoding="utf-8")


def train(run: Path, callbacks: Sequence[BaseCallback] = (), *, verbose: int = 0) -> dict[str, Any]:
    """Train a run, from its last checkpoint if it was interrupted.

    Args:
        run: The run's folder.
        callbacks: Callbacks beside the run's own.
        verbose: 1 for SB3's table.

    Returns:
        What `result.json` holds.

    Raises:
        OutputExists: If the run is finished.
        BadConfig: If the task or the algorithm cannot be made.
        BadFile: If the folder is no run.
    """
    if (run / "result.json").exists():
        raise OutputExists(f"{run} is finished; `hubrl train {run / 'config.yaml'}` repeats it, `hubrl evaluate {run}` plays it.")
    if not (run / "config.yaml").exists():
        raise BadFile(f"{run} is no run: it has no config.yaml.")
    config = read_config(run / "config.yaml")
    torch.set_num_threads(config.threads)
    set_random_seed(config.seed)
    saved = checkpoints_in(run / "checkpoints")
    # Monitor overwrites what is there: a resumed run goes on in a folder of its own.
    monitor = run / (f"monitor-from-{saved[-1].name}" if saved else "monitor")
    with closing(_training_env(config, monitor)) as env, closing(_evaluation_env(config)) as evaluation_env:
        model = build_model(config, env, hub_of(config), tensorboard=run, verbose=verbose)
        if saved:
            restore_checkpoint(model, saved[-1])
        before = Progress.of(known_beside(saved[-1]) if saved else {})
        began, started_at = time.perf_counter(), model.num_timesteps
        watcher = HubCallback(config.probe_share, config.warmup_share, verbose=1)

        def progress() -> Progress:
            return before.after(watcher.verdict, time.perf_counter() - began)

        checkpoint = CheckpointFolder(run / "checkpoints", config.checkpoint_every or _tenth(config), lambda: progress()._asdict())
        model.learn(
            config.steps - started_at,
            callback=[*callbacks, watcher, _evaluations(config, run, evaluation_env, started_at), checkpoint],
            reset_num_timesteps=not saved,
            tb_log_name="tensorboard",
        )
        return _finish(config, run, model, progress())


class Progress(NamedTuple):
    """What is known of a run beside its model."""

    wall_s: float
    """Seconds that it has trained, evaluations among them."""
    probe_steps: int
    probe_kept: dict[str, bool] | None

    @classmethod
    def of(cls, plain: dict[str, Any]) -> "Progress":
        """As a checkpoint has it, or as it is at the start."""
        return cls(plain.get("wall_s", 0.0), plain.get("probe_steps", 0), plain.get("probe_kept"))

    def after(self, verdict: Verdict | None, seconds: float) -> "Progress":
        """So many seconds later, perhaps with a probe that was held in them."""
        if verdict is None:
            return self._replace(wall_s=self.wall_s + seconds)
        return Progress(self.wall_s + seconds, verdict.steps, verdict.judged.kept)


def build_model(config: RunConfig, env: VecEnv, hub: Hub | None, *, tensorboard: Path | None = None, verbose: int = 0) -> BaseAlgorithm:
    """The algorithm of a config, over its hub if its method has one.

    Raises:
        BadConfig: If the algorithm's package is missing, or it refuses its arguments or the task.
    """
    algorithm = algorithm_class(config.algorithm)
    kwargs = dict(config.algorithm_kwargs)
    given = dict(kwargs.pop("policy_kwargs", None) or {})
    if isinstance(given.get("activation_fn"), str):
        given["activation_fn"] = activation(given["activation_fn"])
    kwargs |= {name: falling(name, kwargs[name]) for name in SCHEDULED if isinstance(kwargs.get(name), str)}
    if hub is None:
        made: dict[str, Any] = {"policy": plain_policy(algorithm, env), "policy_kwargs": {}}
        made |= precise(algorithm, config.precision, env.observation_space)
    else:
        options = {**_meanings(algorithm, config, env, hub), **config.options}
        own: dict[str, Any] = {"level": config.level, "tuned": config.tuned, "source_lr": config.source_lr, "cached": config.cached}
        own["precision"] = config.precision
        made = hub.agent(algorithm, config.method, **own, **options)
    log = None if tensorboard is None else str(tensorboard)
    optimizer = {**given.pop("optimizer_kwargs", {}), **made["policy_kwargs"].get("optimizer_kwargs", {})}
    if optimizer:
        given["optimizer_kwargs"] = made["policy_kwargs"]["optimizer_kwargs"] = optimizer
    common: dict[str, Any] = {"env": env, "seed": config.seed, "device": config.device, "tensorboard_log": log, "verbose": verbose}
    try:
        return algorithm(made["policy"], policy_kwargs={**given, **made["policy_kwargs"]}, **common, **kwargs)
    except TypeError as error:
        raise BadConfig(f"{algorithm.__name__} does not take algorithm_kwargs {kwargs} ({error}).") from error
    except (AssertionError, ValueError) as error:
        # SB3's own refusals, of an action space or of a number.
        raise BadConfig(f"{algorithm.__name__} cannot be built for {config.task}: {str(error).splitlines()[0]}") from error


def _meanings(algorithm: type[BaseAlgorithm], config: RunConfig, env: VecEnv, hub: Hub) -> dict[str, Any]:
    """What the target's actions mean, if it says so and the hub hears outputs of sources that do."""
    level = "features" if config.cached else config.level or hub.level(algorithm, config.method, tuned=config.tuned)
    if level == "features" or not any(source.card.action_meanings for source in hub):
        return {}
    game = env.get_attr("unwrapped")[0]
    return {"action_meanings": tuple(game.get_action_meanings())} if hasattr(game, "get_action_meanings") else {}


def algorithm_class(name: str) -> type[BaseAlgorithm]:
    """An algorithm by the name of its package.

    Raises:
        BadConfig: If it is sb3-contrib's, which is not installed.
    """
    if name in SB3_PACKAGES:
        found: type[BaseAlgorithm] = getattr(importlib.import_module("stable_baselines3"), SB3_PACKAGES[name])
        return found
    try:
        found = getattr(importlib.import_module("sb3_contrib"), CONTRIB_PACKAGES[name])
    except ImportError as error:
        raise BadConfig(f"Algorithm {name!r} is sb3-contrib's; install hubrl[contrib].") from error
    return found


def activation(name: str) -> type[torch.nn.Module]:
    """An activation by its name in torch or in a card."""
    lowered = {**ACTIVATIONS, **{kind.__name__.lower(): kind for kind in ACTIVATIONS.values()}}
    if name.lower() not in lowered:
        raise BadConfig(f"activation_fn={name!r} was given; expected one of {', '.join(ACTIVATIONS)}.")
    return lowered[name.lower()]


def falling(name: str, text: str) -> LinearSchedule:
    """A number that falls to zero over the training, written as in the RL Zoo: `lin_2.5e-4` begins at 2.5e-4.

    Raises:
        BadConfig: If it is not of that form, or the number is not above zero.
    """
    kind, _, number = text.partition("_")
    try:
        start = float(number)
    except ValueError:
        start = 0.0
    if kind != "lin" or not 0 < start < float("inf"):
        raise BadConfig(f"{name}={text!r} was given; expected a number, or one behind lin_ (lin_2.5e-4) that falls linearly to zero.")
    return LinearSchedule(start, 0.0, end_fraction=1.0)


def versions() -> dict[str, str | None]:
    """Versions of Python and the packages that matter, and the git commit of the working directory."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    found["commit"] = commit.stdout.strip() or None
    return found


def _finish(config: RunConfig, run: Path, model: BaseAlgorithm, progress: Progress) -> dict[str, Any]:
    """Save the agent, judge it, and write the result last."""
    write_atomically(run / "model.zip", model_bytes(model))
    vec = model.get_vec_normalize_env()
    if vec is not None:
        vec.save(str(run / "vecnormalize.pkl"))
    with closing(raw_env(config, cached=config.cached)) as env:
        played = play(Judge(model, vec), env, config.eval_episodes)
    result = {
        "task": config.task,
        "method": config.method,
        "algorithm": config.algorithm,
        "seed": config.seed,
        "steps": model.num_timesteps,
        "probe_steps": progress.probe_steps,
        "probe_kept": progress.probe_kept,
        "eval_mean": played.mean,
        "eval_std": played.std,
        "eval_episodes": config.eval_episodes,
        "train_returns_last_100": _recent(model),
        **_curve_summary(run, config.steps),
        "wall_s": round(progress.wall_s, 1),
        "steps_per_s": round(model.num_timesteps / progress.wall_s, 1),
    }
    write_atomically(run / "result.json", json.dumps(result, indent=2) + "\n")
    return result


class Judge:
    """A model that normalises raw observations itself, so that it can play in an environment without VecNormalize."""

    def __init__(self, model: BaseAlgorithm, vec: VecNormalize | None) -> None:
        self.model, self.vec = model, vec

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """SB3's `predict` on observations as the task has them."""
        seen = observation if self.vec is None else self.vec.normalize_obs(observation)
        return self.model.predict(seen, state, episode_start, deterministic)


def training_curve(run: Path) -> list[tuple[int, float]]:
    """Environment steps, summed over parallel environments, and return of every episode of a training, in order.

    Reads SB3's Monitor files; those of a resumed run go on where it was resumed. Under Atari they count frames, of which a step has
    four; the no-ops and the FIRE that begin a game are among them, so that its end may be placed some steps late.
    """
    skip = FRAME_SKIP if read_config(run / "config.yaml").preprocessing != "none" else 1
    curve = []
    begins = sorted((int(folder.name.rpartition("-")[2]) if "-" in folder.name else 0, folder) for folder in run.glob("monitor*"))
    for (begun, folder), after in zip(begins, [*(begun for begun, _ in begins[1:]), math.inf], strict=True):
        # What came after the checkpoint from which it went on happened once more.
        files = sorted(folder.glob("*.monitor.csv"))
        for file in files:
            frames = 0
            for row in csv.DictReader(file.read_text(encoding="utf-8").splitlines()[1:]):
                frames += int(row["l"]) * len(files)
                if begun + frames // skip <= after:
                    curve.append((begun + frames // skip, float(row["r"])))
    return sorted(curve)


def _curve_summary(run: Path, steps: int) -> dict[str, float | None]:
    """The area under the training curve, and its last tenth."""
    curve = training_curve(run)
    last = [value for step, value in curve if step > 0.9 * steps]
    return {
        "mean_train_return": float(np.mean([value for _, value in curve])) if curve else None,
        "final_return": float(np.mean(last)) if last else None,
    }


def _recent(model: BaseAlgorithm) -> float | None:
    buffer = model.ep_info_buffer
    return float(np.mean([episode["r"] for episode in buffer])) if buffer else None


def raw_env(config: RunConfig, *, episodes: int | None = None, seed: int | None = None, cached: bool = False) -> VecEnv:
    """The environments of a run's evaluations, without VecNormalize.

    Args:
        config: The run's.
        episodes: How many will be played; as many as the config says if not given.
        seed: Of the episodes; behind the run's own if not given.
        cached: Whether observations come with what the sources said of them, in a run with `cached: true`.
    """
    seed = config.seed + EVALUATION_SEED if seed is None else seed
    env = _plain_env(config, min(episodes or config.eval_episodes, PARALLEL), seed, monitor=None)
    return cached_env(config, env) if cached else env


def cached_env(config: RunConfig, env: VecEnv) -> CachedVecEnv:
    """Environments of a run's task, with what its sources say of the observations.

    Raises:
        BadFile: If its hub cannot be read.
        BadConfig: If an option's value cannot be.
        SpaceMismatch: If a source does not fit the task.
    """
    hub = hub_of(config)
    assert hub is not None
    try:
        made = hub.policy_kwargs(config.method, cached=True, precision=config.precision, **config.options)
        return CachedVecEnv(env, made, config.device)
    except HubrlError:
        env.close()
        raise


def _evaluation_env(config: RunConfig) -> VecEnv:
    env = raw_env(config, cached=config.cached)
    how = vecnormalize_kwargs(env.observation_space)
    return VecNormalize(env, training=False, norm_reward=False, **how) if config.normalize else env


def _evaluations(config: RunConfig, run: Path, env: VecEnv, started_at: int) -> EveryNTimesteps:
    """Evaluations at whole multiples of their distance, whatever steps a probe took or a run went on from."""
    every = config.eval_every or _tenth(config)
    deterministic = not draws(env)
    kind = EvalCallback if deterministic else DrawnEvaluations
    evaluations = kind(env, n_eval_episodes=config.eval_episodes, eval_freq=1, log_path=str(run), deterministic=deterministic, verbose=0)
    _remember(evaluations, run / "evaluations.npz", started_at)
    when = EveryNTimesteps(every, evaluations)
    when.last_time_trigger = started_at // every * every
    return when


class DrawnEvaluations(EvalCallback):
    """Evaluations whose random numbers are not the training's."""

    def _on_step(self) -> bool:
        with own_randomness(self.model.action_space, self.num_timesteps):
            return super()._on_step()


def _remember(evaluations: EvalCallback, path: Path, started_at: int) -> None:
    """Let the evaluations of a resumed run go on behind those that it made before."""
    if path.exists():
        before = np.load(path, allow_pickle=False)
        made = before["timesteps"] <= started_at
        evaluations.evaluations_timesteps = before["timesteps"][made].tolist()
        evaluations.evaluations_results = before["results"][made].tolist()
        evaluations.evaluations_length = before["ep_lengths"][made].tolist()


def _training_env(config: RunConfig, monitor: Path) -> VecEnv:
    env = _plain_env(config, config.n_envs, config.seed, monitor)
    env = cached_env(config, env) if config.cached else env
    return normalised(env, config.algorithm_kwargs.get("gamma", 0.99)) if config.normalize else env


def _plain_env(config: RunConfig, n_envs: int, seed: int, monitor: Path | None) -> VecEnv:
    return make_env(config.task, config.task_kwargs, n_envs=n_envs, seed=seed, preprocessing=config.preprocessing, monitor=monitor)


def plain_policy(algorithm: type[BaseAlgorithm], env: VecEnv) -> str:
    """SB3's own policy for the task, without a hub."""
    image = env.observation_space.shape is not None and len(env.observation_space.shape) == 3
    return policy_name(algorithm, env.observation_space).replace("Mlp", "Cnn" if image else "Mlp")


def hub_of(config: RunConfig) -> Hub | None:
    """The hub that a run learns from, if its method has one.

    Raises:
        BadFile: If it cannot be read.
    """
    if not config.needs_hub:
        return None
    if config.hub is not None:
        return Hub.load(config.hub)
    return Hub.from_agents([split_agent(text) for text in config.agents])


def split_agent(text: str) -> str | tuple[str, str]:
    """An agent from the command line or a config: a path, or `path,companion`."""
    path, comma, companion = text.partition(",")
    return (path, companion) if comma else path


def _numbered(folder: Path, stem: str) -> Path:
    taken = [int(path.name.rsplit("_", 1)[1]) for path in folder.glob(f"{stem}_*") if path.name.rsplit("_", 1)[1].isdigit()]
    return folder / f"{stem}_{max(taken, default=0) + 1}"


def _tenth(config: RunConfig) -> int:
    return max(config.steps // 10, 1)
