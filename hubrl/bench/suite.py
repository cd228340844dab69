"""The benchmarks of `hubrl bench`: compared workloads, and bars for their ratios."""

from collections.abc import Mapping, Sequence

from hubrl.bench.compare import (
    HUBRL,
    SB3,
    Benchmark,
    Comparable,
    cost_over,
    of_copies,
    of_sb3_default,
    outside,
    over,
    over_weights,
)
from hubrl.bench.memory import Replay, Resident, SourceWeights, Weights
from hubrl.bench.workloads import (
    SUBPROC,
    Acting,
    Copying,
    Emulator,
    Kernels,
    Learning,
    Predicting,
)
from hubrl.errors import UnknownName, unknown

PONG = {"task": "PongNoFrameskip-v4", "n_envs": 8}
FAST, WRAPPED = {**PONG, "preprocessing": "atari"}, {**PONG, "preprocessing": "atari-sb3"}
PPO_ATARI = {
    "algorithm": "ppo",
    "algorithm_kwargs": {"n_steps": 128, "batch_size": 256, "n_epochs": 4},
}
WIDE = {"n_envs": 32, "algorithm_kwargs": {"n_steps": 32, "batch_size": 256, "n_epochs": 4}}
"""Shorter rollouts of more environments, with as much computation a step."""
DQN_KWARGS = {
    "buffer_size": 10_000,
    "learning_starts": 32,
    "batch_size": 32,
    "train_freq": 4,
    "gradient_steps": 8,
}
DQN_ATARI = {
    "algorithm": "dqn",
    "algorithm_kwargs": {
        **DQN_KWARGS,
        "exploration_initial_eps": 0.05,
        "target_update_interval": 1000,
    },
}
LEAN = {"algorithm": "dqn", "algorithm_kwargs": {"buffer_size": 1000}}
LEANER = {
    "algorithm": "dqn",
    "algorithm_kwargs": {
        "buffer_size": 1000,
        "optimize_memory_usage": True,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    },
}
SAC_CHEETAH = {
    "task": "HalfCheetah-v5",
    "algorithm": "sac",
    "algorithm_kwargs": {"buffer_size": 1000},
}
PPO_CHEETAH = {
    "task": "HalfCheetah-v5",
    "n_envs": 8,
    "algorithm": "ppo",
    "algorithm_kwargs": {"n_steps": 256, "batch_size": 64},
}

BF16 = {"precision": "bfloat16"}
HUB = {"method": "hub-pathway"}
FROZEN = {**HUB, **BF16, "cached": True, "options": {"fresh": False, "router_reads": "features"}}
FRESH = {**HUB, **BF16, "cached": True, "options": {"router_reads": "features"}}
TUNED = {**HUB, **BF16, "level": "features", "tuned": True, "options": {"top_k": 1, "fresh": False}}
FEATURES = {**HUB, "level": "features"}
LITE = {"method": "lite-zoo-tuning"}
SHORT = {"algorithm_kwargs": {"n_steps": 32, "batch_size": 256, "n_epochs": 4}}

OUTPUTS = {**HUB, "options": {"judging_share": 0.0}}
"""No arms are judged: which arm plays is a matter of episodes, not of speed."""
TOP_2 = {
    "outputs": {**HUB, "options": {"judging_share": 0.0, "top_k": 2}},
    "features": {**FEATURES, "options": {"top_k": 2}},
}
"""A hub of which two sources act in a state, by level."""
ONE, FIVE, MANY = "one_source", "five_sources", 200

SCRATCH = "scratch"
CONVOLUTIONS = {"method": "frozen", "cached": True, "options": {"reads": "convolutions"}}
ONE_GAME = {**FAST, **PPO_ATARI, **BF16}
ONE_NETWORK: Mapping[str, tuple[str, Comparable, str]] = {
    "cached-convolutions": (
        "frozen convolutions of a source, cached, under a new last layer",
        Learning({**ONE_GAME, **CONVOLUTIONS}, 1),
        "1.2",
    ),
    "warm-start": (
        "warm-start behind its copy",
        Copying({**ONE_GAME, "method": "warm-start"}, 4),
        "0.95",
    ),
    "finetune": (
        "fine-tuning of a source's copy",
        Learning({**ONE_GAME, "method": "finetune", "level": "outputs"}, 1),
        "0.95",
    ),
    "lite-zoo-tuning": (
        "lite Zoo-Tuning of 4 NatureCNNs",
        Learning({**ONE_GAME, **LITE, "level": "features"}, 4),
        "0.7, aim 0.9",
    ),
    "zoo-tuning": (
        "Zoo-Tuning of 4 NatureCNNs",
        Learning({**ONE_GAME, "method": "zoo-tuning", "level": "features"}, 4),
        "0.25",
    ),
}
"""What is compared with scratch through hubrl on Atari, and the bar, by line."""

