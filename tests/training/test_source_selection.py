"""Selection while PPO and A2C train on toy tasks: who plays, who acts, what learns, and what a trial exchanges."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from checks import Ratios
from hubs import Turns, aiming, always, overtaken, steers, trusted, up_and_down
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import CHOOSE, IMAGE, STEER, VECTOR, Toy, target, tiny_hub

from hubrl import BadConfig, Hub, HubCallback, pathway_weights
from hubrl.errors import HubrlWarning
from hubrl.policies.on_policy.actor_snapshot import learning_parts
from hubrl.policies.on_policy.step import SOLO_CODE, RecordedBatch, StepRecord, TrainingState
from hubrl.reading import read_agent
from hubrl.selection.arm_selection import Turn
from hubrl.selection.fresh_trial import Phase
from hubrl.selection.probe_verdict import Fate
from hubrl.selection.settings import TrustSettings

ROWS = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
ALGORITHMS = pytest.mark.parametrize("algorithm", [PPO, A2C], ids=["ppo", "a2c"])


def quiet(**given):
    """A callback that neither probes nor lets the actor wait."""
    return HubCallback(**{"probe_share": 0.0, "warmup_share": 0.0, **given})


def learner(algorithm=PPO, hub=None, n_envs=2, **options):
    """A model on the toy task, whose sources are trusted."""
    env = make_vec_env(Toy, n_envs=n_envs, seed=0)
    return trusted(target(algorithm, env, (hub or up_and_down()).agent(algorithm, **options)))


def acts_best(selection, arm, value=20.0):
    """Record what makes an arm the best."""
    for other in range(selection.n_sources):
        for _ in range(3):
            selection.records.add(other, value if other == arm else value - 30.0)


# Who plays


@pytest.mark.parametrize("actions", [STEER, CHOOSE])
@pytest.mark.parametrize("hold", [1.0, 4.0])
@ALGORITHMS
def test_ratios_are_one_and_an_episode_has_one_arm(algorithm, actions, hold):
    env = make_vec_env(lambda: Toy(VECTOR, actions), n_envs=2, seed=0)
    hub = tiny_hub(Toy(VECTOR, actions))
    model = trusted(
        target(
            algorithm, env, hub.agent(algorithm, hold=hold, judging_share=0.5), learning_rate=1e-2
        )
    )
    ratios, turns = Ratios(), Turns()
    np.random.seed(1)
    model.learn(256, callback=[turns, quiet(), ratios])
    assert ratios.greatest < 1e-4
    before, after = np.concatenate(ratios.pathways).reshape(-1, 2).T
    alone = before <= SOLO_CODE
    assert 0.2 < alone.mean() < 0.8
    assert np.array_equal(after[alone], SOLO_CODE - before[alone])
    for (one, done), (other, _) in pairwise(zip(turns.playing, turns.dones, strict=True)):
        assert np.array_equal(one[~done], other[~done])
    assert sum(model.policy.selection.records.count(arm) for arm in range(4)) > 3


@ALGORITHMS
def test_the_selection_follows_the_sources_returns(algorithm, tmp_path):
    model = learner(algorithm, n_envs=4, judging_share=0.5, residual=False)
    model.learn(1280, callback=quiet())
    selection = model.policy.selection
    assert selection.records.mean_return(0) == 20
    assert selection.records.mean_return(1) == -20
    assert selection.evaluation_arm == 0
    weights = model.policy.route(torch.as_tensor(ROWS)).weights
    assert (weights[:, 0] > 0.9).all()
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    assert loaded.policy.selection.records.returns(0) == selection.records.returns(0)
    assert np.array_equal(
        loaded.predict(ROWS, deterministic=True)[0], model.predict(ROWS, deterministic=True)[0]
    )


def test_in_doubt_whole_episodes_decide_and_the_decision_is_printed(capsys):
    model = aiming(always("poor", -0.9), always("good", 0.75), n_envs=2)
    model.learn(4000, callback=HubCallback(probe_share=0.0, verbose=1))
    selection = model.policy.selection
    assert selection.fate(1) is Fate.KEPT
    assert "good is kept: it earns more than an untrained network." in capsys.readouterr().out
    assert selection.records.mean_return(1) > 35
    assert model.policy.method.trusted_pathways[1]


def test_a_training_too_short_for_whole_episodes_warns():
    model = learner()
    model.set_env(make_vec_env(lambda: Toy(length=1000), n_envs=2, seed=0))
    model.policy.selection.records.add(0, 1.0)
    with pytest.warns(
        HubrlWarning, match="A training of 64 steps ended before down had played a whole episode"
    ):
        model.learn(64, callback=quiet())


def test_arms_are_recorded_where_a_training_goes_on():
    model, turns = learner(), Turns()
    model.learn(64, callback=quiet())
    counts = [model.policy.selection.records.count(arm) for arm in range(2)]
    model.learn(64, callback=[turns, quiet()], reset_num_timesteps=False)
    assert [model.policy.selection.records.count(arm) for arm in range(2)] >= counts
    assert len(turns.playing) == 32


def test_an_episode_that_was_going_on_is_no_record():
    model = learner()
    model.learn(64, callback=quiet())
    selection, recorded = model.policy.selection, []
    record = selection.record
    selection.record = lambda env, value, now: (
        recorded.append((env, value)),
        record(env, value, now),
    )
    model.learn(64, callback=quiet(), reset_num_timesteps=False)
    assert len(recorded) == 4, (
        "of six that ended in two environments, the first of each was begun before"
    )


# Who acts in evaluation


@ALGORITHMS
def test_an_evaluation_in_the_middle_of_training_does_not_depend_on_the_playing_arms(algorithm):
    model = learner(algorithm, judging_share=0.9, residual=False)
    policy = model.policy
    policy.enable_commitment()
    policy.selection.turns = [Turn(1, deterministic=True)] * 2
    policy.selection._refresh()
    acts_best(policy.selection, 0)
    actions, _ = model.predict(np.zeros((2, 4), dtype=np.float32), deterministic=True)
    assert (actions == 1.0).all()


class Evaluates(BaseCallback):
    """Predicts for as many rows as there are environments, as an evaluation on as many would."""

    def _on_step(self):
        state = None
        for _ in range(3):
            _, state = self.model.predict(
                np.zeros((2, 4), dtype=np.float32), state=state, deterministic=True
            )
        return True


@ALGORITHMS
def test_a_training_is_not_disturbed_by_evaluations(algorithm):
    states = []
    for also in ([], [Evaluates()]):
        np.random.seed(0)
        model = learner(algorithm, judging_share=0.5)
        model.learn(256, callback=[quiet(), *also])
        states.append(model.policy.state_dict())
    assert all(
        torch.equal(torch.nan_to_num(one), torch.nan_to_num(states[1][name]))
        for name, one in states[0].items()
    )


@ALGORITHMS
def test_a_source_that_acts_in_evaluation_does_so_as_it_is(algorithm, tmp_path):
    model = learner(algorithm)
    policy = model.policy
    policy.enable_commitment()
    nn.init.normal_(policy.residual.weight)
    assert (model.predict(ROWS, deterministic=True)[0] != 1.0).any(), (
        "corrected, as all play together"
    )
    acts_best(policy.selection, 0)
    assert policy.evaluation_pathway == 0
    model.save(tmp_path / "model.zip")
    for agent in (
        model,
        algorithm.load(tmp_path / "model.zip", device="cpu"),
        read_agent(tmp_path / "model.zip"),
    ):
        assert (agent.predict(ROWS, deterministic=True)[0] == 1.0).all()
    assert pathway_weights(model, ROWS[0]) == {"up": 1.0, "down": 0.0, "fresh": 0.0}


def test_after_a_training_the_agent_is_the_best_source_until_a_learned_arm_exceeds_it(tmp_path):
    """The floor: however short the training was."""
    model = learner()
    model.learn(256, callback=quiet())
    assert model.policy.evaluation_pathway == 0
    model.save(tmp_path / "model.zip")
    assert (
        PPO.load(tmp_path / "model.zip", device="cpu").predict(ROWS, deterministic=True)[0] == 1.0
    ).all()
    selection = model.policy.selection
    selection.records.forget(selection.together)
    for _ in range(3):
        selection.records.add(selection.together, 21.0)
    assert model.policy.evaluation_pathway == -1


@ALGORITHMS
def test_only_the_pathway_that_acts_in_evaluation_is_computed(algorithm, monkeypatch):
    model = learner(algorithm)
    policy = model.policy
    policy.enable_commitment()
    acts_best(policy.selection, 1)
    others = [policy.method.pathways.sources[0], policy.method.router, policy.residual]
    for network in others:
        monkeypatch.setattr(network, "forward", None)
    actions, (pathway, steps) = model.predict(ROWS, deterministic=True)
    assert (actions == -1.0).all()
    assert (pathway == 1).all()
    assert (steps == 1).all()


def test_the_fresh_pathway_acts_as_it_learns_where_it_earns_most():
    model = learner()
    policy, selection = model.policy, model.policy.selection
    policy.enable_commitment()
    selection.trial.go(Phase.TRIAL)
    policy.swap_actor()
    nn.init.normal_(policy.action_net.weight)
    acts_best(selection, 0)
    for _ in range(3):
        selection.records.add(selection.fresh, 99.0)
    with torch.no_grad():
        mean = (
            policy.action_net(policy.mlp_extractor.forward_actor(torch.as_tensor(ROWS)))
            .clamp(-1, 1)
            .numpy()
        )
    np.testing.assert_allclose(model.predict(ROWS, deterministic=True)[0], mean, atol=1e-6)
    assert pathway_weights(model, ROWS[0]) == {"up": 0.0, "down": 0.0, "fresh": 1.0}


# What learns


def test_the_actor_learns_nothing_from_deterministic_episodes():
    model = learner(explore_coef=0.0)
    policy = model.policy
    policy.enable_commitment()
    policy.set_training_mode(True)
    rows = torch.randn(6, 4)
    calm = torch.tensor([True, False, True, False, True, True])
    record = StepRecord(torch.full((6,), -1), torch.zeros(6, dtype=torch.int64), deterministic=calm)
    log_prob = policy.evaluate_actions(RecordedBatch(rows, record), torch.zeros(6, 2))[1]
    assert log_prob.shape == (6,)
    actor = [*policy.residual.parameters(), *policy.method.router.parameters()]
    for which, learns in ((calm, False), (~calm, True)):
        gradients = torch.autograd.grad(
            log_prob[which].sum(), actor, retain_graph=True, allow_unused=True
        )
        assert (
            any(gradient is not None and bool(gradient.any()) for gradient in gradients) == learns
        )


def test_a_deterministic_episode_of_a_source_is_as_it_is():
    model, seen = learner(judging_share=0.5), []

    class Acts(BaseCallback):
        def _on_step(self):
            selection = self.model.policy.selection
            own = selection.deterministic & (selection.playing == 0)
            seen.extend(self.locals["actions"][own].ravel().tolist())
            return True

    nn.init.normal_(model.policy.residual.weight)
    model.learn(256, callback=[Acts(), quiet()])
    assert len(seen) >= 60
    assert set(seen) == {1.0}, "neither noisy nor corrected"


def test_the_noise_of_a_rollout_is_recorded_for_its_update_and_zero_in_deterministic_rows():
    model = learner(n_envs=4)
    policy, selection = model.policy, model.policy.selection
    policy.enable_commitment()
    policy.set_training_mode(False)
    policy.training_state = TrainingState(records_steps=True)
    selection.turns = [Turn(selection.together, deterministic=env % 2 == 0) for env in range(4)]
    selection._refresh()
    rows = torch.randn(4, 4)
    policy(rows)
    noise = policy.last_record.noise
    assert (noise[::2] == 0).all()
    assert (noise[1::2] != 0).all()
    policy(rows)
    assert (policy.last_record.noise[1::2] != noise[1::2]).all(), "every step has its own"
    policy.set_training_mode(True)
    policy.set_training_mode(False)
    policy.get_buffer("noise_key").sub_(1)
    policy.training_state = TrainingState(records_steps=True)
    policy(rows)
    assert torch.equal(policy.last_record.noise, noise), "it follows from the key of the rollout"


def test_games_of_images_are_judged_as_they_are_played():
    """A deterministic agent may play one game for ever, so Atari agents are evaluated with drawn actions."""
    env = make_vec_env(lambda: Toy(IMAGE, CHOOSE), n_envs=2, seed=0)
    made = tiny_hub(Toy(IMAGE, CHOOSE)).agent(PPO, level="outputs")
    made["policy_kwargs"]["features_extractor_kwargs"] = {"features_dim": 8}
    model = trusted(target(PPO, env, made))
    assert model.policy.selection.every_episode_counts
    model.learn(64, callback=quiet())
    assert "deterministic" not in model.rollout_buffer.records


# The trial of the fresh pathway


def outputs_of(policy):
    """What SB3's actor and critic say."""
    rows = torch.as_tensor(ROWS)
    with torch.no_grad():
        latent = policy.mlp_extractor.forward_actor(rows)
        return torch.cat(
            [
                policy.action_net(latent),
                policy.predict_values(rows),
                policy.log_std.exp().expand(5, 2),
            ],
            dim=1,
        )


