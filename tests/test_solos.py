"""Episodes that one pathway plays alone, and trust that follows what it earns."""

import math

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from test_holding import Ratios
from torch import nn
from toys import CHOOSE, STEER, VECTOR, Constant, Toy, target, tiny_hub

from hubrl import BadConfig, Hub, HubCallback, Source, pathway_weights
from hubrl.evidence import DISTRUST, behind
from hubrl.growth import Phase
from hubrl.outputs import ALONE
from hubrl.pathways import FRESH
from hubrl.reading import read_agent
from hubrl.routing import Router
from hubrl.solos import APART, DOUBTED, LATE, LATEST, LEADS, MOST_BEHIND, Solos


def up_and_down():
    """A source that earns 2 a step in the toy task, and one that loses as much."""
    return Hub(
        Source(encoder=nn.Flatten(), head=Constant(value), name=name, observation_space=VECTOR, action_space=STEER)
        for name, value in (("up", 1.0), ("down", -1.0))
    )


def played(returns, last="c"):
    solos = Solos(["a", "b", last], 0.5)
    for index, earned in enumerate(returns):
        for value in earned:
            solos.standing.note(index, value)
    return solos


def test_who_is_believed_worse_plays_less_and_only_who_is_trusted():
    np.random.seed(0)
    solos = Solos(["a", "b", "c"], 0.9)
    solos.believe([1.0, 1.0 - 2 * math.log(4), -99.0])
    assert solos.get_buffer("lag").tolist() == pytest.approx([0.0, 2 * math.log(4), MOST_BEHIND])
    solos.remaining = 0.5
    solos.share = 1.8
    solos.begin(4000, [True, True, False])
    shares = [float((solos.playing == who).mean()) for who in (-1, 0, 1, 2)]
    assert shares[:3] == pytest.approx([0.1, 0.9 * 0.8, 0.9 * 0.2], abs=0.03)
    assert shares[3] == 0
    solos.remaining = 0.0
    solos.playing = torch.tensor([2, -1])
    solos.ended(0, 5.0, [True, True, True])
    solos.ended(1, 7.0, [True, True, True])
    assert solos.standing.of(2) == [5.0], "what several pathways earned together is nobody's"
    assert solos.playing.tolist() == [-1, -1], "at the end of training nobody plays alone"


@pytest.mark.parametrize(
    ("a", "b", "together", "tells"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0], [], (True, True)),
        ([1.0, 2.0, 3.0], [101.0, 102.0, 104.0], [], (False, False)),  # surely apart
        ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0] * 4, [], (True, False)),  # b is known well
        ([1.0, 2.0, 3.0], [101.0, 102.0, 104.0], [100.0, 103.0, 105.0], (False, True)),  # b or all together?
        ([1.0, 2.0], [1.0, 2.0, 4.0], [], (True, False)),  # a is not judged yet
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [], (True, True)),  # nothing varies and nobody is ahead
    ],
)
def test_nobody_plays_alone_whose_episode_would_tell_nothing_more(a, b, together, tells):
    solos = played([a, b, []])
    solos.believe([0.0, 0.0, -4.0])
    solos.share, solos.remaining = 10.0, 0.5
    for earned in together:
        solos.together.note(0, earned)
    np.random.seed(0)
    solos.begin(200, [True, True, False])
    assert [bool((solos.playing == who).any()) for who in (0, 1)] == list(tells)


def test_sources_are_judged_first_and_the_fresh_pathway_is_not():
    np.random.seed(0)
    solos = Solos(["a", "b", "fresh"], 0.0)
    solos.begin(8, [True, True, True])
    assert (solos.playing == -1).all(), "nobody was probed"
    solos.believe([0.0, 0.0, -4.0])
    solos.begin(8, [True, True, True])
    assert solos.playing.tolist() == [0, 1, 0, 1, 0, 1, -1, -1]
    solos.ended(0, 1.0, [True, True, True])
    assert solos.playing[0] == -1, "what others are playing counts"
    solos.begin(4, [True, False, True])
    assert (solos.playing == -1).all(), "one source has nobody to be compared with"
    solos.remaining = 0.5
    solos.begin(4, [True, True, True])
    assert (solos.playing == -1).all(), "too late"


def in_doubt(returns):
    """Two sources in doubt beside a fresh pathway; nobody beyond these whole episodes."""
    solos = Solos(["good", "bad", "fresh"], 0.0)
    solos.believe([-DISTRUST, -DISTRUST, 0.0], ["good", "bad"])
    for index, earned in enumerate(returns):
        for value in earned:
            solos.standing.note(index, value)
    return solos


