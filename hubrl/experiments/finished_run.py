"""A finished run's agent: as a source, in episodes, exported, distilled; without unpickling."""

import json
import pickle
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
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
from hubrl.experiments.build_model import build_model, sb3_policy
from hubrl.experiments.checkpoints import model_bytes
from hubrl.experiments.evaluation import Played, play
from hubrl.experiments.run_envs import evaluation_env
from hubrl.experiments.run_folder import STATISTICS, Run
from hubrl.experiments.seeds import EVALUATION_SEED
from hubrl.export import Exported, ExportedGraph, export, export_graph
from hubrl.export.distill import distill
from hubrl.export.graph import GraphFormat
from hubrl.formats.cached_space import vecnormalize_kwargs
from hubrl.formats.files import check_writable, is_taken, write_together
from hubrl.nn.devices import present_device
from hubrl.reading import read_agent
from hubrl.reading.vecnormalize import read_statistics
from hubrl.sources.source import Source


class FinishedRun(Run):
    """The folder of a finished run.

    Raises:
        BadFile: If the folder is no run, or the run is not finished.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if not (folder / "model.zip").exists():
            raise BadFile(f"{folder} has no model.zip; finish it with `hubrl train {folder}`.")
        # A run that was trained on a GPU plays on machines without one.
        device = present_device(self.config.device)
        self.config = self.config.model_copy(update={"device": device})

    def model(self, env: VecEnv) -> BaseAlgorithm:
        """The agent as SB3's algorithm, which also keeps committed pathways over steps.

        Args:
            env: Environments as `env` makes them.

        Raises:
            BadFile: If the agent cannot be read.
        """
        model = build_model(self.config, env, self.hub)
        path = self.folder / "model.zip"
        try:
            _, parameters, _ = load_from_zip_file(path, device=model.device, load_data=False)
            model.set_parameters(parameters, exact_match=True, device=model.device)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise BadFile(
                f"{path} is damaged or not of {self.folder / 'config.yaml'} ({error})."
            ) from error
        return model

    def env(
        self, *, episodes: int | None = None, seed: int | None = None, cached: bool = True
    ) -> VecEnv:
        """Environments of the run's task, under its VecNormalize (with fixed statistics), if any.

        Args:
            episodes: Number of episodes to come; the config's by default.
            seed: Seed of the episodes; that of the run's evaluations by default.
            cached: Whether features are cached with the observations, in a run with `cached: true`.

        Raises:
            BadFile: If the statistics cannot be read.
        """
        env = evaluation_env(
            self.config, self.hub if cached else None, episodes=episodes, seed=seed
        )
        path = self.folder / STATISTICS
        read = read_statistics(path) if path.exists() else None
        if read is None or read.statistics is None:
            return env
        kept = vecnormalize_kwargs(env.observation_space)
        vec = VecNormalize(
            env, training=False, norm_reward=False, clip_obs=read.clip, epsilon=read.epsilon, **kept
        )
        for key, (mean, var) in read.statistics.items():
            rms = vec.obs_rms[key] if isinstance(vec.obs_rms, dict) else vec.obs_rms
            rms.mean, rms.var = mean, var
        return vec


def run_agent(folder: Path) -> Source:
    """A finished run's agent as a source, with its statistics and a card of its training.

    Raises:
        BadFile: If the run is not finished, or its agent cannot be read.
    """
    config = FinishedRun(folder).config
    source = read_agent(folder / "model.zip")
    result_path = folder / "result.json"
    try:
        result = json.loads(result_path.read_text(encoding="utf-8"))
        trained = {
            "steps": result["steps"],
            "episodes": result["eval_episodes"],
            "return_mean": result["eval_mean"],
            "return_std": result["eval_std"],
        }
    except (OSError, ValueError, KeyError) as error:
        raise BadFile(
            f"{result_path} is missing or damaged; finish the run with `hubrl train {folder}`."
        ) from error
    task = {
        "task": config.task,
        "task_kwargs": config.task_kwargs,
        "task_preprocessing": config.preprocessing,
    }
    source.card = source.card.model_copy(update={**task, "seed": config.seed, **trained})
    return source


def evaluate_run(
    folder: Path,
    episodes: int,
    seed: int = EVALUATION_SEED,
    on_step: Callable[[int], None] = lambda done: None,
) -> Played:
    """Episodes of a finished run's agent on its own task.

    Actions are deterministic; in Atari games they are sampled.

    Raises:
        BadFile: If the run is not finished, or its agent cannot be read.
    """
    run = FinishedRun(folder)
    with closing(run.env(episodes=episodes, seed=seed)) as env:
        model = run.model(env)
        env.seed(seed)  # SB3 seeds the environments that an algorithm is built with
        return play(model, env, episodes, name=folder.name, on_step=on_step)


def export_run(folder: Path, out: Path, *, overwrite: bool = False) -> Exported:
    """Merge a finished run's agent into one ordinary SB3 agent, beside a copy of its VecNormalize.

    Raises:
        NotPlainError: If no single network of SB3's shapes computes the same.
        BadFile: If the run is not finished, or its agent cannot be read.
        OutputExists: If the file exists and may not be replaced.
        NotWritten: If the system refuses; files that were there stay as they are.
    """
    _check_free(out, overwrite=overwrite)
    run = FinishedRun(folder)
    exported = export(run_agent(folder))
    _write(run, out, exported.model)
    return exported


def export_agent_graph(
    agent: str, out: Path, kind: GraphFormat, *, batch: int = 1, overwrite: bool = False
) -> tuple[Source, ExportedGraph]:
    """Write an agent's deterministic action as a graph.

    Args:
        agent: A finished run's folder, or any location of an agent.
        out: The file to write.
        kind: Format of the graph.
        batch: Number of observations that the graph takes at once.
        overwrite: Whether an existing file is replaced.

    Raises:
        BadConfig: If a package is missing, or the agent has no such graph.
        BadFile: If the agent cannot be read.
        OutputExists: If the file exists and may not be replaced.
    """
    _check_absent(out, overwrite=overwrite)
    run = Path(agent)
    finished = (run / "config.yaml").exists() and (run / "model.zip").exists()
    source = run_agent(run) if finished else read_agent(agent)
    return source, export_graph(source, out, kind, batch=batch)


class Distilled(NamedTuple):
    """A distilled SB3 agent beside its teacher."""

    model: BaseAlgorithm
    before: Played
    """Episodes of the teacher."""
    after: Played
    """The same episodes, played by the student."""


def distill_run(
    folder: Path,
    out: Path,
    *,
    steps: int = 100_000,
    net_arch: Sequence[int] = (256, 256),
    episodes: int = 20,
    seed: int = 0,
    overwrite: bool = False,
    on_step: Callable[[int], None] = lambda done: None,
) -> Distilled:
    """Train one ordinary SB3 agent to imitate a finished run's agent, and play both.

    The student of a DQN is a DQN, that of an A2C an A2C; every other is a PPO.

    Args:
        folder: The run's folder.
        out: The student's zip.
        steps: Environment steps to learn from.
        net_arch: Widths of the student's hidden layers.
        episodes: Episodes that both play.
        seed: Seed of the student.
        overwrite: Whether an existing file is replaced.
        on_step: Called with the number of finished steps.

    Raises:
        BadFile: If the run is not finished, or its agent cannot be read.
        OutputExists: If the file exists and may not be replaced.
        NotWritten: If the system refuses; files that were there stay as they are.
        SpaceMismatch: If actions are neither Box nor Discrete.
    """
    _check_free(out, overwrite=overwrite)
    run = FinishedRun(folder)
    own, plain = (
        run.env(episodes=run.config.n_envs, seed=run.config.seed, cached=cached)
        for cached in (True, False)
    )
    with closing(own), closing(plain):
        set_random_seed(seed)
        teacher = run.model(own)
        student = _student(teacher, plain, net_arch, seed, run.config.device)
        student_env = student.get_env()  # images are transposed there
        assert student_env is not None
        distill(teacher, student, student_env, steps=steps, seed=seed, on_step=on_step)
    _write(run, out, student)
    with closing(run.env(episodes=episodes, seed=EVALUATION_SEED, cached=False)) as env:
        # The student learned the teacher's deterministic actions, in Atari games too.
        play_both = partial(play, env=env, episodes=episodes, deterministic=True)
        before, after = play_both(teacher, name=folder.name), play_both(student, name=out.stem)
    return Distilled(student, before, after)


def _student(
    teacher: BaseAlgorithm, env: VecEnv, net_arch: Sequence[int], seed: int, device: str
) -> BaseAlgorithm:
    kind = next((known for known in (DQN, A2C) if isinstance(teacher, known)), PPO)
    small: dict[str, Any] = {"buffer_size": 1} if kind is DQN else {}
    kwargs = {"net_arch": list(net_arch)}
    return kind(sb3_policy(kind, env), env, policy_kwargs=kwargs, seed=seed, device=device, **small)


def _write(run: FinishedRun, out: Path, model: BaseAlgorithm) -> None:
    """Write an agent's zip and the VecNormalize of its observations beside it.

    Statistics of an agent that was there before are removed: readers would take them for its own.
    """
    written = {out: model_bytes(model)}
    beside = _statistics_of(out)
    if run.config.cached and run.config.normalize:
        # The run's statistics are of observations beside features; the plain agent's are of
        # observations alone.
        with closing(run.env(episodes=1, cached=False)) as env:
            if isinstance(env, VecNormalize):
                written[beside] = pickle.dumps(env)
    elif (run.folder / STATISTICS).exists():
        written[beside] = (run.folder / STATISTICS).read_bytes()
    write_together(written, "The agent")
    if beside not in written:
        beside.unlink(missing_ok=True)


def _statistics_of(out: Path) -> Path:
    return out.with_name(f"{out.stem}.{STATISTICS}")


def _check_free(out: Path, *, overwrite: bool) -> None:
    if out.suffix != ".zip":
        raise OutputExists(f"{out} was given; expected the name of a zip, as plain.zip.")
    _check_absent(out, overwrite=overwrite)
    _check_absent(_statistics_of(out), overwrite=overwrite)


def _check_absent(out: Path, *, overwrite: bool) -> None:
    if is_taken(out) and not overwrite:
        raise OutputExists(
            f"{out} exists; choose another name or allow overwriting with --overwrite."
        )
    check_writable(out.parent, "The agent")
