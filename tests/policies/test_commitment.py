"""Pathways that are held, and what a rollout remembers for its update."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from checks import Ratios
from gymnasium import spaces
from hubs import trusted
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import CHOOSE, IMAGE, PARTS, STEER, VECTOR, Toy, target, tiny, tiny_hub

from hubrl import BadConfig, Hub, HubCallback
from hubrl.policies.on_policy.distributions import CommittedDistribution, draw_pathway
from hubrl.policies.on_policy.rollout_buffer import HubRolloutBuffer
from hubrl.policies.on_policy.step import TrainingState
from hubrl.routing.weights import transition_log_probs
from hubrl.sources.batched import GaussianHeads
from hubrl.sources.source import Source

WEIGHTS = torch.tensor([[0.5, 0.3, 0.2]])


def transition(previous, stickiness=None):
    return (
        transition_log_probs(WEIGHTS.log(), torch.tensor([previous]), stickiness)[0].exp().tolist()
    )


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
    for stickiness in (None, torch.full((1, 3), 5.0)):
        assert transition_log_probs(weights.log(), torch.tensor([1]), stickiness)[
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
    speech = torch.tensor([[[0.0, math.log(1.0)], [2.0, math.log(0.5)]]])
    one = CommittedDistribution(spaces.Box(-1.0, 1.0, (1,))).given(torch.tensor([1]))
    one.proba_distribution(speech, torch.tensor([[0.75, 0.25]]).log())
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
    assert (before == -1).any(), "an episode begins with nobody held"
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
    assert not model.policy.training_state.critic_only, "nobody waits after the training"
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
    assert not model.policy.commits, "nothing stores who acts, so nobody is held"


def gradients_of(policy, loss):
    """Gradients of all parameters in order, zeros where there are none, whether they lie in packs or not."""
    given = list(policy.parameters())
    found = dict(zip(given, torch.autograd.grad(loss, given, allow_unused=True), strict=True))
    for pack in policy.optimizer.packs:
        if found[pack.flat] is not None:
            found.update(zip(pack.members, pack.split(found[pack.flat]), strict=True))
    own = [found.get(parameter) for parameter in torch.nn.Module.parameters(policy)]
    return [torch.zeros(()) if each is None else each for each in own]


@pytest.mark.parametrize("actions", [STEER, CHOOSE])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"recall": False},
        {"source_std": None, "recall": False},
        {"residual": False, "fresh": False},
        {"tuned": True, "source_lr": 1.0},
        {"tuned": True, "source_std": None},
        {"hold": 1},
        {"observations": IMAGE},
        {"activation_fn": nn.SiLU},
        {"release": "fixed"},
        {"top_k": 1, "judging_share": 0.0},
    ],
)
def test_only_the_acting_source_is_computed_with_equal_numbers(actions, options, monkeypatch):
    own = {name: options[name] for name in options if name not in ("observations", "activation_fn")}
    seen = options.get("observations", VECTOR)
    made = tiny_hub(Toy(seen, actions)).agent(
        PPO, **{"hold": 3, "judging_share": 0.0 if "fresh" in options else 0.5, **own}
    )
    made["policy_kwargs"]["activation_fn"] = options.get("activation_fn", nn.Tanh)
    model = target(
        PPO, make_vec_env(lambda: Toy(seen, actions), n_envs=4, seed=0), made, learning_rate=1e-2
    )
    if model.policy.selection is not None:
        trusted(model)
    policy, compared = model.policy, []
    asks_one = policy._current_head

    class Compare(BaseCallback):
        """Evaluates every rollout both ways."""

        def _on_step(self):
            return True

        def _on_rollout_end(self):
            state = np.random.get_state()
            policy.set_training_mode(True)
            for batch in self.model.rollout_buffer.get(16):
                done = batch.actions.long().flatten() if actions is CHOOSE else batch.actions
                found = []
                for weighs in (True, False):
                    monkeypatch.setattr(
                        policy, "_current_head", asks_one if weighs else lambda hearing: None
                    )
                    values, log_prob, _ = policy.evaluate_actions(batch.observations, done)
                    assert not weighs or policy._head[0] is not None
                    assert policy.optimizer.packs or not weighs
                    loss = (log_prob * torch.arange(len(log_prob))).mean() + values.sum()
                    found.append([log_prob, values, *gradients_of(policy, loss)])
                for one, other in zip(*found, strict=True):
                    torch.testing.assert_close(
                        *torch.broadcast_tensors(one, other), atol=1e-4, rtol=1e-4
                    )
                torch.testing.assert_close(found[0][0], batch.old_log_prob, atol=1e-4, rtol=1e-4)
                compared.append(int(sum(each.abs().sum() > 0 for each in found[0][2:])))
            monkeypatch.setattr(policy, "_current_head", asks_one)
            np.random.set_state(state)

    model.learn(256, callback=[HubCallback(probe_share=0.0, warmup_share=0.0), Compare()])
    assert min(compared) >= 10, "gradients reach the router, the critic and who acts"


@pytest.mark.parametrize("options", [{"release": "fixed"}, {"activation_fn": nn.SiLU}])
def test_in_an_update_tuned_sources_are_computed_for_their_own_rows_alone(options, monkeypatch):
    env, own = Toy(), {name: value for name, value in options.items() if name != "activation_fn"}
    made = tiny_hub(env).agent(PPO, tuned=True, hold=3, judging_share=0.0, **own)
    made["policy_kwargs"]["activation_fn"] = options.get("activation_fn", nn.Tanh)
    model = target(PPO, env, made)
    model.learn(64, callback=HubCallback(probe_share=0))
    policy, rows = model.policy, []
    policy.set_training_mode(True)
    for pathway in policy.method.pathways.sources:
        monkeypatch.setattr(
            pathway,
            "forward",
            lambda seen, said=pathway.forward: (rows.append(len(seen)), said(seen))[1],
        )
    for batch in model.rollout_buffer.get(16):
        rows.clear()
        acted = batch.observations.record.acted
        policy.evaluate_actions(batch.observations, batch.actions)
        assert sum(rows) == int((acted < 2).sum())


@pytest.mark.parametrize(
    ("options", "at_most"),
    [({"top_k": 2}, 1.0), ({"top_k": 1}, 1.0), ({"top_k": 2, "recall": False}, 3.0)],
)
def test_of_eight_sources_a_route_computes_the_one_that_acts(options, at_most, monkeypatch):
    env = Toy()
    hub = Hub.from_agents([tiny(PPO, env, seed) for seed in range(8)])
    model = target(PPO, env, hub.agent(PPO, fresh=False, **options))
    rows = []
    compute_outputs = Source.compute_outputs
    monkeypatch.setattr(
        Source,
        "compute_outputs",
        lambda source, features: (rows.append(len(features)), compute_outputs(source, features))[1],
    )
    monkeypatch.setattr(
        GaussianHeads, "__call__", lambda *given: pytest.fail("all were computed together")
    )
    model.learn(64, callback=HubCallback(probe_share=0))
    # Two epochs of an update behind a rollout's pass.
    assert 0 < sum(rows) <= at_most * 64


def test_layers_with_hooks_are_called_as_torch_calls_them():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO, judging_share=0.0))
    heard = []
    for layer in (
        model.policy.action_net,
        model.policy.mlp_extractor.policy_net[0],
        model.policy.value_net,
    ):
        layer.register_forward_hook(lambda module, given, said: heard.append(module))
    model.learn(32, callback=HubCallback(probe_share=0))
    assert len({id(module) for module in heard}) == 3


def test_a_layer_that_replaces_another_is_used():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO, judging_share=0.0))
    model.learn(32, callback=HubCallback(probe_share=0))
    model.policy.action_net = nn.Linear(8, 2)
    model.policy.set_training_mode(False)
    model.policy.set_training_mode(True)
    for batch in model.rollout_buffer.get(16):
        _, log_prob, _ = model.policy.evaluate_actions(batch.observations, batch.actions)
        (gradient,) = torch.autograd.grad(log_prob.sum(), [model.policy.action_net.weight])
        assert gradient.abs().sum() > 0


def test_a_rollouts_log_probability_has_the_gradient_of_an_updates():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO, judging_share=0.0))
    model.learn(32, callback=HubCallback(probe_share=0))
    policy = model.policy
    policy.value_net.rescale(3.0, 10.0)
    policy.enable_commitment()
    policy.training_state = TrainingState(records_steps=True)
    rows = torch.randn(8, 4)
    found = [
        torch.autograd.grad(values.sum(), [policy.value_net.bias])[0]
        for values in (policy(rows)[1], policy.predict_values(rows))
    ]
    torch.testing.assert_close(*found)


def test_a_step_is_freed_with_its_loss():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO, judging_share=0.0))
    model.learn(64, callback=HubCallback(probe_share=0))
    policy = model.policy
    policy.set_training_mode(True)
    gc.collect()
    gc.disable()
    try:
        batch = next(iter(model.rollout_buffer.get(16)))
        values, log_prob, _ = policy.evaluate_actions(batch.observations, batch.actions)
        watched = [weakref.ref(values), weakref.ref(log_prob), weakref.ref(log_prob.grad_fn)]
        (values.sum() + log_prob.sum()).backward()
        del values, log_prob
        assert [each() for each in watched] == [None] * 3, (
            "no cycle keeps the minibatch until the collector comes"
        )
    finally:
        gc.enable()


def test_a_pathway_is_drawn_by_weight_as_torch_draws_it():
    logits = torch.log_softmax(torch.tensor([[0.0, 1.0, -torch.inf, 2.0]]).expand(4000, -1), dim=1)
    torch.manual_seed(0)
    drawn = draw_pathway(logits)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.multinomial(logits.exp(), 1, replacement=True).squeeze(1))
    shares = drawn.bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, logits[0].exp(), atol=0.03, rtol=0.0)
    assert shares[2] == 0


@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
def test_the_entropy_has_a_gradient_where_the_algorithm_asks_for_it(ent_coef):
    model, seen = target(PPO, Toy(), tiny_hub(Toy()).agent(PPO), ent_coef=ent_coef), []
    evaluate = model.policy.evaluate_actions

    def watched(*args):
        made = evaluate(*args)
        seen.append((made[1].detach(), made[2]))
        return made

    model.policy.evaluate_actions = watched
    model.learn(32, callback=HubCallback(probe_share=0, warmup_share=0))
    if ent_coef:
        assert all(entropy is None for _, entropy in seen), "SB3 then estimates it with a gradient"
    else:
        assert all(
            torch.equal(entropy, -log_prob) and not entropy.requires_grad
            for log_prob, entropy in seen
        )
    assert model.policy.training_state.entropy_gradient
