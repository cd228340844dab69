"""Sources: made from a user's own modules, saved and loaded in hubs, asked for actions, and left as they are."""

import hashlib

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from torch import nn
from untrained import ARM, FLAT, IMAGE, KEYS, Noise, draw, normalised, untrained

from hubrl import Hub, Networks, Source, register_network
from hubrl.errors import (
    BadConfig,
    BadFile,
    OutputExists,
    SourcesNotLoaded,
    SpaceMismatch,
    UnknownName,
)
from hubrl.experiments.evaluation import check_hub
from hubrl.formats.cards import Crop, Frames, Resize, Select, SourceCard, Stretch
from hubrl.reading import read_agent
from hubrl.sources.action_params import squashed_gaussian
from hubrl.sources.preprocessing import apply_steps

CAMERA = spaces.Box(0, 255, (3, 8, 8), np.uint8)


def encoder(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.Tanh())


def with_batch_norm():
    """An encoder whose statistics and affine weights are far from where they start."""
    module = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8)
    )
    for _ in range(3):
        module(torch.randn(16, 4) * 5 + 2)
    nn.init.normal_(module[1].weight)
    return module


def mine(encoder_=None, head=None, actions=KEYS, **description):
    description = {
        "name": "mine",
        "observation_space": FLAT,
        "action_space": actions,
        **description,
    }
    return Source(encoder=encoder_ or encoder(), head=head or nn.Linear(8, 3), **description)


def same(tensors, others):
    return list(tensors) == list(others) and all(
        torch.equal(tensors[name], others[name]) for name in tensors
    )


@pytest.fixture
def observations():
    return torch.as_tensor(draw(FLAT, 50))


def test_a_source_of_the_users_modules_computes_what_they_compute(observations):
    body, head = encoder(), nn.Linear(8, 3)
    source = mine(body, head)
    assert source.width == 8
    torch.testing.assert_close(source.features(observations), body(observations))
    torch.testing.assert_close(
        source.outputs(observations), head(body(observations)).log_softmax(dim=1)
    )
    actions, _ = source.predict(observations.numpy(), deterministic=True)
    np.testing.assert_array_equal(actions, head(body(observations)).argmax(dim=1))


def test_a_source_is_a_copy_that_later_training_of_the_modules_does_not_reach(observations):
    body = encoder()
    source = mine(body)
    before = source.features(observations)
    nn.init.zeros_(body[0].weight)
    assert torch.equal(source.features(observations), before)


def test_a_head_for_a_box_returns_means_or_means_and_log_standard_deviations(observations):
    means, both = nn.Linear(8, 2), nn.Linear(8, 4)
    mean, log_std = mine(head=means, actions=ARM).outputs(observations).chunk(2, dim=1)
    torch.testing.assert_close(log_std.exp(), torch.full_like(mean, 0.1))
    body = encoder()
    said = mine(body, both, ARM).outputs(observations)
    expected = both(body(observations))
    torch.testing.assert_close(
        said, torch.cat([expected[:, :2].clamp(-1, 1), expected[:, 2:]], dim=1)
    )


@pytest.mark.parametrize(
    ("actions", "width"),
    [(spaces.MultiDiscrete([2, 3]), 5), (spaces.MultiBinary(3), 3), (KEYS, 3)],
    ids=lambda given: type(given).__name__,
)
def test_a_head_for_discrete_actions_returns_logits(actions, width, observations):
    body, head = encoder(), nn.Linear(8, width)
    source = mine(body, head, actions)
    logits = head(body(observations))
    acted, _ = source.predict(observations.numpy(), deterministic=True)
    match actions:
        case spaces.MultiBinary():
            np.testing.assert_array_equal(acted, logits > 0)
        case spaces.MultiDiscrete():
            np.testing.assert_array_equal(
                acted,
                torch.stack([logits[:, :2].argmax(dim=1), logits[:, 2:].argmax(dim=1)], dim=1),
            )
        case _:
            np.testing.assert_array_equal(acted, logits.argmax(dim=1))
    assert all(actions.contains(action) for action in source.predict(observations.numpy())[0])


