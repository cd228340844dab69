"""What the callback writes to the logger, and that sources see through the target's VecNormalize."""

import csv

import numpy as np
import pytest
import torch
from gymnasium import spaces
from recorded import RecordedScalars
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.vec_env import VecEnvWrapper, VecFrameStack, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toys import CHOOSE, STEER, VECTOR, Toy, target, tiny, tiny_hub, toy_for

from hubrl import BadConfig, Hub, HubCallback
from hubrl.errors import HubrlWarning
from hubrl.methods import Method
from hubrl.policies.extractor import parts_in, see_through_normalisation
from hubrl.reading import read_live
from hubrl.routing.pathways import FRESH
from hubrl.routing.source_pathway import SourcePathway
from hubrl.training.metrics import VERDICTS, hub_spec, record_changes

FAR = spaces.Box(-1000.0, 1000.0, (4,))


def watched(algorithm, level=None, env=None, callback=None, steps=128, **options):
    """A short training under the callback, and everything it logged."""
    env = env or toy_for(algorithm)
    memory = RecordedScalars()
    made = tiny_hub(env).agent(algorithm, level=level, **options)
    model = target(algorithm, env, made)
    model.set_logger(Logger(None, [memory]))
    model.learn(steps, callback=callback or HubCallback(log_every=50), log_interval=1)
    return model, memory


@pytest.mark.parametrize(
    "given",
    [{"probe_share": 2.0}, {"probe_share": -0.1}, {"warmup_share": "0.1"}, {"warmup_share": 1.0}],
)
def test_a_share_that_is_none_is_refused(given):
    (name, value), *_ = given.items()
    with pytest.raises(BadConfig, match=f"{name}={value!r} was given; expected a share"):
        HubCallback(**given)


def test_a_probe_that_has_no_room_is_a_warning_where_nothing_is_printed():
    with pytest.warns(
        HubrlWarning,
        match="No probe: 1 steps are too few for it; whole episodes decide whom to trust. For a "
        "probe train for longer, or give HubCallback a greater probe_share.",
    ):
        watched(PPO, steps=64, callback=HubCallback())


def test_learning_outputs_without_the_callback_is_a_warning():
    env = toy_for(PPO)
    model = target(PPO, env, tiny_hub(env).agent(PPO))
    with pytest.warns(
        HubrlWarning,
        match="PPO learns from a hub without HubCallback: no source is probed or judged.*"
        "pass callback=HubCallback",
    ):
        model.learn(64)


@pytest.mark.filterwarnings("error:.* learns from a hub without HubCallback")
def test_with_the_callback_or_features_there_is_no_warning():
    watched(PPO, steps=64)
    env = toy_for(PPO)
    target(PPO, env, tiny_hub(env).agent(PPO, level="features")).learn(64)


def test_a_probe_without_enough_steps_is_reported(capsys):
    watched(PPO, steps=64, callback=HubCallback(verbose=1))
    assert (
        "No probe: 1 steps are too few for it; whole episodes decide whom to trust."
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("algorithm", "level"),
    [(PPO, "outputs"), (PPO, "features"), (DQN, "features"), (SAC, "features")],
)
def test_the_weight_of_every_pathway_is_logged(algorithm, level):
    # Without selection: arms would play alone.
    options = {"judging_share": 0.0} if level == "outputs" else {}
    model, memory = watched(algorithm, level, **options)
    names = parts_in(model.policy, Method)[0].pathways.names
    assert names == ["ppo-0", "dqn-1" if algorithm is DQN else "sac-1", FRESH]
    shares = [
        [memory.values(f"pathway/{what}/{name}")[-1] for name in names]
        for what in ("weight", "active")
    ]
    assert sum(shares[0]) == pytest.approx(1.0, abs=1e-5)
    assert shares[1] == [1.0, 1.0, 1.0]
    assert memory.values("pathway/active_sources")[-1] == 3.0
    assert 0 < memory.values("pathway/entropy_nats")[-1] <= np.log(3) + 1e-5
    assert memory.values("loss/exploration")[-1] == pytest.approx(-0.001 * np.log(3), rel=0.05)
    assert memory.values("router/gradient_norm")[-1] > 0
    assert memory.values(f"pathway/histogram/{FRESH}")[-1].ndim == 1
    assert "method: hub-pathway" in memory.values("hub/card")[0]
    assert len(memory.values("hparams")) >= 1