def test_a_fresh_pathway_that_comes_further_than_a_poor_source_goes_on_alone_and_acts(tmp_path):
    model, turns, ratios = overtaken(), Turns(), Ratios()
    model.learn(12_800, callback=[turns, quiet(), ratios])
    assert list(dict.fromkeys(turns.phases)) == [Phase.HUB, Phase.TRIAL, Phase.ALONE]
    assert ratios.greatest < 1e-4
    assert model.policy.evaluation_pathway == 1
    assert (model.predict(ROWS, deterministic=True)[0] > 0.3).all(), (
        "it earns more than the source's 0.1"
    )
    model.save(tmp_path / "model.zip")
    for agent in (
        PPO.load(tmp_path / "model.zip", device="cpu"),
        read_agent(tmp_path / "model.zip"),
    ):
        np.testing.assert_allclose(
            agent.predict(ROWS, deterministic=True)[0],
            model.predict(ROWS, deterministic=True)[0],
            atol=1e-6,
        )


def test_a_trial_begins_and_ends_with_new_episodes():
    model, turns = overtaken(trial_share=0.1), Turns()
    selection = model.policy.selection
    for _ in range(3):
        selection.records.add(0, 1e9)  # more than any line leads to
    model.learn(6_400, callback=[turns, quiet()])
    first = {phase: turns.phases.index(phase) for phase in dict.fromkeys(turns.phases)}
    assert list(first) == [Phase.HUB, Phase.TRIAL, Phase.SETTLED]
    trial, after = first[Phase.TRIAL], first[Phase.SETTLED]
    assert turns.began[trial]
    assert turns.began[after]
    assert all((playing == selection.fresh).all() for playing in turns.playing[trial:after])
    assert not any((playing == selection.fresh).any() for playing in turns.playing[after:])
    assert 320 <= (after - trial) * 4 < 640, "it ends after half of its time: no line leads there"