def test_where_sources_are_in_doubt_the_fresh_pathway_is_judged_too():
    solos = in_doubt([[1.0] * DOUBTED, [1.0] * (DOUBTED - 1), [1.0] * (DOUBTED - 2)])
    solos.begin(4, [True, True, True])
    assert solos.playing.tolist() == [2, 1, 2, -1]
    solos = in_doubt([[]] * 3)
    solos.begin(3, [True, False, True])
    assert solos.playing.tolist() == [0, 2, 0], "one source is compared with the fresh pathway"


def test_who_earned_clearly_more_than_the_fresh_pathway_stays_and_who_did_not_is_dropped():
    good, bad, fresh = [100.0, 120.0, 80.0, 110.0, 90.0], [10.0, -30.0, 20.0, -10.0, 0.0], [-50.0, 50.0, 0.0, -20.0, 20.0]
    solos = in_doubt([good, bad, fresh[:-1]])
    assert solos.settle([True, True, True]) is None, "the fresh pathway has played too little"
    solos.standing.note(2, fresh[-1])
    solos.playing, solos.shown = torch.tensor([0, 1, -1]), torch.tensor([True, True, True])
    kept, start = solos.settle([True, True, True])
    assert kept == [True, False, True]
    assert start == [0.0, 0.0, -DISTRUST]
    solos.drop(kept)
    assert solos.playing.tolist() == [0, -1, -1]
    assert solos.standing.of(1) == [], "who was dropped acts for nobody"
    assert solos.shown.tolist() == [True, False, True], "what is begun without noise ends so, but for whom is dropped"
    assert solos.get_buffer("lag").tolist() == [0.0, 0.0, DISTRUST]
    assert solos.settle(kept) is None, "nobody is in doubt any more"


def test_late_two_episodes_of_each_are_enough_to_end_doubt():
    solos = in_doubt([[100.0, 120.0], [-50.0, -60.0], [0.0, 10.0]])
    solos.remaining = 0.81
    assert solos.settle([True, True, True]) is None
    solos.remaining = 0.8
    kept, start = solos.settle([True, True, True])
    assert kept == [True, False, True]
    assert start == [0.0, 0.0, -DISTRUST]


def test_where_doubt_ends_for_nobody_the_fresh_pathway_is_alone():
    solos = in_doubt([[0.0] * DOUBTED, [5.0] * DOUBTED, [5.0] * DOUBTED])
    kept, start = solos.settle([True, True, True])
    assert kept == [False, False, True]
    assert start == [0.0, 0.0, 0.0]


def test_nobody_is_dropped_for_lack_of_evidence():
    """A source that survives plays long episodes, and few of them fit into a fifth of a short training."""
    solos = in_doubt([[272.0, 287.0], [158.0], [-464.0]])
    solos.remaining = 0.6
    assert solos.settle([True, True, True]) is None
    solos.begin(2, [True, True, True])
    assert sorted(solos.playing.tolist()) == [1, 2], "those with one episode play on, however late it is"
    solos.standing.note(1, 160.0)
    solos.standing.note(2, -400.0)
    assert solos.settle([True, True, True])[0] == [True, True, True]


def test_who_is_clearly_behind_is_lowered_once_by_as_many_standard_errors():
    one, other = [10.0, 11.0, 12.0], [4.0, 5.0, 6.0]
    solos = played([one, other, []])
    apart = 6.0 / math.sqrt(2 * np.var(one, ddof=1) / 3)
    assert apart > MOST_BEHIND
    assert solos.revised([True, True, False]).tolist() == [0.0, MOST_BEHIND, 0.0]
    assert solos.revised([True, True, False]).tolist() == [0.0, 0.0, 0.0]
    for value in (50.0, 50.1, 50.2):
        solos.standing.note(1, value)
    change = solos.revised([True, True, False])
    assert change.tolist() == [0.0, -MOST_BEHIND, 0.0], "raised at once; six returns that vary so say nothing of the other"
    assert played([one, other[:2], []]).revised([True, True, False]).tolist() == [0.0, 0.0, 0.0], "too few to say"


def test_who_may_be_behind_by_chance_stays_as_believed_and_who_is_not_is_raised():
    one, other = [10.0, 11.0, 12.0], [7.0, 8.0, 9.0]
    # 3.67 standard errors, which with three returns each are worth 2.35.
    assert played([one, other, []]).revised([True, True, False]).tolist() == [0.0, 0.0, 0.0]
    believed = played([one, other, []])
    believed.believe([-5.0, 0.0, -4.0])
    assert believed.revised([True, True, True]).tolist() == [-5.0, 0.0, 0.0]


