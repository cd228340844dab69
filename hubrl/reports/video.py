"""Episodes of a finished run to look at: in a window, or as a video or GIF."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch.utils.tensorboard import SummaryWriter

from hubrl.errors import BadConfig
from hubrl.experiments.evaluation import isolated_rng, samples_actions
from hubrl.experiments.finished_run import FinishedRun
from hubrl.experiments.seeds import EVALUATION_SEED
from hubrl.hub.inspect import pathway_weights
from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.reports.pictures import Moment, Picture, annotate
from hubrl.tasks.atari_game import FRAME_SKIP

TENSORBOARD = "tensorboard-enjoy"
"""Folder of the pictures for TensorBoard, beside the run's own."""

PICTURES = 5
"""Pictures of an episode that TensorBoard gets."""


class Screen(Protocol):
    """What pictures are shown on or written to."""

    def show(self, picture: Picture) -> bool:
        """Show a picture; false if the viewer has closed the screen."""

    def close(self) -> None:
        """Finish."""


class EnjoyedRun(FinishedRun):
    """A finished run whose environments draw pictures.

    Raises:
        BadConfig: If the task draws none here.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        if sys.platform == "linux" and not os.environ.get("DISPLAY"):
            os.environ.setdefault("MUJOCO_GL", "egl")  # read when MuJoCo is first imported
        drawn: dict[str, Any] = {
            "task_kwargs": {**self.config.task_kwargs, "render_mode": "rgb_array"}
        }
        if self.config.preprocessing == "atari":
            drawn["preprocessing"] = "atari-sb3"  # C++ draws nothing
        self.config = self.config.model_copy(update=drawn)

    def follow_robot(self, env: VecEnv) -> None:
        """Let MuJoCo's picture follow the robot; Gymnasium's own camera stands still since 1.4."""
        task = env.get_attr("unwrapped")[0]
        renderer = getattr(task, "mujoco_renderer", None)
        if renderer is None or {"camera_id", "camera_name"} & set(self.config.task_kwargs):
            return
        import mujoco

        camera = mujoco.mj_name2id(task.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
        if camera >= 0:
            renderer.camera_id = camera

    def frames_per_second(self, env: VecEnv) -> float:
        """Steps of the task in a second of its own time."""
        fps = env.get_attr("metadata")[0].get("render_fps") or 30
        return float(fps) / (FRAME_SKIP if samples_actions(env) else 1)

    def moments(self, env: VecEnv, steps: int, seed: int) -> Iterator[Moment]:
        """The steps of one episode of the agent.

        Args:
            env: One environment, as `env` makes it.
            steps: Most steps.
            seed: Seed of the episode, and of the actions where they are drawn.
        """
        model = self.model(env)
        self.follow_robot(env)
        env.seed(seed)
        with isolated_rng(model.action_space, seed):
            yield from _episode(model, env, steps)


def _episode(model: BaseAlgorithm, env: VecEnv, steps: int) -> Iterator[Moment]:
    drawn = samples_actions(env)
    observation: Any = env.reset()
    state, start, earned = None, np.ones(1, dtype=bool), 0.0
    for step in range(steps):
        picture = _picture(env)
        weights = _weights(model, observation)
        actions, state = model.predict(observation, state, start, deterministic=not drawn)
        note = "" if drawn else f"return {earned:.1f}"  # rewards of games are signs
        yield Moment(picture, weights, acting_pathway(model, state, weights), step, note)
        observation, rewards, start, infos = env.step(actions)
        earned += float(rewards[0])
        if "episode" in infos[0]:
            return


def _picture(env: VecEnv) -> Picture:
    try:
        picture = env.get_images()[0]
    except Exception as error:  # drivers fail in ways of their own
        raise BadConfig(
            f"The task's picture cannot be drawn here ({type(error).__name__}: {error}); without a "
            "display MuJoCo needs MUJOCO_GL=egl or MUJOCO_GL=osmesa, and that library."
        ) from error
    if picture is None:
        raise BadConfig("The task draws no picture: it has no render_mode 'rgb_array'.")
    return np.ascontiguousarray(picture)


def _weights(model: BaseAlgorithm, observation: Any) -> dict[str, float]:
    try:
        weights = pathway_weights(model, observation)
    except BadConfig:
        return {}  # no hub, or a method without weights
    return {name: float(np.asarray(weight).reshape(-1)[0]) for name, weight in weights.items()}


def acting_pathway(
    model: BaseAlgorithm, state: tuple[np.ndarray, ...] | None, weights: dict[str, float]
) -> str | None:
    """Name of the pathway that chose the last action; None where several do together.

    Args:
        model: The model.
        state: State that its `predict` returned.
        weights: Pathway weights of the step.
    """
    policy = model.policy
    if isinstance(policy, HubDQNPolicy):
        return policy.pathways.names[policy.selection.evaluation_arm]
    if isinstance(policy, HubActorCriticPolicy):
        if policy.fresh_alone:
            return policy.method.pathways.names[-1]
        if policy.commits and state is not None:
            return policy.method.pathways.names[int(state[0][0])]
    certain = [name for name, weight in weights.items() if weight > 0.999]
    return certain[0] if certain else None


class Video:
    """A video (`.mp4`) of pictures that may have any size, the same for all.

    Raises:
        BadConfig: If no encoder is installed.
    """

    def __init__(self, path: Path, fps: float) -> None:
        try:
            import imageio_ffmpeg
        except ImportError as error:
            raise BadConfig(
                f"{path} needs a package that is not installed ({error}); install hubrl[video], or "
                "write a .gif."
            ) from error
        self.path, self.fps, self._encoder = path, fps, imageio_ffmpeg
        self._writer: Any = None

    def show(self, picture: Picture) -> bool:
        """Add a picture."""
        if self._writer is None:
            size = picture.shape[1], picture.shape[0]
            self._writer = self._encoder.write_frames(
                str(self.path), size, fps=self.fps, macro_block_size=2
            )
            self._writer.send(None)
        self._writer.send(np.ascontiguousarray(picture))
        return True

    def close(self) -> None:
        """Write the file."""
        if self._writer is not None:
            self._writer.close()


class Gif:
    """An animated GIF of at most `LARGEST` pictures."""

    LARGEST = 400

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self.fps = path, fps
        self._pictures: list[Image.Image] = []

    def show(self, picture: Picture) -> bool:
        """Add a picture; false once there are as many as fit."""
        self._pictures.append(Image.fromarray(picture).quantize(128))
        return len(self._pictures) < self.LARGEST

    def close(self) -> None:
        """Write the file."""
        first, *rest = self._pictures
        first.save(self.path, save_all=True, append_images=rest, duration=1000 / self.fps, loop=0)


class Window:
    """A window of pygame.

    Raises:
        BadConfig: If there is no pygame, or no display.
    """

    def __init__(self, title: str, fps: float) -> None:
        remedy = "write a file with --video FILE"
        try:
            import pygame
        except ImportError as error:
            raise BadConfig(f"A window needs pygame ({error}); install it, or {remedy}.") from error
        self._pygame, self.fps = pygame, fps
        try:
            pygame.display.init()
            pygame.display.set_caption(title)
        except pygame.error as error:
            raise BadConfig(f"There is no display for a window ({error}); {remedy}.") from error
        self._surface: Any = None
        self._clock = pygame.time.Clock()

    def show(self, picture: Picture) -> bool:
        """Show a picture at its time; false once the window was closed."""
        if self._surface is None:
            self._surface = self._pygame.display.set_mode((picture.shape[1], picture.shape[0]))
        self._pygame.surfarray.blit_array(self._surface, picture.swapaxes(0, 1))
        self._pygame.display.flip()
        self._clock.tick(self.fps)
        return not any(event.type == self._pygame.QUIT for event in self._pygame.event.get())

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()


def open_screen(video: Path | None, title: str, fps: float) -> Screen:
    """A window, or a file by its ending.

    Raises:
        BadConfig: If the ending is no video's, or what it needs is not there.
    """
    if video is None:
        return Window(title, fps)
    kinds: dict[str, type[Video | Gif]] = {".mp4": Video, ".gif": Gif}
    if video.suffix not in kinds:
        raise BadConfig(f"--video {video} was given; expected a name that ends in .mp4 or .gif.")
    video.parent.mkdir(parents=True, exist_ok=True)
    return kinds[video.suffix](video, fps)


def enjoy(
    folder: Path, video: Path | None = None, *, steps: int = 1000, seed: int = EVALUATION_SEED
) -> dict[str, float]:
    """Show one episode of a finished run's agent; TensorBoard gets some of its pictures.

    Args:
        folder: The run's folder.
        video: File to write; a window by default.
        steps: Most steps.
        seed: Seed of the episode.

    Returns:
        Share of the steps in which each pathway acted; empty where no single one does.

    Raises:
        BadFile: If the run is not finished.
        BadConfig: If the task draws no picture here, or the screen cannot be opened.
    """
    run = EnjoyedRun(folder)
    acted: list[str | None] = []
    kept: list[Picture] = []
    with closing(run.env(episodes=1, seed=seed)) as env:
        screen = open_screen(video, folder.name, run.frames_per_second(env))
        with closing(screen):
            for moment in run.moments(env, steps, seed):
                picture = annotate(moment, run.config.method)
                acted.append(moment.acting)
                kept.append(picture)
                if not screen.show(picture):
                    break
    _to_tensorboard(folder, kept)
    named = [name for name in acted if name is not None]
    return {name: named.count(name) / len(acted) for name in dict.fromkeys(named)}


def _to_tensorboard(folder: Path, pictures: Sequence[Picture]) -> None:
    chosen = np.unique(np.linspace(0, len(pictures) - 1, PICTURES).astype(int))
    with closing(SummaryWriter(str(folder / TENSORBOARD))) as writer:
        for step in chosen:
            writer.add_image("enjoy/picture", pictures[step], int(step), dataformats="HWC")
