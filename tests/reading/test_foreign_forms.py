"""Forms in which people keep agents beside SB3's zips: compiled, stripped, policies alone, CleanRL's files, gym 0.17's spaces."""

import io
import zipfile

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecFrameStack
from torch import nn
from untrained import ARM, FLAT, IMAGE, KEYS, Noise, draw, normalised, untrained

from hubrl import Hub, load_agent
from hubrl.errors import BadFile, SpaceMismatch
from hubrl.formats.spaces import space_from_dict
from hubrl.reading.sb3_spaces import parse_space


def with_weights(path, change):
    """Change the weights in a zip."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    saved = io.BytesIO()
    torch.save(change(torch.load(io.BytesIO(members["policy.pth"]))), saved)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**members, "policy.pth": saved.getvalue()}.items():
            archive.writestr(name, content)


def assert_acts_as(source, model, observations=FLAT):
    rows = draw(observations, 50)
    np.testing.assert_allclose(
        source.predict(rows, deterministic=True)[0],
        model.predict(rows, deterministic=True)[0],
        atol=1e-6,
    )


WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "compiled parts": lambda name: name.replace(".", "._orig_mod.", 1),
    "DataParallel": lambda name: name.replace(".", ".module.", 1),
}


@pytest.mark.parametrize("form", WRAPPED)
@pytest.mark.parametrize(
    "algorithm", [PPO, SAC, TD3, DQN], ids=lambda algorithm: algorithm.__name__
)
def test_weights_of_wrapped_modules_are_read_under_their_own_names(tmp_path, algorithm, form):
    model = untrained(algorithm, actions=KEYS if algorithm is DQN else ARM)
    model.save(tmp_path / "agent.zip")
    with_weights(
        tmp_path / "agent.zip",
        lambda tensors: {WRAPPED[form](name): tensor for name, tensor in tensors.items()},
    )
    assert_acts_as(load_agent(tmp_path / "agent.zip"), model)


@pytest.mark.parametrize("algorithm", [PPO, SAC, TD3], ids=lambda algorithm: algorithm.__name__)
def test_an_agent_that_was_stripped_of_its_critic_is_read_without_one(tmp_path, algorithm):
    model = untrained(algorithm)
    model.save(tmp_path / "agent.zip")
    with_weights(
        tmp_path / "agent.zip",
        lambda tensors: {
            k: v for k, v in tensors.items() if "value" not in k and not k.startswith("critic")
        },
    )
    source = load_agent(tmp_path / "agent.zip")
    assert source.critic is None
    assert_acts_as(source, model)


def test_a_zip_is_found_without_its_suffix_as_by_sb3(tmp_path):
    model = untrained(PPO)
    model.save(tmp_path / "agent")
    assert_acts_as(load_agent(tmp_path / "agent"), model)


@pytest.mark.parametrize("name", ["policy.zip", "policy.pt", "policy.pkl", "policy"])
@pytest.mark.parametrize(
    "algorithm", [PPO, SAC, TD3, DQN], ids=lambda algorithm: algorithm.__name__
)
def test_a_policy_that_was_saved_alone_is_read(tmp_path, algorithm, name):
    model = untrained(
        algorithm,
        actions=KEYS if algorithm is DQN else ARM,
        policy_kwargs={"activation_fn": nn.ELU},
    )
    model.policy.save(tmp_path / name)
    assert_acts_as(load_agent(tmp_path / name), model)


@pytest.mark.parametrize(
    "observations", [IMAGE, spaces.Dict(a=FLAT, b=spaces.Discrete(3))], ids=["image", "dict"]
)
def test_the_spaces_of_a_policy_that_was_saved_alone_are_read(tmp_path, observations):
    actions = spaces.MultiDiscrete([2, 3])
    small = {"features_dim": 8} if observations is IMAGE else {}
    policy = "CnnPolicy" if observations is IMAGE else "MultiInputPolicy"
    model = untrained(
        PPO,
        observations,
        actions,
        policy,
        policy_kwargs={"features_extractor_kwargs": small} if small else None,
    )
    model.policy.save(tmp_path / "policy.pt")
    source = load_agent(tmp_path / "policy.pt")
    assert source.actions == actions
    assert_acts_as(source, model, observations)


def test_a_policy_in_memory_is_an_agent():
    model = untrained(PPO)
    assert_acts_as(Hub.from_agents([model.policy], names=["bc"])["bc"], model)


class Backwards(ActorCriticPolicy):
    """A policy whose actions are not those of its weights in SB3's networks."""

    def _predict(self, observation, deterministic=False):
        return -super()._predict(observation, deterministic)


def test_a_policy_in_memory_that_computes_something_else_is_refused():
    policy = Backwards(FLAT, ARM, lambda _: 1e-3, net_arch=[8])
    with pytest.raises(
        BadFile, match=r"The policy 'policy-0' computes its own _predict; make a hubrl\.Source"
    ):
        Hub.from_agents([policy])


@pytest.fixture
def cleanrl(tmp_path):
    """CleanRL's PPO for continuous actions as it saves it, its card beside it, and its deterministic actions."""
    torch.manual_seed(0)
    actor = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
    weights = {f"actor_mean.{name}": tensor for name, tensor in actor.state_dict().items()}
    torch.save(
        {**weights, "actor_logstd": torch.full((1, 2), -0.5)}, tmp_path / "ppo.cleanrl_model"
    )
    box = {"type": "Box", "dtype": "float32", "low": -1.0, "high": 1.0}
    names = {
        f"encoder.hidden.{i}.{part}": f"actor_mean.{i}.{part}"
        for i in (0, 2)
        for part in ("weight", "bias")
    }
    names |= {f"action.mean.{part}": f"actor_mean.4.{part}" for part in ("weight", "bias")} | {
        "action.log_std": "actor_logstd"
    }
    network = {
        "kind": "declared",
        "hidden": {"widths": [8, 8]},
        "action": {"kind": "gaussian", "log_std": "parameter"},
    }
    card = {"format": 1, "name": "ppo", "algorithm": "PPO", "network": network, "weights": names}
    card |= {"observation_space": {**box, "shape": [4]}, "action_space": {**box, "shape": [2]}}
    (tmp_path / "ppo.yaml").write_text(yaml.safe_dump(card))
    return tmp_path, lambda rows: actor(torch.as_tensor(rows)).clamp(-1, 1).detach().numpy()


