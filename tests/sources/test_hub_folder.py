"""Hubs as folders: saved, loaded, replaced, and read source by source."""

import hashlib

import pytest
import torch
import yaml
from source_cases import same
from stable_baselines3 import PPO
from untrained import IMAGE, KEYS, normalised, untrained

from hubrl import Hub, Source
from hubrl.errors import (
    BadConfig,
    NotWritten,
    OutputExists,
    UnknownName,
)
from hubrl.experiments.evaluation import check_hub
from hubrl.formats.cards import SourceCard
from hubrl.reading import read_agent


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
    ("fields", "played"), [({}, "atari"), ({"task_preprocessing": "atari-sb3"}, "atari-sb3")]
)
def test_a_source_is_replayed_on_the_task_of_its_card(fields, played, monkeypatch):
    source = Hub.from_agents([untrained(PPO, IMAGE, KEYS, "CnnPolicy")], names=["seer"])[0]
    fields = {"task": "Some-v0", "return_mean": 1.0, **fields}
    asked = []

    def refuse(task, kwargs, **given):
        asked.append(given["preprocessing"])
        raise BadConfig("seen")

    monkeypatch.setattr("hubrl.experiments.evaluation.make_env", refuse)
    card = SourceCard.model_validate({**source.card.to_dict(), **fields})
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
    with pytest.raises(NotWritten, match="no space left .*what was there before is unchanged"):
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
