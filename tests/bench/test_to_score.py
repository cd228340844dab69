"""`hubrl bench --to-score`: seconds until a method earns what scratch ends with."""

import json
import math

from hubs import save_cartpoles

from hubrl.bench.to_score import TimeToScore, seconds_until
from hubrl.formats.schema import write_yaml


def monitored(folder, returns):
    """A run's folder whose one environment ended an episode every two seconds."""
    rows = [f"{value},5,{2.0 * (index + 1)}" for index, value in enumerate(returns)]
    (folder / "monitor").mkdir()
    text = "\n".join(['#{"t_start": 100.0, "env_id": "x"}', "r,l,t", *rows]) + "\n"
    (folder / "monitor" / "0.monitor.csv").write_text(text)
    return folder


def test_the_time_is_when_the_mean_of_eight_episodes_reaches_the_score(tmp_path):
    run = monitored(tmp_path, [0.0] * 8 + [16.0] * 8)
    assert seconds_until(run, 0.0) == 16.0
    assert seconds_until(run, 8.0) == 24.0
    assert math.isinf(seconds_until(run, 17.0))


def test_times_are_said_in_seconds_and_as_a_share_of_scratchs():
    scratch = TimeToScore("scratch", [10.0, 30.0])
    assert TimeToScore("hub-pathway", [4.0, 6.0]).cells(scratch) == (
        *("hub-pathway", "5", "4 to 6", "0.25"),
    )
    unfinished = TimeToScore("scratch", [10.0, math.inf])
    assert TimeToScore("hub-pathway", [4.0, 6.0]).cells(unfinished)[3] == ""
    late = TimeToScore("soup", [4.0, math.inf])
    assert late.cells(scratch)[1] == "never in 1 of 2"


def test_the_command_trains_all_rivals_and_says_how_long_each_took(run, tmp_path):
    hub = save_cartpoles(tmp_path / "hub", "one", "two")
    config = {
        "task": "CartPole-v1",
        "hub": str(hub),
        "steps": 512,
        "algorithm_kwargs": {"n_steps": 64, "batch_size": 64, "n_epochs": 1},
    }
    (tmp_path / "tiny.yaml").write_text(write_yaml(config))
    code, out, err = run("--json", "bench", "--to-score", tmp_path / "tiny.yaml", "--seeds", "1")
    assert code == 0, err
    times = json.loads(out)
    assert set(times) == {"scratch", "finetune:one", "finetune:two", "probe-commit", "hub-pathway"}
    assert all(len(seconds) == 1 and seconds[0] > 0 for seconds in times.values())
