"""A router that is blind: what a hub is worth without what its router sees."""

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import STEER, VECTOR, Constant, Toy, target, tiny_hub, toy_for

from hubrl import BadConfig, Hub, Source
from hubrl.experiments.router_controls import MEAN_WEIGHTS, SHUFFLED_INPUT, play_controls


class Turning(Toy):
    """The reward is the sum of the action, with the sign of the first number observed."""

    def step(self, action):
        sign = np.sign(self.seen[0])
        observation, reward, *rest = super().step(action)
        return observation, float(sign * reward), *rest

    def _observe(self, space):
        self.seen = super()._observe(space)
        return self.seen


class Seeing(nn.Module):
    """A router that trusts the first source where the first number is positive, and the second elsewhere."""

    reads_bytes = False

    def forward(self, observations, noise=None):
        sign = observations[:, 0].sign()
        return torch.stack([sign, -sign, torch.full_like(sign, -9.0)], dim=1)


@pytest.mark.parametrize("hold", [1.0, 3.0])
def test_a_router_that_is_blind_earns_what_chance_earns(hold):
    sources = [
        Source(
            encoder=nn.Flatten(),
            head=Constant(value),
            name=name,
            observation_space=VECTOR,
            action_space=STEER,
        )
        for name, value in (("up", 1.0), ("down", -1.0))
    ]
    env = make_vec_env(Turning, n_envs=10, seed=0)
    model = target(PPO, env, Hub(sources).agent(PPO, hold=hold, residual=False))
    model.policy.method.router = Seeing()
    if model.policy.stay_logit is not None:
        model.policy.enable_commitment()
        nn.init.constant_(model.policy.stay_logit.bias, 0.0)
    found = play_controls(model, env, 40, seed=3)
    assert set(found) == {MEAN_WEIGHTS, SHUFFLED_INPUT}
    for played in found.values():
        assert len(played.returns) == 40
        assert abs(played.mean) < 4, "seeing it earns 20 in ten steps"
    env.seed(3)
    rows = env.reset()
    actions, _ = model.predict(rows, deterministic=True)
    assert np.array_equal(np.sign(actions[:, 0]), np.sign(rows[:, 0])), "afterwards it sees again"
    again = play_controls(model, env, 40, seed=3)
    assert [again[name].returns for name in again] == [found[name].returns for name in found]


def test_controls_need_a_router_and_several_environments():
    env = toy_for(DQN)
    dqn = target(DQN, env, tiny_hub(env).agent(DQN))
    with pytest.raises(
        BadConfig,
        match="were given a model without a router; expected hub-pathway at the level of outputs",
    ):
        play_controls(dqn, dqn.get_env(), 2, seed=0)
    ppo = target(PPO, Toy(), tiny_hub(Toy()).agent(PPO))
    with pytest.raises(BadConfig, match="were given 1 environment; expected at least two"):
        play_controls(ppo, ppo.get_env(), 2, seed=0)