@pytest.mark.parametrize(
    ("modules", "sentence"),
    [
        ({"encoder_": nn.Linear(5, 8)}, r"The networks of source 'mine' do not read Box\(4,\)"),
        ({"head": nn.Linear(9, 3)}, r"The networks of source 'mine' do not read Box\(4,\)"),
        (
            {"head": nn.Linear(8, 4)},
            r"The head of source 'mine' returns 4 numbers, Discrete\(3\) takes 3",
        ),
        ({"head": nn.Linear(8, 5), "actions": ARM}, "do not read|says"),
        ({"encoder_": nn.Flatten(0)}, "do not read"),
    ],
)
def test_modules_that_do_not_fit_the_spaces_are_refused(modules, sentence):
    with pytest.raises(SpaceMismatch, match=sentence):
        mine(**modules)


@pytest.mark.parametrize(
    ("description", "sentence"),
    [
        ({"name": "a b"}, "A source cannot be described so: .*name String should match"),
        ({"colour": "blue"}, "colour Extra inputs are not permitted"),
        ({"observation_space": None}, "observation_space Input should be a valid dictionary"),
        ({"steps": "many"}, "steps Input should be a valid integer"),
    ],
)
def test_a_description_that_is_no_cards_is_refused(description, sentence):
    with pytest.raises(BadConfig, match=sentence):
        mine(**description)


def test_statistics_given_with_modules_normalise_and_clip(observations):
    mean, var = np.array([1.0, 2.0, 3.0, 4.0]), np.array([4.0, 9.0, 1.0, 0.25])
    body = encoder()
    source = mine(body, statistics={"": (mean, var)})
    seen = ((observations.numpy() - mean) / np.sqrt(var + 1e-8)).clip(-10, 10)
    torch.testing.assert_close(source.features(observations), body(torch.as_tensor(seen).float()))
    with pytest.raises(
        SpaceMismatch, match=r"The statistics are of shape \(3,\), the source observes Box\(4,\)"
    ):
        mine(statistics={"": (mean[:3], var[:3])})


@pytest.mark.parametrize("head", [nn.Linear(8, 3), None], ids=["with a head", "encoder alone"])
def test_a_value_head_of_the_users_is_used(head, observations):
    body, value = encoder(), nn.Linear(8, 1)
    source = Source(
        encoder=body,
        head=head,
        value=value,
        name="mine",
        observation_space=FLAT,
        action_space=KEYS if head else None,
    )
    torch.testing.assert_close(source.value(observations), value(body(observations)).squeeze(1))


def test_an_encoder_alone_has_features_and_nothing_else(observations):
    source = Source(encoder=encoder(), name="mine", observation_space=FLAT)
    assert source.features(observations).shape == (50, 8)
    with pytest.raises(
        SpaceMismatch,
        match="Source 'mine' is an encoder alone and has no actions; use its features",
    ):
        source.outputs(observations)
    with pytest.raises(
        SpaceMismatch,
        match="Source 'mine' is an encoder alone and has no actions; use its features",
    ):
        source.predict(observations.numpy())
    with pytest.raises(SpaceMismatch, match="Source 'mine' has no value or Q head"):
        source.value(observations)


def test_modules_without_weights_are_a_source():
    source = Source(
        encoder=nn.Flatten(),
        head=nn.Identity(),
        name="mine",
        observation_space=spaces.Box(-1, 1, (3,)),
        action_space=KEYS,
    )
    assert source.predict(np.array([0.0, 1.0, -1.0], np.float32), deterministic=True)[0] == 1


def test_frozen_sources_have_no_parameters_and_tuned_ones_do():
    for model in (untrained(PPO), untrained(SAC), untrained(DQN, actions=KEYS)):
        source = Hub.from_agents([model])[0]
        assert list(source.parameters()) == []
        assert not any(
            tensor.requires_grad for tensor in source.state_dict(keep_vars=True).values()
        )
        assert (
            len(list(Source.from_card(source.card, source.tensors(), frozen=False).parameters()))
            >= 4
        )


def test_a_frozen_source_gives_no_gradient_but_lets_one_through():
    source = mine()
    observations = torch.randn(3, 4, requires_grad=True)
    source.outputs(observations).square().sum().backward()
    assert observations.grad.abs().sum() > 0
    assert all(tensor.grad is None for tensor in source.state_dict(keep_vars=True).values())


