"""Transfer with DQN: the features of a hub, on CartPole.

Any torch algorithm of SB3 takes them the same way. The sources are trained on the
spot, which takes half a minute: use agents of your own instead.

    python -m agents.transfer_dqn --steps 20000
"""

from pathlib import Path

import torch
import typer
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from hubrl import Hub, HubCallback


def main(
    steps: int = 20_000,
    source_steps: int = 20_000,
    seed: int = 1,
    save: Path = Path("runs/transfer_dqn.zip"),
) -> None:
    """Train two sources, make a hub of them, train DQN through it, evaluate, save."""
    torch.set_num_threads(1)  # fastest for small networks
    agents = [
        algorithm("MlpPolicy", "CartPole-v1", seed=seed).learn(source_steps)
        for algorithm in (PPO, A2C)
    ]
    hub = Hub.from_agents(agents, names=["ppo", "a2c"])
    env = make_vec_env("CartPole-v1", seed=seed)
    model = DQN(
        "MlpPolicy",
        env,
        policy_kwargs=hub.policy_kwargs("hub-pathway"),
        learning_starts=1000,
        seed=seed,
        tensorboard_log="runs",
    )
    model.learn(steps, callback=HubCallback(), progress_bar=True)
    mean, std = evaluate_policy(model, env, n_eval_episodes=10)
    print(f"Return {mean} ± {std}")
    model.save(save)


if __name__ == "__main__":
    typer.run(main)
