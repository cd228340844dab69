"""Train a source with plain stable-baselines3: PPO on a MuJoCo task, under VecNormalize, resumable.

    python -m agents.train_source low-gravity --kwargs '{"gravity": 0.6}' --seed 1

writes `runs/sources/low-gravity/agent.zip`, `vecnormalize.pkl` beside it, and `training.json`, from
which `python -m agents.bundle` makes the source's card. The hyperparameters are the RL Zoo's for
PPO on HalfCheetah.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
import typer
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

PPO_KWARGS: dict[str, Any] = {
    "n_steps": 512,
    "batch_size": 64,
    "n_epochs": 20,
    "learning_rate": 2.06e-5,
    "gamma": 0.98,
    "gae_lambda": 0.92,
    "clip_range": 0.1,
    "ent_coef": 4.0e-4,
    "vf_coef": 0.58,
    "max_grad_norm": 0.8,
    "policy_kwargs": {
        "log_std_init": -2.0,
        "ortho_init": False,
        "activation_fn": torch.nn.ReLU,
        "net_arch": {"pi": [256, 256], "vf": [256, 256]},
    },
}


def main(
    name: str,
    task: str = "envs.mujoco:hubrl/HalfCheetah-v5",
    kwargs: str = "{}",
    steps: int = 1_000_000,
    seed: int = 1,
    folder: Path = Path("runs/sources"),
) -> None:
    """Train, or resume from the last checkpoint, and save the agent with its statistics.

    Args:
        name: The source's name, and its folder's.
        task: Gymnasium id of the task, `module:id` where a module registers it.
        kwargs: The task's keyword arguments, as JSON.
        steps: Environment steps in all.
        seed: Seed of network, environment and sampling.
        folder: Parent of the agent's folder.
    """
    torch.set_num_threads(1)
    here = folder / name
    here.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "agents.train_source", *sys.argv[1:]])
    training = {
        "name": name,
        "task": task,
        "task_kwargs": json.loads(kwargs),
        "seed": seed,
        "command": command,
    }
    (here / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    env = make_vec_env(
        task, n_envs=1, seed=seed, env_kwargs=training["task_kwargs"], monitor_dir=str(here)
    )
    model, vec_env = resume(here, env, seed)
    checkpoint = CheckpointCallback(
        50_000, str(here / "checkpoints"), name_prefix="agent", save_vecnormalize=True
    )
    if model.num_timesteps < steps:
        model.learn(
            steps - model.num_timesteps,
            callback=checkpoint,
            reset_num_timesteps=False,
            tb_log_name="tensorboard",
        )
    model.save(here / "agent.zip")
    vec_env.save(str(here / "vecnormalize.pkl"))


def resume(here: Path, env: VecEnv, seed: int) -> tuple[PPO, VecNormalize]:
    """The last checkpoint in `here`, or a new agent."""
    saved = sorted(
        (here / "checkpoints").glob("agent_*_steps.zip"),
        key=lambda path: int(path.stem.split("_")[1]),
    )
    if not saved:
        vec_env = VecNormalize(env, gamma=PPO_KWARGS["gamma"])
        return PPO(
            "MlpPolicy", vec_env, seed=seed, device="cpu", tensorboard_log=str(here), **PPO_KWARGS
        ), vec_env
    count = saved[-1].stem.split("_")[1]
    vec_env = VecNormalize.load(
        str(here / "checkpoints" / f"agent_vecnormalize_{count}_steps.pkl"), env
    )
    return PPO.load(saved[-1], env=vec_env, device="cpu"), vec_env


if __name__ == "__main__":
    typer.run(main)