def test_a_frozen_batch_norm_stays_bit_for_bit_in_training_mode(observations):
    source = mine(with_batch_norm())
    before, said = source.tensors(), source.features(observations)
    source.train()
    assert not any(part.training for part in source.modules())
    source.features(observations * 3 + 1)
    assert same(source.tensors(), before)
    assert torch.equal(source.features(observations), said)


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC], ids=lambda algorithm: algorithm.__name__)
def test_training_leaves_a_batch_norm_as_it_was(algorithm, tmp_path):
    actions = KEYS if algorithm is DQN else ARM
    source = mine(with_batch_norm(), nn.Linear(8, 3 if algorithm is DQN else 2), actions)
    before, digest = source.tensors(), source.card.sha256
    learning = (
        {"n_steps": 16, "batch_size": 8}
        if algorithm is PPO
        else {"learning_starts": 4, "buffer_size": 64, "batch_size": 8}
    )
    learning |= {"target_update_interval": 4, "tau": 0.5} if algorithm is DQN else {}
    model = algorithm(
        env=Noise(FLAT, actions),
        device="cpu",
        **learning,
        **Hub([source]).agent(algorithm, level="features" if algorithm is DQN else None),
    )
    model.learn(32)
    assert same(source.tensors(), before)
    assert hashlib.sha256(source.to_bytes()).hexdigest() == digest
    held = [part for part in model.policy.modules() if isinstance(part, Source)]
    assert held
    assert all(same(part.tensors(), before) for part in held)


def test_a_batch_norm_may_be_frozen_or_tuned_from_the_same_file(observations):
    register_network("tests.batch-norm", lambda card: Networks(with_batch_norm(), nn.Linear(8, 3)))
    source = mine(with_batch_norm(), builder="tests.batch-norm")
    tuned = Source.from_card(source.card, source.tensors(), frozen=False)
    torch.testing.assert_close(tuned.features(observations), source.features(observations))
    again = Source.from_card(source.card, tuned.tensors())
    torch.testing.assert_close(again.features(observations), source.features(observations))
    tuned.train()
    tuned.features(observations)
    assert not same(tuned.tensors(), source.tensors())


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM], ids=lambda layer: layer.__name__)
def test_a_recurrent_layer_inside_an_encoder_has_the_weights_that_were_loaded(layer, observations):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer(2, 8, batch_first=True)

        def forward(self, rows):
            return self.layer(rows.view(-1, 2, 2))[0][:, -1]

    register_network(f"tests.{layer.__name__}", lambda card: Networks(Recurrent(), nn.Linear(8, 3)))
    body = Recurrent()
    source = mine(body, builder=f"tests.{layer.__name__}")
    torch.testing.assert_close(source.features(observations), body(observations))
    torch.testing.assert_close(
        Source.from_card(source.card, source.tensors()).features(observations), body(observations)
    )


def test_a_source_without_weights_raises(observations):
    source = Source.from_card(Hub.from_agents([untrained(PPO)], names=["empty"])[0].card)
    sentence = "The weights of source 'empty' never arrived; load a saved model"
    for ask in (source.features, source.outputs, source.value):
        with pytest.raises(SourcesNotLoaded, match=sentence):
            ask(observations)
    with pytest.raises(SourcesNotLoaded, match=sentence):
        source.predict(observations.numpy())


def test_a_registered_network_comes_back_from_a_hubs_folder(tmp_path, observations):
    def build(card, *, width):
        return Networks(encoder(width), nn.Linear(width, 3), nn.Linear(width, 1))

    register_network("tests.plain", build)
    register_network("tests.plain", build)
    made = build(None, width=6)
    source = Source(
        encoder=made.encoder,
        head=made.action,
        value=made.value,
        name="mine",
        observation_space=FLAT,
        action_space=KEYS,
        builder="tests.plain",
        kwargs={"width": 6},
        task="Toy-v0",
        statistics={"": (np.ones(4), np.full(4, 2.0))},
    )
    Hub([source]).save(tmp_path / "hub")
    again = Hub.load(tmp_path / "hub")["mine"]
    assert again.card == source.card
    assert same(again.tensors(), source.tensors())
    assert torch.equal(again.outputs(observations), source.outputs(observations))
    assert torch.equal(again.value(observations), source.value(observations))


def test_two_networks_of_one_name_are_refused():
    register_network("tests.twice", lambda card: Networks(encoder()))
    with pytest.raises(
        BadConfig, match=r"Another network is registered as 'tests\.twice'; choose another name"
    ):
        register_network("tests.twice", lambda card: Networks(encoder()))


