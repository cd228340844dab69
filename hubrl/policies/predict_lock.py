"""One `predict` of a policy at a time, whichever thread calls it."""

import os
import sys
from threading import RLock, get_ident
from types import TracebackType
from typing import Any

from hubrl.errors import BadConfig


class PredictLock:
    """A lock that a policy can hold: copies, files and forked processes get one of their own.

    SB3 keeps the distribution of the last call in the policy, and hubrl the commitments of the one
    that runs, so that two threads would read each other's.
    """

    def __init__(self) -> None:
        self._lock, self._process = RLock(), os.getpid()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            # Another thread may have held it when the process was forked, and is not in this one.
            self._lock, self._process = RLock(), os.getpid()
        self._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["PredictLock"], tuple[Any, ...]]:
        return PredictLock, ()


def learns_in_another_thread(policy: Any, thread: int | None) -> bool:
    """Whether `learn` of a policy's model runs in a thread that is not this one.

    Args:
        policy: The policy.
        thread: The thread that began to train it; `learn` may have been interrupted there.
    """
    if thread is None or thread == get_ident():
        return False
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "learn":
            model = frame.f_locals.get("self")
            if getattr(model, "policy", None) is policy:
                return True
        frame = frame.f_back
    return False


def refuse_other_threads(policy: Any, thread: int | None) -> None:
    """Refuse a `predict` while another thread trains the policy.

    Raises:
        BadConfig: If one does, see `learns_in_another_thread`.
    """
    if learns_in_another_thread(policy, thread):
        raise BadConfig(
            "predict was called while another thread trains this policy, and would change what "
            "that reads; give it a copy, as copy.deepcopy(model.policy)."
        )
