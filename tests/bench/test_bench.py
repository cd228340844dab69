"""The bench: what is compared with what, in which order, and what its numbers mean."""

import json
import subprocess
import sys
from contextlib import closing
from typing import ClassVar

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from hubrl.bench import compare, memory, suite
from hubrl.bench.compare import (
    Benchmark,
    Measurement,
    cost_over,
    markdown,
    matrix_units,
    measure,
    of_sb3_default,
    outside,
    profile_workloads,
    write_json,
)
from hubrl.bench.memory import Replay, Resident, SourceWeights, Weights
from hubrl.bench.profiler import PARTS, Profiler
from hubrl.bench.suite import BENCHMARKS, select
from hubrl.bench.workloads import (
    Acting,
    Emulator,
    Kernels,
    Learning,
    Predicting,
    find_cache,
)
from hubrl.errors import BadConfig, UnknownName
from hubrl.experiments.config import RunConfig, parse_config
from hubrl.sources.source import Source

TINY = {
    "task": "CartPole-v1",
    "n_envs": 2,
    "algorithm": "ppo",
    "algorithm_kwargs": {"n_steps": 8, "batch_size": 8, "n_epochs": 1},
}
CACHED = {
    "method": "hub-pathway",
    "cached": True,
    "options": {"fresh": False, "router_reads": "features"},
}

CONTRACT = {
    "name",
    "hubrl_steps_per_s",
    "sb3_steps_per_s",
    "ratio",
    "ratio_min",
    "ratio_max",
    "repetitions",
    "threads",
    "n_envs",
}


class Scripted:
    """Work that says given numbers, and notes in which order it is asked."""

    n_envs = 4
    config: ClassVar = {"task": "Nowhere-v0"}

    def __init__(self, name, numbers, calls):
        self.name, self.numbers, self.calls = name, list(numbers), calls

    def start(self):
        self.calls.append(("start", self.name))
        return self

    def measure(self, steps):
        self.calls.append((self.name, steps, torch.get_num_threads()))
        return self.numbers.pop(0)

    def close(self):
        self.calls.append(("close", self.name))


def scripted(calls, **changes):
    works = {
        "hubrl": Scripted("hubrl", [1, 40, 30, 60], calls),
        "sb3": Scripted("sb3", [1, 10, 10, 10], calls),
    }
    return Benchmark(
        "scripted", "Nothing", works, "at least 2", **{"steps": 16, "threads": 1, **changes}
    )


def test_works_take_turns_after_a_first_piece_that_does_not_count():
    calls = []
    measured = measure(scripted(calls))
    assert calls[:2] == [("start", "hubrl"), ("start", "sb3")]
    assert calls[2:4] == [("hubrl", 1, 1), ("sb3", 1, 1)]
    assert calls[4:10] == [("hubrl", 16, 1), ("sb3", 16, 1)] * 3
    assert sorted(calls[10:]) == [("close", "hubrl"), ("close", "sb3")]
    assert measured.repetitions == [
        {"hubrl": 40, "sb3": 10},
        {"hubrl": 30, "sb3": 10},
        {"hubrl": 60, "sb3": 10},
    ]


def test_steps_repetitions_and_threads_can_be_set_and_threads_are_restored():
    before, calls = torch.get_num_threads(), []
    assert (
        len(measure(scripted(calls), steps=99, repetitions=2, threads=before + 1).repetitions) == 2
    )
    assert ("hubrl", 99, before + 1) in calls
    assert torch.get_num_threads() == before


def test_works_are_closed_when_one_fails():
    calls = []
    with pytest.raises(IndexError):
        measure(scripted(calls), repetitions=4)
    assert ("close", "hubrl") in calls
    assert ("close", "sb3") in calls