@pytest.mark.parametrize("joins", [False, True])
def test_the_hubs_actor_does_not_change_while_the_fresh_pathway_trains_alone(joins):
    env = make_vec_env(Toy, n_envs=2, seed=0)
    model = trusted(
        target(
            PPO, env, Hub([steers("one", 0.1)]).agent(PPO, fresh_joins=joins), learning_rate=1e-2
        )
    )
    policy, selection = model.policy, model.policy.selection
    nn.init.normal_(policy.residual.weight)
    policy.enable_commitment()
    for _ in range(selection.settings.window):
        selection.records.add(selection.together, 50.0)
    hubs = outputs_of(policy)
    before = model.predict(ROWS, deterministic=True)[0]
    selection.trial.go(Phase.TRIAL)
    selection.trial.go(Phase.ALONE)
    policy.swap_actor()
    np.testing.assert_allclose(model.predict(ROWS, deterministic=True)[0], before, atol=1e-6)
    begun = outputs_of(policy)
    model.learn(256, callback=quiet())
    assert policy.evaluation_pathway == -1, "fifty is more than can be earned"
    assert not torch.equal(outputs_of(policy), begun)
    np.testing.assert_allclose(model.predict(ROWS, deterministic=True)[0], before, atol=1e-6)
    selection.trial.go(Phase.SETTLED)
    policy.swap_actor()
    assert torch.equal(outputs_of(policy), hubs)
    np.testing.assert_allclose(model.predict(ROWS, deterministic=True)[0], before, atol=1e-6)


