"""What a saved model's file names is public, so that modules may move."""

import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from toys import CHOOSE, STEER, Toy, target, tiny_hub

import hubrl
from hubrl import CachedVecEnv, HubCallback

ROWS = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
LOAD = """
import sys
import numpy as np
import stable_baselines3
path, algorithm, rows = sys.argv[1:]
model = getattr(stable_baselines3, algorithm).load(path, device="cpu")
np.save(path + ".npy", model.predict(np.load(rows), deterministic=True)[0])
"""


def names_in(path):
    """All dotted names of hubrl in a saved model's data, the pickled ones too."""
    import base64
    import json

    with zipfile.ZipFile(path) as archive:
        found = json.loads(archive.read("data"))
        tensors = b"".join(
            archive.read(name) for name in archive.namelist() if name.endswith(".pth")
        )
    pickled = [
        base64.b64decode(value[":serialized:"])
        for value in found.values()
        if isinstance(value, dict) and ":serialized:" in value
    ]
    text = b"\n".join([json.dumps(found).encode(), tensors, *pickled]).decode("latin1")
    return set(re.findall(r"hubrl(?:\.[A-Za-z_]\w*)+", text))


@pytest.mark.parametrize(
    ("algorithm", "level", "cached"),
    [
        (PPO, "outputs", False),
        (A2C, "outputs", False),
        (DQN, "outputs", False),
        (PPO, "features", False),
        (SAC, "features", False),
        (PPO, "features", True),
    ],
)
def test_a_file_names_public_classes_alone(algorithm, level, cached, tmp_path):
    actions = CHOOSE if algorithm is DQN else STEER
    hub = tiny_hub(Toy(actions=actions))
    made = hub.agent(algorithm, level=level, **({"cached": True} if cached else {}))
    env = make_vec_env(Toy, n_envs=1, seed=0, env_kwargs={"actions": actions})
    model = target(algorithm, CachedVecEnv(env, made) if cached else env, made)
    model.learn(64, callback=HubCallback(probe_share=0.0))
    model.save(tmp_path / "model.zip")
    names = names_in(tmp_path / "model.zip")
    inner = {
        name
        for name in names
        if not hasattr(hubrl, name.split(".")[1]) or name.split(".")[1].islower()
    }
    assert not inner, "names of modules inside the package"
    np.save(tmp_path / "rows.npy", ROWS)
    given = [tmp_path / "model.zip", algorithm.__name__, tmp_path / "rows.npy"]
    subprocess.run([sys.executable, "-c", LOAD, *map(str, given)], check=True)
    with torch.no_grad():
        expected = model.predict(ROWS, deterministic=True)[0]
    np.testing.assert_allclose(np.load(f"{tmp_path / 'model.zip'}.npy"), expected, atol=1e-5)