def test_counts_start_anew_after_every_record():
    model, memory = watched(PPO, steps=192, callback=HubCallback(log_every=1), judging_share=0.0)
    assert model.policy.method.routing_stats.sums.rows == 0, (
        "an update goes through what was counted in the rollout"
    )
    assert len(memory.values("pathway/entropy_nats")) >= 3
    assert all(value == pytest.approx(1.0) for value in memory.values(f"pathway/active/{FRESH}"))


def test_where_all_sources_were_dropped_the_fresh_pathway_carries_all():
    env = toy_for(PPO)
    memory = RecordedScalars()
    model = target(PPO, env, tiny_hub(env).agent(PPO))
    model.policy.method.apply_probe([False, False, True], [0.0, 0.0, 0.0])
    model.set_logger(Logger(None, [memory]))
    model.learn(64, callback=HubCallback(log_every=1))
    assert memory.values(f"pathway/weight/{FRESH}")[-1] == 1.0
    assert memory.values("pathway/weight/ppo-0")[-1] == 0.0
    assert memory.values("pathway/entropy_nats")[-1] == 0.0


def test_a_probe_is_logged():
    _, memory = watched(PPO, callback=HubCallback(probe_share=0.9, log_every=50), steps=350)
    assert 0 < memory.values("probe/steps")[0] <= 315
    for name in ("ppo-0", "sac-1", FRESH):
        assert isinstance(memory.values(f"probe/return/{name}")[0], float)
    assert all(
        memory.values(f"probe/verdict/{name}")[0] in VERDICTS.values()
        for name in ("ppo-0", "sac-1")
    )
    assert not memory.values(f"probe/verdict/{FRESH}"), "untrained networks are no source"


def test_decisions_are_kept_and_logged_as_text_whatever_the_verbosity(capsys):
    callback = HubCallback(probe_share=0.9, log_every=50)
    _, memory = watched(PPO, callback=callback, steps=350)
    assert capsys.readouterr().out == ""
    first = callback.decisions[0]
    assert first.sentence.startswith("Probe: ")
    assert "ppo-0: " in first.sentence
    assert first.step == memory.values("probe/steps")[0]
    logged = "\n".join(memory.values("trust/log"))
    assert first.sentence in logged
    assert any("acts in evaluation from now on" in sentence for _, sentence in callback.decisions)


def test_sentences_that_are_not_written_yet_are_not_replaced():
    memory = RecordedScalars()
    logger = Logger(None, [memory])
    record_changes(logger, ["one"])
    record_changes(logger, ["two"])
    logger.dump(0)
    assert memory.values("trust/log") == ["one  \ntwo"]


def test_the_share_of_steps_in_which_each_pathway_acted_is_logged():
    _, memory = watched(PPO, steps=192)
    names = ("ppo-0", "sac-1", FRESH)
    shares = [
        [record[f"pathway/acted/{name}"] for name in names]
        for record in memory.records
        if f"pathway/acted/{FRESH}" in record
    ]
    assert len(shares) >= 2
    assert all(sum(one) == pytest.approx(1.0) for one in shares)


def test_random_actions_of_dqn_are_no_pathways():
    _, memory = watched(DQN, steps=400)
    shares = sum(memory.values(f"pathway/acted/{name}")[0] for name in ("ppo-0", "dqn-1", FRESH))
    assert 0 < shares < 1


def test_no_pathway_acts_alone_where_features_are_mixed():
    _, memory = watched(PPO, "features")
    assert not memory.values(f"pathway/acted/{FRESH}")


def test_each_pathways_standard_deviation_is_logged_by_name():
    _, memory = watched(PPO, steps=64, source_std=0.07)
    assert memory.values("pathway/std/ppo-0")[0] == pytest.approx(0.07, abs=0.001)
    assert memory.values("pathway/std/sac-1")[0] == pytest.approx(0.07, abs=0.001)
    assert memory.values(f"pathway/std/{FRESH}")[0] == pytest.approx(1.0, abs=0.01)


