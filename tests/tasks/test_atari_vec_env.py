"""ale-py's C++ environment as a VecEnv: what it must have in common with SB3's wrappers, on recorded actions."""

import csv
from functools import cache
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.atari_wrappers import AtariWrapper, NoopResetEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecFrameStack

from hubrl.experiments.run_record import training_curve
from hubrl.tasks.atari_vec_env import AtariVecEnv
from hubrl.tasks.make_env import make_env

pytest.importorskip("ale_py")
pytest.importorskip("cv2")

STEPS = {
    "Breakout": 250,
    "Pong": 120,
    "SpaceInvaders": 700,
    "Freeway": 120,
    "Riverraid": 400,
    "Seaquest": 600,
}

TINY = {
    PPO: {"n_steps": 128, "batch_size": 128, "n_epochs": 1},
    DQN: {
        "buffer_size": 256,
        "learning_starts": 64,
        "batch_size": 16,
        "train_freq": 8,
        "target_update_interval": 64,
    },
}

PIXELS = {
    "Breakout": (0, 0.0),
    "Pong": (0, 0.0),
    "SpaceInvaders": (0, 0.0),
    "Freeway": (20, 0.05),
    "Riverraid": (32, 0.25),
    "Seaquest": (14, 0.01),
}
"""Greatest and mean difference of grey levels from SB3's frames of 0 to 255, game by game; both round alike, but SB3 takes the
maximum of two frames in colours and ale-py in grey, which differs where two colours lie over each other."""

NARROW = {"features_extractor_kwargs": {"features_dim": 16}}


class Stepped(NamedTuple):
    """One step, as it can be compared."""

    reward: float
    done: bool
    truncated: bool
    lives: int
    statistics: tuple[float, int] | None


class Recorded(NamedTuple):
    """The same actions in both environments."""

    mine: list[Stepped]
    sb3: list[Stepped]
    frames: list[tuple[np.ndarray, np.ndarray]]
    """Where no game was over: on that frame AtariWrapper's maximum is over frames of another step."""


def sb3s_env(task, **kwargs):
    env = AtariWrapper(Monitor(gym.make(task, **kwargs)))
    noop = env
    while not isinstance(noop, NoopResetEnv):
        noop = noop.env
    return env, noop


def record(game, n_steps, full_action_space=False, **kwargs):
    """Random actions in both. The numbers of no-ops are drawn by other generators: SB3's is told what ale-py's drew."""
    task = f"{game}NoFrameskip-v4"
    every = {"full_action_space": True} if full_action_space else {}
    mine, (sb3, noop) = AtariVecEnv(task, {**kwargs, **every}, seed=1), sb3s_env(task, **every)
    fired = 8 if "FIRE" in sb3.unwrapped.get_action_meanings() else 0
    actions = np.random.default_rng(0).integers(sb3.action_space.n, size=n_steps)
    seen = mine.reset()
    noop.override_num_noops = mine.reset_infos[0]["episode_frame_number"] - fired
    frame, _ = sb3.reset(seed=0)
    recorded = Recorded([], [], [(seen[0, -1], frame[..., 0])])
    for action in actions:
        seen, rewards, dones, infos = mine.step(np.array([action]))
        recorded.mine.append(
            Stepped(
                rewards[0],
                dones[0],
                infos[0]["TimeLimit.truncated"],
                infos[0]["lives"],
                statistics(infos[0]),
            )
        )
        frame, reward, terminated, truncated, info = sb3.step(action)
        done = terminated or truncated
        recorded.sb3.append(
            Stepped(reward, done, truncated and not terminated, info["lives"], statistics(info))
        )
        last = infos[0]["terminal_observation"][-1] if dones[0] else seen[0, -1]
        if "episode" not in info:
            recorded.frames.append((last, frame[..., 0]))
        if done:
            # Unused after the loss of a life, when the game goes on.
            noop.override_num_noops = max(mine.reset_infos[0]["episode_frame_number"] - fired, 1)
            frame, _ = sb3.reset()
            recorded.frames.append((seen[0, -1], frame[..., 0]))
    mine.close()
    sb3.close()
    return recorded


def statistics(info):
    return (info["episode"]["r"], info["episode"]["l"]) if "episode" in info else None


@cache
def recording(game, **kwargs):
    return record(game, STEPS[game], **kwargs)


