"""Jobs in parallel processes, of which each may fail, or be killed, by itself."""

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import NamedTuple, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

PROCESSES = 2

KILLS = 2
"""Times that the process of a job may be killed before the job counts as failed."""

KILLED = "its process was killed {} times, perhaps for its memory; try fewer --jobs"


class Running(NamedTuple):
    """A job in a process."""

    place: int
    """Position among the jobs."""
    pool: ProcessPoolExecutor
    """A pool of one process: where that is killed, no other job is concerned."""


def run_in_processes(
    run: Callable[[Job], Result], jobs: Sequence[Job], processes: int | None = None
) -> Generator[tuple[Job, Result | Exception], None, None]:
    """Every job with its result or its error, as they end; closing it cancels the rest.

    A job whose process was killed is run again in another.

    Args:
        run: What is done with each job; both can be pickled.
        jobs: The jobs, in the order in which they begin.
        processes: Jobs at a time; 2 by default.
    """
    processes = PROCESSES if processes is None else processes
    waiting, kills = deque(range(len(jobs))), [0] * len(jobs)
    running: dict[Future[Result], Running] = {}
    idle: list[ProcessPoolExecutor] = []
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                index, pool = waiting.popleft(), idle.pop() if idle else _one_process()
                running[pool.submit(run, jobs[index])] = Running(index, pool)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index, pool = running.pop(future)
                outcome = _outcome(future)
                if not isinstance(outcome, BrokenProcessPool):
                    idle.append(pool)
                    yield jobs[index], outcome
                    continue
                kills[index] += 1
                if kills[index] < KILLS:
                    waiting.appendleft(index)
                else:
                    yield jobs[index], ChildProcessError(KILLED.format(kills[index]))
    finally:
        for pool in [*idle, *(each.pool for each in running.values())]:
            pool.shutdown(wait=False, cancel_futures=True)


def _outcome(future: Future[Result]) -> Result | Exception:
    try:
        return future.result()
    except Exception as error:
        return error


def _one_process() -> ProcessPoolExecutor:
    # A fresh process: a forked one would share torch's threads and MuJoCo's state.
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=exit_with_parent)


def exit_with_parent() -> None:
    """Initializer of a worker process that ends it with its parent, also if that is killed."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    Thread(target=wait, daemon=True).start()
