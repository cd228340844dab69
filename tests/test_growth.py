"""Whether a fresh pathway would come further than the hub: the forecast, the trial, and what follows from it."""

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from test_holding import Ratios
from torch import nn
from toys import IMAGE, STEER, VECTOR, Constant, Toy, target, tiny_hub

from hubrl import BadConfig, Hub, HubCallback, Source
from hubrl.evidence import forecast
from hubrl.growth import EACH, FEWEST, NEARLY_OVER, SHOW_EVERY, SHOWN, Growth, Phase, Record
from hubrl.pathways import FRESH
from hubrl.solos import Solos


def poor_hub():
    """A source that earns 0.2 a step in the toy task, of 2 that can be had."""
    return Hub([Source(encoder=nn.Flatten(), head=Constant(0.1), name="one", observation_space=VECTOR, action_space=STEER)])


def test_a_line_is_extended_only_where_there_is_one():
    when = np.array([0.0, 1.0, 2.0, 3.0])
    assert forecast(when, 10 + 2 * when, at=10.0) == pytest.approx(30.0)
    assert forecast(when, 10 - 2 * when, at=10.0) == pytest.approx(-10.0), "downwards too"
    # Slope 0.6, standard error sqrt(4.2 / 2 / 5) = 0.65: not clearly a slope.
    assert forecast(when, np.array([0.0, 2.0, 0.0, 2.0]) + 0.2 * when, at=10.0) == pytest.approx(1.3)
    assert forecast(when[:2], np.array([0.0, 10.0]), at=10.0) == 5.0, "two points are always on a line"
    assert forecast(np.ones(4), when, at=10.0) == 1.5


