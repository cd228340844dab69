"""Devices that are not there, tensors on the wrong one, and numbers that a step waits for."""

import copy
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from hubs import steers
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from torch.utils._python_dispatch import TorchDispatchMode
from toys import ON_POLICY, Toy

import hubrl
from hubrl import BadConfig, CachedVecEnv, Hub, HubCallback
from hubrl.experiments.config import RunConfig, parse_config
from hubrl.experiments.finished_run import FinishedRun
from hubrl.experiments.run import start_run_from, train
from hubrl.nn.devices import check_device
from hubrl.policies.on_policy.step import RecordedBatch

PACKAGE = Path(hubrl.__file__).parent

ABSENT = [
    name for name in ("cuda", "cuda:3", "mps", "meta", "xpu") if name != "cuda" or not torch.cuda.is_available()
]  # fmt: skip


@pytest.mark.parametrize("name", ABSENT)
def test_a_device_that_is_not_there_is_a_sentence_wherever_it_is_given(name, tmp_path):
    there = r"torch has (\d CUDA devices|no \w+ here); use auto, cpu or another"
    with pytest.raises(BadConfig, match=f"^device: {name} was given and {there}"):
        check_device(name)
    config = RunConfig(task="CartPole-v1", method="scratch", steps=64, device=name)
    start_run_from(config, tmp_path / "run")
    with pytest.raises(BadConfig, match=f"^device: {name} was given and {there}"):
        train(tmp_path / "run")
    made = Hub([steers("one", 0.1)]).policy_kwargs("hub-pathway", cached=True, fresh=False)
    with pytest.raises(BadConfig, match=f"^CachedVecEnv's device: {name} was given and {there}"):
        CachedVecEnv(make_vec_env(Toy), made, name)


def test_nonsense_is_no_device():
    with pytest.raises(BadConfig, match="device: 'gpu' is no device of torch; expected auto, cpu"):
        parse_config(
            {"task": "CartPole-v1", "method": "scratch", "steps": 1, "device": "gpu"}, "it"
        )
    with pytest.raises(BadConfig, match="device: 'gpu' is no device of torch; expected auto, cpu"):
        check_device("gpu")


def test_a_run_of_a_gpu_plays_where_there_is_none(tmp_path):
    config = RunConfig(task="CartPole-v1", method="scratch", steps=64, device=ABSENT[-1])
    start_run_from(config, tmp_path / "run")
    (tmp_path / "run" / "model.zip").touch()
    assert FinishedRun(tmp_path / "run").config.device == "auto"


def learner(top_k=None):
    hub = Hub([steers("one", 0.1), steers("other", 0.2), steers("third", 0.3)])
    options = {} if top_k is None else {"top_k": top_k}
    env = make_vec_env(Toy, n_envs=2, seed=0)
    return PPO(env=env, **hub.agent(PPO, **options), **ON_POLICY, device="cpu", seed=0)


class Update(BaseCallback):
    """What one minibatch of an update computes with the policy on torch's `meta` device."""

    def _on_step(self):
        return True

    def _on_rollout_end(self):
        policy = self.model.policy
        batch = next(self.model.rollout_buffer.get(8))
        policy.set_training_mode(True)
        moved = copy.deepcopy(policy).to("meta")
        moved.pack_parameters = lambda head: None  # the optimizer is of the policy that stays
        moved._was_only_fresh = lambda record: False  # the one number that a minibatch reads
        policy.set_training_mode(False)
        record = type(batch.observations.record)(
            **{name: rows.to("meta") for name, rows in batch.observations.record.tensors().items()}
        )
        seen = RecordedBatch(batch.observations.observations.to("meta"), record)
        values, log_prob, _ = moved.evaluate_actions(seen, batch.actions.to("meta"))
        (values.mean() + log_prob.mean()).backward()
        self.devices = {p.grad.device.type for p in moved.parameters() if p.grad is not None}
        self.left = {
            name
            for name, each in moved.state_dict().items()
            if each.device.type != "meta" and not name.startswith("selection.")
        }


@pytest.mark.parametrize("top_k", [None, 2])
def test_an_update_makes_no_tensor_on_another_device_and_reads_no_number(top_k):
    watched = Update()
    learner(top_k).learn(64, callback=[HubCallback(0.0, 0.0), watched])
    assert watched.devices == {"meta"}
    assert watched.left == set()


class Waits(TorchDispatchMode):
    """Places in hubrl at which Python reads a tensor's number, for which a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.places = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_local_scalar_dense" in str(function):
            stack = traceback.extract_stack()
            frame = [frame for frame in stack if Path(frame.filename).is_relative_to(PACKAGE)][-1]
            place = Path(frame.filename).relative_to(PACKAGE).as_posix()
            self.places[f"{place} {frame.line}"] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("top_k", [None, 2])
def test_a_step_of_a_rollout_and_an_update_wait_for_no_number(top_k, monkeypatch):
    model, waits = learner(top_k), Waits()
    forward, evaluate = model.policy.forward, model.policy.evaluate_actions
    model.learn(64, callback=HubCallback(0.0, 0.0))

    def watched(function):
        def call(*args, **kwargs):
            with waits:
                return function(*args, **kwargs)

        return call

    monkeypatch.setattr(model.policy, "forward", watched(forward))
    monkeypatch.setattr(model.policy, "evaluate_actions", watched(evaluate))
    model.learn(64, callback=HubCallback(0.0, 0.0), reset_num_timesteps=False)
    # Once an update the optimizer packs parameters; their step counts are on the CPU but in its
    # fused kernel. The first minibatch of each epoch is among the others.
    often = {place for place, count in waits.places.items() if count > 2 * 8}
    assert {place.split()[0] for place in often} <= {"nn/optimizers.py"}
