"""SB3's policy API on a policy over outputs, outside `learn`: the mixture, whichever pathway acts."""

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from toys import CHOOSE, STEER, VECTOR, Toy, target, tiny_hub

from hubrl import HubCallback


@pytest.fixture(scope="module", params=[STEER, CHOOSE], ids=["steer", "choose"])
def learned(request):
    """A policy with commitments and selection after a training, and observations."""
    env = make_vec_env(lambda: Toy(VECTOR, request.param), n_envs=2, seed=0)
    made = tiny_hub(Toy(VECTOR, request.param)).agent(PPO, hold=4)
    model = target(PPO, env, made).learn(128, callback=HubCallback(probe_share=0))
    assert model.policy.commits
    return model, torch.randn(64, *VECTOR.shape)


def test_forward_and_evaluate_actions_agree_after_learn(learned):
    policy, observations = learned[0].policy, learned[1]
    for mode in (False, True):
        policy.set_training_mode(mode)
        actions, values, log_prob = policy(observations)
        again, evaluated, entropy = policy.evaluate_actions(observations, actions)
        torch.testing.assert_close(evaluated, log_prob)
        torch.testing.assert_close(again, values)
        assert entropy is None or entropy.shape == (64,)
        assert evaluated.requires_grad


def test_the_distribution_is_the_mixture_before_and_after_it_is_sampled(learned):
    policy, observations = learned[0].policy, learned[1]
    policy.set_training_mode(False)
    distribution = policy.get_distribution(observations)
    actions = distribution.sample()
    _, expected, _ = policy.evaluate_actions(observations, actions)
    torch.testing.assert_close(distribution.log_prob(actions), expected)
    by_hand = torch.logsumexp(distribution.log_weights + distribution.each_log_prob(actions), dim=1)
    torch.testing.assert_close(expected, by_hand)
    assert distribution.mode().shape == actions.shape


def test_values_and_predictions_serve_outside_learn(learned):
    model, observations = learned
    values = model.policy.predict_values(observations)
    torch.testing.assert_close(values, model.policy(observations)[1])
    assert len(model.predict(observations.numpy())[0]) == 64


def test_a_loaded_policy_has_the_same_densities(learned, tmp_path):
    model, observations = learned
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu").policy
    actions = loaded(observations)[0]
    ours, theirs = (
        policy.evaluate_actions(observations, actions)[1] for policy in (model.policy, loaded)
    )
    torch.testing.assert_close(ours, theirs)


def test_a_policy_that_was_not_trained_has_the_api_too():
    model = target(PPO, Toy(), tiny_hub(Toy()).agent(PPO))
    observations = torch.randn(8, *Toy().observation_space.shape)
    actions, _, log_prob = model.policy(observations)
    assert model.policy.get_distribution(observations).log_prob(actions).shape == log_prob.shape