def test_a_record_keeps_the_latest_in_order():
    record = Record(3)
    assert len(record) == 0
    assert record.latest.shape == (0, 2)
    for when in range(5):
        record.note(float(when), 10.0 * when)
    assert len(record) == 3
    assert record.latest.tolist() == [[2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]
    copy = Record(3)
    copy.load_state_dict(record.state_dict())
    assert copy.latest.tolist() == record.latest.tolist()


def after_trial(fresh, hub, *, done=0.2, alone=(), one_source=True):
    """What is decided after a trial of a tenth of the training, by what each earned."""
    growth = Growth(0.05 if one_source else 0.1)
    begun = 0.1 if one_source else 0.3
    for place, earned in enumerate(hub):
        growth.ended(begun * place / len(hub), earned, fresh=False, shown=False)
    growth.advance(begun, one_source=one_source, round_length=0.01)
    assert growth.at is Phase.TRIAL
    for earned in fresh:
        growth.spent(0.1 / len(fresh))
        growth.ended(begun + 0.05, earned, fresh=True, shown=False)
    growth.advance(begun - 0.1 + done, one_source=one_source, round_length=0.01, alone=alone)
    return growth


def test_the_fresh_pathway_goes_on_alone_where_its_line_leads_higher():
    # From 1 to 10 in a tenth of the training: one more for each further hundredth, of which there are eighty.
    growing = after_trial(np.arange(1.0, 11.0), [50.0] * FEWEST)
    assert growing.at is Phase.ALONE
    assert growing.forecasts == pytest.approx((90.0, 50.0))
    assert after_trial(np.arange(1.0, 11.0), [95.0] * FEWEST).at is Phase.SETTLED
    assert after_trial([5.0] * 10, [50.0] * FEWEST).at is Phase.SETTLED
    assert after_trial(np.arange(1.0, FEWEST), [0.0] * FEWEST).at is Phase.SETTLED, "too few episodes to see a line"
    assert after_trial(np.arange(1.0, 11.0), [50.0] * FEWEST, done=0.19).at is Phase.TRIAL, "not over yet"


def test_a_hub_whose_returns_fall_is_not_expected_to_fall_for_ever():
    falling = [200.0 - 2 * episode for episode in range(2 * FEWEST)]
    growing = after_trial(np.arange(1.0, 11.0), falling)
    assert growing.forecasts[1] == pytest.approx(np.mean(falling[-FEWEST:]))
    assert growing.at is Phase.SETTLED


def test_a_hub_of_one_source_is_not_expected_to_rise_for_ever():
    # One more in every thirtieth of what came before the trial.
    rising = [40.0 + episode for episode in range(30)]
    alone = after_trial(np.arange(1.0, 11.0), rising)
    assert alone.forecasts[1] == pytest.approx(np.mean(rising[-FEWEST:]))
    assert alone.at is Phase.ALONE
    several = after_trial(np.arange(1.0, 11.0), rising, one_source=False)
    assert several.forecasts[1] == pytest.approx(40.0 + 100.0), "episodes of several lie three tenths of the training apart"
    assert several.at is Phase.SETTLED


def test_a_hub_is_expected_to_earn_what_its_best_source_earns_alone():
    growing = after_trial(np.arange(1.0, 11.0), [50.0] * FEWEST, alone=[94.0, 96.0])
    assert growing.forecasts == pytest.approx((90.0, 95.0))
    assert growing.at is Phase.SETTLED
    growth = after_trial(np.arange(1.0, 11.0), [50.0] * FEWEST, alone=[70.0, 71.0])
    for earned in np.linspace(60.0, 62.0, SHOWN):
        growth.ended(0.6, float(earned), fresh=True, shown=True)
    growth.advance(0.6, one_source=True, round_length=0.01, alone=[70.0, 71.0])
    assert growth.at is Phase.ALONE
    growth.advance(0.6, one_source=True, round_length=0.01, alone=[40.0, 41.0])
    assert growth.at is Phase.OVERTAKEN


def test_in_the_end_the_fresh_pathway_need_not_clearly_earn_more():
    growth = after_trial(np.arange(1.0, 11.0), [50.0] * FEWEST)
    for earned in (60.0, 40.0, 62.0, 41.0, 52.0):
        growth.ended(0.8, earned, fresh=True, shown=True)
    growth.advance(NEARLY_OVER - 0.01, one_source=True, round_length=0.01)
    assert growth.at is Phase.ALONE, "51 against 50"
    growth.advance(NEARLY_OVER, one_source=True, round_length=0.01, alone=[53.0, 51.0])
    assert growth.at is Phase.ALONE, "51 against 52"
    growth.advance(NEARLY_OVER, one_source=True, round_length=0.01)
    assert growth.at is Phase.OVERTAKEN


def test_there_is_no_trial_where_it_could_show_nothing():
    growth = Growth(0.05)
    for _ in range(FEWEST - 1):
        growth.ended(0.1, 1.0, fresh=False, shown=False)
    growth.advance(0.5, one_source=True, round_length=0.01)
    assert growth.at is Phase.HUB, "the hub has not shown what it earns"
    growth.ended(0.1, 1.0, fresh=False, shown=False)
    growth.advance(0.04, one_source=True, round_length=0.01)
    assert growth.at is Phase.HUB, "too early"
    growth.advance(0.2, one_source=False, round_length=0.01)
    assert growth.at is Phase.HUB, "several sources are to learn to play together first"
    growth.advance(0.3, one_source=False, round_length=0.05 / EACH + 0.001)
    assert growth.at is Phase.SETTLED, "no room for two episodes each"


@pytest.mark.parametrize(("one_source", "length"), [(True, 0.1), (False, 0.05)])
def test_a_trial_beside_the_only_source_lasts_twice_as_long(one_source, length):
    growth = Growth(0.05)
    for _ in range(FEWEST):
        growth.ended(0.1, 1.0, fresh=False, shown=False)
    growth.advance(0.3, one_source=one_source, round_length=length / EACH - 0.001)
    assert growth.at is Phase.TRIAL
    growth.advance(0.299 + length, one_source=one_source, round_length=length / EACH)
    assert growth.at is Phase.TRIAL
    growth.advance(0.301 + length, one_source=one_source, round_length=length / EACH)
    assert growth.at is Phase.SETTLED, "nothing was earned meanwhile"


def test_it_overtakes_only_without_noise_and_clearly():
    growth = after_trial(np.arange(1.0, 11.0), [50.0, 51.0] * FEWEST)
    for earned in (60.0,) * (SHOWN - 1):
        growth.ended(0.5, earned, fresh=True, shown=False)
        growth.ended(0.5, earned, fresh=True, shown=True)
    growth.advance(0.5, one_source=True, round_length=0.01)
    assert growth.at is Phase.ALONE, "shown too seldom"
    growth.ended(0.5, 0.0, fresh=True, shown=True)
    growth.advance(0.5, one_source=True, round_length=0.01)
    assert growth.at is Phase.ALONE, "not clearly more"
    for earned in np.linspace(60.0, 62.0, SHOWN):
        growth.ended(0.6, float(earned), fresh=True, shown=True)
    growth.advance(0.6, one_source=True, round_length=0.01, together=[60.0, 61.0, 62.0])
    assert growth.at is Phase.ALONE, "without its noise the hub earned as much"
    growth.advance(0.6, one_source=True, round_length=0.01)
    assert growth.at is Phase.OVERTAKEN


def test_during_the_trial_and_after_it_all_episodes_are_the_fresh_pathways():
    solos = Solos(["poor", "fresh"], 0.0, 0.1)
    solos.believe([0.0, -4.0])
    solos.begin(2, [True, True])
    assert solos.playing.tolist() == [-1, -1]
    assert solos.growth is not None
    solos.growth._go(Phase.ALONE)
    for _ in range(2 * SHOW_EVERY):
        solos.ended(0, 1.0, [True, True])
    assert solos.playing.tolist() == [1, -1], "an episode that has begun is played to its end"
    assert len(solos.growth.shown) == 1
    assert len(solos.growth.fresh) == 2 * SHOW_EVERY - 2
    assert int(solos.standing.get_buffer("counts").sum()) == 0
    assert Solos(["poor", "good"], 0.2, 0.1).growth is None, "nobody is fresh"


def grower():
    """A model whose fresh pathway will outgrow its source."""
    env = make_vec_env(Toy, n_envs=4, seed=0)
    made = poor_hub().agent(PPO, solo_share=0.2, trial_share=0.3)
    model = target(PPO, env, made, learning_rate=1e-2, n_steps=64, batch_size=64, n_epochs=4, seed=0)
    np.random.seed(0)
    model.policy.solos.believe([0.0, -4.0])
    model.policy.method.trust([True, True], [0.0, -4.0])
    return model


class Watch(BaseCallback):
    """Notes how the comparison stands, and checks what is done without noise."""

    def __init__(self):
        super().__init__()
        self.phases, self.calm = [], 0

    def _on_step(self):
        solos = self.model.policy.solos
        self.phases.append(solos.growth.at)
        shown = solos.shown
        # HubCallback has already chosen who plays next where an episode ended.
        playing = shown & ~self.locals["dones"]
        if self.model.policy.holds and playing.any():
            policy = self.model.policy
            of_source = playing & (solos.playing == 0)
            assert (self.locals["actions"][of_source] == np.float32(0.1)).all(), "neither noisy nor corrected"
            playing &= solos.playing == 1
            seen = torch.as_tensor(self.model._last_obs)
            with torch.no_grad():
                mean = policy.action_net(policy.mlp_extractor.forward_actor(seen)).numpy()
            assert np.allclose(self.locals["actions"][playing], mean[playing], atol=1e-6)
            assert playing.all() or np.abs(self.locals["actions"] - mean)[~playing].max() > 1e-3
            self.calm += int(playing.sum())
        return True


def test_a_fresh_pathway_outgrows_a_poor_source_and_the_source_is_dropped(tmp_path):
    model, watch, ratios = grower(), Watch(), Ratios()
    model.learn(12_800, callback=[HubCallback(probe_share=0.0, warmup_share=0.0), watch, ratios])
    seen = list(dict.fromkeys(watch.phases))
    assert seen == [Phase.HUB, Phase.TRIAL, Phase.ALONE, Phase.OVERTAKEN]
    assert watch.calm > 0
    assert ratios.greatest < 1e-4
    assert model.policy.fresh_alone
    rows = np.zeros((3, 4), dtype=np.float32)
    assert (model.predict(rows, deterministic=True)[0] > 0.5).all(), "it earns more than the source's 0.1"
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    assert loaded.policy.solos.growth.at is Phase.OVERTAKEN
    assert np.array_equal(loaded.predict(rows, deterministic=True)[0], model.predict(rows, deterministic=True)[0])


@pytest.mark.parametrize("start", [[0.0, -4.0], [-4.0, 0.0]], ids=["source", "fresh"])
def test_what_acts_for_the_hub_does_not_change_while_the_fresh_pathway_learns_alone(start):
    env = make_vec_env(Toy, n_envs=2, seed=0)
    model = target(PPO, env, poor_hub().agent(PPO, solo_share=0.2), learning_rate=1e-2)
    policy = model.policy
    policy.method.trust([True, True], start)
    nn.init.normal_(policy.residual.weight)
    policy.solos.believe(start)
    policy.solos.growth._go(Phase.ALONE)
    policy.exchange()
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    before = model.predict(rows, deterministic=True)[0]
    parts = [policy.action_net.weight, policy.log_std, policy.mlp_extractor.policy_net[0].weight]
    as_begun = [part.detach().clone() for part in parts]
    model.learn(256, callback=HubCallback(probe_share=0.0))
    assert not any(torch.equal(part, was) for part, was in zip(parts, as_begun, strict=True))
    assert np.array_equal(model.predict(rows, deterministic=True)[0], before)
    policy.exchange()
    assert all(torch.equal(part, was) for part, was in zip(parts, as_begun, strict=True))
    policy.solos.growth._go(Phase.SETTLED)
    np.testing.assert_allclose(model.predict(rows, deterministic=True)[0], before, atol=1e-6, err_msg="what was learned alone is gone")
    policy.exchange()
    nn.init.zeros_(policy.mlp_extractor.policy_net[0].weight)
    policy.exchange()
    np.testing.assert_allclose(model.predict(rows, deterministic=True)[0], before, atol=1e-6)


def test_the_fresh_pathway_learns_alone_as_sb3_would_have_begun(tmp_path):
    env = make_vec_env(Toy, n_envs=4, seed=0)
    model = target(PPO, env, poor_hub().agent(PPO, solo_share=0.2), n_steps=64, seed=0)
    policy = model.policy
    rows = torch.as_tensor(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))

    def said(one):
        with torch.no_grad():
            latent = one.mlp_extractor.forward_actor(rows)
            return torch.cat([one.action_net(latent), one.predict_values(rows), one.log_std.exp().expand(5, 2)], dim=1)

    new = said(policy)
    policy.solos.believe([0.0, -4.0])
    policy.method.trust([True, True], [0.0, -4.0])
    policy.solos.growth._go(Phase.SETTLED)
    model.learn(1024, callback=HubCallback(probe_share=0.0))
    hubs = said(policy)
    assert policy.value_net.rescaled
    assert (hubs - new).abs().max() > 1e-3
    policy.exchange()
    assert torch.equal(said(policy), new)
    assert not policy.value_net.rescaled
    assert policy.action_net.weight not in policy.optimizer.state
    assert policy.residual.weight in policy.optimizer.state, "of what is not exchanged the optimizer knows on"
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu").policy
    assert torch.equal(said(loaded), new)
    for one in (policy, loaded):
        nn.init.ones_(one.value_net.bias)
        one.exchange()
        assert torch.equal(said(one), hubs)
        assert one.value_net.rescaled