def test_nobody_is_lowered_while_all_together_earn_more_than_the_best_alone():
    returns = [[10.0, 11.0, 12.0], [4.0, 5.0, 6.0], []]
    solos = played(returns)
    for earned in (20.0, 1.0, 15.0):
        solos.together.note(0, earned)
    assert solos.revised([True, True, False]).tolist() == [0.0, 0.0, 0.0]
    solos.together.note(0, 0.0)
    assert solos.revised([True, True, False]).tolist() == [0.0, MOST_BEHIND, 0.0]


@pytest.mark.parametrize(("others", "rises"), [([9.0, 9.5, 10.0], False), ([10.0, 10.5, 11.5], True)])
def test_only_who_is_within_a_standard_error_of_the_best_rises(others, rises):
    solos = played([[10.0, 11.0, 12.0], others, []])
    solos.believe([0.0, -4.0, -9.0])
    lag = behind(others, [10.0, 11.0, 12.0])
    assert 0 < lag < 4, "less than was believed"
    assert (lag < LEADS) == rises
    assert solos.revised([True, True, False])[1].item() == pytest.approx(lag - 4.0 if rises else 0.0)


def change_of_fresh(solos, trusted=(True, True, True), remaining=0.9):
    solos.remaining = remaining
    return solos.revised(list(trusted))[-1].item()


def test_the_fresh_pathway_is_kept_out_while_sources_learn_to_play_together():
    solos = Solos(["a", "b", "fresh"], 0.0)
    assert change_of_fresh(solos) == 0.0, "nobody was probed"
    solos.believe([0.0, -1.0, -DISTRUST])
    assert change_of_fresh(solos) == APART
    assert change_of_fresh(solos, remaining=0.1) == 0.0, "told once"
    assert change_of_fresh(solos, trusted=(True, False, True), remaining=0.1) == -APART, "one is left"


@pytest.mark.parametrize(("together", "early", "comes"), [(5.0, 1.0, True), (20.0, 1.0, False), (5.0, 0.0, False)])
def test_from_half_way_it_comes_in_where_sources_together_fall_and_earn_no_more_than_one_alone(together, early, comes):
    solos = played([[10.0, 11.0, 12.0], [7.0, 8.0, 9.0], []], FRESH)
    solos.believe([0.0, 0.0, -DISTRUST])
    for _ in range(3):
        solos.together.note(0, together)
        solos.early.note(0, early)
    assert change_of_fresh(solos) == APART
    assert change_of_fresh(solos, remaining=LATE) == (-APART if comes else 0.0)


def test_it_is_not_kept_out_beside_one_source_nor_beside_sources_in_doubt_or_clearly_behind():
    clear = played([[10.0, 11.0, 12.0], [4.0, 5.0, 6.0], []], FRESH)
    clear.believe([0.0, 0.0, -DISTRUST])
    assert change_of_fresh(clear) == 0.0, "the other is clearly behind"
    one = Solos(["a", "b", "fresh"], 0.0)
    one.believe([0.0, -1.0, -DISTRUST])
    assert change_of_fresh(one, trusted=(True, False, True)) == 0.0
    assert change_of_fresh(in_doubt([[]] * 3)) == 0.0


def test_whether_it_waits_is_an_option():
    solos = Solos(["a", "b", "fresh"], 0.0, fresh_waits=False)
    solos.believe([0.0, -1.0, -DISTRUST])
    assert change_of_fresh(solos) == 0.0
    waits = [target(PPO, Toy(), tiny_hub(Toy()).agent(PPO, **given)).policy.solos.fresh_waits for given in ({}, {"fresh_waits": False})]
    assert waits == [True, False]


def test_half_way_all_make_way_for_a_source_that_earns_more_alone_than_all_together():
    solos = Solos(["a", "b", "fresh"], 0.0)
    for earned in (10.0, 11.0, 12.0):
        solos.standing.note(0, earned)
        solos.together.note(0, earned - 2.1)
        solos.early.note(0, 1.0)
    solos.remaining = 0.5
    assert (solos.acting, solos.chosen) == (0, -1), "clear enough for evaluations, which can be taken back"
    for earned in (10.0, 11.0, 12.0):
        solos.together.note(0, earned - 9)
    assert (solos.acting, solos.chosen) == (0, 0)
    solos.remaining = 0.51
    assert (solos.acting, solos.chosen) == (0, -1), "they may still learn to play together"
    solos.remaining = 0.5
    for early in (0.0, 0.0, 0.0):
        solos.early.note(0, early)
    assert solos.chosen == -1, "half of their episodes lasted to the limit of time, where they may learn it, too"
    for _ in range(LATEST):
        solos.together.note(0, 10.9)
    assert solos.acting == -1
    solos.drop([True, False, False])
    assert solos.acting == 0, "all others made way: it acts until it earns as much corrected"
    solos.together.note(0, 15.0)
    assert solos.acting == -1


