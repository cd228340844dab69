"""Memory in place of time: replay buffers, networks, and processes that train."""

import gc
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import ClassVar

import numpy as np
from stable_baselines3.dqn import DQN
from torch import Tensor

from hubrl.bench.workloads import Learner, Learning, Workload
from hubrl.errors import BadConfig
from hubrl.policies.extractor import parts_in
from hubrl.sources.source import Source

FEW_SOURCES = 5
"""Sources of the process with which one with many is compared."""

STATM = Path("/proc/self/statm")
"""Where Linux says how much memory a process has, in pages."""


class ReplayMemory(Learner):
    """The replay buffer of a DQN."""

    def measure(self, steps: int) -> float:
        """Bytes of a step in the buffer."""
        assert isinstance(self.model, DQN)
        buffer = self.model.replay_buffer
        assert buffer is not None
        parts = chain.from_iterable(
            part.values() if isinstance(part, dict) else [part] for part in vars(buffer).values()
        )
        size = sum(part.nbytes for part in parts if isinstance(part, np.ndarray))
        return size / (buffer.buffer_size * buffer.n_envs)


@dataclass(frozen=True)
class Replay(Learning):
    """Memory of a step in a replay buffer."""

    runner: ClassVar[type[Learner]] = ReplayMemory


@dataclass(frozen=True)
class Weights(Learning):
    """Memory of a model's networks.

    Args:
        copied: Whether each network counts alone, as if its sources were its own.
    """

    copied: bool = False

    def start(self) -> "NetworkMemory":
        """The model."""
        return NetworkMemory(self)


class NetworkMemory(Learner):
    """The networks of a model: actor, critics and targets."""

    def __init__(self, workload: Weights) -> None:
        super().__init__(workload)
        self.copied = workload.copied

    def measure(self, steps: int) -> float:
        """Bytes of parameters and buffers; shared ones count once, unless networks count alone."""
        shared: dict[int, Tensor] = {}
        total = 0
        for network in self.model.policy.children():
            parts = {id(part): part for part in network.state_dict(keep_vars=True).values()}
            total += sum(part.nbytes for part in parts.values())
            shared |= parts
        return float(total if self.copied else sum(part.nbytes for part in shared.values()))


@dataclass(frozen=True)
class SourceWeights(Learning):
    """Memory of a source's own weights, the mean of a hub's."""

    def start(self) -> "SourceMemory":
        """The model."""
        return SourceMemory(self)


class SourceMemory(Learner):
    """The sources of a model."""

    def measure(self, steps: int) -> float:
        """Bytes of a source's weights."""
        sources = parts_in(self.model.policy, Source)
        weights = [weight for source in sources for weight in source.state_dict().values()]
        return float(sum(weight.nbytes for weight in weights)) / len(sources)


@dataclass(frozen=True)
class Resident(Workload):
    """Memory of a process that trains, by source."""

    def start(self) -> "ProcessMemory":
        """Nothing: every measurement has processes of its own."""
        return ProcessMemory(self)


class ProcessMemory:
    """Processes that train with many sources and with a few."""

    def __init__(self, workload: Resident) -> None:
        self.workload = workload

    def measure(self, steps: int) -> float:
        """Bytes by which resident memory grows with each source, Python's objects included."""
        few, many = replace(self.workload, sources=FEW_SOURCES), self.workload
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
            of_few, of_many = pool.map(resident_bytes, (few, many))
        return (of_many - of_few) / (many.sources - FEW_SOURCES)

    def close(self) -> None:
        """Nothing to release."""


def resident_bytes(workload: Workload) -> int:
    """Resident memory of this process behind a training of one rollout.

    Raises:
        BadConfig: Where the system does not say it.
    """
    with closing(Learner(workload)) as learner:
        learner.measure(1)
        gc.collect()
        try:
            pages = int(STATM.read_text(encoding="ascii").split()[1])
        except OSError:
            raise BadConfig(f"There is no {STATM}; resident memory is measured on Linux.") from None
    return pages * os.sysconf("SC_PAGE_SIZE")