GAMES = ("Pong", "Breakout", "SpaceInvaders", "Seaquest", "Riverraid")


def _emulator_benchmark(game: str) -> Benchmark:
    task = {"task": f"{game}NoFrameskip-v4", "n_envs": 8}
    preprocessing = {HUBRL: "atari", "sb3_dummy": "atari-sb3", "sb3_subproc": SUBPROC}
    works = {
        name: Emulator({**task, "preprocessing": kind}) for name, kind in preprocessing.items()
    }
    what = f"AtariVecEnv over the better of make_atari_env's Dummy and Subproc, {game}"
    return Benchmark(
        f"atari-vec-env-{game.lower()}", what, works, "at least 2, aim 3", steps=800, repetitions=5
    )


def _scratch_benchmark(name: str) -> Benchmark:
    what, work, bar = ONE_NETWORK[name]
    sentence = f"PPO Atari, {what}, over scratch through hubrl"
    works = {HUBRL: work, SCRATCH: Learning(ONE_GAME)}
    return Benchmark(name, sentence, works, f"at least {bar}", ratio=over(SCRATCH))


def _many_benchmark(name: str, level: str) -> Benchmark:
    hub = {**PPO_CHEETAH, **TOP_2[level]}
    works = {HUBRL: Learning(hub, MANY), FIVE: Learning(hub, 5), SB3: Learning(PPO_CHEETAH)}
    what = f"PPO HalfCheetah, {level}, top-2: time with {MANY} MLPs over time with 5"
    bar = "at most 1.5, aim 1.2"
    return Benchmark(name, what, works, bar, ratio=cost_over(FIVE), steps=4096)


def _acting_benchmark(name: str, who: str, options: Mapping[str, object], batch: int) -> Benchmark:
    works = {
        HUBRL: Acting({**PPO_CHEETAH, **options}, 5, batch),
        SB3: Acting(PPO_CHEETAH, batch=batch),
    }
    rows = "one observation" if batch == 1 else f"{batch} observations"
    what = f"predict of an agent over outputs of 5 MLPs, {who}, {rows}"
    bar = "at least 0.67, aim 0.8"
    return Benchmark(name, what, works, bar, steps=2000 * batch, repetitions=9)


def _weights_benchmark(
    name: str, model: str, plain: Mapping[str, object], hub: Mapping[str, object], sources: int
) -> Benchmark:
    fields = {**plain, **hub}
    works = {
        HUBRL: Weights(fields, sources),
        "copied": Weights(fields, sources, copied=True),
        SB3: Weights(plain),
    }
    what = f"Parameters of {model}, targets included, as a share of those with copied sources"
    return Benchmark(
        f"{name}-targets", what, works, "below 1", ratio=of_copies, repetitions=1, unit="bytes"
    )