@pytest.mark.parametrize("algorithm", [PPO, A2C], ids=["ppo", "a2c"])
def test_the_fresh_pathway_begins_its_trial_as_sb3_would_have_begun(algorithm, tmp_path):
    model = learner(algorithm, Hub([steers("one", 0.1)]), n_envs=4, trial_share=0.1)
    policy = model.policy
    new = outputs_of(policy)
    policy.selection.trial.go(Phase.SETTLED)
    model.learn(1024, callback=quiet())
    hubs = outputs_of(policy)
    assert policy.value_net.rescaled
    assert (hubs - new).abs().max() > 1e-3
    policy.swap_actor()
    assert torch.equal(outputs_of(policy), new)
    assert not policy.value_net.rescaled
    assert policy.action_net.weight not in policy.optimizer.state
    assert policy.residual.weight in policy.optimizer.state, (
        "of what is not exchanged the optimizer knows on"
    )
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu").policy
    assert torch.equal(outputs_of(loaded), new)
    for one in (policy, loaded):
        nn.init.ones_(one.value_net.bias)
        one.swap_actor()
        assert torch.equal(outputs_of(one), hubs)
        assert one.value_net.rescaled


def test_the_critics_own_extractor_is_exchanged_too():
    env = make_vec_env(lambda: Toy(IMAGE), n_envs=1, seed=0)
    made = tiny_hub(Toy(IMAGE)).agent(PPO)
    made["policy_kwargs"] |= {
        "share_features_extractor": False,
        "features_extractor_kwargs": {"features_dim": 8},
    }
    policy = target(PPO, env, made).policy
    seen, _ = policy.obs_to_tensor(env.reset().transpose(0, 3, 1, 2))

    @torch.no_grad()
    def value():
        return float(policy.predict_values(seen))

    @torch.no_grad()
    def learn():
        for weight in policy.vf_features_extractor.parameters():
            weight.add_(0.3 * torch.randn_like(weight))

    begun = value()
    learn()
    learned = value()
    assert begun != learned
    policy.swap_actor()
    assert value() == pytest.approx(begun)
    learn()
    policy.swap_actor()
    assert value() == pytest.approx(learned)


