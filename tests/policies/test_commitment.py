"""Pathways that are held, and what a rollout remembers for its update."""

import math

import numpy as np
import pytest
import torch
from checks import Ratios
from gymnasium import spaces
from hubs import trusted
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.env_util import make_vec_env
from toys import CHOOSE, PARTS, STEER, Toy, target, tiny_hub

from hubrl import BadConfig, HubCallback
from hubrl.policies.on_policy.distributions import CommittedDistribution
from hubrl.policies.on_policy.rollout_buffer import HubRolloutBuffer
from hubrl.routing.weights import transition_log_probs
from hubrl.sources.source import Source

WEIGHTS = torch.tensor([[0.5, 0.3, 0.2]])


def transition(previous, stay=None):
    return transition_log_probs(WEIGHTS.log(), torch.tensor([previous]), stay)[0].exp().tolist()


def test_without_a_stay_logit_the_previous_pathway_acts_again():
    assert transition(-1) == pytest.approx([0.5, 0.3, 0.2])
    assert transition(1) == pytest.approx([0, 1, 0])


def test_the_stay_logit_is_added_to_the_previous_pathway():
    sticky = torch.tensor([[9.0, math.log(4), 9.0]])
    total = 0.5 + 4 * 0.3 + 0.2
    assert transition(1, sticky) == pytest.approx([0.5 / total, 1.2 / total, 0.2 / total])
    assert transition(-1, sticky) == pytest.approx([0.5, 0.3, 0.2])


def test_a_commitment_ends_when_its_pathway_is_not_active():
    weights = torch.tensor([[0.6, 0.0, 0.4]])
    for stay in (None, torch.full((1, 3), 5.0)):
        assert transition_log_probs(weights.log(), torch.tensor([1]), stay)[
            0
        ].exp().tolist() == pytest.approx([0.6, 0.0, 0.4])


def test_equal_weights_end_a_commitment_once_in_hold_steps_at_the_start():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO, hold=8, release="learned"))
    thirds = torch.full((1, 3), 1 / 3)
    sticky = model.policy.stay_logit(torch.zeros(1, model.policy.mlp_extractor.latent_dim_pi))
    assert transition_log_probs(thirds.log(), torch.tensor([2]), sticky)[
        0, 2
    ].exp().item() == pytest.approx(7 / 8)


def test_the_likelihood_is_of_pathway_and_action():
    outputs_of_each = torch.tensor([[[0.0, math.log(1.0)], [2.0, math.log(0.5)]]])
    one = CommittedDistribution(spaces.Box(-1.0, 1.0, (1,))).given(torch.tensor([1]))
    one.proba_distribution(outputs_of_each, torch.tensor([[0.75, 0.25]]).log())
    density = math.exp(-((1.8 - 2.0) ** 2) / (2 * 0.25)) / (0.5 * math.sqrt(2 * math.pi))
    assert one.log_prob(torch.tensor([[1.8]])).item() == pytest.approx(
        math.log(0.25 * density), rel=1e-5
    )
    choices = torch.tensor([[[0.9, 0.1], [0.3, 0.7]]]).log()
    other = CommittedDistribution(spaces.Discrete(2)).given(torch.tensor([1]))
    other.proba_distribution(choices, torch.tensor([[0.75, 0.25]]).log())
    assert other.log_prob(torch.tensor([0])).item() == pytest.approx(math.log(0.25 * 0.3), rel=1e-5)


@pytest.mark.parametrize("observations", [Toy().observation_space, PARTS])
@pytest.mark.parametrize("actions", [STEER, CHOOSE])
@pytest.mark.parametrize("release", ["fixed", "learned"])
def test_ratios_are_one_with_noise_top_k_and_commitments(release, actions, observations):
    env = make_vec_env(lambda: Toy(observations, actions), n_envs=2, seed=0)
    made = tiny_hub(Toy(observations, actions)).agent(PPO, hold=4, release=release, top_k=2)
    model = target(PPO, env, made, learning_rate=1e-2)
    ratios = Ratios()
    model.learn(256, callback=[HubCallback(probe_share=0, warmup_share=0), ratios])
    assert ratios.rollouts == 4
    assert ratios.greatest < 1e-4
    before, after = np.concatenate(ratios.pathways).reshape(-1, 2).T
    assert set(np.unique(after)) <= {0, 1, 2}
    assert (before == -1).any(), "an episode begins without a commitment"
    stayed = (before == after)[before >= 0].mean()
    # A rule that is learned may unlearn to hold at these learning rates.
    assert stayed > (0.45 if release != "learned" else 0.0), (
        "without holding a third stays by chance"
    )


def test_a_fixed_commitment_lasts_exactly_hold_steps():
    env = make_vec_env(Toy, n_envs=1, seed=0)
    model = target(PPO, env, tiny_hub(Toy()).agent(PPO, hold=3, release="fixed", judging_share=0))
    ratios = Ratios()
    model.learn(32, callback=[HubCallback(probe_share=0), ratios])
    before = ratios.pathways[0].reshape(-1, 2)[:10, 0]
    assert np.array_equal(np.flatnonzero(before == -1), [0, 3, 6, 9]), "an episode of ten steps"


