"""Cards and hub folders that cannot be read."""

import hashlib

import pytest
import yaml
from bad_files import change_card

from hubrl import Hub
from hubrl.errors import BadFile, SpaceMismatch


def test_a_card_of_a_newer_format_asks_for_an_update(hub):
    change_card(hub, lambda card: card.update(format=99, colour="blue"))
    with pytest.raises(
        BadFile, match=r"good\.yaml is a card of format 99, this hubrl reads up to 1; update hubrl"
    ):
        Hub.load(hub)


def test_a_hub_of_a_newer_format_asks_for_an_update(hub):
    (hub / "hub.yaml").write_text("format: 99\nsources: [good]\n")
    with pytest.raises(
        BadFile, match="is a hub of format 99, this hubrl reads up to 1; update hubrl"
    ):
        Hub.load(hub)


def test_weights_that_are_not_the_cards_are_refused(hub):
    raw = bytearray((hub / "good.safetensors").read_bytes())
    raw[-1] ^= 1
    (hub / "good.safetensors").write_bytes(raw)
    found, computed = (
        hashlib.sha256(raw).hexdigest(),
        yaml.safe_load((hub / "good.yaml").read_text())["sha256"],
    )
    with pytest.raises(
        BadFile,
        match=rf"good\.safetensors has sha256 {found}, its card says {computed}; the file or the card was changed",
    ):
        Hub.load(hub)


def test_a_builder_that_this_process_has_not_registered_is_refused(hub):
    change_card(
        hub,
        lambda card: card.update(
            network={"kind": "registered", "builder": "os.system", "kwargs": {"command": "true"}}
        ),
    )
    with pytest.raises(
        BadFile,
        match=r"Source 'good' needs a registered network. Unknown network builder 'os\.system'\..* Call hubrl\.register_network first",
    ):
        Hub.load(hub)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda card: card.pop("name"), "name: Field required"),
        (lambda card: card.update(colour="blue"), "colour: Extra inputs are not permitted"),
        (lambda card: card.update(name="../../etc/good"), "name: String should match"),
        (lambda card: card["network"].update(kind="magic"), "network: Input tag 'magic'"),
        (
            lambda card: card["network"].update(hidden={"widths": [0]}),
            r"network\.declared\.hidden\.widths\.0: Input should be greater than 0",
        ),
        (
            lambda card: card["network"].update(hidden={"widths": [10**9]}),
            "Input should be less than or equal to 65536",
        ),
        (
            lambda card: card["network"].update(hidden={"activation": "os.system"}),
            r"network\.declared\.hidden\.activation: Input should be",
        ),
        (
            lambda card: card.update(preprocessing=[{"op": "eval"}]),
            "preprocessing.0: Input tag 'eval'",
        ),
        (
            lambda card: card.update(normalisation={"clip": -1.0}),
            r"normalisation\.clip: Input should be greater than 0",
        ),
    ],
)
def test_a_card_that_cannot_be_is_refused_at_its_first_mistake(hub, change, sentence):
    change_card(hub, change)
    with pytest.raises(BadFile, match=rf"good\.yaml is not a source card: {sentence}|{sentence}"):
        Hub.load(hub)


@pytest.mark.parametrize(
    "change",
    [
        lambda card: card.update(
            observation_space={"type": "Box", "shape": [0], "dtype": "float32", "low": 0, "high": 1}
        ),
        lambda card: card.update(action_space={"type": "Discrete", "n": -1}),
    ],
)
def test_a_card_with_a_space_that_cannot_be_is_refused(hub, change):
    change_card(hub, change)
    with pytest.raises(BadFile, match="does not describe a space"):
        Hub.load(hub)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda card: card["network"]["hidden"].update(widths=[9]),
            r"encoder\.hidden\.0\.weight has shape \(8, 4\), the card says \(9, 4\)",
        ),
        (
            lambda card: card["network"]["hidden"].update(widths=[8, 8]),
            r"encoder\.hidden\.2\.weight is missing",
        ),
        (lambda card: card["network"].pop("value"), r"critic\..* is not in its card"),
        (
            lambda card: card["network"].update(
                trunks={"": {"convs": [{"channels": 4, "kernel": 8, "stride": 4}]}}
            ),
            "cannot be built|do not read",
        ),
        (
            lambda card: card["network"].update(trunks={"camera": {}}),
            r"The card has trunks for \['camera'\], its observation space has \[''\]",
        ),
        (
            lambda card: card["network"]["action"].update(kind="q-values"),
            "A q-values head cannot act in Box",
        ),
        (lambda card: card.pop("action_space"), "has an action head and no action space"),
        (lambda card: card.update(normalisation={"keys": ["a"]}), "Statistics are given for 'a'"),
        (
            lambda card: card.update(weights={"encoder.hidden.0.weight": "no.such"}),
            r"holds no weights 'no\.such', which its card",
        ),
    ],
)
def test_a_card_that_is_not_its_weights_is_refused(hub, change, sentence):
    change_card(hub, change)
    with pytest.raises((BadFile, SpaceMismatch), match=sentence):
        Hub.load(hub)


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "5", "hello: [", "a: 2024-13-45", "\0", "- " * 50_000, "x: " + "9" * 5000],
    ids=range(8),
)
def test_a_card_that_is_no_yaml_or_no_card_is_refused(hub, text):
    (hub / "good.yaml").write_text(text)
    with pytest.raises(BadFile, match=r"good\.yaml (cannot be read as YAML|is not a source card)"):
        Hub.load(hub)


@pytest.mark.parametrize("name", ["../outside", "/outside", "inside/good", "..", "."])
def test_a_hub_whose_source_lies_outside_its_folder_is_refused(hub, name):
    Hub.load(hub).save(hub.parent / "other")
    for suffix in (".yaml", ".safetensors"):
        (hub.parent / f"outside{suffix}").write_bytes((hub / f"good{suffix}").read_bytes())
    (hub / "hub.yaml").write_text(yaml.safe_dump({"format": 1, "sources": [name]}))
    with pytest.raises(
        BadFile, match=rf"names a source '{name}', which is not a name|There is no (readable )?file"
    ):
        Hub.load(hub)


@pytest.mark.parametrize(
    "text", ["sources: []", "sources: 5", "format: 1", "sources: [good]\ncolour: blue"]
)
def test_a_hub_with_a_damaged_spec_is_refused(hub, text):
    (hub / "hub.yaml").write_text(text)
    with pytest.raises(BadFile, match=r"hub\.yaml is not a hub's card: (sources|colour)"):
        Hub.load(hub)


def test_a_folder_that_is_no_hub_is_refused(tmp_path):
    with pytest.raises(
        BadFile, match=r"is no hub: it has no hub\.yaml; make one with `hubrl hub build`"
    ):
        Hub.load(tmp_path)


def test_a_hub_that_lost_a_file_is_refused(hub):
    (hub / "good.safetensors").unlink()
    with pytest.raises(BadFile, match=r"There is no readable file .*good\.safetensors"):
        Hub.load(hub)
