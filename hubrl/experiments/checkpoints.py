"""Checkpoints (weights, counters, statistics, replay), restored without unpickling."""

import io
import json
import shutil
import zipfile
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

PROGRESS = "run.json"

COUNTERS = ("num_timesteps", "_n_updates", "_episode_num", "exploration_rate", "_n_calls")

REPLAY_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


class CheckpointFolder(BaseCallback):
    """Regular checkpoints, each complete or absent; the last two are kept.

    Args:
        folder: Folder of the checkpoints; each is a folder named by its steps.
        every: Environment steps between two, over all parallel environments.
        progress: Called at every checkpoint for the run's state beside the model, as plain data.
    """

    def __init__(
        self, folder: Path, every: int, progress: Callable[[], dict[str, Any]] = dict
    ) -> None:
        super().__init__()
        self.folder, self.every, self.progress = folder, every, progress
        self._saved_at = 0

    def _on_training_start(self) -> None:
        self._saved_at = self.model.num_timesteps

    def _on_rollout_start(self) -> None:
        """Save between update and rollout, when the counters and the weights belong together."""
        if self.model.num_timesteps - self._saved_at >= self.every:
            self._saved_at = self.model.num_timesteps
            save_checkpoint(
                self.model, self.folder / str(self.model.num_timesteps), self.progress()
            )
            for old in checkpoints_in(self.folder)[:-2]:
                shutil.rmtree(old)

    def _on_step(self) -> bool:
        return True


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    found = [path for path in folder.glob("*") if path.name.isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda path: int(path.name))


def save_checkpoint(
    model: BaseAlgorithm, folder: Path, progress: dict[str, Any] | None = None
) -> None:
    """Write a model, its VecNormalize, its replay buffer and the run's progress as one folder."""
    with new_folder(folder, overwrite=True) as unfinished:
        (unfinished / PROGRESS).write_text(json.dumps(progress or {}), encoding="utf-8")
        model.save(unfinished / "model.zip")
        vec = model.get_vec_normalize_env()
        if vec is not None:
            _save_arrays(unfinished / "vecnormalize.npz", _vec_arrays(vec))
        if isinstance(model, OffPolicyAlgorithm) and model.replay_buffer is not None:
            _save_arrays(unfinished / "replay.npz", _replay_arrays(model.replay_buffer))


def read_progress(folder: Path) -> dict[str, Any]:
    """The run's progress at a checkpoint."""
    progress: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    return progress


def restore_checkpoint(model: BaseAlgorithm, folder: Path) -> None:
    """Bring a newly built model to the state of a checkpoint; nothing in it is unpickled.

    Raises:
        BadFile: If the checkpoint is damaged or belongs to another model.
    """
    path = folder / "model.zip"
    try:
        _, parameters, variables = load_from_zip_file(path, device=model.device, load_data=False)
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        model.set_parameters(parameters, exact_match=True, device=model.device)
        for name, value in (variables or {}).items():
            _set_variable(model, name, value)
        for counter in COUNTERS:
            if counter in data and hasattr(model, counter):
                setattr(model, counter, data[counter])
        vec = model.get_vec_normalize_env()
        if vec is not None:
            _restore_vec(vec, dict(np.load(folder / "vecnormalize.npz", allow_pickle=False)))
        if isinstance(model, OffPolicyAlgorithm) and (folder / "replay.npz").exists():
            _restore_replay(
                model.replay_buffer, dict(np.load(folder / "replay.npz", allow_pickle=False))
            )
    except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile) as error:
        raise BadFile(
            f"The checkpoint {folder} is damaged or belongs to another model ({error})."
        ) from error


def _set_variable(model: Any, name: str, value: Any) -> None:
    """Write a saved variable, which SB3 names by a path of attributes, into the existing tensor."""
    *path, last = name.split(".")
    for part in path:
        model = getattr(model, part)
    getattr(model, last).data.copy_(value.data)


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
