"""The rows of a study's methods without training: sources as they are, oracle, random, human."""

from contextlib import closing
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from hubrl.experiments.evaluation import Played, check_playable, play
from hubrl.experiments.run_envs import evaluation_env
from hubrl.experiments.study_config import HUMAN, ORACLE, RANDOM, ZERO_SHOT, OracleRule
from hubrl.experiments.study_plan import Job, hub_folder
from hubrl.experiments.study_tables import Row, run_row
from hubrl.hub import Hub
from hubrl.tasks.human_scores import human_score


def untrained_rows(job: Job) -> list[Row]:
    """The rows of a method without training.

    Raises:
        BadConfig: If no human score is known of the task.
    """
    rows = {
        ZERO_SHOT: _zero_shot_rows,
        ORACLE: _oracle_rows,
        RANDOM: _random_rows,
        HUMAN: _human_rows,
    }
    return rows[job.method](job)


def untrained_row(job: Job, played: Played, method: str) -> Row:
    """The row of some episodes that were played without training."""
    return run_row(job, method=method, steps=0, eval_return=played.mean, eval_std=played.std)


def _zero_shot_rows(job: Job) -> list[Row]:
    """Episodes of every source untouched; the first row repeats the best."""
    rows = []
    for source in Hub.load(hub_folder(job.root, job.hub)):
        with closing(evaluation_env(job.config)) as env:
            played = play(source, env, job.config.eval_episodes)
        rows.append(untrained_row(job, played, f"{ZERO_SHOT}:{source.name}"))
    best = max(rows, key=lambda row: float(row["eval_return"]))
    return [{**best, "method": ZERO_SHOT}, *rows]


def _oracle_rows(job: Job) -> list[Row]:
    assert job.oracle is not None
    with closing(evaluation_env(job.config)) as env:
        oracle = Oracle(Hub.load(hub_folder(job.root, job.hub)), job.oracle, env)
        return [untrained_row(job, play(oracle, env, job.config.eval_episodes), job.label)]


def _random_rows(job: Job) -> list[Row]:
    with closing(evaluation_env(job.config)) as env:
        played = play(RandomAgent(env), env, job.config.eval_episodes, deterministic=False)
    return [untrained_row(job, played, job.label)]


def _human_rows(job: Job) -> list[Row]:
    score = human_score(job.config.task, job.config.task_kwargs)
    return [run_row(job, steps=0, eval_return=score)]


class RandomAgent:
    """An agent whose actions are drawn uniformly from the action space.

    Args:
        env: The environments.
    """

    def __init__(self, env: VecEnv) -> None:
        self.action_space, self.n_envs = env.action_space, env.num_envs

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, None]:
        """SB3's `predict` on a batch of observations, which are not read."""
        return np.stack([self.action_space.sample() for _ in range(self.n_envs)]), None


class Oracle:
    """An agent whose actions are those of the source that the task itself marks as the best.

    Args:
        hub: The sources.
        rule: The source for each value of an attribute of the environments.
        env: The environments.
    """

    def __init__(self, hub: Hub, rule: OracleRule, env: VecEnv) -> None:
        self.hub, self.rule, self.env = hub, rule, env
        for name in rule.sources.values():
            check_playable(hub[name], env)

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray, None]:
        """SB3's `predict` on a batch of observations."""
        names = [self.rule.sources[int(value)] for value in self.env.get_attr(self.rule.attribute)]
        sources = [self.hub[name] for name in set(self.rule.sources.values())]
        actions = {
            source.name: source.predict(observation, deterministic=deterministic)[0]
            for source in sources
        }
        return np.stack([actions[name][row] for row, name in enumerate(names)]), None