# Trainings that go on or end early


class Stops(BaseCallback):
    """Ends a training in some phase, as its user would by Ctrl-C, or by returning False."""

    def __init__(self, phase, *, interrupts):
        super().__init__()
        self.phase, self.interrupts = phase, interrupts

    def _on_step(self):
        if self.model.policy.selection.trial.at is not self.phase:
            return True
        if self.interrupts:
            raise KeyboardInterrupt
        return False


@pytest.mark.parametrize("saved", [False, True], ids=["same model", "saved and loaded"])
def test_an_unfinished_trial_begins_again_from_the_hub_and_the_fresh_pathway_as_they_were(
    saved, tmp_path
):
    model, turns = overtaken(trial_share=0.1), Turns()
    model.learn(6_400, callback=[quiet(), Stops(Phase.TRIAL, interrupts=False)])
    selection = model.policy.selection
    assert selection.trial.at is Phase.TRIAL
    kept = {name: part.clone() for name, part in model.policy.actor_snapshot.state_dict().items()}
    if saved:
        model.save(tmp_path / "model.zip")
        model = PPO.load(tmp_path / "model.zip", model.get_env(), device="cpu")

    class Look(BaseCallback):
        def _on_rollout_start(self):
            if not turns.phases:
                now = {
                    f"parts.{name}": part
                    for name, part in learning_parts(model.policy).state_dict().items()
                }
                assert all(torch.equal(part, kept[name]) for name, part in now.items()), (
                    "the hub's learn again"
                )

        def _on_step(self):
            return True

    model.learn(6_400, callback=[turns, quiet(), Look()])
    phases = list(dict.fromkeys(turns.phases))
    assert phases[:2] == [Phase.HUB, Phase.TRIAL]
    assert sum(phase is Phase.TRIAL for phase in turns.phases) * 4 <= 640 + 256