def test_a_ratio_is_the_median_of_pairs_and_the_json_has_what_was_promised(tmp_path):
    measured = measure(scripted([]))
    assert sorted(measured.ratios) == [3.0, 4.0, 6.0]
    write_json([measured], tmp_path / "bench.json")
    (plain,) = json.loads((tmp_path / "bench.json").read_text())
    assert plain.keys() >= CONTRACT
    assert plain == plain | {
        "name": "scripted",
        "hubrl_steps_per_s": 40,
        "sb3_steps_per_s": 10,
        "ratio": 4.0,
        "threads": 1,
        "n_envs": 4,
        "task": "Nowhere-v0",
    }
    assert (plain["ratio_min"], plain["ratio_max"], plain["repetitions"]) == (3.0, 6.0, 3)
    assert plain["versions"]["torch"] == torch.__version__
    assert (
        "| scripted | Nothing | Nowhere-v0, 4 | 40 steps/s | sb3 10 | 4.00 (3.00 to 6.00) | at least 2 | 1 |"
        in markdown([measured])
    )


def test_the_better_of_sb3s_ways_counts():
    speeds = {"hubrl": 30.0, "sb3_dummy": 10.0, "sb3_subproc": 15.0}
    line = scripted([])._replace(works=dict.fromkeys(speeds, Scripted("", [], [])))
    plain = Measurement(line, 1, [speeds]).to_dict()
    assert (plain["ratio"], plain["sb3_steps_per_s"], plain["sb3_dummy_steps_per_s"]) == (
        2.0,
        15.0,
        10.0,
    )


def test_a_cost_is_a_ratio_of_times_and_what_is_outside_is_what_neither_takes():
    assert cost_over("one")({"hubrl": 80.0, "one": 100.0, "sb3": 1.0}) == pytest.approx(1.25)
    # Ten milliseconds a step, of which four are the emulator's and five the networks'.
    assert outside({"hubrl": 100.0, "emulator": 250.0, "kernels": 200.0}) == pytest.approx(0.1)


def test_memory_has_no_speed():
    speeds = {"hubrl": 10.0, "sb3": 50.0, "sb3_optimized": 25.0}
    line = scripted([], unit="bytes", ratio=of_sb3_default)._replace(
        works=dict.fromkeys(speeds, Scripted("", [], []))
    )
    plain = Measurement(line, 1, [speeds]).to_dict()
    assert (plain["hubrl_steps_per_s"], plain["sb3_steps_per_s"], plain["ratio"]) == (
        None,
        None,
        0.2,
    )
    assert (plain["hubrl_bytes"], plain["sb3_optimized_bytes"]) == (10.0, 25.0)


@pytest.mark.parametrize("line", BENCHMARKS, ids=lambda line: line.name)
def test_every_benchmark_has_a_bar_and_compares_with_plain_sb3(line):
    assert "hubrl" in line.works
    for who, work in line.works.items():
        if isinstance(work, Emulator):
            continue
        config = {"method": "scratch", "steps": 1, **work.config}
        parse_config({**config, "agents": ["a.zip"]} if work.sources else config, line.name)
        if who.startswith("sb3") and not isinstance(work, Predicting):
            plain = RunConfig(**config)
            assert (plain.method, plain.precision, plain.preprocessing) == (
                "scratch",
                "float32",
                plain.preprocessing,
            )
            assert plain.preprocessing in ("none", "atari-sb3")
        if isinstance(work, Learning) and "sb3" in line.works:
            rival = RunConfig(**{"method": "scratch", "steps": 1, **line.works["sb3"].config})
            mine = RunConfig(**{**config, "agents": ("a.zip",)})
            assert (mine.task, mine.n_envs, mine.algorithm) == (
                rival.task,
                rival.n_envs,
                rival.algorithm,
            )
            if not isinstance(work, Replay):
                assert mine.algorithm_kwargs == rival.algorithm_kwargs


def test_lines_have_names_of_their_own_by_which_they_are_select():
    names = [line.name for line in BENCHMARKS]
    assert len(set(names)) == len(names)
    assert [line.name for line in select([])] == names
    assert [line.name for line in select(["overhead"])] == ["overhead"]
    with pytest.raises(UnknownName, match="Unknown benchmark 'overhed'. Did you mean 'overhead'"):
        select(["overhed"])