def play(env, n_steps, seed=0):
    """Steps of random actions, from a reset on."""
    rng = np.random.default_rng(seed)
    yield (
        env.reset(),
        np.zeros(env.num_envs),
        np.zeros(env.num_envs, bool),
        [{} for _ in range(env.num_envs)],
    )
    for _ in range(n_steps):
        yield env.step(rng.integers(env.action_space.n, size=env.num_envs))


@pytest.mark.parametrize("game", PIXELS)
def test_recorded_actions_give_the_rewards_lives_ends_and_statistics_of_sb3s_wrappers(game):
    assert recording(game).mine == recording(game).sb3
    if game in ("Breakout", "SpaceInvaders", "Seaquest"):
        assert any(step.reward for step in recording(game).sb3)
        assert any(step.done and not step.statistics for step in recording(game).sb3)
        assert any(step.statistics for step in recording(game).sb3)


@pytest.mark.parametrize("game", ["Pong", "Riverraid", "Seaquest", "SpaceInvaders"])
def test_recorded_actions_agree_with_sb3s_wrappers_where_every_action_is_to_be_had(game):
    recorded = recording(game, full_action_space=True)
    assert recorded.mine == recorded.sb3
    assert any(step.reward for step in recorded.sb3)


@pytest.mark.parametrize("game", PIXELS)
def test_frames_are_sb3s_to_some_grey_levels(game, record_property):
    differences = [np.abs(mine.astype(int) - sb3) for mine, sb3 in recording(game).frames]
    greatest, mean = (
        max(one.max() for one in differences),
        float(np.mean([one.mean() for one in differences])),
    )
    record_property(
        "difference",
        f"{game}: greatest {greatest}, mean {mean:.5f} of 255 over {len(differences)} frames",
    )
    assert greatest <= PIXELS[game][0]
    assert mean <= PIXELS[game][1]


def test_true_returns_are_counted_where_rewards_are_signs():
    steps = recording("SpaceInvaders").mine
    assert {step.reward for step in steps} <= {-1.0, 0.0, 1.0}
    ends = [index for index, step in enumerate(steps) if step.statistics]
    first = steps[ends[0]].statistics
    assert first[0] > sum(step.reward for step in steps[: ends[0] + 1])


def test_a_game_that_takes_too_long_is_cut_off_and_not_terminated():
    recorded = record("Pong", 60, max_num_frames_per_episode=150)
    cut = [step for step in recorded.mine if step.truncated]
    assert cut
    assert all(step.done and step.statistics and 150 <= step.statistics[1] < 154 for step in cut)


def test_observations_are_images_channel_first_from_an_empty_stack_on(breakout):
    space = breakout.observation_space
    assert space == spaces.Box(0, 255, (4, 84, 84), np.uint8)
    assert is_image_space(space)
    assert is_image_space_channels_first(space)
    first = breakout.reset()
    assert first.shape == (2, 4, 84, 84)
    assert not first[:, :3].any()
    assert first[:, 3].any()


def test_a_terminal_observation_is_the_stack_before_and_the_last_frame(breakout):
    before, ends = None, 0
    for observations, rewards, dones, infos in play(breakout, 150):
        assert rewards.shape == dones.shape == (2,)
        assert observations in breakout.observation_space or observations.dtype == np.uint8
        for index, info in enumerate(infos):
            assert ("terminal_observation" in info) == dones[index]
            if dones[index]:
                ends += 1
                terminal = info["terminal_observation"]
                assert terminal.shape == (4, 84, 84)
                np.testing.assert_array_equal(terminal[:3], before[index, 1:])
                assert not observations[index, :3].any()
                assert (terminal[3] != observations[index, 3]).any()
            elif before is not None:
                np.testing.assert_array_equal(observations[index, :3], before[index, 1:])
        before = observations.copy()
    assert ends > 2


def test_the_same_seed_gives_the_same_frames_and_each_game_its_own():
    env = AtariVecEnv("PongNoFrameskip-v0", n_envs=2, seed=5)
    first = [seen[0].copy() for seen in play(env, 40)]
    env.seed(5)
    again = [seen[0].copy() for seen in play(env, 40)]
    env.seed(6)
    other = [seen[0].copy() for seen in play(env, 40)]
    env.close()
    np.testing.assert_array_equal(first, again)
    assert (np.array(first) != np.array(other)).any()
    assert (np.array(first)[:, 0] != np.array(first)[:, 1]).any()