class Falls(Toy):
    """The toy task, whose episodes end before their limit of time."""

    def step(self, action):
        seen, earned, _, over, info = super().step(action)
        return seen, earned, over, False, info


@pytest.mark.parametrize("kind", [Falls, Toy])
def test_it_is_known_whether_episodes_that_all_play_together_end_early(kind):
    env = make_vec_env(kind, n_envs=2, seed=0)
    model = target(PPO, env, up_and_down().agent(PPO, solo_share=0.2), n_steps=32, seed=0)
    model.policy.solos.believe([0.0, 0.0, -4.0])
    model.learn(1500, callback=HubCallback(probe_share=0.0))
    solos = model.policy.solos
    assert len(solos.early.of(0)) == len(solos.together.of(0)) > 2
    assert set(solos.early.of(0)) == {float(kind is Falls)}


def test_nobody_makes_way_while_the_fresh_pathway_learns_alone():
    solos = Solos(["a", "b", "fresh"], 0.0, 0.05)
    for earned in (10.0, 11.0, 12.0):
        solos.standing.note(0, earned)
        solos.together.note(0, earned - 9)
        solos.early.note(0, 1.0)
    solos.remaining = 0.4
    assert solos.chosen == 0
    for phase, chosen in ((Phase.TRIAL, -1), (Phase.ALONE, -1), (Phase.SETTLED, 0)):
        solos.growth._go(phase)
        assert solos.chosen == chosen


def test_an_episode_that_was_not_seen_from_its_beginning_says_nothing():
    solos = Solos(["a", "b", "fresh"], 0.0, 0.05)
    solos.believe([0.0, 0.0, -4.0])
    solos.begin(2, [True, True, True])
    assert solos.playing.tolist() == [0, 1]
    solos.ended(0, 3.0, [True, True, True], whole=False)
    solos.ended(1, 3.0, [True, True, True])
    assert solos.standing.get_buffer("counts").tolist() == [0, 1, 0]
    assert solos.playing[0] >= 0, "the next is chosen all the same"


def test_where_all_make_way_training_goes_on_with_one_source_and_its_correction():
    env = make_vec_env(Falls, n_envs=2, seed=0)
    model = target(PPO, env, up_and_down().agent(PPO, solo_share=0.2), learning_rate=1e-3)
    policy = model.policy
    policy.solos.believe([0.0, 0.0, -4.0])

    class Worse(BaseCallback):
        """Together they earn little, whatever they do."""

        def _on_rollout_end(self):
            for earned in (-30.0, -31.0, -32.0):
                policy.solos.together.note(0, earned)

        def _on_step(self):
            return True

    ratios = Ratios()
    model.learn(1024, callback=[HubCallback(probe_share=0, warmup_share=0), Worse(), ratios])
    assert policy.method.trusted_pathways == [True, False, False]
    assert ratios.greatest < 1e-4
    assert not policy.fresh_alone
    rows = torch.randn(5, 4)
    assert policy.route(rows).weights.tolist() == [[1.0, 0.0, 0.0]] * 5


@pytest.mark.parametrize("actions", [STEER, CHOOSE])
@pytest.mark.parametrize("hold", [1.0, 4.0])
def test_ratios_are_one_and_an_episode_has_one_player(actions, hold):
    env = make_vec_env(lambda: Toy(VECTOR, actions), n_envs=2, seed=0)
    model = target(PPO, env, tiny_hub(Toy(VECTOR, actions)).agent(PPO, hold=hold, solo_share=0.5), learning_rate=1e-2)
    ratios = Ratios()
    np.random.seed(1)
    model.policy.solos.believe([0.0] * 3)
    model.learn(256, callback=[HubCallback(probe_share=0, warmup_share=0), ratios])
    assert ratios.greatest < 1e-4
    before, after = np.concatenate(ratios.pathways).reshape(-1, 2).T
    alone = before <= ALONE
    assert 0.2 < alone.mean() < 0.8
    assert np.array_equal(after[alone], ALONE - before[alone])
    assert int(model.policy.solos.standing.get_buffer("counts").sum()) > 3


