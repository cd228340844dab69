"""Plain words about a run."""

import json
import shutil

import pytest
from runs import make_run

from hubrl.errors import BadFile
from hubrl.reports.explain import explain
from hubrl.reports.run_log import RunLog, read_scalars
from hubrl.reports.run_page import write_run_page


def test_a_run_is_explained_in_about_ten_sentences(finished):
    sentences = explain(RunLog(finished))
    assert 6 <= len(sentences) <= 14
    text = "\n".join(sentences)
    assert "mine: PPO with hub-pathway trained on CartPole-v1 for 1," in text
    assert "Its hub has 2 sources, frozen: one, two." in text
    assert "Steps in training were played by" in text
    assert "The saved agent acts as" in text
    assert "the best source untouched" in text
    assert "nan" not in text


def test_what_was_decided_is_kept_beside_the_run(finished):
    trust = json.loads((finished / "trust.json").read_text())
    assert trust["decisions"][0][1].startswith("Probe: ")
    assert {"one", "two"} <= set(trust["arms"])
    assert sum(arm["evaluates"] for arm in trust["arms"].values()) == 1


def test_a_run_without_sources_says_so(tmp_path, hub):
    run = make_run(tmp_path, hub, "plain", method="scratch", steps=128, eval_every=64)
    sentences = explain(RunLog(run))
    assert "There was no hub: it trained from scratch." in sentences
    assert sentences[-1].startswith("At the end it earned")


def test_sources_that_were_never_played_are_unknown(tmp_path, hub):
    run = make_run(tmp_path, hub, "features", level="features", steps=128, eval_every=64)
    text = "\n".join(explain(RunLog(run)))
    assert "how its sources do untouched is not known: `hubrl report" in text


def test_a_run_that_is_not_finished_is_refused(tmp_path, finished):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(finished, unfinished)
    (unfinished / "result.json").unlink()
    with pytest.raises(BadFile, match="unfinished is not finished; finish it with `hubrl train"):
        RunLog(unfinished)
    (unfinished / "result.json").write_text("{")
    with pytest.raises(BadFile, match=r"result.json is damaged"):
        RunLog(unfinished)


DAMAGE = {
    "result.json": b'{"steps": 1, "wall_s": "long"}',
    "trust.json": b'{"decisions": [[1]], "arms": {}}',
    "command.txt": b"\xff\xfe",
    "versions.json": b"[[",
    "evaluations.npz": b"PK no zip",
    "monitor/0.monitor.csv": b'#{"t_start": 0}\nr,l,t\n1.0,',
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_record_is_named(tmp_path, finished, name):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / name).write_bytes(DAMAGE[name])
    with pytest.raises(BadFile, match=rf"{name.split('/')[0]}.* is damaged"):
        write_run_page(run, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_an_arm_that_the_run_does_not_have_is_refused(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    trust = json.loads((run / "trust.json").read_text())
    trust["arms"]["three"] = trust["arms"]["one"]
    (run / "trust.json").write_text(json.dumps(trust))
    with pytest.raises(BadFile, match=r"trust.json is damaged \('three' is no arm of this run\)"):
        explain(RunLog(run))


def test_a_run_without_a_record_of_trust_is_explained(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "trust.json").unlink()
    assert any("judges no sources" in sentence for sentence in explain(RunLog(run)))


def test_steps_that_a_resumed_training_repeated_count_once(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    for number, steps in ((1, (10, 20, 30)), (2, (25, 35))):
        writer = SummaryWriter(str(tmp_path / f"tensorboard_{number}"))
        for step in steps:
            writer.add_scalar("a", step + number, step)
        writer.close()
    series = read_scalars(tmp_path)["a"]
    assert series.steps == [10, 20, 25, 35]
    assert series.values == [11.0, 21.0, 27.0, 37.0]
