"""The committed decision: one pathway computed per row, with the numbers and gradients of all."""

import gc
import weakref

import numpy as np
import pytest
import torch
from hubs import trusted
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import CHOOSE, IMAGE, STEER, VECTOR, Toy, target, tiny, tiny_hub

from hubrl import Hub, HubCallback
from hubrl.policies.on_policy.head import draw_pathway
from hubrl.policies.on_policy.step import TrainingState
from hubrl.sources.batched import GaussianHeads
from hubrl.sources.source import Source


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
    asks_one = policy.current_head

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
                        policy, "current_head", asks_one if weighs else lambda context: None
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
            monkeypatch.setattr(policy, "current_head", asks_one)
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
            lambda seen, computed=pathway.forward: (rows.append(len(seen)), computed(seen))[1],
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
    by_rows = GaussianHeads.__call__

    def of_members(heads, features, member=None):
        assert member is not None, "all were computed together"
        rows.append(len(member))
        return by_rows(heads, features, member)

    monkeypatch.setattr(GaussianHeads, "__call__", of_members)
    model.learn(64, callback=HubCallback(probe_share=0))
    # Two epochs of an update behind a rollout's pass.
    assert 0 < sum(rows) <= at_most * 64


def test_layers_with_hooks_are_called_as_torch_calls_them():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO, judging_share=0.0))
    received = []
    for layer in (
        model.policy.action_net,
        model.policy.mlp_extractor.policy_net[0],
        model.policy.value_net,
    ):
        layer.register_forward_hook(lambda module, given, computed: received.append(module))
    model.learn(32, callback=HubCallback(probe_share=0))
    assert len({id(module) for module in received}) == 3


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


def test_layers_in_packs_of_their_own_follow_the_optimizer():
    """After a trial of the fresh pathway its last layer has taken other steps than the correction."""
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO, judging_share=0.0), learning_rate=1e-2)
    model.learn(64, callback=HubCallback(probe_share=0, warmup_share=0))
    policy = model.policy
    for parameter in policy.action_net.parameters():
        policy.optimizer.state.pop(parameter)
    policy.training_state = TrainingState(records_steps=True, fused_update=True)
    policy.set_training_mode(True)
    batch = next(model.rollout_buffer.get(16))
    for _ in range(3):
        values, log_prob, _ = policy.evaluate_actions(batch.observations, batch.actions)
        policy.optimizer.zero_grad()
        (values.sum() + log_prob.sum()).backward()
        policy.optimizer.step()
    assert len(policy.optimizer.packs) == 3
    found = policy.evaluate_actions(batch.observations, batch.actions)[:2]
    policy.end_update()
    again = policy.evaluate_actions(batch.observations, batch.actions)[:2]
    torch.testing.assert_close(found, again)


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