def test_trust_follows_what_pathways_earn_alone(tmp_path):
    env = make_vec_env(Toy, n_envs=4, seed=0)
    made = up_and_down().agent(PPO, solo_share=0.6, residual=False)
    model = target(PPO, env, made, learning_rate=0.0, clip_range=1e-9)
    np.random.seed(0)
    model.policy.solos.believe([0.0] * 3)
    model.learn(1280, callback=HubCallback(probe_share=0))
    rows = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    weights = model.policy.route(torch.as_tensor(rows)).weights.mean(dim=0)
    assert weights[0] > 0.9, "nothing was learned but by what they earned"
    assert model.policy.solos.standing.worth[0] > 15
    assert model.policy.solos.standing.worth[1] < -15
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    assert torch.equal(loaded.policy.solos.standing.worth, model.policy.solos.standing.worth)
    assert np.array_equal(loaded.predict(rows, deterministic=True)[0], model.predict(rows, deterministic=True)[0])


def test_an_evaluation_in_the_middle_of_training_has_no_solos():
    env = make_vec_env(Toy, n_envs=2, seed=0)
    model = target(PPO, env, up_and_down().agent(PPO, solo_share=0.9, residual=False))
    model.policy.commit()
    model.policy.solos.playing = torch.tensor([1, 1])
    model.policy.method.trust([True, False, False], [0.0, 0.0, 0.0])
    actions, _ = model.predict(np.zeros((2, 4), dtype=np.float32), deterministic=True)
    assert (actions == 1.0).all()


def test_a_source_acts_in_evaluations_where_all_together_earn_less_by_a_standard_error():
    solos = Solos(["poor", "good", "fresh"], 0.2, 0.05)
    assert solos.acting == -1
    for value in (5.0, 6.0, 7.0):
        solos.standing.note(1, value)
        solos.together.note(0, value - 0.5)
        solos.standing.note(2, 99.0)
    assert solos.acting == -1, "half a point less, by chance"
    for value in (5.0, 6.0, 7.0):
        solos.together.note(0, value - 1.1)
    assert solos.acting == 1, "0.8 less, 1.2 standard errors"
    for _ in range(8):
        solos.together.note(0, 1.0)
    assert solos.acting == 1, "of sources alone; the fresh pathway has a trial of its own"
    assert len(solos.together.of(0)) == 8
    for value in (9.0, 8.0, 9.0, 8.0, 9.0, 8.0, 9.0, 8.0):
        solos.together.note(0, value)
    assert solos.acting == -1, "they learned"


def test_a_source_that_acts_for_all_does_so_as_it_is(tmp_path):
    env = make_vec_env(Toy, n_envs=2, seed=0)
    model = target(PPO, env, up_and_down().agent(PPO))
    policy = model.policy
    policy.commit()
    nn.init.normal_(policy.residual.weight)
    policy.method.trust([True, True, True], [0.0, 9.0, 0.0])
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    assert (model.predict(rows, deterministic=True)[0] != 1.0).all()
    for _ in range(3):
        policy.solos.standing.note(0, 20.0)
        policy.solos.together.note(0, 1.0)
    assert policy.lead == 0
    model.save(tmp_path / "model.zip")
    for agent in (model, PPO.load(tmp_path / "model.zip", device="cpu"), read_agent(tmp_path / "model.zip")):
        assert (agent.predict(rows, deterministic=True)[0] == 1.0).all()
    assert pathway_weights(model, rows[0]) == {"up": 1.0, "down": 0.0, "fresh": 0.0}


def test_together_they_are_shown_without_noise_once_in_eight():
    np.random.seed(0)
    solos = Solos(["a", "b", "fresh"], 0.0)
    solos.believe([0.0, 0.0, -4.0])
    solos.remaining = 0.0
    solos.begin(80, [True, True, True])
    assert (solos.playing == -1).all()
    assert int(solos.shown.sum()) == 10
    for env in range(80):
        solos.ended(env, float(solos.shown[env]), [True, True, True])
    assert solos.together.of(0) == [1.0] * 8, "only those count"


