"""Evaluate an agent's zip in a few lines, without executing anything in it.

python -m agents.evaluate runs/transfer_ppo.zip --kwargs '{"gravity": 1.5}'
"""

import json
from pathlib import Path

import torch
import typer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from hubrl import load_agent


def main(
    agent: Path,
    task: str = "envs.mujoco:hubrl/HalfCheetah-v5",
    kwargs: str = "{}",
    episodes: int = 10,
    seed: int = 0,
) -> None:
    """Play some episodes and print their mean return."""
    torch.set_num_threads(1)  # fastest for small networks
    env = make_vec_env(task, seed=seed, env_kwargs=json.loads(kwargs))
    mean, std = evaluate_policy(load_agent(agent), env, n_eval_episodes=episodes)
    print(f"Return {mean} ± {std}")


if __name__ == "__main__":
    typer.run(main)