def test_options_that_a_registered_network_does_not_have_are_refused():
    register_network("tests.options", lambda card, width: Networks(encoder(width)))
    source = Source(
        encoder=encoder(),
        name="mine",
        observation_space=FLAT,
        builder="tests.options",
        kwargs={"depth": 3},
    )
    with pytest.raises(
        BadFile,
        match="The networks that the card of source 'mine' describes cannot be built .*depth",
    ):
        Source.from_card(source.card, source.tensors())


def test_a_source_that_exists_in_its_process_alone_is_refused_when_it_is_loaded(tmp_path):
    Hub([mine()]).save(tmp_path / "hub")
    with pytest.raises(
        BadFile,
        match=r"Source 'mine' needs a registered network\. .* Call hubrl\.register_network first",
    ):
        Hub.load(tmp_path / "hub")


@pytest.fixture
def hub():
    return Hub.from_agents(
        [untrained(PPO), untrained(SAC), untrained(PPO, actions=KEYS)],
        names=["z-first", "a-second", "m.third"],
    )


def test_a_hub_comes_back_as_it_was_saved(hub, tmp_path, observations):
    hub.save(tmp_path / "hub")
    again = Hub.load(tmp_path / "hub")
    assert again.names == hub.names == ["z-first", "a-second", "m.third"]
    for source, other in zip(hub, again, strict=True):
        assert other.card == source.card
        assert same(other.tensors(), source.tensors())
        assert torch.equal(other.outputs(observations), source.outputs(observations))
        assert torch.equal(other.value(observations), source.value(observations))


def test_a_sources_card_has_the_digest_of_its_file(hub, tmp_path):
    hub.save(tmp_path / "hub")
    for name in hub.names:
        found = hashlib.sha256((tmp_path / "hub" / f"{name}.safetensors").read_bytes()).hexdigest()
        assert (
            found
            == hub[name].card.sha256
            == yaml.safe_load((tmp_path / "hub" / f"{name}.yaml").read_text())["sha256"]
        )


def test_a_hub_saved_in_half_precision_rounds_networks_and_no_statistics(hub, tmp_path):
    normalised_one = Hub.from_agents([untrained(PPO, env=normalised())], names=["normalised"])[0]
    both = Hub([hub[0], normalised_one])
    both.save(tmp_path / "half", half=True)
    both.save(tmp_path / "full")
    again = Hub.load(tmp_path / "half")
    for name in both.names:
        half, full = (
            (tmp_path / kind / f"{name}.safetensors").stat().st_size for kind in ("half", "full")
        )
        assert half < full
        assert (
            again[name].card.sha256
            == hashlib.sha256((tmp_path / "half" / f"{name}.safetensors").read_bytes()).hexdigest()
        )
        for key, tensor in both[name].tensors().items():
            kept = again[name].tensors()[key]
            assert kept.dtype == tensor.dtype
            assert torch.equal(
                kept, tensor.half().float() if tensor.dtype == torch.float32 else tensor
            )
    assert {tensor.dtype for tensor in normalised_one.tensors().values()} == {
        torch.float32,
        torch.float64,
    }


@pytest.mark.parametrize(
    ("told", "played"), [({}, "atari"), ({"task_preprocessing": "atari-sb3"}, "atari-sb3")]
)
def test_a_source_is_replayed_on_the_task_of_its_card(told, played, monkeypatch):
    source = Hub.from_agents([untrained(PPO, IMAGE, KEYS, "CnnPolicy")], names=["seer"])[0]
    told = {"task": "Some-v0", "return_mean": 1.0, **told}
    asked = []

    def refuse(task, kwargs, **given):
        asked.append(given["preprocessing"])
        raise BadConfig("seen")

    monkeypatch.setattr("hubrl.experiments.evaluation.make_env", refuse)
    card = SourceCard.model_validate({**source.card.to_dict(), **told})
    (check,) = check_hub(
        Hub([Source.from_card(card.model_copy(update={"sha256": None}), source.tensors())])
    )
    assert asked == [played]
    assert check.sentence == "seen"