def test_of_episodes_without_noise_the_actor_learns_nothing():
    env = make_vec_env(Toy, n_envs=2, seed=0)
    model = target(PPO, env, up_and_down().agent(PPO, explore_coef=0.0))
    policy = model.policy
    policy.commit()
    policy.set_training_mode(True)
    rows = torch.randn(6, 4)
    calm = torch.tensor([True, False, True, False, True, True])
    memory = {"choice": torch.tensor([[-1, 0]] * 6), "calm": calm}
    policy.recall(rows, memory)
    log_prob = policy.evaluate_actions(rows, torch.zeros(6, 2))[1]
    assert log_prob.shape == (6,)
    actor = [*policy.residual.parameters(), *policy.method.router.parameters()]
    for which, learns in ((calm, False), (~calm, True)):
        gradients = torch.autograd.grad(log_prob[which].sum(), actor, retain_graph=True, allow_unused=True)
        assert any(gradient is not None and bool(gradient.any()) for gradient in gradients) == learns


def test_what_is_remembered_of_a_step_comes_back_as_it_was():
    env = make_vec_env(Toy, n_envs=2, seed=0)
    model = target(PPO, env, up_and_down().agent(PPO))
    model.policy.solos.believe([0.0] * 3)
    shapes = []

    class Watch(BaseCallback):
        def _on_rollout_end(self):
            buffer = model.rollout_buffer
            remembered, recall = [], model.policy.recall
            model.policy.recall = lambda seen, memory: remembered.append({name: rows.shape for name, rows in memory.items()})
            next(iter(buffer.get(8)))
            model.policy.recall = recall
            shapes.extend(remembered)

        def _on_step(self):
            return True

    model.learn(64, callback=CallbackList([HubCallback(probe_share=0), Watch()]))
    assert shapes[0] == {"choice": (8, 2), "calm": (8,), "said": (8, 4), "noise": (8, 3)}


def test_the_noise_of_a_rollout_is_kept_for_its_update_and_none_is_in_calm_rows():
    env = make_vec_env(Toy, n_envs=4, seed=0)
    model = target(PPO, env, tiny_hub(Toy()).agent(PPO, solo_share=0.2))
    policy = model.policy
    policy.commit()
    policy.set_training_mode(False)
    policy.solos.begin(4, [True] * 3)
    policy.solos.shown = np.array([True, False, True, False])
    rows = torch.randn(4, 4)
    policy(rows)
    noise = policy.memory["noise"]
    assert (noise[::2] == 0).all()
    assert (noise[1::2] != 0).all()
    policy(rows)
    assert (policy.memory["noise"][1::2] != noise[1::2]).all(), "every step has its own"
    policy.set_training_mode(True)
    policy.set_training_mode(False)
    policy.get_buffer("noise_key").sub_(1)
    policy(rows)
    assert torch.equal(policy.memory["noise"], noise), "it follows from the key of the rollout"
    drawn = policy.method.router.draw_noise(rows, 1)
    router = Router(VECTOR, 3, 8)
    assert torch.equal(router(rows, torch.zeros(4, 3)), router(rows))
    assert (router(rows, drawn) != router(rows)).all()


def test_solos_that_cannot_be_are_refused():
    env = Toy()
    hub = tiny_hub(env)
    with pytest.raises(BadConfig, match="solo_share was given with top_k, under which a pathway may not be computed"):
        target(PPO, env, hub.agent(PPO, top_k=1, solo_share=0.1))
    with pytest.raises(BadConfig, match="solo_share was given where no pathway is drawn"):
        target(PPO, env, hub.agent(PPO, aggregation="mean", solo_share=0.1))
    with pytest.raises(BadConfig, match="solo_share: Input should be less than 1"):
        hub.agent(PPO, solo_share=1.0)


def test_sources_that_are_trained_further_are_judged_by_their_latest_episodes():
    given = target(PPO, Toy(), tiny_hub(Toy()).agent(PPO, tuned=True)).policy.solos.standing
    assert set(given.windows) == {20}
    kept = target(PPO, Toy(), tiny_hub(Toy()).agent(PPO)).policy.solos.standing
    assert kept.windows == [500, 500, 20]


def test_who_is_believed_anew_is_not_kept_out_twice():
    solos = Solos(["a", "b", "aside", "fresh"], 0.0)
    solos.believe([0.0, 0.0, 0.0, -DISTRUST], aside=["aside"])
    trusted = [True, True, False, True]
    assert change_of_fresh(solos, trusted) == APART
    solos.see_early_end()
    kept, start = solos.taken_back(trusted)
    assert kept == [True] * 4
    assert start == [0.0, 0.0, -DISTRUST, -DISTRUST]
    assert change_of_fresh(solos, kept) == 0.0, "in doubt nobody waits; and what was lowered before was set anew"
