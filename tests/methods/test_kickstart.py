"""Kickstarting against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from recorded import RecordedScalars
from small_methods import ACTIONS, ROWS, method_of, sharper, two
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import Logger
from torch.distributions import Categorical, Normal, kl_divergence
from toys import CHOOSE, Toy, quick_dqn, target, tiny

from hubrl import BadConfig, Hub, HubCallback
from hubrl.methods.kickstart import annealed, cross_entropy
from hubrl.reading import read_live


def test_the_cross_entropy_of_gaussians_is_divergence_and_entropy():
    taught, computed = torch.randn(5, 3, 4), torch.randn(5, 4)
    teacher = Normal(taught[:, :, :2], taught[:, :, 2:].exp())
    student = Normal(computed[:, None, :2], computed[:, None, 2:].exp())
    expected = (kl_divergence(teacher, student) + teacher.entropy()).sum(dim=2)
    torch.testing.assert_close(
        cross_entropy(taught, computed, discrete=False), expected, atol=1e-4, rtol=1e-4
    )


def test_the_cross_entropy_of_choices_is_divergence_and_entropy():
    taught, computed = torch.randn(5, 3, 4).log_softmax(dim=2), torch.randn(5, 4)
    teacher, student = Categorical(logits=taught), Categorical(logits=computed[:, None])
    expected = kl_divergence(teacher, student) + teacher.entropy()
    torch.testing.assert_close(cross_entropy(taught, computed, discrete=True), expected)


def test_the_coefficient_falls_linearly_to_zero():
    assert [
        annealed(2.0, 0.5, remaining) for remaining in (1.0, 0.75, 0.5, 0.2, 0.0)
    ] == pytest.approx([2.0, 1.0, 0.0, 0.0, 0.0])
    assert annealed(2.0, 1.0, 0.25) == pytest.approx(0.5)


@pytest.mark.parametrize("options", [{"coef": -1.0}, {"anneal": 0.0}, {"anneal": 1.5}])
def test_a_schedule_that_cannot_be_is_refused(options):
    with pytest.raises(
        BadConfig, match="expected coef of at least 0, and anneal above 0 and at most 1"
    ):
        method_of("kickstart", two(), **options)


@ACTIONS
def test_the_students_loss_is_the_mean_over_teachers_and_states(actions):
    hub = two(actions)
    method = method_of("kickstart", hub, actions=actions, coef=3.0, anneal=0.5)
    method.progress_remaining = 0.75
    fresh = torch.randn(6, method.pathways.width, requires_grad=True)
    routed = method.train()(ROWS, fresh=fresh)
    assert routed.features is fresh
    each = [
        cross_entropy(source.outputs(ROWS)[:, None], fresh, discrete=actions is CHOOSE)
        for source in hub
    ]
    torch.testing.assert_close(routed.loss, 1.5 * torch.cat(each).mean())
    assert torch.autograd.grad(routed.loss, fresh)[0].abs().max() > 0


def test_there_is_no_lesson_outside_of_gradient_steps_or_when_it_is_over():
    method = method_of("kickstart", two(), anneal=0.5)
    fresh = torch.randn(6, 4, requires_grad=True)
    assert method.train()(ROWS, fresh=fresh).loss.item() > 0
    with torch.no_grad():
        assert method(ROWS, fresh=fresh).loss.item() == 0
    assert method.eval()(ROWS, fresh=fresh).loss.item() == 0
    method.train().progress_remaining = 0.5
    over = method(ROWS, fresh=fresh).loss
    assert over.item() == 0
    assert not over.requires_grad


@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=["ppo", "dqn"])
def test_the_coefficient_follows_the_callback(algorithm):
    env = Toy(actions=CHOOSE)
    memory = RecordedScalars()
    model = target(algorithm, env, two(CHOOSE).agent(algorithm, "kickstart", coef=2.0, anneal=0.5))
    model.set_logger(Logger(None, [memory]))
    model.learn(128, callback=HubCallback(log_every=1), log_interval=1)
    values = memory.values("kickstart/coef")
    if algorithm is PPO:
        assert values == pytest.approx([2.0, 1.0, 0.0, 0.0])
    else:
        assert values == sorted(values, reverse=True)
        assert 1 < values[0] <= 2
        assert values[-1] == 0


@ACTIONS
def test_ppos_student_is_pulled_towards_its_teachers(actions):
    env = Toy(actions=actions)
    hub = sharper(two(actions, (PPO,)))
    apart = {}
    for coef in (0.0, 20.0):
        made = hub.agent(PPO, "kickstart", coef=coef, anneal=1.0)
        model = target(PPO, env, made, learning_rate=1e-2, n_epochs=4).learn(
            192, callback=HubCallback()
        )
        with torch.no_grad():
            computed = model.policy.route(ROWS).features
            apart[coef] = (
                cross_entropy(model.policy.method.teach(ROWS), computed, discrete=actions is CHOOSE)
                .mean()
                .item()
            )
    assert apart[20.0] < apart[0.0] - 0.05


def test_dqns_student_is_taught_by_what_its_teachers_would_do():
    env = Toy(actions=CHOOSE)
    hub = Hub([read_live(tiny(PPO, env, 3), "teacher")])
    rows = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)
    agree = {}
    for coef in (0.0, 5.0):
        made = hub.agent(DQN, "kickstart", coef=coef, anneal=1.0)
        model = quick_dqn(env, made)
        model.learn(400, callback=HubCallback())
        does = model.predict(rows, deterministic=True)[0]
        assert np.array_equal(does, model.q_net(torch.as_tensor(rows)).argmax(dim=1)), (
            "the student acts, and nobody else"
        )
        agree[coef] = (does == hub[0].predict(rows, deterministic=True)[0]).mean()
    assert agree[5.0] > agree[0.0] + 0.15