def test_a_trial_that_goes_on_ends_at_its_time():
    model, turns = overtaken(trial_share=0.1), Turns()
    model.learn(3_200, callback=[quiet(), Stops(Phase.TRIAL, interrupts=False)])
    until = float(model.policy.selection.trial.get_buffer("until"))
    begun = model.num_timesteps
    assert begun < until
    model.learn(3_200, callback=[turns, quiet()], reset_num_timesteps=False)
    n_trial = sum(phase is Phase.TRIAL for phase in turns.phases)
    assert abs(begun + n_trial * 4 - until) <= 64 * 4


@pytest.mark.parametrize("phase", [Phase.HUB, Phase.TRIAL])
@ALGORITHMS
def test_an_interrupted_training_leaves_an_agent_that_predicts_and_goes_on(
    algorithm, phase, tmp_path
):
    hub = Hub([steers("one", 0.1)])
    model = learner(algorithm, hub, n_envs=4, trial_share=0.3)
    with pytest.raises(KeyboardInterrupt):
        model.learn(3_200, callback=[quiet(), Stops(phase, interrupts=True)])
    acted = model.predict(ROWS[:4], deterministic=True)[0]
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", model.get_env(), device="cpu")
    np.testing.assert_allclose(loaded.predict(ROWS[:4], deterministic=True)[0], acted, atol=1e-6)
    for one in (model, loaded):
        one.learn(640, callback=quiet(), reset_num_timesteps=False)
        assert one.policy.selection.turns == []


def test_unfinished_episodes_count_where_no_other_return_is_known():
    env = make_vec_env(lambda: Toy(length=1000), n_envs=2, seed=0)
    model = trusted(target(PPO, env, up_and_down().agent(PPO)))
    model.learn(64, callback=quiet())
    selection = model.policy.selection
    assert selection._segment_means == [64.0, -64.0]
    assert selection.evaluation_arm == 0


# What is refused


def test_selection_that_cannot_be_is_refused():
    env = Toy()
    hub = tiny_hub(env)
    with pytest.raises(
        BadConfig,
        match="judging_share was given with top_k, under which a pathway may not be computed",
    ):
        target(PPO, env, hub.agent(PPO, top_k=1, judging_share=0.1))
    with pytest.raises(BadConfig, match="judging_share was given where no pathway is drawn"):
        target(PPO, env, hub.agent(PPO, aggregation="mean", judging_share=0.1))
    with pytest.raises(BadConfig, match="judging_share: Input should be less than 1"):
        hub.agent(PPO, judging_share=1.0)
    with pytest.raises(BadConfig, match="trial_share: Input should be less than 1"):
        hub.agent(PPO, trial_share=1.0)


def test_sources_that_are_trained_further_are_judged_by_their_latest_episodes():
    windows = {}
    for tuned in (True, False):
        records = target(
            PPO, Toy(), tiny_hub(Toy()).agent(PPO, tuned=tuned)
        ).policy.selection.records
        windows[tuned] = dict(zip(records.names, records.base_windows, strict=True))
    assert (
        windows[True]["ppo-0"]
        == windows[False]["fresh"]
        == windows[False]["together"]
        == TrustSettings().window
    )
    assert windows[False]["ppo-0"] == 500
