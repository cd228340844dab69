"""Runs killed by SIGKILL, over and over, which end as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.save_util import load_from_zip_file

from hubrl import Hub, HubCallback
from hubrl.experiments import checkpoints, leg, run_record
from hubrl.experiments.checkpoints import checkpoints_in
from hubrl.experiments.run import start_run, train
from hubrl.experiments.run_record import training_curve
from hubrl.experiments.study_tables import logged_weights
from hubrl.formats import files
from hubrl.formats.schema import write_yaml
from hubrl.reading.vecnormalize import read_statistics
from hubrl.tasks.atari_vec_env import AtariVecEnv

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


class Moody(gym.Env):
    """Draws from every generator there is, and goes on counting over episodes, which last 3 to 12 steps."""

    observation_space = spaces.Box(-10.0, 10.0, (4,))
    total = 0

    def __init__(self, continuous=False, render_mode=None):
        self.action_space = spaces.Box(-1.0, 1.0, (1,)) if continuous else spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 13))
        return self._observe(), {}

    def step(self, action):
        self.left -= 1
        self.total += 1
        reward = float(np.sum(action)) * np.cos(self.total / 9)
        return self._observe(), reward, self.left <= 0 and self.total % 2 == 0, self.left <= 0, {}

    def _observe(self):
        drawn = [random.gauss(0, 1), np.random.normal(), self.np_random.normal(), self.total / 100]
        return np.array(drawn, np.float32)


class Clock(BaseCallback):
    """The step at which a training is."""

    now = 0

    def _on_training_start(self):
        Clock.now = self.num_timesteps

    def _on_step(self):
        Clock.now = self.num_timesteps
        return True


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def half_written(path, **arrays):
    Path(path).write_bytes(b"PK\3\4 torn")
    die()


def half_removed(path, **options):
    next(Path(path).iterdir()).unlink()
    die()


def temporary_only(path, content, *args):
    path.with_name(f".{path.name}.0").write_bytes(b"half")
    die()


PLACES = {
    "step": (gym.Env.__class__, None),
    "step of a game": (AtariVecEnv, "step_wait"),
    "update": (torch.nn.utils, "clip_grad_norm_"),
    "evaluation": (EvalCallback, "_log_success_callback"),
    "evaluations' file": (np, "savez"),
    "model in a checkpoint": (checkpoints, "_latest_episodes"),
    "arrays in a checkpoint": (checkpoints, "_save_arrays"),
    "checkpoint before it takes its place": (files, "_take_place"),
    "old checkpoint removed": (shutil, "rmtree"),
    "begin of a leg": (leg, "restore_checkpoint"),
    "agent": (leg, "write_atomically"),
    "last evaluation": (leg, "play"),
    "result": (run_record, "write_atomically"),
}
HOW = {
    "evaluations' file": half_written,
    "old checkpoint removed": half_removed,
    "agent": temporary_only,
    "result": temporary_only,
}


MEANT = {"savez": lambda file: "evaluations" in file, "rmtree": str.isdigit}
"""Which uses count of what others use too."""


def arm(place, step):
    """Die at the first use of a place at or after a step."""
    owner, name = (Moody, "step") if place == "step" else PLACES[place]
    original, fatal = getattr(owner, name), HOW.get(place, die)

    def wrapped(*args, **kwargs):
        hits = name not in MEANT or MEANT[name](Path(str(args[0])).name)
        if Clock.now >= step and hits:
            fatal(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def in_child(run, *moment):
    """Train in a forked process that dies at a moment; whether it died."""
    sys.stdout.flush()
    saved = checkpoints_in(run / "checkpoints")
    Clock.now = int(saved[-1].name) if saved else 0
    child = os.fork()
    if child == 0:
        code = 1
        try:
            leg.HubCallback = partial(HubCallback, log_every=40)
            if moment:
                arm(*moment)
            train(run, [Clock()])
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), f"exit status {status} at {moment}"
    return status == signal.SIGKILL


def remains(run):
    """Everything that a run leaves but times."""
    _, parameters, variables = load_from_zip_file(run / "model.zip", load_data=False)
    result = json.loads((run / "result.json").read_text())
    with np.load(run / "evaluations.npz") as arrays:
        evaluations = {name: array.tolist() for name, array in arrays.items()}
    statistics = run / "vecnormalize.pkl"
    return {
        "weights": flat(parameters) | flat(variables or {}),
        "result": {key: result[key] for key in result if key not in ("wall_s", "steps_per_s")},
        "trust": json.loads((run / "trust.json").read_text()),
        "curve": training_curve(run),
        "evaluations": evaluations,
        "pathways": {tag: sorted(rows.items()) for tag, rows in logged_weights(run).items()},
        "statistics": repr(read_statistics(statistics)) if statistics.exists() else None,
        "files": sorted(path.name for path in run.iterdir() if "tensorboard" not in path.name),
    }


def flat(nested, prefix=""):
    """Tensors and numbers of nested dicts and lists, as plain data."""
    if isinstance(nested, torch.Tensor):
        return {prefix: nested.detach().tolist()}
    items = nested.items() if isinstance(nested, dict) else enumerate(nested)
    return {
        name: value
        for key, part in items
        for name, value in (
            flat(part, f"{prefix}/{key}")
            if isinstance(part, dict | list | tuple | torch.Tensor)
            else {f"{prefix}/{key}": part}
        ).items()
    }


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    gym.register("Moody-v0", Moody)
    yield write_hub(tmp_path_factory.mktemp("hubs") / "moody")
    del gym.registry["Moody-v0"]


def write_hub(folder):
    env, small = gym.make("Moody-v0"), {"net_arch": [8]}
    agents = [
        PPO("MlpPolicy", env, seed=seed, policy_kwargs=small, device="cpu") for seed in (0, 1)
    ]
    Hub.from_agents(agents, names=["one", "two"]).save(folder)
    return folder


def config_of(folder, hub, algorithm, **fields):
    small = {"policy_kwargs": {"net_arch": [8]}}
    off = {"learning_starts": 20, "buffer_size": 150, "batch_size": 8, "train_freq": 4, **small}
    kwargs = {
        "ppo": {"n_steps": 16, "batch_size": 16, "n_epochs": 2, **small},
        "a2c": {"n_steps": 8, **small},
        "dqn": {**off, "target_update_interval": 20},
        "sac": {**off, "gradient_steps": 2},
    }
    plain = {
        "task": "Moody-v0",
        "algorithm": algorithm,
        "algorithm_kwargs": kwargs[algorithm],
        "hub": str(hub),
        "steps": 256,
        "checkpoint_every": 64,
        "eval_every": 64,
        "eval_episodes": 2,
        "seed": 5,
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{algorithm}.yaml"
    path.write_text(write_yaml({**plain, **fields}))
    return path


TWENTY = [
    ("step", 9), ("update", 32), ("evaluation", 64), ("evaluations' file", 64), ("model in a checkpoint", 64),
    ("arrays in a checkpoint", 64), ("checkpoint before it takes its place", 64), ("begin of a leg", 64), ("step", 80),
    ("update", 96), ("evaluation", 128), ("checkpoint before it takes its place", 128), ("begin of a leg", 128), ("step", 180),
    ("old checkpoint removed", 192), ("step", 201), ("evaluations' file", 256), ("agent", 256), ("last evaluation", 256),
    ("result", 256),
]  # fmt: skip

FEW = [("step", 30), ("checkpoint before it takes its place", 64), ("step", 120), ("evaluation", 192), ("result", 256)]  # fmt: skip


ALL_TWENTY = bool(os.environ.get("HUBRL_TWENTY_KILLS"))
"""Whether every algorithm is killed at twenty moments, which takes some minutes."""


def moments_of(algorithm, few=FEW, **fields):
    """Moments that a training has: SAC clips no gradients, and some checkpoints hold no arrays."""
    if not ALL_TWENTY:
        return few
    off_policy = algorithm in ("dqn", "sac")
    other = {"update": "step"} if algorithm == "sac" else {}
    if not off_policy and not fields.get("normalize"):
        other["arrays in a checkpoint"] = "model in a checkpoint"
    return [(other.get(place, place), step) for place, step in TWENTY]


def killed(tmp_path, config, moments):
    """What remains of a run that was killed at the moments, and of one that was not."""
    whole, broken = (start_run(config, [], tmp_path / name) for name in ("whole", "broken"))
    assert not in_child(whole)
    for moment in moments:
        assert in_child(broken, *moment), f"the run went on over {moment}"
    assert not in_child(broken)
    assert len(checkpoints_in(broken / "checkpoints")) == 2
    assert not list(broken.rglob(".*")), "nothing half-written is left"
    return remains(whole), remains(broken)


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_ends_as_if_it_had_not_been(tmp_path, hub):
    config = config_of(tmp_path, hub, "ppo", n_envs=2, normalize=True)
    whole, broken = killed(tmp_path, config, TWENTY)
    for part, expected in whole.items():
        assert broken[part] == expected, part
    assert len(whole["curve"]) > 20
    assert whole["pathways"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "fields"),
    [
        ("a2c", {"n_envs": 2}),
        ("dqn", {}),
        ("sac", {"method": "scratch", "task_kwargs": {"continuous": True}, "normalize": True}),
        ("ppo", {"method": "scratch", "steps": 250}),
        ("ppo", {"steps": 640, "checkpoint_every": 96, "n_envs": 2, "probe_share": 0.45}),
    ],
)
def test_other_algorithms_killed_at_some_moments(tmp_path, hub, algorithm, fields):
    moments = moments_of(algorithm, **fields)
    whole, broken = killed(tmp_path, config_of(tmp_path, hub, algorithm, **fields), moments)
    for part, expected in whole.items():
        assert broken[part] == expected, part


@pytest.mark.slow
def test_atari_killed_at_some_moments(tmp_path, hub):
    pytest.importorskip("ale_py")
    kwargs = {"n_steps": 16, "batch_size": 32, "n_epochs": 1}
    fields = {
        "task": "BreakoutNoFrameskip-v4",
        "preprocessing": "atari",
        "method": "scratch",
        "n_envs": 2,
        "algorithm_kwargs": kwargs,
        "eval_episodes": 1,
        "eval_every": 64 if ALL_TWENTY else 128,
        "steps": 256 if ALL_TWENTY else 128,
    }
    few = [("checkpoint before it takes its place", 64), ("begin of a leg", 64), ("update", 96)]
    of_games = {"step": "step of a game"}
    moments = [(of_games.get(place, place), step) for place, step in moments_of("ppo", few)]
    whole, broken = killed(tmp_path, config_of(tmp_path, hub, "ppo", **fields), moments)
    for part, expected in whole.items():
        assert broken[part] == expected, part
