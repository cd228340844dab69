"""Checkpoints (weights, counters, statistics, replay), restored without unpickling."""

import io
import json
import shutil
import zipfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.vec_env import VecNormalize

from hubrl.errors import BadFile
from hubrl.formats.files import new_folder

PROGRESS, EPISODES = "run.json", "episodes.json"

DAMAGED = (
    "The checkpoint {} is damaged or belongs to another model ({}); remove it to go on from the "
    "one before."
)

BROKEN = (
    OSError,
    EOFError,
    AttributeError,
    TypeError,
    ValueError,
    LookupError,
    RuntimeError,
    zipfile.BadZipFile,
)
"""Exceptions of reading a damaged file."""

COUNTERS = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_current_progress_remaining",
    "_n_updates",
    "_episode_num",
    "exploration_rate",
    "_n_calls",
)

REPLAY_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class LegEnded(Exception):
    """A checkpoint was written; what goes on from it begins new episodes."""


class CheckpointFolder(BaseCallback):
    """Regular checkpoints, each complete or absent; the last two are kept. Each ends its `learn`.

    Args:
        folder: Folder of the checkpoints; each is a folder named by its steps.
        every: Environment steps between two, over all parallel environments.
        episodes: Least whole episodes of an environment, on average, between two. In tasks without
            a time limit they are not waited for where none ended in `every` steps.
        progress: Called at every checkpoint for the run's state beside the model, as plain data.

    Raises:
        LegEnded: Out of `learn`, after every checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        episodes: int = 0,
        progress: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        super().__init__()
        self.folder, self.every, self.episodes, self.progress = folder, every, episodes, progress
        self._saved_at, self._ended = 0, 0

    def _on_training_start(self) -> None:
        self._saved_at, self._ended = self.model.num_timesteps, 0
        if not self.episodes:
            return
        try:
            specs = self.training_env.get_attr("spec")
            self._limited = any(spec is not None and spec.max_episode_steps for spec in specs)
        except AttributeError:  # games in C++, which end
            self._limited = True

    def _on_rollout_start(self) -> None:
        """Save between update and rollout, when the counters and the weights belong together."""
        if not self._is_due():
            return
        truncate_episodes(self.model)
        save_checkpoint(self.model, self.folder / str(self.model.num_timesteps), self.progress())
        keep_latest(self.folder)
        raise LegEnded

    def _is_due(self) -> bool:
        if self.model.num_timesteps - self._saved_at < self.every:
            return False
        endless = self.episodes and not self._limited and not self._ended
        return bool(endless) or self._ended >= self.episodes * self.training_env.num_envs

    def _on_step(self) -> bool:
        self._ended += sum("episode" in info for info in self.locals["infos"])
        return True


def truncate_episodes(model: BaseAlgorithm) -> None:
    """End the episodes in a replay buffer here as by a time limit, so that values go on.

    PPO and A2C bootstrap at the end of every rollout.
    """
    buffer = getattr(model, "replay_buffer", None)
    if buffer is None or not (buffer.full or buffer.pos):
        return
    going_on = buffer.dones[buffer.pos - 1] == 0
    buffer.dones[buffer.pos - 1][going_on] = 1
    if buffer.handle_timeout_termination:
        buffer.timeouts[buffer.pos - 1][going_on] = 1


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = folder.glob("*") if folder.is_dir() else []
    numbered = [path for path in found if path.name.isdecimal() and path.is_dir()]
    return sorted(numbered, key=lambda path: int(path.name))


def keep_latest(folder: Path, count: int = 2) -> list[Path]:
    """Remove all checkpoints of a folder but the latest, which are returned, oldest first."""
    found = checkpoints_in(folder)
    for old in found[:-count]:
        shutil.rmtree(old)
    return found[-count:]


def save_checkpoint(
    model: BaseAlgorithm, folder: Path, progress: dict[str, Any] | None = None
) -> None:
    """Write a model, its VecNormalize, its replay buffer and the run's progress as one folder."""
    with new_folder(folder, overwrite=True, what="A checkpoint") as unfinished:
        (unfinished / PROGRESS).write_text(json.dumps(progress or {}), encoding="utf-8")
        (unfinished / EPISODES).write_text(json.dumps(_latest_episodes(model)), encoding="utf-8")
        model.save(unfinished / "model.zip")
        vec = model.get_vec_normalize_env()
        if vec is not None:
            _save_arrays(unfinished / "vecnormalize.npz", _vec_arrays(vec))
        if isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None:
            _save_arrays(unfinished / "replay.npz", _replay_arrays(model.replay_buffer))


def read_progress(folder: Path) -> dict[str, Any]:
    """The run's progress at a checkpoint.

    Raises:
        BadFile: If it is damaged.
    """
    try:
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadFile(DAMAGED.format(folder, error)) from error
    if not isinstance(progress, dict):
        raise BadFile(DAMAGED.format(folder, f"{PROGRESS} is no mapping"))
    return progress


