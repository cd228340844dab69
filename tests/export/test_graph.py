"""Deterministic actions as graphs, compared with the agents on random observations."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from toys import CHOOSE, IMAGE, PARTS, STEER, VECTOR, Toy, target, tiny, tiny_hub

from hubrl import BadConfig, HubCallback, load_agent
from hubrl.export import export_graph
from hubrl.reading import read_live


def normalised():
    vec = VecNormalize(make_vec_env(lambda: Toy(VECTOR, STEER), n_envs=2, seed=0))
    model = target(PPO, vec, tiny_hub(Toy(VECTOR, STEER)).agent(PPO, hold=4))
    return model.learn(128, callback=HubCallback(probe_share=0))


def over_hub(observations, actions, algorithm=PPO, level=None, **options):
    env = Toy(observations, actions)
    return target(algorithm, env, tiny_hub(env).agent(algorithm, level=level, **options))


AGENTS = {
    "plain images": lambda: tiny(PPO, Toy(IMAGE, CHOOSE), 1),
    "plain SAC": lambda: tiny(SAC, Toy(VECTOR, STEER), 1),
    "normalised hub": normalised,
    "hub, discrete": lambda: over_hub(VECTOR, CHOOSE),
    "hub, top-1": lambda: over_hub(VECTOR, STEER, top_k=1),
    "hub, parts": lambda: over_hub(PARTS, STEER),
    "hub, features": lambda: over_hub(VECTOR, STEER, level="features"),
    "DQN over outputs": lambda: over_hub(VECTOR, CHOOSE, DQN),
}


@pytest.mark.parametrize("kind", ["torchscript", "onnx"])
@pytest.mark.parametrize("name", AGENTS)
def test_a_graph_acts_as_the_agent_does(name, kind, tmp_path):
    if kind == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    agent = read_live(AGENTS[name](), "agent")
    made = export_graph(agent, tmp_path / "graph", kind)
    assert (
        made.difference < 1e-4 if isinstance(agent.actions, spaces.Box) else made.difference < 0.005
    )
    assert (tmp_path / "graph").stat().st_size > 0
    assert made.inputs == (tuple(PARTS.spaces) if name == "hub, parts" else ("observation",))


def test_a_graph_takes_several_observations_at_once(tmp_path):
    agent = read_live(over_hub(VECTOR, STEER), "agent")
    export_graph(agent, tmp_path / "graph.pt", "torchscript", batch=8)
    observations = torch.randn(8, *VECTOR.shape)
    loaded = torch.jit.load(tmp_path / "graph.pt")
    expected = agent.predict(observations.numpy(), deterministic=True)[0]
    np.testing.assert_allclose(loaded(observations).numpy(), expected, atol=1e-5)


def test_an_agent_that_was_adapted_is_refused(tmp_path):
    agent = read_live(tiny(PPO, Toy(VECTOR, STEER), 1), "agent")
    width = VECTOR.shape[0]
    with pytest.raises(
        BadConfig, match="was adapted to another task's observations; export the agent as it was"
    ):
        export_graph(agent.adapted(observes=list(range(width))), tmp_path / "graph", "torchscript")


def test_the_command_line_exports_graphs_of_files(run, tmp_path):
    tiny(PPO, Toy(VECTOR, STEER), 1).save("agent.zip")
    code, out, err = run("export", "agent.zip", "agent.pt", "--format", "torchscript")
    assert code == 0, err
    assert "agent.pt: torchscript of 'agent'" in out
    assert "1000 random observations" in out
    assert load_agent("agent.zip").name == "agent"
    code, _, err = run("export", "agent.zip", "agent.pt", "--format", "torchscript")
    assert (code, "agent.pt exists" in err) == (2, True)
    code, _, err = run("export", "agent.zip", "agent.pt", "--format", "coreml")
    assert (code, "sb3, onnx, torchscript" in err) == (2, True)
