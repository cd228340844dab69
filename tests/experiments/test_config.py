"""Configs: every shipped one is valid, every mistake has its sentence."""

from pathlib import Path

import pytest

from hubrl.errors import BadConfig, BadFile, UnknownName, unknown
from hubrl.experiments.config import RunConfig, parse_config, read_config
from hubrl.formats.schema import parse_yaml, write_yaml

REPOSITORY = Path(__file__).parents[2]

STUDIES = sorted((REPOSITORY / "configs" / "studies").glob("*.yaml"))
SHIPPED = sorted(set((REPOSITORY / "configs").rglob("*.yaml")) - set(STUDIES))

GOOD = {"task": "CartPole-v1", "method": "scratch", "steps": 100}


def written(tmp_path, **fields):
    path = tmp_path / "config.yaml"
    path.write_text(write_yaml({**GOOD, **fields}))
    return path


def test_configs_are_shipped():
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_is_valid_and_names_a_hub_that_is_there(path):
    config = read_config(path)
    assert config.hub is None or (Path(config.hub) / "hub.yaml").is_file()


def test_changes_go_through_the_same_model(tmp_path):
    config = read_config(
        written(tmp_path),
        [
            "seed=3",
            "steps=100_000",
            "algorithm_kwargs.learning_rate=3e-4",
            "task_kwargs.motors=[1, 0]",
        ],
    )
    assert (config.seed, config.steps) == (3, 100_000)
    assert config.algorithm_kwargs == {"learning_rate": 3e-4}
    assert config.task_kwargs == {"motors": [1, 0]}


def test_numbers_in_yaml_may_be_written_as_people_write_them():
    assert parse_yaml("a: 1e5\nb: 3e-4\nc: 1_000\nd: 1.5e3\ne: e5") == {
        "a": 1e5,
        "b": 3e-4,
        "c": 1000,
        "d": 1500.0,
        "e": "e5",
    }


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"stepz": 5}, "Unknown field 'stepz'. Did you mean 'steps'?"),
        ({"steps": 0}, "steps: Input should be greater than 0"),
        ({"steps": "many"}, "steps: Input should be a valid integer"),
        ({"algorithm": "pppo"}, "algorithm: Input should be 'ppo'"),
        (
            {"method": "hub-pathway"},
            "method 'hub-pathway' learns from sources; name a hub or agents",
        ),
        ({"method": "uniform", "hub": "a", "agents": ["b.zip"]}, "both a hub and agents are named"),
        ({"probe_share": 1.5}, "probe_share: Input should be less than 1"),
    ],
)
def test_a_field_that_cannot_be_is_refused(tmp_path, fields, sentence):
    with pytest.raises(BadConfig) as caught:
        read_config(written(tmp_path, **fields))
    assert sentence in str(caught.value)


def test_unknown_methods_and_options_name_the_nearest(tmp_path):
    with pytest.raises(
        UnknownName, match="Unknown method 'hub-pathways'. Did you mean 'hub-pathway'"
    ):
        read_config(written(tmp_path, method="hub-pathways"))
    with pytest.raises(
        UnknownName,
        match="Unknown option of method 'hub-pathway' 'explore_coeff'. Did you mean 'explore_coef'",
    ):
        read_config(written(tmp_path, method="hub-pathway", hub="h", options={"explore_coeff": 1}))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("seed", "expected name=value"),
        ("=3", "expected name=value"),
        ("steps.x=1", "'steps' is no mapping; set the whole field"),
        ("seed=[", "expected a value in YAML"),
    ],
)
def test_a_change_that_cannot_be_read_is_refused(tmp_path, change, sentence):
    with pytest.raises(BadConfig, match=sentence):
        read_config(written(tmp_path), [change])


def test_a_missing_config_is_reported(tmp_path):
    with pytest.raises(BadFile, match="There is no file"):
        read_config(tmp_path / "none.yaml")


def test_a_config_that_is_no_mapping_is_refused(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(BadConfig, match="expected fields and values"):
        read_config(path)


def test_paths_start_at_the_configs_folder(tmp_path):
    config = read_config(written(tmp_path, method="uniform", agents=["a.zip,b.pkl"]))
    assert config.agents == (f"{tmp_path.resolve() / 'a.zip'},{tmp_path.resolve() / 'b.pkl'}",)


def test_every_field_of_a_config_is_explained():
    assert not [name for name, field in RunConfig.model_fields.items() if not field.description]


def test_a_sentence_repeats_no_long_name():
    long, names = "a" * 3000, [f"name{number:03}" for number in range(120)]
    message = unknown("field", long, [long, *names])
    assert len(message) < 1500
    assert "Unknown field 'aaa" in message
    assert message.endswith("and 21 more.")
    with pytest.raises(BadConfig) as refused:
        parse_config({"task": "CartPole-v1", "steps": 1, "device": long}, "here")
    assert len(str(refused.value)) < 500