def test_tensorboard_shows_scalars_distributions_the_card_and_hyperparameters(tmp_path):
    env = toy_for(PPO)
    kwargs = tiny_hub(env).agent(PPO, top_k=1)
    model = target(PPO, env, kwargs, tensorboard_log=str(tmp_path)).learn(
        128, callback=HubCallback(log_every=1)
    )
    model.logger.close()
    events = EventAccumulator(model.logger.dir).Reload()
    tags = events.Tags()
    scalars = {
        "pathway/entropy_nats",
        "pathway/active_sources",
        "loss/exploration",
        "router/gradient_norm",
        "rollout/ep_rew_mean",
    }
    assert scalars <= set(tags["scalars"])
    assert {
        f"pathway/{what}/{name}"
        for what in ("weight", "active")
        for name in ("ppo-0", "sac-1", FRESH)
    } <= set(tags["scalars"])
    assert {
        "pathway/histogram/ppo-0",
        "pathway/histogram/sac-1",
        f"pathway/histogram/{FRESH}",
    } <= set(tags["histograms"])
    assert "hub/card/text_summary" in tags["tensors"]
    assert events.Scalars("pathway/active_sources")[-1].value == 1.0


def test_long_similar_names_collide_neither_in_the_table_nor_in_files(tmp_path, capsys):
    env = toy_for(PPO)
    long = "a-source-with-a-name-that-is-much-longer-than-the-table"
    hub = Hub.from_agents([tiny(PPO, env), tiny(SAC, env)], names=[f"{long}-1", f"{long}-2"])
    model = target(PPO, env, hub.agent(PPO))
    model.set_logger(configure(str(tmp_path), ["stdout", "log", "csv", "json"]))
    model.learn(350, callback=HubCallback(probe_share=0.9, log_every=1))
    model.logger.close()
    assert "active_sources" in capsys.readouterr().out
    with (tmp_path / "progress.csv").open() as file:
        columns = next(csv.reader(file))
    assert {f"pathway/weight/{long}-{number}" for number in (1, 2)} <= set(columns)


def test_a_model_without_a_hub_is_left_alone_with_a_warning():
    env = Toy()
    memory = RecordedScalars()
    model = tiny(PPO, env)
    model.set_logger(Logger(None, [memory]))
    with pytest.warns(
        HubrlWarning,
        match="HubCallback was given to a PPO that learns through no hub, and does nothing",
    ):
        model.learn(64, callback=HubCallback(log_every=1))
    assert hub_spec(model.policy) is None
    assert not any(
        tag.startswith(("pathway", "hub", "loss")) for record in memory.records for tag in record
    )


class Far(Toy):
    """Observations far from zero and of several units."""

    def __init__(self, actions=STEER):
        super().__init__(FAR, actions)

    def _observe(self, space):
        return (
            self.np_random.normal(size=4) * [100.0, 1.0, 0.1, 10.0] + [50.0, -3.0, 0.0, 7.0]
        ).astype(np.float32)


def see_some(env):
    """Let statistics settle."""
    env.reset()
    for _ in range(50):
        env.step(np.array([env.action_space.sample()]))


class SeesOriginals(BaseCallback):
    """Compares what source pathways say of normalised observations with what sources say of the original ones."""

    def __init__(self, level):
        super().__init__()
        self.level, self.compared = level, 0

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        vec = self.model.get_vec_normalize_env()
        env = Far()
        env.reset(seed=self.n_calls)
        rows = np.stack([env._observe(FAR) for _ in range(20)])
        normalised = torch.as_tensor(vec.normalize_obs(rows), dtype=torch.float32)
        assert normalised.abs().max() < vec.clip_obs
        pathways = [part for part in self.model.policy.modules() if isinstance(part, SourcePathway)]
        for pathway in pathways:
            with torch.no_grad():
                if self.level == "outputs":
                    expected, said = (
                        pathway.source.outputs(torch.as_tensor(rows)),
                        pathway(normalised),
                    )
                else:
                    expected = pathway.projection(pathway.source.features(torch.as_tensor(rows)))
                    said = pathway(normalised)
            torch.testing.assert_close(said, expected, atol=1e-4, rtol=1e-4)
            self.compared += 1


@pytest.mark.parametrize(
    ("algorithm", "level"),
    [(PPO, "outputs"), (PPO, "features"), (DQN, "features"), (SAC, "features")],
)
def test_sources_see_what_was_before_the_targets_vecnormalize(algorithm, level, tmp_path):
    actions = CHOOSE if algorithm is DQN else STEER
    hub = Hub.from_agents(
        [tiny(PPO, Far(actions)), tiny(DQN if algorithm is DQN else SAC, Far(actions))]
    )
    env = VecNormalize(make_vec_env(lambda: Far(actions), n_envs=1, seed=0))
    see_some(env)
    outputs = {"source_std": None, "residual": False} if level == "outputs" else {}
    model = target(algorithm, env, hub.agent(algorithm, level=level, **outputs))
    compare = SeesOriginals(level)
    model.learn(128, callback=[HubCallback(probe_share=0.0), compare])
    n_networks = {DQN: 2, SAC: 3}.get(algorithm, 1)
    assert compare.compared >= 2 * 2 * n_networks
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert np.array_equal(
        model.predict(rows, deterministic=True)[0], loaded.predict(rows, deterministic=True)[0]
    )