def restore_checkpoint(model: BaseAlgorithm, folder: Path, replay_buffer: Any = None) -> None:
    """Bring a newly built model to the state of a checkpoint; nothing in it is unpickled.

    Args:
        model: The model.
        folder: The checkpoint.
        replay_buffer: The replay buffer that was saved in it, where it is still at hand.

    Raises:
        BadFile: If the checkpoint is damaged or belongs to another model.
    """
    try:
        _restore_model(model, folder / "model.zip")
        _restore_episodes(model, json.loads((folder / EPISODES).read_text(encoding="utf-8")))
        vec = model.get_vec_normalize_env()
        if vec is not None:
            _restore_vec(vec, _read_arrays(folder / "vecnormalize.npz"))
        if not isinstance(model, OffPolicyAlgorithm):
            return
        if replay_buffer is not None:
            model.replay_buffer = replay_buffer
        elif (folder / "replay.npz").exists():
            _restore_replay(model.replay_buffer, _read_arrays(folder / "replay.npz"))
    except BROKEN as error:
        raise BadFile(DAMAGED.format(folder, error)) from error


def _restore_model(model: BaseAlgorithm, path: Path) -> None:
    _, parameters, variables = load_from_zip_file(path, device=model.device, load_data=False)
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
    model.set_parameters(parameters, exact_match=True, device=model.device)
    for name, value in (variables or {}).items():
        _set_variable(model, name, value)
    for counter in COUNTERS:
        if counter in data and hasattr(model, counter):
            setattr(model, counter, data[counter])


def _latest_episodes(model: BaseAlgorithm) -> dict[str, Any]:
    """The episodes of which SB3 logs the mean."""
    return {
        "infos": [
            {key: float(info[key]) for key in ("r", "l", "t")}
            for info in model.ep_info_buffer or ()
        ],
        "successes": [float(success) for success in model.ep_success_buffer or ()],
    }


def _restore_episodes(model: BaseAlgorithm, episodes: dict[str, Any]) -> None:
    latest = model._stats_window_size
    model.ep_info_buffer = deque(episodes["infos"], maxlen=latest)
    model.ep_success_buffer = deque(episodes["successes"], maxlen=latest)


def _set_variable(model: Any, name: str, value: Any) -> None:
    """Write a saved variable, which SB3 names by a path of attributes, into the existing tensor."""
    *path, last = name.split(".")
    for part in path:
        model = getattr(model, part)
    getattr(model, last).data.copy_(value.data)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, allow_pickle=False, **arrays)


def _statistics(vec: VecNormalize) -> dict[str, RunningMeanStd]:
    """VecNormalize's statistics of returns and, if it normalizes them, of observations."""
    means: dict[str, RunningMeanStd] = {}
    if vec.norm_obs:
        means = vec.obs_rms if isinstance(vec.obs_rms, dict) else {"": vec.obs_rms}
    return {**{f"obs/{key}": rms for key, rms in means.items()}, "returns": vec.ret_rms}


def _vec_arrays(vec: VecNormalize) -> dict[str, np.ndarray]:
    arrays = {}
    for key, rms in _statistics(vec).items():
        for part in ("mean", "var", "count"):
            arrays[f"{key}|{part}"] = np.asarray(getattr(rms, part))
    return arrays


def _restore_vec(vec: VecNormalize, arrays: dict[str, np.ndarray]) -> None:
    for key, rms in _statistics(vec).items():
        assert isinstance(rms, RunningMeanStd)
        rms.mean, rms.var = arrays[f"{key}|mean"], arrays[f"{key}|var"]
        rms.count = float(arrays[f"{key}|count"])


def _replay_arrays(buffer: Any) -> dict[str, np.ndarray]:
    """The filled part of a replay buffer, array by array."""
    arrays = {"pos": np.array(buffer.pos), "full": np.array(buffer.full)}
    filled = buffer.buffer_size if buffer.full else buffer.pos
    for name in REPLAY_ARRAYS:
        value = getattr(buffer, name, None)
        parts = value if isinstance(value, dict) else {"": value}
        arrays |= {
            f"{name}/{key}": part[:filled] for key, part in parts.items() if part is not None
        }
    return arrays


def _restore_replay(buffer: Any, arrays: dict[str, np.ndarray]) -> None:
    buffer.pos, buffer.full = int(arrays.pop("pos")), bool(arrays.pop("full"))
    for name, array in arrays.items():
        attribute, _, key = name.partition("/")
        value = getattr(buffer, attribute)
        (value[key] if key else value)[: len(array)] = array


def model_bytes(model: BaseAlgorithm) -> bytes:
    """A model's zip, in memory."""
    saved = io.BytesIO()
    model.save(saved)
    return saved.getvalue()
