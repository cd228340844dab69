"""Sources for targets that observe more than they, or act in another order or with other signs."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from toys import CHOOSE, IMAGE, PARTS, STEER, VECTOR, Toy, target, tiny

from hubrl import BadConfig, Hub, HubCallback, SpaceMismatch
from hubrl.reading import read_agent, read_live
from hubrl.sources import action_params

WIDE = spaces.Box(-10.0, 10.0, (7,))
ROWS = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_a_mirrored_source_acts_with_other_signs_in_another_order(algorithm):
    source = read_live(tiny(algorithm, Toy()), "gait")
    mirrored = source.adapted("mirrored", order=[1, 0], signs=[1, -1])
    plain = source.predict(ROWS[:, :4], deterministic=True)[0]
    np.testing.assert_allclose(
        mirrored.predict(ROWS[:, :4], deterministic=True)[0], plain[:, [1, 0]] * [1, -1], atol=1e-6
    )
    assert mirrored.name == "mirrored"
    assert source.card.action_map is None, "the source itself stays as it is"


def test_choices_are_reordered():
    source = read_live(tiny(DQN, Toy(actions=CHOOSE)), "chooser")
    other = source.adapted(order=[2, 0, 1])
    plain = source.predict(ROWS[:, :4], deterministic=True)[0]
    assert [
        [2, 0, 1][choice] for choice in other.predict(ROWS[:, :4], deterministic=True)[0]
    ] == plain.tolist()


def test_a_source_reads_its_part_of_a_wider_observation(tmp_path):
    source = read_live(tiny(PPO, Toy()), "narrow")
    indices = [6, 0, 3, 2]
    adapted = source.adapted("adapted", observes=indices, signs=[-1, 1])
    expected = source.predict(ROWS[:, indices], deterministic=True)[0] * [-1, 1]
    np.testing.assert_allclose(adapted.predict(ROWS, deterministic=True)[0], expected, atol=1e-6)
    Hub([source, adapted]).save(tmp_path / "hub")
    loaded = Hub.load(tmp_path / "hub")["adapted"]
    assert np.array_equal(
        loaded.predict(ROWS, deterministic=True)[0], adapted.predict(ROWS, deterministic=True)[0]
    )
    assert loaded.accepts(WIDE)
    assert not loaded.accepts(VECTOR)


def test_a_source_reads_constants_where_the_target_observes_less(tmp_path):
    source = read_live(tiny(PPO, Toy()), "narrow")
    adapted = source.adapted("adapted", observes=[5, 0], constants={1: 0.5, 3: -2.0})
    rows = np.stack([ROWS[:, 5], np.full(5, 0.5), ROWS[:, 0], np.full(5, -2.0)], axis=1)
    expected = source.predict(rows.astype(np.float32), deterministic=True)[0]
    np.testing.assert_allclose(adapted.predict(ROWS, deterministic=True)[0], expected, atol=1e-6)
    Hub([adapted]).save(tmp_path / "hub")
    loaded = Hub.load(tmp_path / "hub")["adapted"]
    assert np.array_equal(
        loaded.predict(ROWS, deterministic=True)[0], adapted.predict(ROWS, deterministic=True)[0]
    )
    assert loaded.accepts(WIDE)
    timed = source.adapted(constants={3: 1.0})  # a time feature at the end
    assert timed.accepts(spaces.Box(-1.0, 1.0, (3,)))
    assert not timed.accepts(VECTOR)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"constants": {4: 0.0}}, r"reads Box\(4,\).* and constants names entry 4"),
        ({"observes": [0, 1, 2, 3], "constants": {3: 1.0}}, "reads 3 numbers beside 1 constants"),
        ({"observes": [0, 1], "constants": {-1: 1.0, 3: 0.0}}, "greater than or equal to 0"),
    ],
    ids=["no such entry", "too many", "negative"],
)
def test_constants_that_cannot_be_are_refused(changes, message):
    source = read_live(tiny(PPO, Toy()), "narrow")
    with pytest.raises(BadConfig, match=message):
        source.adapted(**changes)
    adapted = source.adapted(observes=[6, 0, 3, 2])
    with pytest.raises(BadConfig, match="has a preprocessing already"):
        adapted.adapted(constants={1: 0.0})


@pytest.mark.parametrize(
    "observes", [["camera", "joints"], {"camera": "left eye", "joints": "joints"}]
)
def test_a_source_of_several_parts_reads_its_own_of_a_target_that_has_more(observes, tmp_path):
    source = read_live(tiny(PPO, Toy(PARTS)), "seeing")
    names = observes if isinstance(observes, dict) else {key: key for key in observes}
    wider = spaces.Dict(
        {names["camera"]: IMAGE, "joints": VECTOR, "goal": spaces.Box(-1.0, 1.0, (2,))}
    )
    adapted = source.adapted("adapted", observes=observes)
    assert not source.accepts(wider)
    env = Toy(wider)
    model = target(PPO, env, Hub([adapted]).agent(PPO))
    model.learn(64, callback=HubCallback(probe_share=0))
    wider.seed(0)
    one = wider.sample()
    expected = source.predict({key: one[name] for key, name in names.items()}, deterministic=True)[
        0
    ]
    np.testing.assert_allclose(adapted.predict(one, deterministic=True)[0], expected, atol=1e-6)
    Hub([adapted]).save(tmp_path / "hub")
    np.testing.assert_allclose(
        Hub.load(tmp_path / "hub")[0].predict(one, deterministic=True)[0], expected, atol=1e-6
    )
    received = model.policy.method.pathways.sources[0].compute_source_outputs(
        {key: torch.as_tensor(np.asarray(part)[None]) for key, part in _as_seen(one, wider)}
    )
    np.testing.assert_allclose(received[0, :2].numpy(), expected, atol=1e-5)
    with pytest.raises(SpaceMismatch, match="Source 'adapted' reads .*, it was given a dict of"):
        adapted.predict({"goal": one["goal"]})
    assert not adapted.accepts(spaces.Dict({"joints": VECTOR, "goal": VECTOR}))


def _as_seen(one, space):
    """Parts as SB3 preprocesses them, images channel first."""
    for key, part in one.items():
        yield (
            key,
            np.moveaxis(part, -1, 0).astype(np.float32) / 255
            if space[key].dtype == np.uint8
            else part,
        )


def test_a_source_reads_one_key_of_a_dict():
    parts = spaces.Dict({"joints": VECTOR, "goal": spaces.Box(-1.0, 1.0, (2,))})
    adapted = read_live(tiny(PPO, Toy()), "narrow").adapted(observes="joints")
    assert adapted.accepts(parts)
    assert not adapted.accepts(spaces.Dict({"goal": VECTOR}))
    env = Toy(parts)
    model = target(
        PPO, env, {**Hub([adapted]).agent(PPO), "policy": Hub([adapted]).agent(PPO)["policy"]}
    )
    model.learn(64)
    for algorithm, level in ((PPO, "features"), (SAC, None)):
        target(algorithm, env, Hub([adapted]).agent(algorithm, level=level)).learn(64)
    one = {"joints": ROWS[0, :4], "goal": np.zeros(2, np.float32)}
    np.testing.assert_allclose(
        adapted.predict(one, deterministic=True)[0],
        read_live(tiny(PPO, Toy()), "x").predict(ROWS[0, :4], deterministic=True)[0],
    )
    with pytest.raises(
        SpaceMismatch,
        match=r"reads parts \['joints'\] of a Dict, it was given a dict of \['goal'\]",
    ):
        adapted.predict({"goal": np.zeros(2, np.float32)})


def test_a_hub_of_a_gait_and_its_mirror_learns_on_a_wider_target(tmp_path):
    source = read_live(tiny(SAC, Toy()), "gait")
    hub = Hub(
        [
            source.adapted("left", observes=range(4)),
            source.adapted("right", observes=range(4), signs=[-1, 1]),
        ]
    )
    env = Toy(WIDE)
    model = target(PPO, env, hub.agent(PPO)).learn(64)
    model.save(tmp_path / "model.zip")
    assert np.array_equal(
        PPO.load(tmp_path / "model.zip", device="cpu").predict(ROWS, deterministic=True)[0],
        model.predict(ROWS, deterministic=True)[0],
    )
    read_agent(tmp_path / "model.zip")


def test_bounds_follow_the_signs():
    lopsided = spaces.Box(np.array([-1.0, -2.0], np.float32), np.array([3.0, 4.0], np.float32))
    adapted = read_live(tiny(PPO, Toy(actions=lopsided)), "lopsided").adapted(
        order=[1, 0], signs=[-1, 1]
    )
    assert adapted.actions.low.tolist() == [-4.0, -1.0]
    assert adapted.actions.high.tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ({"order": [0, 0]}, SpaceMismatch, r"orders \[0, 0\], Box.* has 2 to order"),
        ({"signs": [1]}, SpaceMismatch, "has 1 signs for Box"),
        ({"signs": [1, 2]}, BadConfig, "cannot be adapted so: .*action_map"),
        ({"observes": [-1]}, BadConfig, "cannot be adapted so: .*indices"),
        (
            {"observes": range(10)},
            BadConfig,
            "Source 'gait' reads 4 numbers, and observes names 10; name one for each of them",
        ),
        ({"name": "no spaces"}, BadConfig, "cannot be adapted so: .*name"),
    ],
)
def test_an_adaptation_that_cannot_be_is_refused(how, error, message):
    source = read_live(tiny(PPO, Toy()), "gait")
    with pytest.raises(error, match=message):
        source.adapted(**how)


def test_signs_are_for_boxes_and_maps_do_not_pile_up():
    chooser = read_live(tiny(DQN, Toy(actions=CHOOSE)), "chooser")
    with pytest.raises(SpaceMismatch, match="has 3 signs for Discrete"):
        chooser.adapted(signs=[1, 1, -1])
    with pytest.raises(
        BadConfig, match="has an action map already; adapt the source that it was made from"
    ):
        chooser.adapted(order=[1, 0, 2]).adapted(order=[1, 0, 2])


def test_a_mirrored_source_keeps_its_standard_deviation():
    source = read_live(tiny(PPO, Toy(actions=STEER)), "gait")
    rows = torch.as_tensor(ROWS[:, :4])
    computed, mirrored = source.outputs(rows), source.adapted(signs=[-1, -1]).outputs(rows)
    torch.testing.assert_close(mirrored[:, :2], -computed[:, :2])
    assert torch.equal(mirrored[:, 2:], computed[:, 2:])


PONG = ("NOOP", "FIRE", "RIGHT", "LEFT", "RIGHTFIRE", "LEFTFIRE")
SKIING = ("NOOP", "RIGHT", "LEFT")


def test_actions_of_one_meaning_are_matched_by_hand():
    computed = torch.tensor([[0.1, 0.4, 0.2, 0.1, 0.15, 0.05]]).log()
    received = action_params.match_meanings(computed, PONG, ("LEFT", "UP", "NOOP", "RIGHT")).exp()
    total = 0.1 + 0.001 + 0.1 + 0.2
    np.testing.assert_allclose(received[0], np.array([0.1, 0.001, 0.1, 0.2]) / total, rtol=1e-5)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_source_of_another_game_acts_by_meaning(algorithm, tmp_path):
    source = read_live(tiny(PPO, Toy(actions=spaces.Discrete(6))), "pong").adapted(meanings=PONG)
    env = Toy(actions=CHOOSE)
    made = Hub([source]).agent(algorithm, action_meanings=SKIING)
    model = target(algorithm, env, made)
    model.learn(64, callback=HubCallback(probe_share=0))
    pathways = model.policy.method.pathways if algorithm is PPO else model.policy.pathways
    rows = torch.as_tensor(ROWS[:, :4])
    received = pathways.sources[0](rows)
    assert received.shape == (5, 3)
    torch.testing.assert_close(
        received, action_params.match_meanings(source.outputs(rows), PONG, SKIING)
    )
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    assert np.array_equal(
        loaded.predict(ROWS[:, :4], deterministic=True)[0],
        model.predict(ROWS[:, :4], deterministic=True)[0],
    )


def test_meanings_that_cannot_be_are_refused():
    source = read_live(tiny(PPO, Toy(actions=spaces.Discrete(6))), "pong")
    env = Toy(actions=CHOOSE)
    with pytest.raises(
        SpaceMismatch,
        match=r"in Discrete\(6\); use level='features', or say what the actions of both mean",
    ):
        target(PPO, env, Hub([source]).agent(PPO, action_meanings=SKIING))
    with pytest.raises(SpaceMismatch, match=r"gives 3 meanings to Discrete\(6\)"):
        source.adapted(meanings=SKIING)
    known = source.adapted(meanings=PONG)
    with pytest.raises(
        SpaceMismatch, match=r"6 action_meanings were given, the target acts in Discrete\(3\)"
    ):
        target(PPO, env, Hub([known]).agent(PPO, action_meanings=PONG))
    with pytest.raises(
        SpaceMismatch, match="Source 'pong' knows none of the target's actions NOOP, UP, DOWN"
    ):
        target(PPO, env, Hub([known]).agent(PPO, action_meanings=("NOOP", "UP", "DOWN")))
