"""An agent's deterministic action as one graph of tensors: ONNX or TorchScript, without hubrl.

The graph reads observations as the task returns them, images channel first: normalisation, sources
and router are inside. It has no memory, so an agent that commits to pathways chooses anew at every
step, as `Source.predict` does.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.export.merge import OBSERVATIONS, random_observations
from hubrl.formats.files import write_atomically
from hubrl.formats.spaces import describe
from hubrl.sources.source import Source

GraphFormat = Literal["onnx", "torchscript"]

LARGEST_DIFFERENCE = 1e-4
"""Greatest difference of continuous actions, relative to their size where that is above 1."""

LARGEST_SHARE = 0.005
"""Greatest share of observations with another discrete action: ties of two nearly equal ones."""

Run = Callable[[list[np.ndarray]], np.ndarray]
"""A graph that runs: from the parts of a batch of observations to actions."""


class ExportedGraph(NamedTuple):
    """A graph that was written."""

    inputs: tuple[str, ...]
    """Names of its inputs: `observation`, or the keys of a Dict."""
    difference: float
    """Greatest difference of actions on random observations; of discrete ones the share that
    differs."""


def export_graph(agent: Source, out: Path, kind: GraphFormat, *, batch: int = 1) -> ExportedGraph:
    """Write an agent's deterministic action as a graph, and compare it on 1,000 observations.

    Args:
        agent: The agent; its VecNormalize, if it has one, is inside.
        out: The file to write.
        kind: `onnx`, which needs `hubrl[onnx]`, or `torchscript`.
        batch: Number of observations that the graph takes at once.

    Raises:
        BadConfig: If a package is missing, the agent has no actions or a preprocessing for another
            task, or the graph does not act as the agent does.
    """
    check_exportable(agent)
    module = DeterministicAction(agent)
    rows = [part[:batch] for part in _observations(agent.space, max(batch, 1))]
    example = tuple(torch.as_tensor(part) for part in rows)
    raw = (_onnx if kind == "onnx" else _torchscript)(module, example)
    run = (_onnx_runner if kind == "onnx" else _torchscript_runner)(raw, module.names)
    difference = _difference(agent, run, batch)
    most = LARGEST_DIFFERENCE if isinstance(agent.actions, spaces.Box) else LARGEST_SHARE
    if not difference <= most:
        raise BadConfig(
            f"The {kind} graph of agent {agent.name!r} differs from it by {difference:.1e}, more "
            f"than {most:.0e}; distil it with `hubrl distill`, and export that."
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, raw)
    return ExportedGraph(module.names, difference)


def check_exportable(agent: Source) -> None:
    """Refuse agents without actions, or for observations that are not their own.

    Raises:
        BadConfig: If it is such an agent.
    """
    if agent.actions is None:
        raise BadConfig(
            f"Agent {agent.name!r} is an encoder alone and has no actions to export; give one "
            "with an action head."
        )
    if agent.card.preprocessing:
        raise BadConfig(
            f"Agent {agent.name!r} was adapted to another task's observations; export the agent "
            "as it was before."
        )


class DeterministicAction(nn.Module):
    """The likeliest action of an agent for a batch of raw observations.

    Args:
        agent: The agent.
    """

    def __init__(self, agent: Source) -> None:
        super().__init__()
        # Not a submodule: a trace needs its weights as constants, and nothing else of it.
        self._agent = (agent,)
        space = agent.space
        keys = tuple(space.spaces) if isinstance(space, spaces.Dict) else ("observation",)
        self.names: tuple[str, ...] = keys

    def forward(self, *parts: Tensor) -> Tensor:
        """Actions in the environment's units.

        Args:
            parts: A batch of each part of the observation, in the order of `names`.
        """
        (agent,) = self._agent
        is_dict = isinstance(agent.space, spaces.Dict)
        observations: Any = dict(zip(self.names, parts, strict=True)) if is_dict else parts[0]
        images = agent.card.normalize_images
        inputs: Any = preprocess_obs(observations, agent.space, normalize_images=images)
        assert agent.actions is not None
        return likeliest(agent.outputs(inputs), agent.actions)


def likeliest(params: Float[Tensor, "batch outputs"], space: spaces.Space[Any]) -> Tensor:
    """The most likely actions of action parameters, as tensors.

    Args:
        params: Action parameters (`hubrl.sources.action_params`).
        space: The actions.
    """
    match space:
        case spaces.Box():
            mean = params.chunk(2, dim=1)[0].reshape(-1, *space.shape)
            return mean.clamp(torch.as_tensor(space.low), torch.as_tensor(space.high))
        case spaces.MultiBinary():
            return (params > 0).to(torch.int8)
        case spaces.MultiDiscrete():
            parts = params.split(space.nvec.tolist(), dim=1)
            return torch.stack([part.argmax(dim=1) for part in parts], dim=1)
        case _:
            return params.argmax(dim=1)


def _traced(module: DeterministicAction, example: tuple[Tensor, ...]) -> Any:
    with _constant_weights(module), torch.no_grad(), warnings.catch_warnings():
        # torch warns of every branch in Python and of sizes that are constants, as meant here.
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, example, check_trace=False)


@contextmanager
def _constant_weights(module: DeterministicAction) -> Iterator[None]:
    """Weights that need no gradient for a while, as constants of a trace have to be."""
    (agent,) = module._agent
    learning = [each for each in agent.parameters() if each.requires_grad]
    agent.eval()
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _torchscript(module: DeterministicAction, example: tuple[Tensor, ...]) -> bytes:
    saved = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(_traced(module, example), saved)
    return saved.getvalue()


def _onnx(module: DeterministicAction, example: tuple[Tensor, ...]) -> bytes:
    _import("onnx")
    saved = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _traced(module, example),
            example,
            saved,  # type: ignore[arg-type]
            input_names=list(module.names),
            output_names=["action"],
            dynamo=False,
        )
    return saved.getvalue()


def _onnx_runner(raw: bytes, names: tuple[str, ...]) -> Run:
    session = _import("onnxruntime").InferenceSession(raw, providers=["CPUExecutionProvider"])

    def run(parts: list[np.ndarray]) -> np.ndarray:
        actions: np.ndarray = session.run(None, dict(zip(names, parts, strict=True)))[0]
        return actions

    return run


def _torchscript_runner(raw: bytes, names: tuple[str, ...]) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        loaded = torch.jit.load(io.BytesIO(raw))

    def run(parts: list[np.ndarray]) -> np.ndarray:
        actions: np.ndarray = loaded(*map(torch.as_tensor, parts)).numpy()
        return actions

    return run


def _import(package: Literal["onnx", "onnxruntime"]) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise BadConfig(f"The format onnx needs {package}; install hubrl[onnx].") from error


def _observations(space: spaces.Space[Any], n: int) -> list[np.ndarray]:
    """Random observations, part by part, as the graph reads them."""
    parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
    unsupported = [part for part in parts if isinstance(part, spaces.Dict | spaces.Tuple)]
    if unsupported:
        raise BadConfig(
            f"Observations of {describe(space)} cannot be the inputs of a graph; expected arrays."
        )
    return [random_observations(part, n) for part in parts]


def _difference(agent: Source, run: Run, batch: int) -> float:
    """Greatest difference of a graph's actions from the agent's, over random observations."""
    n = -(-OBSERVATIONS // batch) * batch
    parts = _observations(agent.space, n)
    space = agent.space
    keyed = dict(zip(space.spaces, parts, strict=True)) if isinstance(space, spaces.Dict) else {}
    expected, _ = agent.predict(keyed or parts[0], deterministic=True)
    starts = range(0, n, batch)
    actions = [run([part[start : start + batch] for part in parts]) for start in starts]
    found = np.concatenate(actions).reshape(expected.shape)
    if isinstance(agent.actions, spaces.Box):
        return float(np.max(np.abs(found - expected) / np.maximum(np.abs(expected), 1)))
    return float(np.mean((found != expected).reshape(n, -1).any(axis=1)))
