"""The point of it all: with sources that fit, a hub learns what scratch does not in the same steps."""

import json
import re
from pathlib import Path

import pytest

from hubrl import Hub
from hubrl.experiments.config import read_config
from hubrl.experiments.run import start_run, train
from hubrl.formats.schema import write_yaml

REPOSITORY = Path(__file__).parents[1]

QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"


@pytest.mark.slow
def test_a_hub_beats_scratch_by_a_wide_margin_on_a_cheetah_that_no_source_saw(tmp_path):
    pytest.importorskip("mujoco")
    short = ["steps=8_000", "eval_every=8_000", "eval_episodes=2"]
    hub = train(start_run(QUICKSTART, short, tmp_path, "hub"))
    scratch = train(start_run(QUICKSTART, [*short, "method=scratch"], tmp_path, "scratch"))
    assert hub["probe_steps"] <= 160
    assert hub["eval_mean"] > scratch["eval_mean"] + 1000


@pytest.mark.slow
def test_the_quickstart_compares_draws_and_names_its_report_last(tmp_path, capsys):
    pytest.importorskip("mujoco")
    quickstart = pytest.importorskip("agents.quickstart")
    config = tmp_path / "short.yaml"
    plain = read_config(
        QUICKSTART, ["steps=4_096", "eval_every=2_048", "eval_episodes=1"]
    ).to_dict()
    config.write_text(write_yaml(plain))
    quickstart.main(config, None, tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["trained"]) == {"scratch", "hub-pathway"}
    assert len(summary["untouched"]) == len(
        list((REPOSITORY / "agents" / "sources" / "cheetah").glob("*.safetensors"))
    )
    assert (tmp_path / "out" / "curves.png").stat().st_size > 10_000
    report = tmp_path / "out" / "hub-pathway" / "report.html"
    assert report.exists()
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == f"The whole report of the hub's training: open {report} in a browser."


@pytest.mark.parametrize(
    "folder", sorted((REPOSITORY / "agents" / "sources").iterdir()), ids=lambda folder: folder.name
)
def test_published_sources_are_small_and_name_their_origin(folder):
    """At most 4 MiB a file; steps, seed, episodes and a command that trained them."""
    assert max(path.stat().st_size for path in folder.iterdir()) <= 4 * 2**20
    for source in Hub.load(folder):
        card = source.card
        assert card.origin
        assert card.origin.startswith(("hubrl train configs/", "python -m agents."))
        assert None not in (card.steps, card.seed, card.episodes, card.return_mean, card.return_std)


def test_the_container_has_what_the_quickstart_needs():
    """The image itself is not built in the tests."""
    built = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    extras = set(re.search(r"--editable \"\.\[([\w,]+)\]\"", built)[1].split(","))
    assert {"mujoco", "plots", "report"} <= extras
    assert '["python", "-m", "agents.quickstart"]' in built