def test_no_ops_are_one_to_thirty():
    env = AtariVecEnv("PongNoFrameskip-v4", n_envs=1, seed=0)
    drawn = {env.games[0].start()[1]["episode_frame_number"] for _ in range(120)}
    env.close()
    assert drawn <= set(range(1, 31))
    assert len(drawn) > 20


def test_an_early_reset_begins_a_new_game_without_statistics(breakout):
    list(play(breakout, 30))
    breakout.step_async(np.ones(2, int))
    breakout.reset()
    assert breakout.get_attr("lives") == [5, 5]
    assert all(1 + 8 <= frames <= 30 + 8 for frames in breakout.get_attr("frames"))
    assert "episode" not in breakout.step(np.zeros(2, int))[3][0]


def test_monitors_files_are_read_as_the_training_curve(tmp_path):
    env = make_env(
        "BreakoutNoFrameskip-v4",
        n_envs=2,
        seed=1,
        preprocessing="atari",
        monitor=tmp_path / "monitor",
    )
    assert isinstance(env, AtariVecEnv)
    returns = [
        [info["episode"] for info in infos if "episode" in info]
        for _, _, _, infos in play(env, 250)
    ]
    env.close()
    episodes = [episode for several in returns for episode in several]
    assert len(episodes) >= 2
    files = sorted((tmp_path / "monitor").iterdir())
    assert [file.name for file in files] == ["0.monitor.csv", "1.monitor.csv"]
    lines = [file.read_text().splitlines() for file in files]
    assert all('"env_id": "BreakoutNoFrameskip-v4"' in text[0] for text in lines)
    rows = [row for text in lines for row in csv.DictReader(text[1:])]
    assert sorted((float(row["r"]), int(row["l"]), float(row["t"])) for row in rows) == sorted(
        (e["r"], e["l"], e["t"]) for e in episodes
    )
    (tmp_path / "config.yaml").write_text(
        "task: BreakoutNoFrameskip-v4\npreprocessing: atari\nmethod: scratch\nsteps: 500\n"
    )
    curve = training_curve(tmp_path)
    assert sorted(value for _, value in curve) == sorted(episode["r"] for episode in episodes)
    # Steps of four frames: 500 in all, and no more than the no-ops and the FIREs of the games and lives beside them.
    assert 250 < curve[-1][0] < 600


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_model_that_learned_here_plays_in_sb3s_environments_and_back(algorithm, tmp_path):
    env = make_env(
        "PongNoFrameskip-v4", {"full_action_space": True}, n_envs=2, preprocessing="atari"
    )
    assert env.action_space == spaces.Discrete(18)
    model = algorithm(
        "CnnPolicy", env, seed=0, device="cpu", policy_kwargs=NARROW, **TINY[algorithm]
    ).learn(256)
    assert model.get_env() is env
    model.save(tmp_path / "model.zip")
    other = make_env(
        "PongNoFrameskip-v4", {"full_action_space": True}, n_envs=2, preprocessing="atari-sb3"
    )
    assert isinstance(other, VecFrameStack)
    assert other.observation_space.shape == (84, 84, 4)
    again = algorithm.load(tmp_path / "model.zip", env=other, device="cpu")
    seen = other.reset()
    actions = again.predict(seen, deterministic=True)[0]
    np.testing.assert_array_equal(
        actions, model.predict(seen.transpose(0, 3, 1, 2), deterministic=True)[0]
    )
    again.save(tmp_path / "again.zip")
    back = algorithm.load(tmp_path / "again.zip", env=env, device="cpu")
    assert back.get_env() is env
    env.close()
    other.close()


def test_evaluate_policy_plays_whole_games_with_true_returns():
    env = AtariVecEnv(
        "SpaceInvadersNoFrameskip-v4", {"max_num_frames_per_episode": 300}, n_envs=2, seed=0
    )
    model = PPO("CnnPolicy", env, seed=0, device="cpu", **TINY[PPO])
    returns, lengths = evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True)
    env.close()
    assert [300 <= length < 304 for length in lengths] == [True, True]
    assert all(value % 5 == 0 for value in returns)