def test_agents_from_before_critics_were_kept_are_read():
    model = grower()
    model.policy.exchange()
    nn.init.ones_(model.policy.action_net.weight)
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    state = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    older = {name: tensor for name, tensor in state.items() if not name.startswith(("solos.early.", "kept.4.", "kept.5."))}
    assert len(older) < len(state)
    loaded = grower()
    loaded.policy.load_state_dict(older)
    assert np.array_equal(loaded.predict(rows, deterministic=True)[0], model.predict(rows, deterministic=True)[0])
    with pytest.raises(RuntimeError, match=r"kept\.2\.weight"):
        loaded.policy.load_state_dict({name: tensor for name, tensor in older.items() if not name.startswith("kept.2.")})


class Begins(BaseCallback):
    """Notes who plays, and whether episodes began, in the first step of every phase."""

    def __init__(self):
        super().__init__()
        self.first = {}

    def _on_step(self):
        solos = self.model.policy.solos
        began = self.model._last_episode_starts.all() and not self.locals["dones"].any()
        self.first.setdefault(solos.growth.at, (set(solos.playing.tolist()), began))
        return True


def test_a_trial_begins_with_new_episodes_of_the_fresh_pathway_alone_and_ends_with_new_ones_of_the_hub():
    model, watch = grower(), Begins()
    model.policy.solos.growth.share = 0.1
    for _ in range(3):
        model.policy.solos.standing.note(0, 1e9)  # more than any line leads to
    model.learn(6_400, callback=[HubCallback(probe_share=0.0, warmup_share=0.0), watch])
    assert list(watch.first) == [Phase.HUB, Phase.TRIAL, Phase.SETTLED]
    assert watch.first[Phase.TRIAL] == ({1}, True)
    players, began = watch.first[Phase.SETTLED]
    assert began
    assert players != {1}


