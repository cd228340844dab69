"""The critic's units follow the discounted returns of the training."""

import numpy as np
import torch
from hubs import trusted, up_and_down
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import obs_as_tensor
from toys import Toy, target

from hubrl import HubCallback
from hubrl.training.critic_scaling import CriticScaling


def learner(**options):
    return trusted(
        target(
            PPO,
            make_vec_env(Toy, n_envs=2, seed=0),
            up_and_down().agent(PPO, **options),
            n_steps=64,
            gamma=0.9,
        )
    )


class Values(BaseCallback):
    """After every rollout, whether its values are the critic's, and its units; placed behind HubCallback."""

    def __init__(self):
        super().__init__()
        self.agree, self.units = [], []

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        buffer, policy = self.model.rollout_buffer, self.model.policy
        with torch.no_grad():
            now = [
                policy.predict_values(obs_as_tensor(rows, "cpu")).numpy().ravel()
                for rows in buffer.observations
            ]
        self.agree.append(np.allclose(np.stack(now), buffer.values, atol=1e-3, rtol=1e-3))
        self.units.append(policy.value_net.units)


def test_the_values_of_a_rollout_are_computed_again_in_the_first_units():
    model, values = learner(), Values()
    model.learn(512, callback=[HubCallback(warmup_share=0.0), values])
    assert model.policy.value_net.rescaled
    assert values.agree[0]


def test_without_scaled_values_the_head_is_sb3s():
    model = learner(scale_values=False)
    model.learn(256, callback=HubCallback(warmup_share=0.0))
    assert type(model.policy.value_net) is torch.nn.Linear


def test_measuring_begins_again_from_the_critics_units():
    model = learner()
    model.learn(512, callback=HubCallback(warmup_share=0.0))
    shift = model.policy.value_net.units[0]
    assert shift != 0
    scaling = CriticScaling(model, model.policy)
    assert scaling.returns.mean == shift
    scaling.returns.add(np.ones(2), np.zeros(2, dtype=bool))
    scaling.restart()
    assert (scaling.returns.count, scaling.returns.mean) == (0, shift)
