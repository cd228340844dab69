"""Threads that share a policy, forked processes, and models by the hundred: no crosstalk, no leak."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from toys import CHOOSE, Toy, target, tiny_hub, toy_for

from hubrl import BadConfig, HubCallback
from hubrl.policies.predict_lock import PredictLock
from hubrl.sources import shared


@pytest.fixture
def impatient():
    """Threads take turns far more often than they usually do."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def made(algorithm, committed=False, **options):
    env = Toy(actions=CHOOSE) if algorithm is PPO else toy_for(algorithm)
    model = target(algorithm, env, tiny_hub(env).agent(algorithm, **options))
    if committed:
        model.policy.enable_commitment()
    return model


def from_threads(predict, batches, wanted, calls=40):
    """Wrong answers and errors of four threads that predict for batches of different sizes."""
    wrong, errors = [], []

    def call(first):
        for turn in range(calls):
            place = (turn + first) % len(batches)
            try:
                found = predict(batches[place])
            except Exception as error:
                errors.append(repr(error))
                continue
            if not np.array_equal(found, wanted[place]):
                wrong.append(place)

    threads = [Thread(target=call, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong, errors


@pytest.mark.parametrize("kind", ["outputs", "committed", "every source dropped", "dqn", "source"])
def test_threads_share_a_policy(kind, impatient):
    model = made(DQN if kind == "dqn" else PPO, committed=kind == "committed")
    if kind == "every source dropped":
        model.policy.method.apply_probe([False, False, True], [0.0, 0.0, 0.0])
        assert model.policy.fresh_alone
    agent = tiny_hub(Toy(actions=CHOOSE))[0] if kind == "source" else model
    rows = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    batches = [rows[:2], rows]

    def predict(batch):
        return agent.predict(batch, deterministic=True)[0]

    wanted = [predict(batch) for batch in batches]
    assert from_threads(predict, batches, wanted) == ([], [])


def test_a_policy_that_another_thread_trains_is_refused_and_a_copy_is_not():
    model, errors = made(PPO), []
    row = np.zeros(4, np.float32)

    class Ask(BaseCallback):
        def _on_rollout_start(self):
            copied = copy.deepcopy(self.model.policy)
            thread = Thread(target=lambda: (copied.predict(row), self.ask()))
            thread.start()
            thread.join()

        def ask(self):
            try:
                self.model.predict(row)
            except BadConfig as error:
                errors.append(str(error))

        def _on_step(self):
            return True

    model.learn(64, [HubCallback(probe_share=0.0), Ask()])
    assert len(errors) == 2
    assert "another thread trains this policy" in errors[0]
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, [HubCallback(probe_share=0.0), Stop()])
    thread = Thread(target=lambda: errors.append(model.predict(row)))
    thread.start()
    thread.join()
    assert len(errors) == 3, "a training that was interrupted is none"


class Stop(BaseCallback):
    def _on_step(self):
        raise KeyboardInterrupt


def can_be_taken(lock):
    """Whether another thread gets the lock."""
    taken = []
    thread = Thread(target=lambda: taken.append(lock.__enter__()), daemon=True)
    thread.start()
    thread.join(0.5)
    return bool(taken)


def test_a_lock_is_copied_and_pickled_as_a_new_one():
    lock = PredictLock()
    with lock:
        for other in (copy.deepcopy(lock), pickle.loads(pickle.dumps(lock))):
            assert can_be_taken(other)


def test_a_forked_process_has_a_lock_of_its_own(monkeypatch):
    lock = PredictLock()
    lock.__enter__()
    assert not can_be_taken(lock)
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert can_be_taken(lock)


@pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")
def test_environments_in_forked_processes_learn_as_in_this_one():
    digests = []
    for kind in (None, SubprocVecEnv):
        kwargs = {"start_method": "fork"} if kind else None
        env = make_vec_env(Toy, n_envs=2, seed=0, vec_env_cls=kind, vec_env_kwargs=kwargs)
        model = target(PPO, env, tiny_hub(Toy()).agent(PPO))
        model.predict(np.zeros((2, 4), np.float32))
        model.learn(64, HubCallback(probe_share=0.0))
        digests.append([part.detach().clone() for part in model.policy.parameters()])
        env.close()
    assert all(bool((one == other).all()) for one, other in zip(*digests, strict=True))


def memory_mb():
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
def test_models_that_are_dropped_leave_nothing_behind():
    hub, env = tiny_hub(Toy()), Toy()
    alive = []

    def build():
        model = target(PPO, env, hub.agent(PPO))
        alive.append(weakref.ref(model.policy))

    for _ in range(20):
        build()
    gc.collect()
    before, known = memory_mb(), len(shared._registered)
    for _ in range(60):
        build()
    gc.collect()
    assert not any(reference() for reference in alive)
    assert len(shared._registered) == known
    assert len(shared._shared) <= known
    assert memory_mb() - before < 10


PREDICTS = """
import sys
sys.path[:0] = {path!r}
import gc
import numpy as np
from test_threads import made, memory_mb
from stable_baselines3 import DQN, PPO

model = made(DQN if {kind!r} == "dqn" else PPO, committed={kind!r} == "committed")
rows, state = np.random.default_rng(0).normal(size=(2500, 4)).astype(np.float32), None
for turn in range(2):
    before = memory_mb()
    for row in rows:
        _, state = model.predict(row, state)
    gc.collect()
print(memory_mb() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["committed", "dqn"])
def test_predictions_by_the_thousand_leave_nothing_behind(kind):
    # In a process of its own: checked shapes, as in these tests, do leave something behind.
    here = Path(__file__).parent
    code = PREDICTS.format(path=[str(here), str(here.parent)], kind=kind)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 1