@pytest.mark.parametrize("suffix", [".cleanrl_model", ".bin", ".ckpt", ""])
@pytest.mark.parametrize("card", ["of the same stem", "named", "of the whole name"])
def test_a_file_of_any_suffix_is_read_with_its_card(cleanrl, suffix, card):
    folder, act = cleanrl
    path = (folder / "ppo.cleanrl_model").rename(folder / f"ppo{suffix}")
    if card == "of the whole name":
        (folder / "ppo.yaml").rename(folder / f"ppo{suffix}.yaml")
    source = load_agent(path, folder / "ppo.yaml") if card == "named" else load_agent(path)
    rows = draw(spaces.Box(-1.0, 1.0, (4,)), 50)
    np.testing.assert_allclose(source.predict(rows, deterministic=True)[0], act(rows), atol=1e-6)


def test_parts_of_a_dict_that_gym_0_17_printed_are_read_and_pictures_are_refused():
    def printed(parts):
        return {":type:": "<class 'gym.spaces.dict.Dict'>", "spaces": f"OrderedDict([{parts}])"}

    space = space_from_dict(
        parse_space(printed("('a', Box(4,)), ('g', Box(2,))"), "observation space")
    )
    assert {key: part.shape for key, part in space.spaces.items()} == {"a": (4,), "g": (2,)}
    with pytest.raises(
        BadFile, match=r"gym 0\.17\.0 to 0\.17\.2 printed neither dtype nor bounds of pictures"
    ):
        parse_space(printed("('camera', Box(84, 84, 3))"), "observation space")


BITS = {
    "one axis": spaces.MultiBinary([5]),
    "two axes": spaces.MultiBinary([2, 3]),
    "booleans": spaces.Box(0, 1, (4,), np.bool_),
    "in a Dict": spaces.Dict(a=spaces.MultiBinary([2, 3]), b=spaces.Box(0, 1, (4,), np.bool_)),
}


@pytest.mark.parametrize("form", BITS)
@pytest.mark.parametrize("alone", [False, True], ids=["zip", "policy"])
def test_observations_of_bits_are_read(tmp_path, form, alone):
    model = untrained(PPO, BITS[form])
    (model.policy if alone else model).save(tmp_path / "agent.zip")
    source = load_agent(tmp_path / "agent.zip")
    assert_acts_as(source, model, BITS[form])
    Hub([source]).save(tmp_path / "hub")
    assert_acts_as(Hub.load(tmp_path / "hub")[0], model, BITS[form])
    made = Hub([source]).agent(PPO, "single")
    target = PPO(env=Noise(BITS[form]), **made, device="cpu", n_steps=8, batch_size=8)
    rows = draw(BITS[form], 20)
    np.testing.assert_allclose(
        target.predict(rows, deterministic=True)[0],
        model.predict(rows, deterministic=True)[0],
        atol=1e-6,
    )


@pytest.mark.parametrize("parts", [False, True], ids=["flat", "dict"])
def test_statistics_of_single_observations_serve_an_agent_that_reads_a_stack(tmp_path, parts):
    space = spaces.Dict(a=FLAT, b=ARM) if parts else FLAT
    vec = normalised(space)
    stacked = VecFrameStack(vec, 3)  # the RL Zoo's order
    model = untrained(PPO, stacked.observation_space, env=stacked)
    model.save(tmp_path / "agent.zip")
    vec.save(tmp_path / "agent.vecnormalize.pkl")
    vec.training = False
    singles = [draw(space, 20, seed) for seed in range(3)]
    source = load_agent(tmp_path / "agent.zip")
    raw, seen = (stack(rows) for rows in (singles, [vec.normalize_obs(each) for each in singles]))
    np.testing.assert_allclose(
        source.predict(raw, deterministic=True)[0],
        model.predict(seen, deterministic=True)[0],
        atol=1e-6,
    )


def stack(rows):
    """Observations side by side, part by part."""
    if isinstance(rows[0], dict):
        return {key: stack([each[key] for each in rows]) for key in rows[0]}
    return np.concatenate(rows, axis=1)


def test_statistics_that_no_stack_explains_name_the_order_of_wrappers(tmp_path):
    model = untrained(PPO)
    model.save(tmp_path / "agent.zip")
    normalised(spaces.Box(-1.0, 1.0, (3,))).save(tmp_path / "agent.vecnormalize.pkl")
    with pytest.raises(
        SpaceMismatch, match=r"shape \(3,\), agent 'agent' observes Box\(4,\); if it"
    ):
        load_agent(tmp_path / "agent.zip")


def test_an_agent_of_sb3s_port_to_jax_is_called_so(tmp_path):
    data = b'{"policy_class": {":type:": "x", "__module__": "sbx.sac.policies"}}'
    with zipfile.ZipFile(tmp_path / "agent.zip", "w") as archive:
        archive.writestr("data", data)
    with pytest.raises(BadFile, match="is an agent of SBX, whose networks are JAX's"):
        load_agent(tmp_path / "agent.zip")
