"""Trainings that go on: cut into several calls, saved and loaded, or without the callback that began them."""

import copy

import numpy as np
import pytest
import torch
from hubs import trusted
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from toys import Toy, target, tiny_hub, toy_for

from hubrl import BadConfig, HubCallback
from hubrl.reading import read_agent
from hubrl.selection.fresh_trial import Phase


def learner(n_envs=2, **options):
    """A PPO that hears outputs, whose rollouts are 32 steps."""
    return target(
        PPO,
        make_vec_env(Toy, n_envs=n_envs, seed=0),
        tiny_hub(Toy()).agent(PPO, **options),
        n_steps=32,
        learning_rate=1e-2,
    )


class AtStart(BaseCallback):
    """How much of the training remains when each rollout begins, and whether the actor waits."""

    def __init__(self):
        super().__init__()
        self.remaining, self.warming = [], []

    def _on_rollout_start(self):
        self.remaining.append(self.model.policy.method.progress_remaining)
        self.warming.append(self.model.policy.training_state.critic_only)

    def _on_step(self):
        return True


def test_calls_of_one_rollout_each_train_the_actor():
    model, seen = trusted(learner()), AtStart()
    actor = [*model.policy.residual.parameters(), *model.policy.method.router.parameters()]
    before = [part.detach().clone() for part in actor]
    for call in range(8):
        model.learn(64, [HubCallback(), seen], reset_num_timesteps=call == 0)
    assert seen.warming == [True] + [False] * 7
    assert not any(torch.equal(part, was) for part, was in zip(actor, before, strict=True))


def test_how_much_remains_is_that_of_the_call(tmp_path):
    model, seen = learner(), AtStart()
    model.learn(64, HubCallback(probe_share=0.0))
    model.learn(128, [HubCallback(probe_share=0.0), seen])
    assert seen.remaining == [1.0, 0.5]
    model.save(tmp_path / "model.zip")
    loaded, again = (
        PPO.load(tmp_path / "model.zip", make_vec_env(Toy, n_envs=2, seed=0), device="cpu"),
        AtStart(),
    )
    loaded.learn(128, [HubCallback(probe_share=0.0), again], reset_num_timesteps=False)
    assert again.remaining == [0.5, 0.25]


def test_a_probe_is_before_the_training_or_not_at_all():
    model, again = learner(), HubCallback(probe_share=0.5)
    model.learn(64, HubCallback())
    assert model.policy.selection.trial.at is Phase.DOUBT, "two steps in a hundred are too few here"
    model.learn(4096, again, reset_num_timesteps=False)
    assert again.probe_result is None, "the fresh pathway is no untrained network any more"


class Even(Toy):
    """Every step earns one; worth a hundred at SB3's discount."""

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, 1.0, *rest


def test_the_critic_measures_returns_once_they_were_seen_and_keeps_their_units():
    env = make_vec_env(lambda: Even(length=10_000), n_envs=2, seed=0)
    model = target(PPO, env, tiny_hub(Toy()).agent(PPO), n_steps=32)
    model.learn(128, HubCallback(probe_share=0.0))
    assert not model.policy.value_net.rescaled, "sums that began a moment ago are small"
    model.learn(2048, HubCallback(probe_share=0.0), reset_num_timesteps=False)
    shift = model.policy.value_net.units[0]
    assert 50 < shift < 100
    model.learn(512, HubCallback(probe_share=0.0), reset_num_timesteps=False)
    assert model.policy.value_net.units[0] > 0.9 * shift


def test_without_the_callback_a_training_with_commitments_does_not_go_on():
    model = learner()
    model.learn(64, HubCallback(probe_share=0.0))
    with pytest.raises(
        BadConfig,
        match=r"pathways and no rollout buffer records them; pass HubCallback\(\) to go on",
    ):
        model.learn(64)
    model.learn(64, HubCallback(probe_share=0.0))


@pytest.mark.parametrize(
    "options", [{}, {"hold": 1.0, "judging_share": 0.0}, {"method": "uniform"}], ids=str
)
def test_a_policy_that_learned_can_be_copied(options):
    model = learner(**options)
    model.learn(64, HubCallback(probe_share=0.0))
    rows = np.zeros((3, 4), dtype=np.float32)
    copied = copy.deepcopy(model.policy)
    assert np.array_equal(
        copied.predict(rows, deterministic=True)[0], model.predict(rows, deterministic=True)[0]
    )


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_distribution_does_not_depend_on_the_trainings_commitments(n_envs, tmp_path):
    model = learner(n_envs)
    model.learn(64, HubCallback(probe_share=0.0))
    model.save(tmp_path / "model.zip")
    rows = torch.randn(5, 4)
    loaded = PPO.load(tmp_path / "model.zip", device="cpu").policy
    found = [policy.get_distribution(rows).log_weights for policy in (model.policy, loaded)]
    torch.testing.assert_close(*found)


def test_a_state_of_other_rows_is_refused():
    model = learner()
    model.learn(64, HubCallback(probe_share=0.0))
    _, state = model.predict(np.zeros((2, 4), dtype=np.float32))
    with pytest.raises(
        BadConfig, match="A state for 2 observations was given with 3; pass state=None"
    ):
        model.predict(np.zeros((3, 4), dtype=np.float32), state)


def test_what_is_predicted_is_not_counted_among_the_rollouts():
    model = learner()
    model.learn(64, HubCallback(probe_share=0.0))
    model.policy.method.routing_stats.reset()
    for _ in range(3):
        model.predict(np.zeros((7, 4), dtype=np.float32))
    assert model.policy.method.routing_stats.sums.rows == 0


def test_a_dqn_predicts_by_its_best_arm_once_its_training_is_over(tmp_path):
    env = toy_for(DQN)
    made = tiny_hub(env).agent(DQN)
    model = target(
        DQN, env, made, learning_starts=0, exploration_fraction=0.01, exploration_final_eps=0.0
    )
    rows = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    for call in range(3):
        model.learn(30, HubCallback(), reset_num_timesteps=call == 0)
        model.save(tmp_path / "model.zip")
        loaded = DQN.load(tmp_path / "model.zip", device="cpu")
        for row in rows:
            assert model.policy.predict(row)[0] == loaded.policy.predict(row)[0]


def test_what_has_learned_is_not_probed_in_a_training_that_counts_anew():
    model, again = learner(), HubCallback(probe_share=0.5)
    model.learn(64, HubCallback())
    model.learn(4096, again)
    assert again.probe_result is None


def test_where_no_source_is_better_than_untrained_networks_no_trial_begins(tmp_path):
    model = learner(n_envs=8)
    policy, selection = model.policy, model.policy.selection
    policy.method.apply_probe([True, True, True], [0.0, 0.0, 0.0])
    selection.doubt_all()
    for place in range(5):
        for source in range(2):
            selection.records.add(source, -50.0 + place / 10)
        selection.records.add(selection.untrained, 50.0 + place / 10)
    model.learn(2560, HubCallback(probe_share=0.0))
    assert selection.trial.at is Phase.DOUBT
    assert not selection.trial.is_swapped
    model.save(tmp_path / "model.zip")
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    read = read_agent(tmp_path / "model.zip").predict(rows, deterministic=True)[0]
    np.testing.assert_allclose(
        read, model.predict(rows, deterministic=True)[0], rtol=1e-5, atol=1e-6
    )
