"""Digests of short trainings: what they learned and earned, bit for bit.

`python tests/training_digests.py` trains every case and stores its digest for this machine in `training_digests.json`. Renew them
where numbers are meant to change, and say so in the commit.
"""

import hashlib
import json
import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import stable_baselines3
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import CHOOSE, STEER, Toy, target, tiny_hub

from hubrl import HubCallback, methods

STORED = Path(__file__).with_suffix(".json")
STEPS = 192
QUIET = {"probe_share": 0.0, "warmup_share": 0.0}
"""Arguments of a callback that neither probes nor lets the actor wait."""

ALIKE = (PPO, PPO)
NEEDS_ALIKE = ("zoo-tuning", "lite-zoo-tuning", "soup", "progressive")
"""Methods whose sources need the same layers."""
ONE = ("single", "finetune", "frozen")
"""Methods of one source."""
Q_METHODS = ("hub-pathway", "finetune", "kickstart", "multipolar", "componet")
"""Methods through which DQN learns at the level of outputs."""


class Case(NamedTuple):
    """One training: an algorithm, a method at a level, and how it is called."""

    algorithm: type[BaseAlgorithm]
    method: str
    level: str = "outputs"
    options: dict[str, Any] = {}
    callback: dict[str, Any] | None = QUIET
    """Arguments of the callback; None for a training without it."""
    actions: str = "box"
    steps: int = STEPS
    label: str = ""

    @property
    def name(self) -> str:
        """The key of its digest."""
        name = f"{self.algorithm.__name__.lower()}-{self.method}-{self.level}-{self.actions}"
        return f"{name}-{self.label}" if self.label else name


def _every_method() -> list[Case]:
    """PPO and A2C through every method that serves at the outputs."""
    served = [name for name in methods.available() if "outputs" in methods.find(name).levels]
    return [
        *(Case(PPO, name) for name in served),
        *(Case(A2C, name, actions="discrete") for name in served),
        *(Case(DQN, name, actions="discrete") for name in Q_METHODS),
        *(
            Case(SAC, name, level="features")
            for name in ("hub-pathway", "concat", "finetune", "progressive")
        ),
    ]


# Without selection among arms, so that only the policy's own way is in them.
_ALONE = {"judging_share": 0.0}
CASES = [
    *_every_method(),
    Case(PPO, "hub-pathway", actions="discrete"),
    Case(PPO, "hub-pathway", options=_ALONE, label="no-selection"),
    Case(PPO, "hub-pathway", options={"hold": 1, **_ALONE}, label="drawn-anew"),
    Case(PPO, "hub-pathway", options={"hold": 3, "release": "fixed", **_ALONE}, label="fixed-hold"),
    Case(PPO, "hub-pathway", options={"aggregation": "mean"}, label="mean"),
    Case(PPO, "hub-pathway", options={"top_k": 1}, label="top-1"),
    Case(PPO, "hub-pathway", options={"tuned": True, **_ALONE}, label="tuned"),
    Case(PPO, "hub-pathway", options={"recall": False, **_ALONE}, label="computed-again"),
    Case(PPO, "hub-pathway", options=_ALONE, callback=None, label="no-callback"),
    Case(PPO, "hub-pathway", callback={"probe_share": 0.5}, steps=1024, label="probe"),
    Case(PPO, "hub-pathway", level="features"),
    Case(A2C, "hub-pathway", options=_ALONE, label="no-selection"),
]
BY_NAME = {case.name: case for case in CASES}


def trained(case: Case) -> BaseAlgorithm:
    """The model after the training of a case."""
    actions = STEER if case.actions == "box" else CHOOSE
    q_source = case.method == "finetune" and case.algorithm is DQN
    hub = tiny_hub(Toy(actions=actions), ALIKE if case.method in NEEDS_ALIKE else None)
    source = {"source": "dqn-1" if q_source else "ppo-0"} if case.method in ONE else {}
    made = hub.agent(case.algorithm, case.method, level=case.level, **source, **case.options)
    n_envs = 1 if case.algorithm in (DQN, SAC) else 2
    env = make_vec_env(Toy, n_envs=n_envs, seed=0, env_kwargs={"actions": actions})
    model = target(case.algorithm, env, made, seed=3, learning_rate=1e-2)
    return model.learn(
        case.steps, callback=None if case.callback is None else HubCallback(**case.callback)
    )


def digest(model: BaseAlgorithm) -> str:
    """Hash of all weights that learn and of the returns of all episodes; the weights' names and order do not count."""
    weights = sorted(
        _hash(parameter.detach().numpy())
        for parameter in nn.Module.parameters(model.policy)
        if parameter.requires_grad
    )
    returns = np.array([info["r"] for info in model.ep_info_buffer or ()])
    return hashlib.sha256("".join([*weights, _hash(returns)]).encode()).hexdigest()[:16]


def machine() -> str:
    """What the last bits of a training depend on: versions, the processor, and how it rounds a small computation."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for rows, width in ((1, 8), (2, 8), (16, 8), (16, 64), (64, 64)):
        seen, layer = (
            torch.randn(rows, width, generator=generator),
            torch.randn(width, width, generator=generator, requires_grad=True),
        )
        made = torch.tanh(seen @ layer).log_softmax(dim=1).exp().std(dim=1)
        found += [
            made.detach(),
            torch.autograd.grad(made.square().sum(), layer)[0],
            torch.from_numpy(np.tanh(seen.numpy())),
        ]
    rounded = _hash(np.concatenate([each.numpy().ravel() for each in found]))[:12]
    versions = f"torch {torch.__version__}, numpy {np.__version__}, stable-baselines3 {stable_baselines3.__version__}"
    return f"{_processor()}, {versions}, {rounded}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def _hash(array: np.ndarray) -> str:
    return hashlib.sha256(str(array.shape).encode() + array.tobytes()).hexdigest()


def stored() -> dict[str, dict[str, str]]:
    """Digests by machine and case."""
    return json.loads(STORED.read_text()) if STORED.exists() else {}


def renew() -> None:
    """Store the digests of this machine, and print which changed."""
    torch.set_num_threads(1)
    old, new = stored(), {case.name: digest(trained(case)) for case in CASES}
    here = machine()
    known = old.get(here, {})
    changed = sorted(name for name in {*known, *new} if known.get(name) != new.get(name))
    STORED.write_text(json.dumps({**old, here: new}, indent=1, sort_keys=True) + "\n")
    print(f"{here}\n{len(changed)} of {len(new)} digests changed:", *changed, sep="\n  ")  # noqa: T201 - a script


if __name__ == "__main__":
    renew()
