"""Transfer with PPO: the sources' action heads, on a HalfCheetah with physics new to all of them.

python -m agents.transfer_ppo --steps 50000
"""

from pathlib import Path

import numpy as np
import torch
import typer
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from hubrl import Hub, HubCallback, pathway_weights


def main(
    hub: Path = Path("agents/sources/cheetah"),
    steps: int = 50_000,
    seed: int = 1,
    save: Path = Path("runs/transfer_ppo.zip"),
) -> None:
    """Train, evaluate, save; the saved agent no longer needs the sources' files."""
    torch.set_num_threads(1)  # fastest for small networks
    sources = Hub.load(hub)
    env = make_vec_env(
        "envs.mujoco:hubrl/HalfCheetah-v5", n_envs=8, seed=seed, env_kwargs={"gravity": 1.5}
    )
    model = PPO(
        env=env, **sources.agent(PPO, "hub-pathway"), n_steps=256, seed=seed, tensorboard_log="runs"
    )
    model.learn(steps, callback=HubCallback(verbose=1), progress_bar=True)
    mean, std = evaluate_policy(model, env, n_eval_episodes=8)
    print(
        f"Return {mean} ± {std}; pathway weights at the start: "
        f"{pathway_weights(model, np.asarray(env.reset())[0])}"
    )
    model.save(save)


if __name__ == "__main__":
    typer.run(main)
