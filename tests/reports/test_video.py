"""Episodes to look at: the picture, who acts, videos, TensorBoard."""

import builtins
import shutil

import numpy as np
import pytest
from PIL import Image
from runs import make_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hubrl import Hub
from hubrl.errors import BadConfig
from hubrl.reports.pictures import Moment, annotate
from hubrl.reports.run_log import RunLog
from hubrl.reports.video import TENSORBOARD, EnjoyedRun, enjoy, open_screen
from hubrl.training.pathway_figures import NO_SOURCE, PALETTE, pathway_colors

pytest.importorskip("pygame", reason="CartPole's picture is drawn by it")


def rgb(color):
    return [int(color[index : index + 2], 16) for index in (1, 3, 5)]


def moment(weights, acting=None):
    return Moment(np.full((100, 150, 3), 200, dtype=np.uint8), weights, acting, 7, "return 3.0")


def test_the_bar_has_each_pathways_colour_in_proportion_to_its_weight():
    picture = annotate(moment({"a": 0.75, "b": 0.25, "fresh": 0.0}, "a"), "hub-pathway")
    height, width, _ = picture.shape
    assert height % 2 == width % 2 == 0
    assert width >= 480
    row = max(picture, key=lambda row: int((row == rgb(PALETTE[0])).all(axis=1).sum()))
    first, second = ((row == rgb(color)).all(axis=1).sum() for color in PALETTE[:2])
    assert first / (first + second) == pytest.approx(0.75, abs=0.01)
    assert not (row == rgb(NO_SOURCE["fresh"])).all(axis=1).any()


def test_all_pictures_of_an_episode_have_the_same_size():
    sizes = {
        annotate(moment({"a": share, "long name": 1 - share}), "x").shape
        for share in (0.0, 0.05, 1.0)
    }
    assert len(sizes) == 1


def test_a_pathway_has_one_colour_whatever_else_is_drawn():
    assert pathway_colors(["a", "b", "fresh"])["b"] == pathway_colors(["a", "b", "together"])["b"]
    assert pathway_colors(["fresh", "a"])["a"] == PALETTE[0]
    assert pathway_colors(["a"])["fresh"] == NO_SOURCE["fresh"]


def test_an_episode_becomes_a_gif_and_pictures_for_tensorboard(tmp_path, finished):
    run = tmp_path / "mine"
    shutil.copytree(finished, run)
    shares = enjoy(run, run / "episode.gif", steps=8)
    assert sum(shares.values()) == pytest.approx(1.0)
    with Image.open(run / "episode.gif") as gif:
        assert gif.n_frames == 8
    events = EventAccumulator(str(run / TENSORBOARD), size_guidance={"images": 0}).Reload()
    assert len(events.Images("enjoy/picture")) == 5
    assert RunLog(run).scalars, "the pictures hide no scalars of the training"


def test_an_episode_becomes_a_video(tmp_path, finished):
    pytest.importorskip("imageio_ffmpeg")
    enjoy(finished, tmp_path / "new" / "episode.mp4", steps=3)
    assert (tmp_path / "new" / "episode.mp4").read_bytes()[4:8] == b"ftyp"


def test_what_is_shown_as_acting_is_what_the_policy_committed_to(finished):
    run = EnjoyedRun(finished)
    env = run.env(episodes=1, seed=0)
    for one in run.moments(env, 5, 0):
        assert one.acting in (*RunLog(finished).sources, "fresh")
        assert sum(one.weights.values()) == pytest.approx(1.0, abs=1e-5)
        assert one.picture.shape[2] == 3
    env.close()


def test_dqn_shows_the_pathway_that_acts_in_evaluation(tmp_path, hub):
    kwargs = {"learning_starts": 16, "buffer_size": 200, "policy_kwargs": {"net_arch": [8]}}
    fields = {"algorithm": "dqn", "algorithm_kwargs": kwargs, "steps": 300}
    run = make_run(tmp_path, hub, "dqn", **fields)
    assert set(enjoy(run, tmp_path / "dqn.gif", steps=3).values()) == {1.0}


def test_features_have_weights_and_no_single_acting_pathway(tmp_path, hub):
    run = make_run(tmp_path, hub, "features", level="features", steps=128, eval_every=64)
    assert enjoy(run, tmp_path / "features.gif", steps=2) == {}


def test_a_missing_encoder_is_a_sentence(tmp_path, monkeypatch):
    original = builtins.__import__

    def absent(name, *args, **kwargs):
        if name in ("imageio_ffmpeg", "pygame"):
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(BadConfig, match=r"install hubrl\[video\], or write a .gif"):
        open_screen(tmp_path / "a.mp4", "title", 30)
    with pytest.raises(BadConfig, match="A window needs pygame"):
        open_screen(None, "title", 30)


def test_a_window_shows_pictures(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    screen = open_screen(None, "title", 1000)
    assert screen.show(annotate(moment({}), "scratch"))
    screen.close()


def test_without_a_display_a_window_is_a_sentence(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "no such driver")
    with pytest.raises(BadConfig, match="no display for a window .*; write a file with --video"):
        open_screen(None, "title", 30)


@pytest.mark.parametrize("task", ["HalfCheetah-v5"])
def test_mujocos_camera_follows_the_robot(tmp_path, monkeypatch, task):
    pytest.importorskip("mujoco")
    from stable_baselines3 import PPO

    source = PPO("MlpPolicy", task, policy_kwargs={"net_arch": [8]}, device="cpu")
    Hub.from_agents([source], names=["one"]).save(tmp_path / "hub")
    run = make_run(
        tmp_path, tmp_path / "hub", "cheetah", task=task, steps=64, probe_share=0.0, eval_every=10**6,
        task_kwargs={"max_episode_steps": 20},
    )  # fmt: skip
    run = EnjoyedRun(run)
    env = run.env(episodes=1, seed=0)
    run.follow_robot(env)
    assert env.get_attr("unwrapped")[0].mujoco_renderer.camera_id >= 0
    env.close()
