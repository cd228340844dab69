"""DQN that hears outputs: who plays, who is trusted, who teaches."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from toys import CHOOSE, IMAGE, STEER, Toy, quick_dqn, target, tiny, tiny_hub

from hubrl import BadConfig, Hub, HubCallback, SpaceMismatch, UnknownName, pathway_weights
from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.dqn_exploration import PausedExploration
from hubrl.policies.dqn_networks import teaching_loss
from hubrl.reading import read_agent, read_live

ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def played(policy, **returns):
    """Records as of episodes that the pathways played."""
    for name, values in returns.items():
        for value in values:
            policy.selection.records.add(
                policy.selection.records.names.index(name.replace("_", "-")), float(value)
            )
    return policy


def learner(**options):
    env = Toy(actions=CHOOSE)
    return target(DQN, env, tiny_hub(env).agent(DQN, **options))


def test_all_returns_of_a_source_count_and_the_latest_of_the_learner():
    records = learner(window=4).policy.selection.records
    for value in range(40):
        records.add(0, float(value))
        records.add(2, float(value))
    assert records.returns(0) == [float(value) for value in range(40)]
    assert sorted(records.returns(2)) == [36.0, 37.0, 38.0, 39.0]


def test_the_learner_acts_once_it_earns_more_by_a_standard_error():
    policy = played(learner().policy, ppo_0=[0, 1, 0, 1], dqn_1=[4, 5, 4, 5], fresh=[6, 6, 5, 5])
    assert policy.selection.evaluation_arm == 2
    policy = played(learner().policy, ppo_0=[0, 1, 0, 1], dqn_1=[4, 5, 4, 5], fresh=[4, 6, 4, 5])
    assert policy.selection.evaluation_arm == 1, "a quarter of a point more, by chance"
    assert (
        played(learner().policy, dqn_1=[4, 5, 4, 5], fresh=[9, 9]).selection.evaluation_arm == 1
    ), "not judged yet"
    assert learner().policy.selection.evaluation_arm == 2, "the learner, where nobody has played"


def test_the_teacher_is_the_best_source_and_its_weight_shrinks_as_the_learner_catches_up():
    policy = learner(teach_coef=2.0).policy
    assert policy._next_lesson() == (2, 0.0), "nobody has played"
    played(policy, ppo_0=[0, 0, 0], dqn_1=[10, 10, 10])
    assert policy._next_lesson() == (1, 2.0), "the learner was not judged yet"
    played(policy, fresh=[5, 5, 5])
    assert policy._next_lesson() == (1, pytest.approx(1.0))
    policy.selection.done = 0.5
    assert policy._next_lesson() == (1, pytest.approx(0.5)), "lessons end with the training"
    played(policy, fresh=[12] * 8)
    assert policy._next_lesson() == (1, 0.0)


def test_the_teaching_loss_by_hand():
    q_values = torch.tensor([[0.0, 1.0, 5.0]])
    spread = math.sqrt((4 + 1 + 9) / 2)
    scaled = [value / (0.5 * spread) for value in (0.0, 1.0, 5.0)]
    expected = math.log(sum(math.exp(value) for value in scaled)) - scaled[1]
    assert teaching_loss(q_values, torch.tensor([1]), 0.5).item() == pytest.approx(
        expected, rel=1e-5
    )
    assert teaching_loss(100 * q_values, torch.tensor([1]), 0.5).item() == pytest.approx(
        expected, rel=1e-5
    ), "the scale does not matter"


def test_pathways_play_whole_episodes_and_all_are_judged():
    model = learner()
    model.learn(400, callback=HubCallback())
    policy = model.policy
    assert isinstance(policy, HubDQNPolicy)
    assert policy.pathways.names == ["ppo-0", "dqn-1", "fresh"]
    counts = [policy.selection.records.count(arm) for arm in range(3)]
    assert min(counts) >= 3
    assert 12 < sum(counts) < 36, (
        "of 40 episodes those in which the learner explores do not count, nor the first, at random"
    )


def rates_played(model, steps):
    """Who played with which share of random actions, step by step."""
    played = []

    class Watch(BaseCallback):
        def _on_step(self):
            played.append((*model.policy.selection.turns[0], model.exploration_rate))
            return True

    model.learn(steps, callback=CallbackList([Watch(), HubCallback()]))
    return played


def test_nothing_is_random_while_a_pathway_shows_what_it_earns():
    model = learner()
    schedule = model.exploration_schedule
    played = rates_played(model, 400)
    # The first step of an episode still tells the rate of the one before: callbacks are called before it is set.
    later = [now for before, now in pairwise(played) if before[:2] == now[:2]]
    learner_is = model.policy.learner
    assert {player for player, judging, _ in later if not judging} == {learner_is}
    assert all(rate == 0 for _, judging, rate in later if judging)
    exploring = [rate for _, judging, rate in later if not judging]
    assert len(exploring) > 40
    assert min(exploring) == model.exploration_final_eps
    assert model.exploration_schedule is schedule, "as it was before"


def test_a_model_that_is_saved_in_training_explores_as_before(tmp_path):
    model = learner()

    class Save(BaseCallback):
        def _on_step(self):
            if self.n_calls == 50:
                assert isinstance(model.exploration_schedule, PausedExploration)
                model.save(tmp_path / "model.zip")
            return self.n_calls < 60

    before = model.exploration_schedule
    model.learn(100, callback=CallbackList([HubCallback(), Save()]))
    loaded = DQN.load(tmp_path / "model.zip", device="cpu")
    assert not isinstance(loaded.exploration_schedule, PausedExploration)
    assert [loaded.exploration_schedule(left) for left in (1.0, 0.95, 0.5)] == [
        before(left) for left in (1.0, 0.95, 0.5)
    ]


def test_in_several_environments_episodes_count_once_little_is_random():
    env = make_vec_env(lambda: Toy(actions=CHOOSE), n_envs=2, seed=0)
    model = target(DQN, env, tiny_hub(Toy(actions=CHOOSE)).agent(DQN))
    model.learn(400, callback=HubCallback())
    assert not model.policy.deterministic_episode
    assert sum(model.policy.selection.records.count(arm) for arm in range(3)) >= 10


def test_what_an_episode_earned_is_the_tasks_own_reward():
    env = make_vec_env(lambda: Toy(actions=CHOOSE), n_envs=2, seed=0)
    model = target(DQN, env, tiny_hub(Toy(actions=CHOOSE)).agent(DQN))
    model.learn(200, callback=HubCallback())
    earned = [value for arm in range(3) for value in model.policy.selection.records.returns(arm)]
    assert len(earned) >= 6
    assert all(value == int(value) and 0 <= value <= 20 for value in earned), (
        "ten choices of 0, 1 or 2"
    )


def test_the_best_acts_in_predict_and_survives_saving(tmp_path):
    model = learner()
    model.learn(64, callback=HubCallback())
    hub = tiny_hub(Toy(actions=CHOOSE))
    for best, source in enumerate(hub):
        records = model.policy.selection.records
        records.get_buffer("values").fill_(0.0)
        records.get_buffer("values")[best] = 9.0
        records.get_buffer("counts").fill_(8)
        expected = source.predict(ROWS, deterministic=True)[0]
        assert np.array_equal(model.predict(ROWS, deterministic=True)[0], expected)
        model.save(tmp_path / "model.zip")
        loaded = DQN.load(tmp_path / "model.zip", device="cpu")
        assert np.array_equal(loaded.predict(ROWS, deterministic=True)[0], expected)
        assert np.array_equal(
            read_agent(tmp_path / "model.zip").predict(ROWS, deterministic=True)[0], expected
        )
        assert pathway_weights(loaded, ROWS[0]) == {
            "ppo-0": float(best == 0),
            "dqn-1": float(best == 1),
            "fresh": 0.0,
        }
        assert pathway_weights(loaded, ROWS)["fresh"].tolist() == [0.0] * 6
    records.get_buffer("values")[2] = 10.0
    assert np.array_equal(
        model.predict(ROWS, deterministic=True)[0], model.q_net(torch.as_tensor(ROWS)).argmax(dim=1)
    )


@pytest.mark.parametrize("n_envs", [1, 2])
def test_after_a_training_the_agent_acts_as_its_best_arm(n_envs, tmp_path):
    """The floor: however short the training was, and whatever the learner does by then."""
    env = make_vec_env(lambda: Toy(actions=CHOOSE), n_envs=n_envs, seed=0)
    settings = {"learning_starts": 0, "exploration_fraction": 0.01, "exploration_final_eps": 0.0}
    model = target(DQN, env, tiny_hub(Toy(actions=CHOOSE)).agent(DQN), **settings)
    model.learn(120 * n_envs, callback=HubCallback())
    selection, records = model.policy.selection, model.policy.selection.records
    assert selection.turns == []
    assert min(records.count(arm) for arm in range(2)) >= selection.settings.episodes
    arm = selection.evaluation_arm
    assert records.mean_return(arm) >= max(records.mean_return(source) for source in range(2))
    acts = model.policy.act_as(torch.as_tensor(ROWS), torch.full((6,), arm)).numpy()
    model.save(tmp_path / "model.zip")
    for agent in (
        model,
        DQN.load(tmp_path / "model.zip", device="cpu"),
        read_agent(tmp_path / "model.zip"),
    ):
        for deterministic in (True, False) if agent is model else (True,):
            assert np.array_equal(agent.predict(ROWS, deterministic=deterministic)[0], acts)


def test_only_the_network_that_learns_is_in_the_optimizer_and_the_target():
    model = learner()
    trained = {
        id(parameter)
        for group in model.policy.optimizer.param_groups
        for parameter in group["params"]
    }
    assert trained == {id(parameter) for parameter in model.q_net.parameters()}
    assert len(list(model.policy.pathways.parameters())) == 0, "frozen sources hold no parameters"
    assert not any("pathways" in name for name in model.q_net_target.state_dict())


def test_a_teacher_moves_the_learner_towards_what_it_does():
    env = Toy(actions=CHOOSE, length=10)
    hub = Hub([read_live(tiny(PPO, env, 3), "teacher")])
    agree = {}
    for coefficient in (0.0, 5.0):
        made = hub.agent(DQN, teach_coef=coefficient)
        model = quick_dqn(env, made)
        played(model.policy, teacher=[1000.0] * 20, fresh=[0.0] * 8)
        model.learn(400, callback=HubCallback())
        rows = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)
        with torch.no_grad():
            does = model.q_net(torch.as_tensor(rows)).argmax(dim=1).numpy()
        agree[coefficient] = (does == hub[0].predict(rows, deterministic=True)[0]).mean()
    assert agree[5.0] > agree[0.0] + 0.15


def test_one_seed_gives_one_result():
    one, other = (
        learner().learn(128, callback=HubCallback()).policy.state_dict() for _ in range(2)
    )
    assert all(
        torch.equal(torch.nan_to_num(tensor), torch.nan_to_num(other[name]))
        for name, tensor in one.items()
    )


def test_what_cannot_be_is_refused():
    env = Toy(actions=CHOOSE)
    hub = tiny_hub(env)
    with pytest.raises(
        BadConfig, match=r"needs a pathway chosen for each episode; pass HubCallback\(\) to learn"
    ):
        learner().learn(64)
    with pytest.raises(
        BadConfig,
        match="but through 'hub-pathway' without options and with frozen sources, .* use level='features'",
    ):
        target(DQN, env, hub.agent(DQN, tuned=True, level="outputs"))
    with pytest.raises(BadConfig, match="An option of the outputs cannot be: judging_share"):
        hub.agent(DQN, judging_share=0.0)
    with pytest.raises(SpaceMismatch, match="The target acts in Discrete"):
        target(DQN, env, tiny_hub(Toy(actions=STEER)).agent(DQN))


def test_images_are_used_at_the_features_by_default():
    env = Toy(IMAGE, CHOOSE)
    hub = tiny_hub(env)
    assert (
        hub.agent(DQN)["policy"] == "MlpPolicy"
        or "features_extractor_class" in hub.agent(DQN)["policy_kwargs"]
    )
    model = target(DQN, env, hub.agent(DQN, level="outputs"))
    model.learn(64, callback=HubCallback())
    assert isinstance(model.policy, HubDQNPolicy)


def test_fine_tuning_trains_the_sources_own_q_network(tmp_path):
    env = Toy(actions=CHOOSE)
    agent = tiny(DQN, env, 4)
    hub = Hub([read_live(tiny(PPO, env), "other"), read_live(agent, "mine")])
    model = target(DQN, env, hub.agent(DQN, "finetune", source="mine", level="outputs"))
    rows = torch.as_tensor(ROWS)
    torch.testing.assert_close(model.q_net(rows), agent.q_net(rows), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(model.q_net_target(rows), agent.q_net(rows), atol=1e-6, rtol=1e-5)
    model.learn(128, callback=HubCallback())
    assert not torch.equal(model.q_net(rows), agent.q_net(rows)), "it was trained"
    np.testing.assert_array_equal(
        hub["mine"].predict(ROWS, deterministic=True)[0], agent.predict(ROWS, deterministic=True)[0]
    )
    model.save(tmp_path / "model.zip")
    for read in (
        DQN.load(tmp_path / "model.zip", device="cpu"),
        read_agent(tmp_path / "model.zip"),
    ):
        assert np.array_equal(
            read.predict(ROWS, deterministic=True)[0], model.predict(ROWS, deterministic=True)[0]
        )


def test_only_agents_with_q_values_are_fine_tuned_by_dqn():
    env = Toy(actions=CHOOSE)
    hub = tiny_hub(env)
    with pytest.raises(
        BadConfig, match="Source 'ppo-0' has no Q-values of its own that DQN could train further"
    ):
        target(DQN, env, hub.agent(DQN, "finetune", source="ppo-0", level="outputs"))
    with pytest.raises(BadConfig, match="Method 'finetune' needs source=..., one of ppo-0, dqn-1."):
        target(DQN, env, hub.agent(DQN, "finetune", level="outputs"))
    with pytest.raises(UnknownName, match="Did you mean 'dqn-1'?"):
        target(DQN, env, hub.agent(DQN, "finetune", source="dqn-2", level="outputs"))


def test_dqn_learns_at_the_outputs_only_where_it_can():
    hub = tiny_hub(Toy(actions=CHOOSE))
    assert hub.level(DQN) == "outputs"
    assert (
        hub.level(DQN, tuned=True)
        == hub.level(DQN, "uniform")
        == tiny_hub(Toy(IMAGE, CHOOSE)).level(DQN)
        == "features"
    )