def test_recorded_outputs_of_frozen_sources_are_not_computed_again(monkeypatch):
    rows = []
    features = Source.features
    monkeypatch.setattr(
        Source, "features", lambda source, seen: (rows.append(len(seen)), features(source, seen))[1]
    )

    def trained(**options):
        rows.clear()
        env = make_vec_env(Toy, n_envs=2, seed=0)
        model = trusted(target(PPO, env, hub.agent(PPO, hold=1, **options)))
        ratios = Ratios()
        model.learn(128, callback=[HubCallback(probe_share=0), ratios])
        acted = np.concatenate(ratios.pathways).reshape(-1, 2)[:, 1]
        return model, sum(rows), int((acted < 2).sum())

    hub = tiny_hub(Toy())
    recalling, few, _ = trained()
    computing, many, of_sources = trained(recall=False)
    # 64 steps of 2 environments and 2 sources; without memory whoever acts, in the rollout, in the two epochs and where ratios are taken.
    assert few == 128 * 2
    assert 0 < of_sources <= 128
    assert many == 4 * of_sources
    for name, tensor in recalling.policy.state_dict().items():
        torch.testing.assert_close(
            tensor, computing.policy.state_dict()[name], atol=1e-6, rtol=1e-5
        )


def test_without_a_callback_pathways_are_drawn_anew():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO))
    model.learn(64)
    assert not model.policy.commits
    assert type(model.rollout_buffer) is RolloutBuffer
    assert model.predict(np.zeros(4, np.float32))[1] is None


def test_a_model_with_commitments_goes_on_only_with_a_callback(tmp_path):
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO))
    model.learn(64, callback=HubCallback(probe_share=0))
    assert model.policy.commits
    assert isinstance(model.rollout_buffer, HubRolloutBuffer)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", env=env, device="cpu")
    assert loaded.policy.commits
    with pytest.raises(BadConfig, match=r"pass HubCallback\(\) to go on"):
        loaded.learn(64)
    loaded.learn(64, callback=HubCallback(probe_share=0))


def test_predict_returns_the_committed_pathways():
    env = Toy()
    model = target(A2C, env, tiny_hub(env).agent(A2C, hold=4, release="fixed"))
    model.learn(64, callback=HubCallback(probe_share=0))
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    state, who = None, []
    for _ in range(9):
        actions, state = model.predict(rows, state=state)
        assert actions.shape == (3, 2)
        who.append(state[0].copy())
    assert state[1].tolist() == [1, 1, 1]
    for begin in (0, 4):
        assert all(np.array_equal(who[begin], who[begin + i]) for i in range(4))
    _, state = model.predict(
        rows, state=state, episode_start=np.array([True, False, False]), deterministic=True
    )
    assert state[0].shape == (3,)


@pytest.mark.parametrize(("release", "steps"), [("fixed", 3), ("learned", 6)])
def test_commitments_end_under_deterministic_actions_too(release, steps):
    env = make_vec_env(Toy, n_envs=1, seed=0)
    model = target(PPO, env, tiny_hub(Toy()).agent(PPO, hold=3, release=release, judging_share=0))
    model.learn(32, HubCallback(probe_share=0, warmup_share=0))
    bias, row, state, who = (
        model.policy.method.router.mean.bias,
        np.zeros((1, 4), dtype=np.float32),
        None,
        [],
    )
    for _ in range(6):
        with torch.no_grad():
            bias.copy_(torch.tensor([0.0, 1.0, 0.0] if state is None else [1.0, 0.0, 0.0]))
        _, state = model.predict(row, state=state, deterministic=True)
        who.append(int(state[0][0]))
    assert who == [1] * steps + [0] * (6 - steps), (
        "a learned rule holds on to whom it likes a little less"
    )


def test_a_mean_has_no_commitment():
    env = Toy()
    hub = tiny_hub(env)
    assert hub.agent(PPO, aggregation="mean")["policy_kwargs"]["outputs"] == {"aggregation": "mean"}
    with pytest.raises(
        BadConfig,
        match="hold=3 was given for aggregation='mean', which draws no pathway; leave it out.",
    ):
        target(PPO, env, hub.agent(PPO, aggregation="mean", hold=3))
    with pytest.raises(BadConfig, match="hold: Input should be greater than or equal to 1"):
        hub.agent(PPO, hold=0.5)


def test_while_the_critic_warms_up_the_actor_does_not_change():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO, judging_share=0.0))
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    model.learn(64, callback=HubCallback(probe_share=0, warmup_share=0.9))
    moved = {
        name
        for name, tensor in model.policy.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert {name.split(".")[0] for name in moved} == {
        "mlp_extractor",
        "value_net",
        "noise_key",
        "committed",
        "warm_until",
    }
    assert not any("policy_net" in name for name in moved)
    assert not model.policy.training_state.critic_only, "the actor learns again after the training"
    model.learn(64, callback=HubCallback(probe_share=0, warmup_share=0))
    assert not torch.equal(
        model.policy.state_dict()["method.router.mean.bias"], before["method.router.mean.bias"]
    )


class OwnBuffer(RolloutBuffer):
    """A user's own."""


def test_a_buffer_of_the_users_own_is_left_alone():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO), rollout_buffer_class=OwnBuffer)
    model.learn(64, callback=HubCallback(probe_share=0))
    assert type(model.rollout_buffer) is OwnBuffer
    assert not model.policy.commits, (
        "no buffer records the acting pathway, so there is no commitment"
    )