def test_a_trial_that_cannot_be_is_refused():
    with pytest.raises(BadConfig, match="trial_share: Input should be less than 1"):
        poor_hub().agent(PPO, trial_share=1.0)


def test_what_the_fresh_pathway_earned_before_its_trial_says_nothing_of_the_network_that_begins_there():
    growth = Growth(0.05)
    for _ in range(FEWEST):
        growth.ended(0.1, 50.0, fresh=False, shown=False)
        growth.ended(0.1, -100.0, fresh=True, shown=False)
        growth.spent(0.01)
    growth.advance(0.1, one_source=True, round_length=0.01)
    assert growth.at is Phase.TRIAL
    assert len(growth.fresh) == 0
    assert float(growth.get_buffer("own")) == 0.0


def test_no_trial_begins_that_could_not_end():
    growth = Growth(0.05)
    for _ in range(FEWEST):
        growth.ended(0.1, 50.0, fresh=False, shown=False)
    growth.advance(0.95, one_source=True, round_length=0.01)
    assert growth.at is Phase.SETTLED


def test_times_are_shares_of_the_training_that_goes_on():
    growth = Growth(0.05)
    growth.count_to(1000, anew=True)
    for _ in range(FEWEST):
        growth.ended(0.1, 50.0, fresh=False, shown=False)
    growth.advance(0.1, one_source=True, round_length=0.01)
    growth.ended(0.12, 3.0, fresh=True, shown=False)
    growth.spent(0.02)
    growth.count_to(2000, anew=False)
    assert float(growth.get_buffer("until")) == pytest.approx(0.1)
    assert float(growth.get_buffer("own")) == pytest.approx(0.01)
    assert growth.hub.latest[:, 0] == pytest.approx(0.05)
    growth.count_to(4000, anew=True)
    assert growth.at is Phase.TRIAL, "held from its beginning"
    assert float(growth.get_buffer("until")) == pytest.approx(0.1)
    assert float(growth.get_buffer("own")) == len(growth.fresh) == 0
    assert growth.hub.latest.tolist() == [[0.0, 50.0]] * FEWEST