def test_one_source_of_a_hubs_folder_is_read_by_its_name_card_or_weights(hub, tmp_path):
    hub.save(tmp_path / "hub")
    for path in ("m.third", "m.third.yaml", "m.third.safetensors"):
        assert same(read_agent(tmp_path / "hub" / path).tensors(), hub["m.third"].tensors())
    assert read_agent(tmp_path / "hub" / "m.third", name="other").name == "other"


def test_a_hubs_folder_is_not_overwritten_unless_it_may_be(hub, tmp_path):
    hub.save(tmp_path / "hub")
    with pytest.raises(
        OutputExists, match="hub exists; choose another name, remove it, or allow overwriting"
    ):
        hub[:1].save(tmp_path / "hub")
    assert Hub.load(tmp_path / "hub").names == hub.names
    hub[:1].save(tmp_path / "hub", overwrite=True)
    assert Hub.load(tmp_path / "hub").names == ["z-first"]
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        "hub.yaml",
        "z-first.safetensors",
        "z-first.yaml",
    ]


def test_what_is_no_hub_is_not_replaced_and_files_of_others_stay(hub, tmp_path):
    notes = tmp_path / "mine" / "notes.md"
    notes.parent.mkdir()
    notes.write_text("thesis")
    with pytest.raises(
        OutputExists,
        match="mine exists and is no hub, so it is not replaced; choose another name, or remove it",
    ):
        hub.save(notes.parent, overwrite=True)
    assert notes.read_text() == "thesis"
    with pytest.raises(OutputExists, match=r"notes\.md exists and is no hub"):
        hub.save(notes, overwrite=True)
    hub.save(tmp_path / "hub")
    (tmp_path / "hub" / "NOTES.md").write_text("x")
    (tmp_path / "hub" / "plots").mkdir()
    (tmp_path / "hub" / "plots" / "one.txt").write_text("y")
    (tmp_path / "link").symlink_to(tmp_path / "hub")
    hub[:1].save(tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    names = ["NOTES.md", "hub.yaml", "plots", "z-first.safetensors", "z-first.yaml"]
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == names
    assert (tmp_path / "hub" / "plots" / "one.txt").read_text() == "y"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hub", "link", "mine"]


@pytest.mark.parametrize("there", [True, False], ids=["over an old hub", "anew"])
def test_a_hub_is_saved_whole_or_not_at_all(hub, there, tmp_path, monkeypatch):
    if there:
        hub[1:].save(tmp_path / "hub")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def fail(source):
        raise OSError("no space left on device")

    monkeypatch.setattr(
        type(hub[1]),
        "to_bytes",
        lambda source, half: b"" if source.name == "z-first" else fail(source),
    )
    with pytest.raises(OSError, match="no space left"):
        hub.save(tmp_path / "hub", overwrite=there)
    monkeypatch.undo()
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before
    if there:
        assert Hub.load(tmp_path / "hub").names == ["a-second", "m.third"]


def test_a_hub_is_a_sequence_by_position_and_name(hub):
    assert len(hub) == 3
    assert [source.name for source in hub] == hub.names
    assert hub["a-second"] is hub[1] is hub[1:][0]
    assert hub.add(untrained(PPO), "fourth").names == [*hub.names, "fourth"]
    assert repr(hub[:2]) == "Hub(z-first, a-second)"
    with pytest.raises(
        UnknownName,
        match="Unknown source 'a-secnd'. Did you mean 'a-second'\\? Known: a-second, m.third, z-first",
    ):
        hub["a-secnd"]


def test_a_hub_that_cannot_be_is_refused(hub):
    with pytest.raises(BadConfig, match="A hub of no sources was given"):
        Hub([])
    with pytest.raises(
        BadConfig, match="Two sources are called 'z-first'; give one of them another name"
    ):
        Hub([*hub, hub[0]])
    for name in ("fresh", "hub", "together"):
        with pytest.raises(
            BadConfig,
            match=f"A source is called '{name}', which has a meaning of its own here; give it another name",
        ):
            hub.add(untrained(PPO), name)
    for agent in (None, PPO, ("a.zip", "b.pkl", "c")):
        with pytest.raises(BadConfig, match="was given; expected an agent: a file or folder"):
            Hub.from_agents([agent])
    with pytest.raises(BadConfig, match="2 names were given for 1 agents"):
        Hub.from_agents([untrained(PPO)], names=["one", "two"])


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
