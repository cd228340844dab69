"""Episodes of an agent, or of every source of a hub, on a task."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
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
from hubrl.formats.spaces import describe, differing_bounds, fits
from hubrl.hub import Hub
from hubrl.sources.source import Source
from hubrl.tasks.make_env import make_env

TOLERANCE = 3.0
"""Standard errors of the difference up to which a replayed return agrees with its card."""

MAX_ENVS = 20
"""Most parallel environments of an evaluation; each plays its share of the episodes."""


def samples_actions(env: VecEnv) -> bool:
    """Whether agents are evaluated with sampled actions: in Atari games, as in the RL Zoo.

    Deterministic agents often stand still for ever there.
    """
    return any(env.env_is_wrapped(AtariWrapper))


@contextmanager
def isolated_rng(actions: spaces.Space[Any], seed: int) -> Iterator[None]:
    """Seeded random numbers; torch, numpy and an action space continue afterwards as before.

    DQN draws from its action space.
    """
    numpy_state, space_state = np.random.get_state(), actions.np_random.bit_generator.state
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        np.random.seed(seed)
        actions.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            actions.np_random.bit_generator.state = space_state


class Played(NamedTuple):
    """Returns and lengths of an agent's episodes."""

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
    """Whole episodes of an agent, as Monitor records them.

    Args:
        agent: A source or a model.
        env: The task; observations as the agent's `predict` takes them.
        episodes: Number of episodes.
        name: Name of the agent in the result.
        deterministic: Whether the likeliest action is taken; otherwise actions are drawn, the same
            ones every time. If not given they are drawn in Atari games alone.
        on_step: Called with the number of finished episodes after every step.

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
        deterministic = not samples_actions(env)
    actions = getattr(agent, "action_space", env.action_space)
    with nullcontext() if deterministic else isolated_rng(actions, 0):
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
    """Refuse a source that does not fit a task.

    Raises:
        SpaceMismatch: With both spaces.
    """
    if source.actions is None:
        raise SpaceMismatch(
            f"Source {source.name!r} is an encoder alone and has no actions; it cannot play."
        )
    observed = _channel_first(env)
    if not source.accepts(observed):
        raise SpaceMismatch(
            f"The task observes {describe(observed)}, source {source.name!r} observes "
            f"{describe(source.space)}."
        )
    if not fits(source.actions, env.action_space):
        raise SpaceMismatch(
            f"The task acts in {describe(env.action_space)}, source {source.name!r} in "
            f"{describe(source.actions)}."
        )
    bounds = differing_bounds(env.action_space, source.actions)
    if bounds is not None:
        raise SpaceMismatch(
            f"The task's actions go from {bounds[0]}, those of source {source.name!r} from "
            f"{bounds[1]}; put the task under gymnasium.wrappers.RescaleAction."
        )


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
    """Episodes of each source untouched on a task; all play the same episodes.

    Yields:
        The episodes of each source in order, or the mismatch that prevents them.
    """
    for source in hub:
        try:
            yield _play_source(source, task, kwargs, episodes, seed, preprocessing, on_step)
        except SpaceMismatch as mismatch:
            yield mismatch


def _play_source(
    source: Source,
    task: str,
    kwargs: dict[str, Any] | None,
    episodes: int,
    seed: int,
    preprocessing: Preprocessing,
    on_step: Callable[[str, int], None],
) -> Played:
    n_envs = min(episodes, MAX_ENVS)
    with closing(
        make_env(task, kwargs, n_envs=n_envs, seed=seed, preprocessing=preprocessing)
    ) as env:
        return play(source, env, episodes, name=source.name, on_step=partial(on_step, source.name))


class Check(NamedTuple):
    """A source replayed on its own task, compared with its card."""

    name: str
    played: Played | None
    agrees: bool | None
    """None if the source could not be replayed."""
    sentence: str


def check_hub(
    hub: Hub,
    *,
    episodes: int | None = None,
    seed: int = 0,
    on_step: Callable[[str, int], None] = lambda name, done: None,
) -> Iterator[Check]:
    """Replay each source on the task of its card, and compare the returns.

    They agree if the means differ by at most three standard errors of the difference, or by 1 % of
    the card's mean.

    Args:
        hub: The hub.
        episodes: Episodes of each; the card's own number by default.
        seed: Seed of the episodes.
        on_step: Called with the source's name and the number of its finished episodes after every
            step.
    """
    for source in hub:
        card = source.card
        if card.task is None or card.return_mean is None:
            yield Check(source.name, None, None, "its card has no task or no return")
            continue
        count = episodes or card.episodes or 10
        preprocessing = card.task_preprocessing or (
            "atari" if len(source.space.shape or ()) == 3 else "none"
        )
        try:
            played = _play_source(
                source, card.task, card.task_kwargs, count, seed, preprocessing, on_step
            )
        except (BadConfig, SpaceMismatch) as error:
            yield Check(source.name, None, None, str(error))
            continue
        std = card.return_std or 0.0
        standard_error = float(
            np.hypot(played.std / np.sqrt(count), std / np.sqrt(card.episodes or 1))
        )
        allowed = max(TOLERANCE * standard_error, 0.01 * abs(card.return_mean))
        agrees = abs(played.mean - card.return_mean) <= allowed
        yield Check(source.name, played, agrees, f"its card has {card.return_mean:.1f} ± {std:.1f}")


def _channel_first(env: VecEnv) -> Any:
    """The observation space of a network: images channel first."""
    space = env.observation_space
    if is_image_space(space) and not is_image_space_channels_first(space):  # type: ignore[arg-type]
        return VecTransposeImage.transpose_space(space)  # type: ignore[arg-type]
    return space
