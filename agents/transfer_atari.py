"""Transfer on Atari: an agent of a game goes on in another mode of it.

The sources' games on the new mode choose the one that is copied; `--hub` takes agents of your own
(`hubrl hub build`).

    python -m agents.transfer_atari --mode 3 --steps 200000
"""

from pathlib import Path

import torch
import typer
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy

from hubrl import Hub, HubCallback
from hubrl.tasks.make_env import make_env


def main(
    hub: Path = Path("agents/sources/atari"),
    game: str = "SpaceInvadersNoFrameskip-v4",
    mode: int = 3,
    steps: int = 200_000,
    n_steps: int = 128,
    episodes: int = 10,
    seed: int = 1,
    save: Path = Path("runs/transfer_atari.zip"),
) -> None:
    """Train, evaluate, save; the saved agent is a source for the next mode."""
    torch.set_num_threads(1)
    variant = {"mode": mode, "full_action_space": True}
    env = make_env(game, variant, n_envs=8, seed=seed, preprocessing="atari-sb3")
    made = Hub.load(hub).agent(PPO, "warm-start")
    model = PPO(
        env=env,
        **made,
        n_steps=n_steps,
        n_epochs=4,
        batch_size=256,
        learning_rate=2.5e-4,
        clip_range=0.1,
        ent_coef=0.01,
        seed=seed,
    )
    model.learn(steps, callback=HubCallback(verbose=1), progress_bar=True)
    mean, std = evaluate_policy(model, env, n_eval_episodes=episodes, deterministic=False)
    print(f"Return {mean} ± {std}")
    model.save(save)


if __name__ == "__main__":
    typer.run(main)
