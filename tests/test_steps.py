"""A rollout's step in numpy is torch's, but for how float32 adds up."""

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import CHOOSE, IMAGE, PARTS, STEER, VECTOR, Toy, target, tiny_hub

from hubrl.callbacks import HubCallback
from hubrl.distributions import draw_pathway
from hubrl.steps import Step, _drawn


class Compare(BaseCallback):
    """Takes every step of a rollout both ways, from the same state of the generator."""

    def _on_training_start(self):
        policy, self.compared = self.model.policy, 0
        decided = policy._decided

        def both(decider, hearing, deterministic):
            step, state = policy._step, torch.get_rng_state()
            policy._step = None
            slow = decided(decider, hearing, deterministic)
            policy.method.tally._waiting.pop()
            after = torch.get_rng_state()
            torch.set_rng_state(state)
            policy._step = step
            assert step is not None
            quick = decided(decider, hearing, deterministic)
            assert torch.equal(torch.get_rng_state(), after), "as many random numbers are drawn"
            assert torch.equal(quick.acted, slow.acted)
            for name in ("said", "actions", "values", "log_prob"):
                one, other = getattr(quick, name), getattr(slow, name)
                assert one.dtype == other.dtype
                assert one.shape == other.shape
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
            self.compared += 1
            return quick

        policy._decided = both

    def _on_step(self):
        return True


OPTIONS = [
    {},
    {"hold": 1},
    {"residual": False},
    {"fresh": False, "solo_share": 0.0},
    {"source_std": None},
    {"source_std": None, "fresh": False, "solo_share": 0.0},
    {"scale_values": False},
    {"activation_fn": nn.ReLU},
    {"net_arch": []},
]


@pytest.mark.parametrize("actions", [STEER, CHOOSE])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_step_in_numpy_is_the_step_in_torch(actions, options):
    own = {name: value for name, value in options.items() if name not in ("activation_fn", "net_arch")}
    made = tiny_hub(Toy(VECTOR, actions)).agent(PPO, **{"hold": 3, **own})
    made["policy_kwargs"].update({name: options[name] for name in ("activation_fn", "net_arch") if name in options})
    env = make_vec_env(lambda: Toy(VECTOR, actions), n_envs=4, seed=0)
    model, compare = target(PPO, env, made, learning_rate=1e-2), Compare()
    model.learn(512, callback=[HubCallback(probe_share=0.0, warmup_share=0.0), compare])
    assert compare.compared >= 96


@pytest.mark.parametrize("actions", [STEER, CHOOSE])
def test_behind_a_probe_some_play_alone_and_some_are_dropped(actions):
    env = make_vec_env(lambda: Toy(VECTOR, actions), n_envs=4, seed=0)
    model, compare = target(PPO, env, tiny_hub(Toy(VECTOR, actions)).agent(PPO, hold=3), learning_rate=1e-2), Compare()
    policy = model.policy
    policy.method.trust([True, False, True], [0.0, 0.0, 0.0])
    policy.solos.believe([0.0, -1.0, -1.0])
    policy.solos.share = 0.9
    model.learn(512, callback=[HubCallback(probe_share=0.0, warmup_share=0.0), compare])
    assert compare.compared >= 64
    del policy._decided
    with torch.no_grad():
        policy.quick = True
        policy.set_training_mode(False)
        policy.commit()
        rows = torch.randn(4, 4)
        one = policy(rows, deterministic=True)[0]
        assert policy._step is not None
        policy.quick = False
        policy._decider = None
        torch.testing.assert_close(policy(rows, deterministic=True)[0], one)
        assert policy._step is None