def test_plain_sb3_is_plain_and_the_hub_has_as_many_sources_as_asked():
    with (
        closing(Learning(TINY).start()) as plain,
        closing(Learning({**TINY, **CACHED}, 2).start()) as learner,
    ):
        assert type(plain.model) is PPO
        assert type(plain.model.policy) is ActorCriticPolicy
        assert [source.name for source in learner.model.policy.features_extractor.sources] == [
            "untrained-0",
            "untrained-1",
        ]
        assert find_cache(learner.model) is learner.model.get_env()
        assert learner.measure(20) > 0
        # Whole rollouts of 16 steps, and a second piece goes on behind the first.
        assert learner.model.num_timesteps == 32
        learner.measure(1)
        assert learner.model.num_timesteps == 48


def test_networks_alone_learn_from_one_rollout_as_often_as_a_training_would():
    work = Kernels(
        {**TINY, **CACHED, "algorithm_kwargs": {"n_steps": 8, "batch_size": 8, "n_epochs": 3}}, 2
    )
    with closing(work.start()) as running:
        steps = []
        optimizer = running.ppo.policy.optimizer
        optimizer.register_step_post_hook(lambda *_: steps.append(1))
        assert running.measure(17) > 0
    # Two rollouts of 16 steps, two minibatches each, three epochs.
    assert len(steps) == 12


def test_replay_is_weighed_by_the_step():
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    (line,) = select(["dqn-replay-memory"])
    (found,) = measure(line).repetitions
    # An action of 8 bytes, a reward, an end and a timeout of 4 each, beside what was observed before and after.
    assert found == {
        "hubrl": 2 * 3 * 512 * 2 + 20,
        "sb3": 2 * 4 * 84 * 84 + 20,
        "sb3_optimized": 4 * 84 * 84 + 20,
    }


@pytest.mark.parametrize(("algorithm", "others"), [("dqn", 1), ("sac", 2)])
def test_networks_are_weighed_with_their_sources_once(algorithm, others):
    """The target of DQN, and the critic of SAC and its target, need no sources of their own."""
    task = "CartPole-v1" if algorithm == "dqn" else "Pendulum-v1"
    fields = {
        "task": task,
        "algorithm": algorithm,
        "algorithm_kwargs": {"buffer_size": 10},
        "method": "hub-pathway",
        "level": "features",
    }
    weighed = []
    for copied in (False, True):
        with closing(Weights(fields, 3, copied=copied).start()) as running:
            weighed.append(running.measure(1))
            sources = {
                id(part): part
                for part in running.model.policy.modules()
                if isinstance(part, Source)
            }
    assert len(sources) == 3
    assert weighed[1] - weighed[0] == others * sum(
        part.nbytes for source in sources.values() for part in source.state_dict().values()
    )


def test_memory_of_a_source_is_at_least_that_of_its_weights():
    fields = {**TINY, "method": "hub-pathway"}
    with closing(SourceWeights(fields, 3).start()) as running:
        weights = running.measure(1)
    own = next(part for part in running.model.policy.modules() if isinstance(part, Source))
    assert weights == sum(tensor.nbytes for tensor in own.state_dict().values())
    resident = Resident(fields, 40).start().measure(1)
    assert weights < resident < 100 * weights