def test_nothing_grows_before_it_is_known_how_long_episodes_are_or_while_anybody_is_in_doubt():
    solos = Solos(["source", FRESH], 0.0, 0.05)
    solos.believe([0.0, -4.0])
    solos.begin(2, [True, True])
    solos.remaining = 0.9
    for _ in range(FEWEST):
        solos.growth.ended(0.1, 50.0, fresh=False, shown=False)
    assert not solos.grow([True, True], 1000)
    assert solos.growth.at is Phase.HUB, "no episode has ended"
    solos.stepped(0.001)
    solos.ended(0, 1.0, [True, True])
    solos.believe([-4.0, 0.0], ["source"])
    solos.grow([True, True], 1000)
    assert solos.growth.at is Phase.HUB, "whole episodes decide first"
    solos.believe([0.0, -4.0])
    solos.grow([True, True], 1000)
    assert solos.growth.at is Phase.TRIAL
    assert float(solos.growth.get_buffer("until")) == pytest.approx(0.2)


def test_nobody_comes_back_while_the_fresh_pathway_learns_alone():
    solos = Solos(["good", "aside", FRESH], 0.0, 0.05)
    solos.believe([0.0, 0.0, -4.0], aside=["aside"])
    solos.see_early_end()
    solos.growth._go(Phase.TRIAL)
    assert solos.taken_back([True, False, True]) is None
    solos.growth._go(Phase.SETTLED)
    assert solos.taken_back([True, False, True]) == ([True, True, True], [0.0, -4.0, -4.0])


def test_the_critics_own_extractor_is_exchanged_too():
    env = make_vec_env(lambda: Toy(IMAGE), n_envs=1, seed=0)
    made = tiny_hub(Toy(IMAGE)).agent(PPO)
    made["policy_kwargs"] |= {"share_features_extractor": False, "features_extractor_kwargs": {"features_dim": 8}}
    policy = target(PPO, env, made).policy
    seen, _ = policy.obs_to_tensor(env.reset().transpose(0, 3, 1, 2))

    @torch.no_grad()
    def worth():
        return float(policy.predict_values(seen))

    @torch.no_grad()
    def learn():
        for weight in policy.vf_features_extractor.parameters():
            weight.add_(0.3 * torch.randn_like(weight))

    begun = worth()
    learn()
    learned = worth()
    assert begun != learned
    policy.exchange()
    assert worth() == pytest.approx(begun)
    learn()
    policy.exchange()
    assert worth() == pytest.approx(learned)