@pytest.mark.parametrize(
    ("options", "observations", "why"),
    [
        ({}, IMAGE, "images are convolved"),
        ({}, PARTS, "a Dict has parts"),
        ({"recall": False}, VECTOR, "what sources say is not stored"),
        ({"tuned": True}, VECTOR, "tuned ones are asked one by one"),
        ({"top_k": 1, "solo_share": 0.0}, VECTOR, "not all pathways are active"),
        ({"aggregation": "mean", "hold": 1, "solo_share": 0.0}, VECTOR, "nobody is drawn"),
    ],
)
def test_what_is_not_known_in_numpy_is_left_to_torch(options, observations, why, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(why)

    monkeypatch.setattr(Step, "__call__", refuse)
    env = Toy(observations)
    model = target(PPO, env, tiny_hub(env).agent(PPO, **options))
    model.learn(64, callback=HubCallback(probe_share=0, warmup_share=0))


def test_many_rows_are_torchs(monkeypatch):
    asked = []
    original = Step.__call__
    monkeypatch.setattr(Step, "__call__", lambda *args, **kwargs: asked.append(len(args[1])) or original(*args, **kwargs))
    for n_envs in (2, 40):
        env = make_vec_env(Toy, n_envs=n_envs, seed=0)
        target(PPO, env, tiny_hub(Toy()).agent(PPO), n_steps=8).learn(1, callback=HubCallback(probe_share=0, warmup_share=0))
    assert set(asked) == {2}


@pytest.mark.parametrize(("width", "asked"), [(64, True), (512, False)])
def test_large_layers_are_torchs(width, asked, monkeypatch):
    """Numpy's OpenBLAS would take threads of its own for them."""
    calls, original = [], Step.__call__
    monkeypatch.setattr(Step, "__call__", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs))
    made = tiny_hub(Toy()).agent(PPO)
    made["policy_kwargs"]["net_arch"] = [width, width]
    env = make_vec_env(Toy, n_envs=2, seed=0)
    target(PPO, env, made).learn(1, callback=HubCallback(probe_share=0, warmup_share=0))
    assert bool(calls) is asked


def test_a_dropped_pathway_has_no_weight():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO))
    policy = model.policy
    policy.method.trust([True, False, True], [1.0, 9.0, 0.0])
    policy.quick, policy._knows_hidden = True, True
    policy.set_training_mode(False)
    step = policy._made_step(policy._made_decider())
    weights = np.exp(step._weighed(np.zeros((1, 4), dtype=np.float32), None))
    assert weights[0].tolist() == pytest.approx([np.e / (1 + np.e), 0.0, 1 / (1 + np.e)])


def test_a_pathway_is_drawn_by_weight_as_torch_draws_it():
    logits = torch.log_softmax(torch.tensor([[0.0, 1.0, -torch.inf, 2.0]]).expand(4000, -1), dim=1)
    torch.manual_seed(0)
    drawn = draw_pathway(logits)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.multinomial(logits.exp(), 1, replacement=True).squeeze(1))
    torch.manual_seed(0)
    assert np.array_equal(_drawn(logits.numpy(), None, deterministic=False), drawn.numpy())
    shares = drawn.bincount(minlength=4) / 4000
    torch.testing.assert_close(shares, logits[0].exp(), atol=0.03, rtol=0.0)
    assert shares[2] == 0


class Stop(BaseCallback):
    """Ends a training within its first rollout, so that no update follows."""

    def _on_step(self):
        return self.n_calls < 3


def test_a_training_that_ended_in_a_rollout_goes_on_with_the_weights_that_it_finds():
    env = make_vec_env(Toy, n_envs=2, seed=0)
    model = target(PPO, env, tiny_hub(Toy()).agent(PPO))
    model.learn(64, callback=[HubCallback(probe_share=0, warmup_share=0), Stop()])
    assert model.policy._step is not None
    parameters = model.get_parameters()
    parameters["policy"] = {name: tensor + 0.1 if "value_net" in name else tensor for name, tensor in parameters["policy"].items()}
    model.set_parameters(parameters)
    compare = Compare()
    model.learn(64, callback=[HubCallback(probe_share=0, warmup_share=0), compare], reset_num_timesteps=False)
    assert compare.compared >= 32


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
        assert all(torch.equal(entropy, -log_prob) and not entropy.requires_grad for log_prob, entropy in seen)
    assert model.policy.bonus
