"""A training that is interrupted, by Ctrl-C or by a callback that raises, leaves nothing behind."""

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from toys import CHOOSE, STEER, Toy, target, tiny_hub

from hubrl import BadConfig, HubCallback
from hubrl.policies.on_policy.step import RecordedBatch, TrainingState

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
QUIET = {"probe_share": 0.0, "warmup_share": 0.9}


class Interrupts(BaseCallback):
    """Presses Ctrl-C after some steps."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def _on_step(self):
        if self.n_calls >= self.after:
            raise KeyboardInterrupt
        return True


def interrupted(algorithm, after, n_envs=2):
    """A model whose `learn` was interrupted in a rollout."""
    actions = CHOOSE if algorithm is DQN else STEER
    env = make_vec_env(Toy, n_envs=n_envs, seed=0, env_kwargs={"actions": actions})
    model = target(algorithm, env, tiny_hub(Toy(actions=actions)).agent(algorithm), seed=0)
    with pytest.raises(KeyboardInterrupt):
        model.learn(400, callback=[HubCallback(**QUIET), Interrupts(after)])
    return model


def interrupt_update(model):
    """Press Ctrl-C in the second minibatch of an update."""
    step, steps = model.policy.optimizer.step, []

    def interrupting(*args):
        steps.append(step(*args))
        if len(steps) == 2:
            raise KeyboardInterrupt

    model.policy.optimizer.step = interrupting
    with pytest.raises(KeyboardInterrupt):
        model.learn(400, callback=HubCallback(**QUIET))
    del model.policy.optimizer.step


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("where", ["rollout", "update"])
def test_an_interrupted_training_leaves_nothing_behind(algorithm, where, tmp_path):
    model = interrupted(algorithm, 45)
    if where == "update":
        interrupt_update(model)
    policy = model.policy
    first, _ = model.predict(ROWS, deterministic=True)
    rows, done = torch.as_tensor(ROWS), torch.zeros(5, 2)
    _, log_prob, _ = policy.evaluate_actions(rows, done)
    assert log_prob.requires_grad, "the actor waits no longer"
    torch.testing.assert_close(log_prob, policy.get_distribution(rows).log_prob(done))
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=model.get_env())
    assert again.policy.training_state == TrainingState()
    np.testing.assert_array_equal(again.predict(ROWS, deterministic=True)[0], first)
    for model_goes_on in (model, again):
        with pytest.raises(BadConfig, match="no rollout buffer records them; pass HubCallback"):
            model_goes_on.learn(64)
        model_goes_on.learn(64, callback=HubCallback(**QUIET))
        assert model_goes_on.policy.training_state == TrainingState()


def test_after_an_interrupted_update_the_error_names_the_remedy():
    model = interrupted(PPO, 3)
    interrupt_update(model)
    with pytest.raises(
        BadConfig, match=r"after one that was interrupted call policy.set_training_mode\(False\)"
    ):
        model.policy.evaluate_actions(torch.as_tensor(ROWS), torch.zeros(5, 2))
    model.policy.set_training_mode(False)
    model.policy.evaluate_actions(torch.as_tensor(ROWS), torch.zeros(5, 2))


def test_an_interrupted_training_of_dqn_leaves_nothing_behind(tmp_path):
    model = interrupted(DQN, 60, n_envs=1)
    policy = model.policy
    assert policy.selection.turns, "SB3 does not call on_training_end"
    assert not policy.deterministic_episode
    assert model.exploration_schedule(0.5) == model.exploration_schedule.schedule(0.5), (
        "exploration is SB3's own again"
    )
    best = policy.selection.evaluation_arm
    for arm in range(len(policy.pathways.names)):
        policy.selection.turns = [policy.selection.turns[0]._replace(arm=arm)]
        policy.selection._refresh()
        acted = policy.predict(ROWS[:1], deterministic=False)[0]
        assert acted == policy.act_as(torch.as_tensor(ROWS[:1]), torch.tensor([best])).numpy()
    first, _ = model.predict(ROWS, deterministic=True)
    model.save(tmp_path / "model")
    again = DQN.load(tmp_path / "model", env=model.get_env())
    np.testing.assert_array_equal(again.predict(ROWS, deterministic=True)[0], first)
    for model_goes_on in (model, again):
        with pytest.raises(BadConfig, match="pass HubCallback"):
            model_goes_on.learn(64)
        model_goes_on.learn(64, callback=HubCallback(probe_share=0.0))


def test_observations_come_with_their_record_while_a_training_lasts():
    seen = []

    class Looks(BaseCallback):
        def _on_step(self):
            seen.append(self.model.policy.training_state)
            return True

    env = make_vec_env(Toy, n_envs=2, seed=0)
    model = target(PPO, env, tiny_hub(Toy()).agent(PPO, judging_share=0.0), ent_coef=0.1)
    model.learn(128, callback=[HubCallback(**QUIET), Looks()])
    assert list(dict.fromkeys(state.progress_remaining for state in seen)) == [1.0, 0.5]
    first = seen[0]
    assert all((first.records_steps, first.critic_only, first.fused_update, first.entropy_gradient))
    batch = next(model.rollout_buffer.get(8))
    assert isinstance(batch.observations, RecordedBatch)
    assert batch.observations.record.acted.shape == (8,)
