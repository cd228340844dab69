"""A training stops at NaN and infinity, before anything is learned from them or sent to a task."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import CHOOSE, STEER, VECTOR, Toy, target, tiny, tiny_hub, toy_for

from hubrl import Hub, HubCallback, NotFinite, load_agent
from hubrl.policies.dqn_networks import teaching_loss

PARTS = spaces.Dict({"joints": VECTOR, "touch": spaces.MultiBinary(3)})


class Broken(Toy):
    """Hands over one number that is not finite, at one step."""

    def __init__(self, what, at=35, value=np.nan, **kwargs):
        super().__init__(**kwargs)
        self.what, self.at, self.value, self.steps = what, at, value, 0

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        return self.spoilt(observation, "reset"), info

    def step(self, action):
        self.steps += 1
        observation, reward, ended, truncated, info = super().step(action)
        if self.what == "last":
            observation = self.spoilt(observation, "last", now=truncated)
        if self.what == "reward" and self.steps == self.at:
            reward = self.value
        return self.spoilt(observation, "observation"), reward, ended, truncated, info

    def spoilt(self, observation, what, now=False):
        if what != self.what or not (now or what == "reset" or self.steps == self.at):
            return observation
        part = observation["joints"] if isinstance(observation, dict) else observation
        part[1] = self.value
        return observation


def finite(model):
    return all(bool(torch.isfinite(weight).all()) for weight in model.policy.parameters())


def learned(algorithm, env, level=None, steps=128, **options):
    """A target that is to learn on an environment, with a hub for the same spaces."""
    first = env() if callable(env) else env
    hub = tiny_hub(Toy(first.observation_space, first.action_space))
    model = target(algorithm, first, hub.agent(algorithm, level=level, **options))
    return model, lambda: model.learn(steps, callback=HubCallback())


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize(
    ("algorithm", "level"),
    [(PPO, "outputs"), (A2C, "outputs"), (PPO, "features"), (DQN, "outputs"), (DQN, "features"),
     (SAC, "features"), (TD3, "features")],
)  # fmt: skip
def test_an_observation_that_is_not_finite_ends_the_training(algorithm, level, value):
    actions = toy_for(algorithm).action_space
    model, learn = learned(algorithm, Broken("observation", value=value, actions=actions), level)
    with pytest.raises(NotFinite, match="The observation of environment 0 at step 35 is NaN or"):
        learn()
    assert finite(model)
    stored = model.rollout_buffer if algorithm in (PPO, A2C) else model.replay_buffer
    assert np.isfinite(stored.observations).all()


@pytest.mark.parametrize("actions", [CHOOSE, STEER])
def test_a_reward_that_is_not_finite_ends_the_training(actions):
    model, learn = learned(PPO, Broken("reward", actions=actions))
    with pytest.raises(NotFinite, match="The reward of environment 0 at step 35 is NaN"):
        learn()
    assert finite(model)


@pytest.mark.parametrize(
    ("what", "sentence"),
    [("reset", "The observation of environment 0 at step 0"),
     ("last", "The last observation of an episode of environment 0 at step 10")],
)  # fmt: skip
def test_first_and_last_observations_are_checked_too(what, sentence):
    with pytest.raises(NotFinite, match=sentence):
        learned(A2C, Broken(what, actions=CHOOSE))[1]()


def test_the_part_of_a_dict_and_the_environment_are_named():
    def make(broken):
        at = 18 if broken else 10**9
        return lambda: Broken("observation", at, observations=PARTS, actions=CHOOSE)

    env = DummyVecEnv([make(row == 2) for row in range(3)])
    with pytest.raises(NotFinite, match="observation 'joints' of environment 2 at step 54 is NaN"):
        learned(PPO, env)[1]()


def test_behind_vecnormalize_the_environment_is_named_and_its_statistics_mentioned():
    makes = [lambda: Toy(actions=CHOOSE), lambda: Broken("observation", 18, actions=CHOOSE)]
    with pytest.raises(NotFinite, match=r"environment 1 at step 36 .* VecNormalize's statistics"):
        learned(PPO, VecNormalize(DummyVecEnv(makes)))[1]()
    rewards = [lambda: Toy(actions=CHOOSE), lambda: Broken("reward", 20, actions=CHOOSE)]
    with pytest.raises(NotFinite, match="reward of environment 1 at step 40"):
        learned(PPO, VecNormalize(DummyVecEnv(rewards)))[1]()


def test_a_number_in_the_probe_is_found():
    env = Broken("observation", at=5, actions=CHOOSE)
    with pytest.raises(NotFinite, match="environment 0 at step 5 "):
        learned(PPO, env, steps=40_000)[1]()


@pytest.mark.parametrize(("algorithm", "level"), [(PPO, "outputs"), (A2C, "features"),
                                                  (DQN, "outputs"), (SAC, "features")])  # fmt: skip
def test_weights_that_diverge_end_the_training(algorithm, level):
    model, learn = learned(algorithm, toy_for(algorithm), level, steps=256)
    model.lr_schedule = lambda _: np.inf
    with pytest.raises(NotFinite, match="weights of the policy were NaN .* smaller learning_rate"):
        learn()


class Poison(BaseCallback):
    """Makes a weight NaN in the midst of a rollout."""

    def _on_step(self):
        if self.n_calls == 20:
            for weight in self.model.policy.parameters():
                weight.data.fill_(torch.nan)
        return True


@pytest.mark.parametrize(("algorithm", "level", "actions"), [(PPO, "outputs", CHOOSE),
                         (DQN, "features", CHOOSE), (TD3, "features", STEER)])  # fmt: skip
def test_an_action_that_follows_from_nan_is_not_sent(algorithm, level, actions):
    # Where torch's distributions check their parameters, they end the training themselves.
    sent = []

    class Recorded(gym.ActionWrapper):
        def action(self, action):
            sent.append(action)
            return action

    made = tiny_hub(Toy(actions=actions)).agent(algorithm, level=level)
    settings = {} if algorithm is PPO else {"learning_starts": 0, "train_freq": 64}
    if algorithm is DQN:
        settings |= {"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0}
    model = target(algorithm, Recorded(Toy(actions=actions)), made, **settings)
    with pytest.raises(
        NotFinite, match="output for environment 0 at step 20 .* no action was sent"
    ):
        model.learn(128, callback=[HubCallback(), Poison()])
    assert len(sent) == 20


@pytest.mark.parametrize("actions", [CHOOSE, STEER])
def test_observations_of_1e30_under_vecnormalize_are_learned_from(actions):
    env = VecNormalize(DummyVecEnv([lambda: Broken("observation", value=1e30, actions=actions)]))
    model, learn = learned(PPO, env)
    learn()
    assert finite(model)


def test_one_action_has_no_spread_of_q_values():
    q_values = torch.ones(3, 1, requires_grad=True)
    teaching_loss(q_values, torch.zeros(3, dtype=torch.long), 0.3).backward()
    assert torch.isfinite(q_values.grad).all()
    model, learn = learned(DQN, Toy(actions=spaces.Discrete(1)), "outputs")
    learn()
    assert finite(model)


def test_the_check_leaves_no_hook_behind():
    model, learn = learned(SAC, Toy())
    learn()
    assert not model.actor._forward_hooks


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_an_agent_refuses_nan(algorithm, tmp_path):
    model = tiny(algorithm, toy_for(algorithm))
    model.save(tmp_path / "agent.zip")
    source = load_agent(tmp_path / "agent.zip")
    seen = np.zeros((2, 4), np.float32)
    source.predict(seen)
    seen[1, 2] = np.nan
    with pytest.raises(NotFinite, match="'agent' was given an observation with NaN"):
        source.predict(seen)


def test_a_source_that_diverged_is_not_saved(tmp_path):
    hub = Hub([Hub.from_agents([tiny(PPO, Toy())])[0]])
    next(hub[0].buffers()).fill_(torch.nan)
    with pytest.raises(NotFinite, match="of source 'ppo-0' holds NaN .* nothing was saved"):
        hub.save(tmp_path / "hub")
    assert not (tmp_path / "hub").exists()
