"""Playing episodes: what an agent, or every source of a hub, is worth on a task."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.atari_wrappers import AtariWrapper
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.formats.cards import Preprocessing
from hubrl.formats.spaces import describe, fits
from hubrl.hub import Hub
from hubrl.sources.source import Source
from hubrl.tasks.make_env import make_env

TOLERANCE = 3.0
"""Standard errors of the difference within which a replayed return agrees with its card."""

PARALLEL = 20
"""Environments that play at once; each plays its share of the episodes."""


def draws(env: VecEnv) -> bool:
    """Whether agents are judged with their actions drawn: in Atari games, as in the RL Zoo.

    Whoever always does the likeliest there often stands still for ever.
    """
    return any(env.env_is_wrapped(AtariWrapper))


@contextmanager
def own_randomness(actions: spaces.Space[Any], seed: int) -> Iterator[None]:
    """Random numbers that follow from a seed and leave those of a training as they were; DQN draws some from its action space."""
    numbers, drawn = np.random.get_state(), actions.np_random.bit_generator.state
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed)
        actions.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numbers)
            actions.np_random.bit_generator.state = drawn


class Played(NamedTuple):
    """Returns of some episodes."""

    name: str
    returns: list[float]
    lengths: list[int]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the return over episodes; zero for one episode."""
        return float(np.std(self.returns, ddof=1)) if len(self.returns) > 1 else 0.0


def play(
    agent: Source | PolicyPredictor,
    env: VecEnv,
    episodes: int,
    *,
    name: str = "agent",
    deterministic: bool | None = None,
    on_step: Callable[[int], None] = lambda episodes_done: None,
) -> Played:
    """Play whole episodes and return what Monitor counted.

    Args:
        agent: A source or a model.
        env: The task; observations as the agent's `predict` takes them.
        episodes: How many.
        name: What to call the result.
        deterministic: Whether the likeliest action is taken; otherwise actions are drawn, the same ones every time. If not given they
            are drawn in Atari games alone.
        on_step: Told the number of finished episodes after every step.

    Raises:
        SpaceMismatch: If a source does not fit the task.
    """
    if isinstance(agent, Source):
        check_playable(agent, env)
    done = 0

    def count(scope: dict[str, Any], _: dict[str, Any]) -> None:
        nonlocal done
        done += int(scope["done"])
        on_step(done)

    if deterministic is None:
        deterministic = not draws(env)
    actions = getattr(agent, "action_space", env.action_space)
    with nullcontext() if deterministic else own_randomness(actions, 0):
        returns, lengths = evaluate_policy(
            agent,
            env,
            n_eval_episodes=episodes,
            deterministic=deterministic,
            callback=count,
            return_episode_rewards=True,
        )
    assert isinstance(returns, list)
    assert isinstance(lengths, list)
    return Played(name, [float(value) for value in returns], [int(value) for value in lengths])


def check_playable(source: Source, env: VecEnv) -> None:
    """Refuse to let a source play a task that it does not fit.

    Raises:
        SpaceMismatch: Saying both spaces.
    """
    if source.actions is None:
        raise SpaceMismatch(f"Source {source.name!r} is an encoder alone and has no actions; it cannot play.")
    observed = _channel_first(env)
    if not source.accepts(observed):
        raise SpaceMismatch(f"The task observes {describe(observed)}, source {source.name!r} observes {describe(source.space)}.")
    if not fits(source.actions, env.action_space):
        raise SpaceMismatch(f"The task acts in {describe(env.action_space)}, source {source.name!r} in {describe(source.actions)}.")


def try_hub(
    hub: Hub,
    task: str,
    kwargs: dict[str, Any] | None = None,
    *,
    episodes: int = 10,
    seed: int = 0,
    preprocessing: Preprocessing = "none",
    on_step: Callable[[str, int], None] = lambda name, done: None,
) -> Iterator[Played | SpaceMismatch]:
    """What each source is worth on a task, untouched; every source plays the same episodes.

    Yields:
        The episodes of each source in order, or why it cannot play.
    """
    for source in hub:
        env = make_env(task, kwargs, n_envs=min(episodes, PARALLEL), seed=seed, preprocessing=preprocessing)
        try:
            yield play(source, env, episodes, name=source.name, on_step=partial(on_step, source.name))
        except SpaceMismatch as mismatch:
            yield mismatch
        finally:
            env.close()


class Check(NamedTuple):
    """A source replayed on its own task, beside what its card says."""

    name: str
    played: Played | None
    agrees: bool | None
    """None if the card says too little to replay it."""
    sentence: str


def check_hub(
    hub: Hub, *, episodes: int | None = None, seed: int = 0, on_step: Callable[[str, int], None] = lambda name, done: None
) -> Iterator[Check]:
    """Replay each source on the task its card names, and compare the return with the card's.

    They agree if the means differ by at most three standard errors of the difference, or by 1 % of the card's mean.

    Args:
        hub: The hub.
        episodes: How many each; the card's own number if not given.
        seed: Seed of the episodes.
        on_step: Told the source's name and its finished episodes after every step.
    """
    for source in hub:
        card = source.card
        if card.task is None or card.return_mean is None:
            yield Check(source.name, None, None, "its card names no task or no return")
            continue
        count = episodes or card.episodes or 10
        try:
            preprocessing = card.task_preprocessing or ("atari" if len(source.space.shape or ()) == 3 else "none")
            env = make_env(card.task, card.task_kwargs, n_envs=min(count, PARALLEL), seed=seed, preprocessing=preprocessing)
            played = play(source, env, count, name=source.name, on_step=partial(on_step, source.name))
            env.close()
        except (BadConfig, SpaceMismatch) as error:
            yield Check(source.name, None, None, str(error))
            continue
        error_of_both = np.hypot(played.std / np.sqrt(count), (card.return_std or 0.0) / np.sqrt(card.episodes or 1))
        allowed = max(TOLERANCE * float(error_of_both), 0.01 * abs(card.return_mean))
        agrees = abs(played.mean - card.return_mean) <= allowed
        yield Check(source.name, played, agrees, f"its card says {card.return_mean:.1f} ± {card.return_std or 0:.1f}")


def _channel_first(env: VecEnv) -> Any:
    """The observation space as networks see it: images channel first."""
    space = env.observation_space
    if is_image_space(space) and not is_image_space_channels_first(space):  # type: ignore[arg-type]
        return VecTransposeImage.transpose_space(space)  # type: ignore[arg-type]
    return space