def test_observations_may_be_stacked_after_they_were_normalised():
    """The RL Zoo's order."""
    env = VecFrameStack(VecNormalize(make_vec_env(Far, n_envs=2, seed=0), clip_obs=1e6), 3)
    newest = Hub.from_agents([tiny(PPO, Far())])[0].adapted("newest", observes=range(8, 12))
    model = target(PPO, env, Hub([newest]).agent(PPO)).learn(
        64, callback=HubCallback(probe_share=0.0)
    )
    see_through_normalisation(model.policy, env)
    normalize = env.venv
    rows = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    seen = torch.as_tensor(np.tile(normalize.normalize_obs(rows), 3), dtype=torch.float32)
    np.testing.assert_allclose(
        model.policy.method.pathways.sources[0].denormalizer(seen), np.tile(rows, 3), atol=1e-4
    )


class Halved(VecEnvWrapper):
    """Shows half of an observation."""

    def __init__(self, venv):
        super().__init__(venv, observation_space=spaces.Box(-np.inf, np.inf, (2,)))

    def reset(self):
        return self.venv.reset()[:, :2]

    def step_wait(self):
        observations, *rest = self.venv.step_wait()
        return observations[:, :2], *rest


def test_other_observations_than_were_normalised_are_refused():
    env = Halved(VecNormalize(make_vec_env(Toy, n_envs=1, seed=0)))
    model = target(
        PPO, env, Hub.from_agents([tiny(PPO, Toy(spaces.Box(-np.inf, np.inf, (2,))))]).agent(PPO)
    )
    with pytest.raises(
        BadConfig,
        match=r"normalises observations of shape \(4,\), and the agent sees \(2,\); put VecNormalize around",
    ):
        model.learn(64, callback=HubCallback(probe_share=0.0))


def test_without_vecnormalize_nothing_is_undone():
    model = target(PPO, Toy(), tiny_hub(Toy()).agent(PPO)).learn(
        32, callback=HubCallback(probe_share=0.0)
    )
    original = model.policy.method.pathways.sources[0].denormalizer
    rows = torch.randn(5, 4)
    assert torch.equal(original(rows), rows)


def test_a_source_that_learned_through_a_hub_keeps_its_own_statistics():
    """The target's statistics are none of its business: they would change frozen weights that others share."""
    far = VecNormalize(make_vec_env(Far, n_envs=1, seed=0))
    first = target(PPO, far, Hub.from_agents([tiny(PPO, Far())]).agent(PPO)).learn(
        64, callback=HubCallback(probe_share=0.0)
    )
    nested = read_live(first, "nested")
    before = nested.tensors()
    env = VecNormalize(make_vec_env(lambda: Toy(FAR), n_envs=1, seed=0))
    model = target(PPO, env, Hub([nested]).agent(PPO)).learn(
        64, callback=HubCallback(probe_share=0.0)
    )
    assert all(torch.equal(before[name], tensor) for name, tensor in nested.tensors().items())
    assert len(parts_in(model.policy, Method)) == 1
    see_through_normalisation(model.policy, env)
    assert all(torch.equal(before[name], tensor) for name, tensor in nested.tensors().items())


def test_statistics_of_a_dict_are_undone_key_by_key():
    space = spaces.Dict({"near": VECTOR, "far": FAR})
    env = VecNormalize(make_vec_env(lambda: Toy(space), n_envs=1, seed=0), norm_obs_keys=["far"])
    model = target(PPO, env, Hub.from_agents([tiny(PPO, Toy(space))]).agent(PPO)).learn(
        32, callback=HubCallback(probe_share=0.0)
    )
    see_through_normalisation(model.policy, env)
    rows = {
        key: np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
        for key in ("near", "far")
    }
    seen = {
        key: torch.as_tensor(values, dtype=torch.float32)
        for key, values in env.normalize_obs(rows).items()
    }
    original = model.policy.method.pathways.sources[0].denormalizer(seen)
    for key, values in rows.items():
        np.testing.assert_allclose(original[key], values, atol=1e-5)
