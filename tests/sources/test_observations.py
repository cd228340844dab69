"""Observations of a source: shapes that it accepts, and the preprocessing steps of its card."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from source_cases import mine
from stable_baselines3 import DQN, PPO
from torch import nn
from untrained import ARM, FLAT, IMAGE, KEYS, draw, untrained

from hubrl import Hub, Source
from hubrl.errors import (
    SpaceMismatch,
)
from hubrl.formats.cards import Crop, Frames, Resize, Select, Stretch
from hubrl.sources.action_params import squashed_gaussian
from hubrl.sources.preprocessing import apply_steps

CAMERA = spaces.Box(0, 255, (3, 8, 8), np.uint8)


@pytest.mark.parametrize(
    ("observed", "fitting"),
    [
        (spaces.Box(-9.0, 9.0, (4,)), True),
        (spaces.Box(-np.inf, np.inf, (4,), np.float64), True),
        (spaces.Box(-np.inf, np.inf, (5,)), False),
        (spaces.Box(-np.inf, np.inf, (2, 2)), False),
        (spaces.Discrete(4), False),
        (spaces.Dict(a=FLAT), False),
    ],
    ids=str,
)
def test_a_source_accepts_what_has_the_shape_it_reads(observed, fitting, hub):
    assert hub[0].accepts(observed) is fitting


def test_a_source_of_parts_accepts_them_in_any_order():
    both = spaces.Dict(camera=CAMERA, joints=FLAT)
    source = Source(encoder=Joints(), name="mine", observation_space=both)
    assert source.accepts(spaces.Dict([("joints", FLAT), ("camera", CAMERA)]))
    assert not source.accepts(spaces.Dict(joints=FLAT))
    assert not source.accepts(FLAT)


class Joints(nn.Module):
    """Reads one part of two."""

    def forward(self, observations):
        return observations["joints"]


def test_one_observation_gives_one_action_and_a_batch_a_batch(hub):
    rows = draw(FLAT, 5)
    for source in hub:
        many, state = source.predict(rows, deterministic=True)
        assert state is None
        assert many.shape == (5, *source.actions.shape)
        for row, action in zip(rows, many, strict=True):
            one, _ = source.predict(row, deterministic=True)
            assert one.shape == source.actions.shape
            np.testing.assert_allclose(one, action, atol=1e-6)
            assert source.actions.contains(one)
        assert source.predict(rows[:1], deterministic=True)[0].shape == (1, *source.actions.shape)


def test_images_are_read_channel_first_or_last():
    model = untrained(
        PPO,
        IMAGE,
        policy="CnnPolicy",
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
    )
    source = Hub.from_agents([model])[0]
    last = draw(IMAGE, 5)
    expected, _ = source.predict(last.transpose(0, 3, 1, 2), deterministic=True)
    np.testing.assert_allclose(source.predict(last, deterministic=True)[0], expected, atol=1e-6)
    np.testing.assert_allclose(
        source.predict(last[3], deterministic=True)[0], expected[3], atol=1e-6
    )
    np.testing.assert_allclose(
        source.predict(last[3].transpose(2, 0, 1), deterministic=True)[0], expected[3], atol=1e-6
    )
    for shape in ((36, 40), (36, 36, 3), (2, 36, 36, 3), (1, 1, 36, 40, 3), (4,), ()):
        with pytest.raises(
            SpaceMismatch,
            match=r"'ppo-0' reads Box\(3, 36, 40\), it was given an observation of shape",
        ):
            source.predict(np.zeros(shape, np.uint8))


def test_one_discrete_observation_and_a_batch_are_distinguished():
    source = Hub.from_agents([untrained(DQN, spaces.Discrete(6), KEYS)])[0]
    many, _ = source.predict(np.arange(6), deterministic=True)
    assert many.shape == (6,)
    assert [
        int(source.predict(np.array(number), deterministic=True)[0]) for number in range(6)
    ] == many.tolist()


@pytest.mark.parametrize("shape", [(5,), (2, 5), (4, 1), (1, 1, 4), ()])
def test_an_observation_of_another_shape_is_refused(shape, hub):
    with pytest.raises(
        SpaceMismatch,
        match=r"Source 'z-first' reads Box\(4,\), it was given an observation of shape",
    ):
        hub[0].predict(np.zeros(shape, np.float32))


def test_missing_parts_are_named():
    both = spaces.Dict(camera=CAMERA, joints=FLAT)
    source = Source(
        encoder=Joints(),
        head=nn.Linear(4, 3),
        name="mine",
        observation_space=both,
        action_space=KEYS,
    )
    given = draw(both, 2)
    assert source.predict({**given, "more": given["joints"]})[0].shape == (2,)
    del given["camera"]
    with pytest.raises(
        SpaceMismatch,
        match=r"'mine' reads Dict\(camera: Box\(3, 8, 8\), joints: Box\(4,\)\), it was given a dict of \['joints'\]",
    ):
        source.predict(given)
    with pytest.raises(SpaceMismatch, match="it was given an array"):
        source.predict(given["joints"])


def test_drawn_actions_follow_the_sources_distribution():
    torch.manual_seed(0)
    rows = np.repeat(draw(FLAT, 1), 4000, axis=0)

    def says(*numbers):
        head = nn.Linear(8, len(numbers))
        nn.init.zeros_(head.weight)
        head.bias.data[:] = torch.tensor(numbers)
        return head

    gaussian, _ = mine(head=says(0.3, -0.2, np.log(0.1), np.log(0.2)), actions=ARM).predict(rows)
    np.testing.assert_allclose(gaussian.mean(axis=0), [0.3, -0.2], atol=0.02)
    np.testing.assert_allclose(gaussian.std(axis=0), [0.1, 0.2], atol=0.02)
    choices, _ = mine(head=says(*np.log([0.2, 0.3, 0.5]))).predict(rows)
    np.testing.assert_allclose(np.bincount(choices) / 4000, [0.2, 0.3, 0.5], atol=0.03)
    bits, _ = mine(head=says(0.0, -3.0), actions=spaces.MultiBinary(2)).predict(rows)
    np.testing.assert_allclose(bits.mean(axis=0), [0.5, 0.047], atol=0.03)
    wide, _ = mine(head=says(0.9, -0.9, 0.0, 0.0), actions=ARM).predict(rows)
    assert (wide.min(), wide.max()) == (-1.0, 1.0)


def test_the_width_of_a_squashed_gaussian_grows_with_its_bounds():
    near, far = spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-500.0, 500.0, (1,))
    mean, log_std = torch.zeros(1, 1), torch.tensor([[0.5]])
    assert squashed_gaussian(mean, log_std, near)[0].tolist() == pytest.approx([0.0, 0.5])
    assert squashed_gaussian(mean, log_std, far)[0].tolist() == pytest.approx(
        [0.0, 0.5 + np.log(500)]
    )
    assert squashed_gaussian(mean, log_std + 9, near)[0].tolist() == pytest.approx([0.0, 2.0])
    assert squashed_gaussian(mean + 50, log_std, near).isfinite().all()


def test_select_keeps_entries_in_the_order_given():
    rows = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert apply_steps(rows, (Select(op="select", indices=(2, 0)),)).tolist() == [
        [3.0, 1.0],
        [6.0, 4.0],
    ]


def test_frames_keeps_the_last_ones():
    images = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 3, 3)
    assert (
        apply_steps(images, (Frames(op="frames", last=2),)).mean((2, 3)).tolist()
        == [[2.0, 3.0]] * 2
    )


def test_crop_keeps_rows_from_top_to_before_bottom():
    images = torch.arange(5.0).view(1, 1, 5, 1).expand(1, 2, 5, 3)
    assert apply_steps(images, (Crop(op="crop", top=1, bottom=4),))[0, 0, :, 0].tolist() == [
        1.0,
        2.0,
        3.0,
    ]


def test_resize_leaves_one_colour_and_averages_others():
    resize = (Resize(op="resize", height=2, width=3),)
    torch.testing.assert_close(
        apply_steps(torch.full((1, 1, 8, 8), 0.25), resize), torch.full((1, 1, 2, 3), 0.25)
    )
    halves = torch.cat([torch.zeros(1, 1, 4, 8), torch.ones(1, 1, 4, 8)], dim=2)
    top, bottom = apply_steps(halves, resize)[0, 0].mean(dim=1)
    assert top < 0.2
    assert bottom > 0.8
    assert top + bottom == pytest.approx(1.0)


def test_stretch_spans_zero_to_one_image_by_image_and_leaves_one_colour_dark():
    images = torch.stack([torch.tensor([[0.4, 0.5], [0.6, 0.8]]), torch.full((2, 2), 0.7)])[:, None]
    seen = apply_steps(images, (Stretch(op="stretch"),))
    torch.testing.assert_close(seen[0, 0], torch.tensor([[0.0, 0.25], [0.5, 1.0]]))
    assert torch.equal(seen[1, 0], torch.zeros(2, 2))


def test_steps_follow_each_other_in_the_order_given():
    images = torch.rand(2, 4, 8, 8)
    steps = (
        Frames(op="frames", last=1),
        Crop(op="crop", top=2, bottom=8),
        Resize(op="resize", height=3, width=3),
        Stretch(op="stretch"),
    )
    seen = apply_steps(images, steps)
    assert seen.shape == (2, 1, 3, 3)
    manual_backward = apply_steps(images[:, 3:, 2:8], steps[2:])
    assert torch.equal(seen, manual_backward)


def selecting(*indices):
    return mine(preprocessing=(Select(op="select", indices=indices),))


def test_a_source_that_selects_reads_wider_observations(observations):
    source = selecting(5, 0, 1, 3)
    wide = torch.randn(7, 6)
    torch.testing.assert_close(source.features(wide), source.encoder(wide[:, [5, 0, 1, 3]]))
    one, many = (
        source.predict(wide[0].numpy(), deterministic=True)[0],
        source.predict(wide.numpy(), deterministic=True)[0],
    )
    assert one == many[0]
    assert source.accepts(spaces.Box(-1.0, 1.0, (6,)))
    assert source.accepts(spaces.Box(-1.0, 1.0, (60,)))
    assert not source.accepts(spaces.Box(-1.0, 1.0, (5,)))
    assert not source.accepts(spaces.Discrete(6))
    with pytest.raises(
        SpaceMismatch,
        match=r"Source 'mine' cannot preprocess an observation of shape \(5,\) to Box\(4,\)",
    ):
        source.predict(np.zeros(5, np.float32))


@pytest.mark.parametrize(
    "step",
    [
        Resize(op="resize", height=8, width=8),
        Crop(op="crop", top=0, bottom=8),
        Stretch(op="stretch"),
        Frames(op="frames", last=3),
    ],
    ids=lambda step: step.op,
)
def test_a_source_of_images_refuses_what_its_steps_cannot_read(step):
    class Flat(nn.Module):
        def forward(self, images):
            return images.flatten(1)

    source = Source(encoder=Flat(), name="mine", observation_space=CAMERA, preprocessing=(step,))
    for space in (
        spaces.Box(-1, 1, (17,)),
        spaces.Box(-1, 1, ()),
        spaces.Box(-1, 1, (2, 2)),
        spaces.Box(-1, 1, (2, 3, 4, 5)),
        KEYS,
    ):
        assert not source.accepts(space)


def test_steps_for_parts_are_refused():
    both = spaces.Dict(camera=CAMERA, joints=FLAT)
    with pytest.raises(
        SpaceMismatch,
        match=r"The preprocessing of source 'mine' ends in Dict\(.*\); expected a Box",
    ):
        Source(
            encoder=Joints(),
            name="mine",
            observation_space=both,
            preprocessing=(Frames(op="frames", last=1),),
        )