def test_resident_memory_is_refused_where_the_system_does_not_say_it(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATM", tmp_path / "absent")
    with pytest.raises(BadConfig, match="absent; resident memory is measured on Linux"):
        memory.resident_bytes(Learning(TINY))


def test_an_exported_agent_is_what_predicts():
    with closing(Predicting({**TINY, "method": "lite-zoo-tuning"}, 2).start()) as running:
        assert type(running.model.policy) is ActorCriticPolicy
        assert running.observations.shape == (8, 4)
        assert running.measure(10) > 0


@pytest.mark.parametrize(("line", "alone"), [({"judging_share": 0.0}, -1), ({}, 1)])
def test_a_hubs_agent_predicts_as_after_a_training(line, alone):
    fields = {**TINY, "method": "hub-pathway", "options": line}
    with closing(Acting(fields, 2, batch=3).start()) as running:
        policy = running.model.policy
        assert policy.commits
        assert policy.evaluation_pathway == alone
        assert running.observations.shape == (3, 4)
        assert running.measure(7) > 0
    with closing(Acting(TINY).start()) as plain:
        assert plain.observations.shape == (4,)


def test_a_clock_counts_a_part_inside_another_once(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    class Outer:
        def work(self):
            now[0] += 2
            self.inner()
            now[0] += 3

        def inner(self):
            now[0] += 10

    outer, watch = Outer(), Profiler()
    watch.watch(outer, "work", "update")
    watch.watch(outer, "inner", "optimizer")
    watch.start()
    now[0] += 1
    outer.work()
    now[0] += 4
    assert watch.stop() == {"sb3": 5.0, "update": 5.0, "optimizer": 10.0}


def test_a_profile_splits_the_time_of_each_training():
    works = {
        "hubrl": Learning({**TINY, **CACHED}, 2),
        "sb3": Learning(TINY),
        "emulator": Emulator(TINY),
    }
    found = profile_workloads(Benchmark("tiny", "Tiny", works, "", steps=32), threads=1)
    assert list(found) == ["hubrl", "sb3"]
    assert all(list(parts) == list(PARTS) for parts in found.values())
    assert all(found["hubrl"][part] > 0 for part in PARTS)
    assert found["sb3"]["sources"] == 0
    assert all(found["sb3"][part] > 0 for part in PARTS if part != "sources")


def test_the_processors_units_are_read_from_its_flags(monkeypatch, tmp_path):
    flags = tmp_path / "cpuinfo"
    flags.write_text(
        "model name: some\nflags\t: fpu avx2 avx512f avx512_bf16 amx_bf16\nflags\t: fpu\n"
    )
    monkeypatch.setattr(compare, "Path", lambda path: flags)
    assert matrix_units() == ["AMX-BF16", "AVX512-BF16", "AVX512", "AVX2"]
    flags.unlink()
    assert matrix_units() == []


def test_the_command_lists_measures_and_profiles(run, monkeypatch, tmp_path):
    tiny = Benchmark(
        "tiny",
        "Tiny",
        {"hubrl": Learning({**TINY, **CACHED}, 2), "sb3": Learning(TINY)},
        "at least 0",
        steps=16,
        threads=1,
    )
    absent = tiny._replace(
        name="absent",
        works={"hubrl": Learning({**TINY, "task": "Absent-v0"}), "sb3": Learning(TINY)},
    )
    monkeypatch.setattr(suite, "BENCHMARKS", (absent, tiny))
    code, out, _ = run("bench", "--list")
    assert code == 0
    assert "absent" in out
    assert "at least 0" in out
    code, out, _ = run(
        "bench", "--repetitions", 2, "--save", tmp_path / "b.json", "--markdown", tmp_path / "b.md"
    )
    assert code == 0
    assert "absent is left out: Unknown task 'Absent-v0'" in out
    assert [line["name"] for line in json.loads((tmp_path / "b.json").read_text())] == ["tiny"]
    assert "| tiny | Tiny |" in (tmp_path / "b.md").read_text()
    code, out, _ = run("bench", "--only", "tiny", "--profile")
    assert code == 0
    assert "tiny, sb3:" in out
    assert "optimizer" in out
    code, _, err = run("bench", "--only", "absent")
    assert (code, "Unknown task 'Absent-v0'" in err) == (2, True)
    assert run("bench", "--only", "tyni")[0] == 2


def test_the_command_line_starts_without_the_bench():
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, hubrl.cli; print('hubrl.bench' in sys.modules)",
        ],
        capture_output=True,
        text=True,
    )
    assert found.stdout.strip() == "False"


def test_a_line_without_its_package_is_refused():
    with pytest.raises(BadConfig, match="Unknown task"):
        measure(Benchmark("x", "X", {"hubrl": Learning({**TINY, "task": "Absent-v0"})}, ""))