BENCHMARKS = (
    Benchmark(
        "ppo-frozen-8",
        "PPO Atari, frozen hub of 3 NatureCNNs, 8 envs",
        {
            HUBRL: Learning({**FAST, **PPO_ATARI, **FROZEN}, 3),
            SB3: Learning({**WRAPPED, **PPO_ATARI}),
        },
        "at least 3.5, aim 5.5",
    ),
    Benchmark(
        "ppo-frozen-32",
        "PPO Atari, frozen hub of 3 NatureCNNs, 32 envs",
        {
            HUBRL: Learning({**FAST, **PPO_ATARI, **FROZEN, **WIDE}, 3),
            SB3: Learning({**WRAPPED, **PPO_ATARI, **WIDE}),
        },
        "at least 4.5, aim 6.5",
    ),
    Benchmark(
        "ppo-frozen-fresh",
        "PPO Atari, frozen hub of 3 NatureCNNs and a fresh pathway",
        {
            HUBRL: Learning({**FAST, **PPO_ATARI, **FRESH}, 3),
            SB3: Learning({**WRAPPED, **PPO_ATARI}),
        },
        "at least 1.5, aim 2.5",
    ),
    Benchmark(
        "ppo-tuned",
        "PPO Atari, tuned hub, top-1 of 3 NatureCNNs",
        {
            HUBRL: Learning({**FAST, **PPO_ATARI, **TUNED}, 3),
            SB3: Learning({**WRAPPED, **PPO_ATARI}),
        },
        "at least 1.2, aim 2",
    ),
    Benchmark(
        "ppo-scratch",
        "PPO Atari from scratch through hubrl",
        {HUBRL: Learning({**FAST, **PPO_ATARI, **BF16}), SB3: Learning({**WRAPPED, **PPO_ATARI})},
        "at least 2, aim 3",
    ),
    Benchmark(
        "dqn-frozen",
        "DQN Atari, frozen hub of 3 NatureCNNs",
        {
            HUBRL: Learning({**FAST, **DQN_ATARI, **FROZEN}, 3),
            SB3: Learning({**WRAPPED, **DQN_ATARI}),
        },
        "at least 6, aim 12",
        steps=512,
    ),
    Benchmark(
        "dqn-replay-memory",
        "DQN replay memory of a step, frozen hub of 3 NatureCNNs, as a share of SB3's default",
        {
            HUBRL: Replay({**FAST, **LEAN, **FROZEN}, 3),
            SB3: Replay({**WRAPPED, **LEAN}),
            "sb3_optimized": Replay({**WRAPPED, **LEANER}),
        },
        "at most 1/5, aim 1/9",
        ratio=of_sb3_default,
        repetitions=1,
        unit="bytes",
    ),
    _weights_benchmark(
        "dqn",
        "DQN Atari over a frozen hub of 3 NatureCNNs",
        {**WRAPPED, **LEAN},
        {**FAST, **FROZEN},
        3,
    ),
    _weights_benchmark(
        "sac", "SAC HalfCheetah over a frozen hub of 5 MLPs", SAC_CHEETAH, FEATURES, 5
    ),
    Benchmark(
        "ppo-outputs-mlp",
        "PPO HalfCheetah, outputs of a hub of 5 MLPs",
        {HUBRL: Learning({**PPO_CHEETAH, **OUTPUTS}, 5), SB3: Learning(PPO_CHEETAH)},
        "at least 0.75, aim 1.2",
        steps=4096,
    ),
    Benchmark(
        "tuned-cost-of-8",
        "PPO Atari, tuned, top-1: time with 8 sources over time with 1",
        {
            HUBRL: Learning({**FAST, **PPO_ATARI, **TUNED, **SHORT}, 8),
            ONE: Learning({**FAST, **PPO_ATARI, **TUNED, **SHORT}, 1),
            SB3: Learning({**WRAPPED, **PPO_ATARI, **SHORT}),
        },
        "at most 1.3, aim 1.1",
        ratio=cost_over(ONE),
        steps=512,
    ),
    _many_benchmark("many-sources", "outputs"),
    _many_benchmark("many-sources-features", "features"),
    Benchmark(
        "many-sources-memory",
        f"Resident memory of an MLP more, of {MANY} over outputs, over that of its weights",
        {
            HUBRL: Resident({**PPO_CHEETAH, **TOP_2["outputs"]}, MANY),
            "weights": SourceWeights({**PPO_CHEETAH, **TOP_2["outputs"]}, 5),
        },
        "at most 8",
        ratio=over_weights,
        repetitions=1,
        unit="bytes",
    ),
    *(_scratch_benchmark(name) for name in ONE_NETWORK),
    *(_emulator_benchmark(game) for game in GAMES),
    Benchmark(
        "overhead",
        "Time outside emulator and networks, PPO Atari, frozen hub of 3 NatureCNNs, 8 envs",
        {
            HUBRL: Learning({**FAST, **PPO_ATARI, **FROZEN}, 3),
            "emulator": Emulator(FAST),
            "kernels": Kernels({**FAST, **PPO_ATARI, **FROZEN}, 3),
        },
        "at most 0.3, aim 0.15",
        ratio=outside,
        steps=2048,
    ),
    Benchmark(
        "predict-mlp",
        "predict of an exported lite Zoo-Tuning agent of 3 MLPs",
        {HUBRL: Predicting({**PPO_CHEETAH, **LITE}, 3), SB3: Predicting(PPO_CHEETAH)},
        "at least 0.95, a cost of 1.05",
        steps=20_000,
        repetitions=5,
    ),
    Benchmark(
        "predict-cnn",
        "predict of an exported lite Zoo-Tuning agent of 3 NatureCNNs",
        {
            HUBRL: Predicting({**FAST, **PPO_ATARI, **LITE}, 3),
            SB3: Predicting({**FAST, **PPO_ATARI}),
        },
        "at least 0.95, a cost of 1.05",
        steps=4_000,
        repetitions=5,
    ),
    _acting_benchmark("predict-outputs", "all pathways together", OUTPUTS, 1),
    _acting_benchmark("predict-outputs-8", "all pathways together", OUTPUTS, 8),
    _acting_benchmark("predict-source", "one source alone", HUB, 1),
)


def select(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of some names; all without names.

    Raises:
        UnknownName: If there is no such benchmark.
    """
    known = {benchmark.name: benchmark for benchmark in BENCHMARKS}
    for name in names:
        if name not in known:
            raise UnknownName(unknown("benchmark", name, known))
    return [known[name] for name in names or known]
