"""Warm start: a source's network becomes the agent's own, and trains on alone."""

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from toys import CHOOSE, IMAGE, STEER, VECTOR, Toy, target, tiny

from hubrl import Hub, HubCallback
from hubrl.errors import SpaceMismatch
from hubrl.policies.on_policy.copied_source import UNKNOWN_LOGIT
from hubrl.selection.fresh_trial import Phase

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
BOTH = pytest.mark.parametrize("algorithm", [PPO, A2C], ids=["ppo", "a2c"])


def leaning(bias, env=None, seed=1, algorithm=PPO):
    """An agent that does much the same whatever it sees: both entries of its action are `bias`."""
    agent = tiny(algorithm, env or Toy(), seed)
    with torch.no_grad():
        agent.policy.action_net.weight.mul_(0.1)
        agent.policy.action_net.bias.fill_(bias)
        agent.policy.log_std.fill_(-3.0)
    return agent


def copier(agents, env=None, algorithm=PPO, n_envs=2, **options):
    """A model that goes on from a copy of one of some agents."""
    own = env or Toy()
    venv = make_vec_env(lambda: Toy(own.observation_space, own.action_space), n_envs=n_envs, seed=0)
    return target(
        algorithm, venv, Hub.from_agents(agents).agent(algorithm, "warm-start"), **options
    )


def own_outputs(model, observations):
    """Action parameters and values of the model's own network."""
    policy = model.policy
    actor, critic = policy.extract_latents(policy.preprocess(observations))
    return policy.fresh_params(actor), policy.value_net(critic)


@pytest.mark.parametrize(
    ("observations", "actions"), [(VECTOR, STEER), (VECTOR, CHOOSE), (IMAGE, CHOOSE)]
)
def test_the_copy_acts_and_values_as_the_source(observations, actions):
    agent = tiny(PPO, Toy(observations, actions), seed=3)
    model = copier([agent], Toy(observations, actions))
    seen = torch.as_tensor(model.get_env().reset())
    source = model.policy.method.pathways.sources[0].source
    assert not torch.equal(own_outputs(model, seen)[1], agent.policy.predict_values(seen))
    model.policy.copy_source(0)
    params, values = own_outputs(model, seen)
    prepared = model.policy.preprocess(seen)
    torch.testing.assert_close(params, source.outputs(prepared), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(values, agent.policy.predict_values(seen), atol=1e-6, rtol=1e-5)


def test_discrete_actions_are_copied_by_their_meanings():
    agent = tiny(PPO, Toy(actions=CHOOSE), seed=3)
    hub = Hub.from_agents([agent])
    hub = Hub([hub[0].adapted(meanings=("NOOP", "FIRE", "UP"))])
    wanted = ("UP", "LEFT", "NOOP")
    made = hub.agent(PPO, "warm-start", action_meanings=wanted)
    model = target(PPO, make_vec_env(lambda: Toy(actions=CHOOSE), n_envs=2), made)
    model.policy.copy_source(0)
    own, copied = agent.policy.action_net, model.policy.action_net
    torch.testing.assert_close(copied.weight[[0, 2]], own.weight[[2, 0]])
    torch.testing.assert_close(copied.bias[[0, 2]], own.bias[[2, 0]])
    assert copied.bias[1] == UNKNOWN_LOGIT
    assert not copied.weight[1].any()


@BOTH
def test_the_best_source_is_copied_and_its_copy_trains_on_alone(algorithm, tmp_path):
    model = copier([leaning(-0.5), leaning(0.7)], algorithm=algorithm)
    callback = HubCallback(warmup_share=0.0)
    model.learn(1024, callback=callback)
    selection = model.policy.selection
    assert (selection.copied, selection.trial.at) == (1, Phase.ALONE)
    told = [decision.sentence for decision in callback.decisions]
    assert "The fresh pathway goes on from a copy of ppo-1." in told
    source = model.policy.method.pathways.sources[1].source
    params, _ = own_outputs(model, torch.as_tensor(ROWS))
    learned = (params - source.outputs(torch.as_tensor(ROWS))).abs().max()
    assert 0 < learned < 0.5
    model.save(tmp_path / "copy.zip")
    loaded = algorithm.load(tmp_path / "copy.zip", device="cpu")
    assert loaded.policy.selection.copied == 1
    assert np.array_equal(
        loaded.predict(ROWS, deterministic=True)[0], model.predict(ROWS, deterministic=True)[0]
    )


def test_the_source_acts_in_evaluation_until_its_copy_earns_more():
    model = copier([leaning(-0.5), leaning(0.7)])
    model.learn(1024, callback=HubCallback(warmup_share=0.0))
    selection = model.policy.selection
    for value, arm in ((-50.0, 1), (50.0, selection.fresh)):
        selection.records.forget(selection.fresh)
        for _ in range(3):
            selection.records.add(selection.fresh, value)
        assert selection.evaluation_arm == arm


def test_training_is_from_scratch_where_no_source_beats_an_untrained_network():
    model = copier([leaning(-0.5), leaning(-0.7)])
    model.learn(1024, callback=HubCallback())
    selection = model.policy.selection
    assert (selection.copied, selection.trial.at) == (-1, Phase.DOUBT)
    assert selection.evaluation_arm in (selection.fresh, 0, 1)
    assert model.policy.method.copies_source


def test_an_actor_that_shares_its_features_stays_while_only_the_critic_learns():
    env = Toy(IMAGE, CHOOSE)
    model = copier([tiny(PPO, env, seed) for seed in (1, 2)], env)
    model.policy.copy_source(1)
    model.policy.selection.get_buffer("copied_source").fill_(1)
    model.policy.selection.trial.go(Phase.ALONE)
    before = {name: one.clone() for name, one in model.policy.state_dict().items()}
    model.learn(64, callback=HubCallback(probe_share=0.0, warmup_share=0.9))
    after = model.policy.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "value_net.weight" in changed
    assert not {name for name in changed if name.startswith(("features_extractor", "action_net"))}


def test_networks_that_cannot_be_copied_are_refused():
    env = Toy()
    with pytest.raises(
        SpaceMismatch,
        match=(
            r"Method 'warm-start' goes on from a copy of a source, and source 'sac-0' acts by a "
            r"Gaussian with a bound or a standard deviation that PPO's does not have; use method "
            r"'hub-pathway'\."
        ),
    ):
        copier([tiny(SAC, env)])


def test_one_source_that_can_be_copied_is_enough():
    model = copier([tiny(SAC, Toy()), leaning(0.7)])
    assert model.policy.selection.copyable == [False, True]


def test_the_agents_own_network_takes_the_shape_of_its_sources():
    agent = PPO("MlpPolicy", Toy(), policy_kwargs={"net_arch": [5, 7]}, device="cpu")
    made = Hub.from_agents([agent]).agent(PPO, "warm-start")
    model = PPO(env=Toy(), **made, device="cpu")
    model.policy.copy_source(0)
    widths = [layer.out_features for layer in model.policy.mlp_extractor.policy_net[::2]]
    assert widths == [5, 7]
