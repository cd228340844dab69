"""From hub agents to ordinary SB3 agents: merged where one network says the same, distilled otherwise."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toys import CHOOSE, IMAGE, Toy, target, tiny, tiny_hub, toy_for

from hubrl import Hub, HubCallback
from hubrl.errors import BadConfig, BadFile, OutputExists
from hubrl.experiments.finished_run import distill_run, evaluate_run, export_run
from hubrl.experiments.run import start_run, train
from hubrl.export import NotPlainError, export
from hubrl.reading import read_live

ROWS = np.random.default_rng(0).normal(size=(1000, 4)).astype(np.float32)

IMAGES = np.random.default_rng(0).integers(0, 256, (1000, 36, 36, 3), dtype=np.uint8)

WITHOUT_HUBRL = """
import sys
sys.modules["hubrl"] = None
import numpy as np, stable_baselines3
model = getattr(stable_baselines3, sys.argv[1]).load(sys.argv[2], device="cpu")
rows = np.load(sys.argv[3])
np.save(sys.argv[4], model.predict(rows, deterministic=True)[0])
"""


def alike(env, *algorithms, **policy_kwargs):
    """A hub of untrained agents of one architecture."""
    return Hub.from_agents(
        [
            tiny(algorithm, env, seed, **policy_kwargs)
            for seed, algorithm in enumerate(algorithms, start=1)
        ]
    )


def learned(algorithm, env, hub, method, **options):
    settings = options.pop("settings", {})
    made = hub.agent(algorithm, method, **options)
    made["policy_kwargs"] = {**made["policy_kwargs"], **settings}
    model = target(algorithm, env, made)
    model.learn(96, callback=HubCallback(probe_share=0.0))
    return model


def merged(model):
    exported = export(read_live(model, "agent"))
    assert exported.difference < 1e-5
    return exported.model


def opened_without_hubrl(model, plain, rows, folder):
    """What SB3 alone makes of an exported agent, in a process that cannot import hubrl."""
    plain.save(folder / "plain.zip")
    np.save(folder / "rows.npy", rows)
    paths = [str(folder / name) for name in ("plain.zip", "rows.npy", "said.npy")]
    subprocess.run(
        [sys.executable, "-c", WITHOUT_HUBRL, type(model).__name__, *paths],
        check=True,
        capture_output=True,
    )
    return np.load(folder / "said.npy")


@pytest.mark.parametrize("method", ["lite-zoo-tuning", "soup", "finetune", "kickstart", "scratch"])
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_at_the_outputs_one_network_is_left(method, algorithm, tmp_path):
    env = Toy()
    options = {"source": "ppo-0"} if method == "finetune" else {}
    model = learned(algorithm, env, alike(env, PPO, PPO), method, level="outputs", **options)
    plain = merged(model)
    assert type(plain.policy).__module__ == "stable_baselines3.common.policies"
    computed = opened_without_hubrl(model, plain, ROWS, tmp_path)
    np.testing.assert_allclose(computed, model.predict(ROWS, deterministic=True)[0], atol=1e-5)
    tensor = torch.as_tensor(ROWS)
    torch.testing.assert_close(
        plain.policy.predict_values(tensor),
        model.policy.predict_values(tensor),
        atol=1e-5,
        rtol=1e-5,
    )
    spoken = (
        [pathway.log_std for pathway in model.policy.method.pathways.sources]
        if method not in ("kickstart", "scratch")
        else []
    )
    torch.testing.assert_close(plain.policy.log_std, [model.policy.log_std, *spoken][-1])


@pytest.mark.parametrize("method", ["lite-zoo-tuning", "soup", "finetune", "frozen"])
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_at_the_features_one_network_is_left(method, algorithm, tmp_path):
    env = toy_for(algorithm)
    options = {"source": "ppo-0"} if method in ("finetune", "frozen") else {}
    hub = alike(env, PPO, PPO)
    model = learned(
        algorithm,
        env,
        hub,
        method,
        level="features",
        settings={"activation_fn": torch.nn.Tanh},
        **options,
    )
    plain = merged(model)
    computed = opened_without_hubrl(model, plain, ROWS, tmp_path)
    np.testing.assert_allclose(computed, model.predict(ROWS, deterministic=True)[0], atol=1e-5)
    if algorithm is DQN:
        torch.testing.assert_close(
            plain.q_net(torch.as_tensor(ROWS)),
            model.q_net(torch.as_tensor(ROWS)),
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize(
    ("algorithm", "level"), [(PPO, "features"), (PPO, "outputs"), (DQN, "features")]
)
def test_convolutions_are_merged_too(algorithm, level, tmp_path):
    env = Toy(IMAGE, CHOOSE)
    hub = Hub.from_agents(
        [PPO("CnnPolicy", env, seed=seed, n_steps=32, device="cpu") for seed in (1, 2)]
    )
    model = learned(
        algorithm,
        env,
        hub,
        "lite-zoo-tuning",
        level=level,
        settings={"activation_fn": torch.nn.ReLU},
    )
    plain = merged(model)
    assert np.array_equal(
        opened_without_hubrl(model, plain, IMAGES[:50], tmp_path),
        model.predict(IMAGES[:50], deterministic=True)[0],
    )


def test_a_dqn_that_was_kickstarted_is_plain_already():
    env = toy_for(DQN)
    model = learned(DQN, env, alike(env, PPO, PPO), "kickstart")
    assert np.array_equal(
        merged(model).predict(ROWS, deterministic=True)[0],
        model.predict(ROWS, deterministic=True)[0],
    )


def test_a_dqn_that_was_fine_tuned_is_plain_but_for_its_policy():
    env = toy_for(DQN)
    model = learned(DQN, env, alike(env, DQN, DQN), "finetune", level="outputs", source="dqn-1")
    torch.testing.assert_close(
        merged(model).q_net(torch.as_tensor(ROWS)), model.q_net(torch.as_tensor(ROWS))
    )


def test_a_hub_whose_sources_were_dropped_is_plain():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO))
    model.policy.method.apply_probe([False, False, True], [0.0, 0.0, 0.0])
    model.learn(64)
    np.testing.assert_allclose(
        merged(model).predict(ROWS, deterministic=True)[0],
        model.predict(ROWS, deterministic=True)[0],
        atol=1e-5,
    )


@pytest.mark.parametrize("arm", [0, 1, 2])
def test_a_hub_of_which_one_pathway_acts_is_plain(arm):
    env = Toy()
    model = learned(PPO, env, alike(env, PPO, PPO), "hub-pathway")
    records = model.policy.selection.records
    for other in range(4):
        records.forget(other)
        for _ in range(3):
            records.add(other, float(other == arm))
    assert model.policy.evaluation_pathway == arm
    np.testing.assert_allclose(
        merged(model).predict(ROWS, deterministic=True)[0],
        model.predict(ROWS, deterministic=True)[0],
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "read", [{"observes": [5, 0, 2, 3]}, {"observes": [5, 2], "constants": {0: 0.5, 3: -2.0}}]
)
def test_selection_constants_and_action_maps_become_part_of_the_layers(read):
    wide = Toy(spaces.Box(-10.0, 10.0, (6,)))
    source = Hub.from_agents([tiny(PPO, Toy(), 1)], ["gait"])[0].adapted(
        **read, order=[1, 0], signs=[-1, 1]
    )
    model = learned(PPO, wide, Hub([source]), "finetune", level="outputs")
    rows = np.random.default_rng(0).normal(size=(1000, 6)).astype(np.float32)
    np.testing.assert_allclose(
        merged(model).predict(rows, deterministic=True)[0],
        model.predict(rows, deterministic=True)[0],
        atol=1e-5,
    )


@pytest.mark.parametrize("is_copy", [True, False])
def test_what_a_target_normalises_is_turned_back_in_the_first_layer(is_copy):
    env = VecNormalize(DummyVecEnv([Toy]))
    hub = alike(Toy(), PPO, PPO)
    other = {} if is_copy else {"policy_kwargs": {"net_arch": [5]}}
    model = target(PPO, env, hub.agent(PPO, "finetune", source="ppo-0", **other))
    model.learn(96, callback=HubCallback(probe_share=0.0))
    policy = model.policy
    reader = policy.features_extractor if is_copy else policy.method.pathways.sources[0]
    assert not torch.equal(reader.denormalizer.running_std_0, torch.ones(4))
    np.testing.assert_allclose(
        merged(model).predict(ROWS, deterministic=True)[0],
        model.predict(ROWS, deterministic=True)[0],
        atol=1e-4,
    )


REFUSED = [
    ("hub-pathway", {"judging_share": 0.0}, "method 'hub-pathway' mixes several pathways"),
    ("single", {"source": "ppo-0"}, "method 'single' adds a residual to the output of its source"),
    (
        "zoo-tuning",
        {},
        "the gates of zoo-tuning depend on what each layer reads, so that there is no one kernel",
    ),
    ("concat", {}, "method 'concat' passes observations on beside the sources' features"),
    ("progressive", {}, "method 'progressive' makes its features of several sources"),
    ("multipolar", {}, "method 'multipolar' mixes several pathways"),
]


@pytest.mark.parametrize(("method", "options", "reason"), REFUSED)
def test_what_is_not_one_network_is_refused_with_the_reason(method, options, reason):
    env = Toy()
    model = learned(PPO, env, alike(env, PPO, PPO), method, **options)
    sentence = f"The agent 'agent' cannot be merged into one plain network: {reason}. Distil it with `hubrl distill`, or write a graph of it with `hubrl export --format onnx`."
    with pytest.raises(BadConfig) as refused:
        export(read_live(model, "agent"))
    assert str(refused.value) == sentence


def test_heads_and_algorithms_that_sb3s_policies_have_not_are_refused():
    env = Toy()
    squashed = learned(PPO, env, alike(env, SAC, SAC), "lite-zoo-tuning", level="outputs")
    with pytest.raises(
        NotPlainError, match="acts through a tanh, which PPO's and A2C's policies lack"
    ):
        export(read_live(squashed, "agent"))
    normalised = VecNormalize(DummyVecEnv([Toy]))
    source = read_live(tiny(PPO, normalised, 1), "calm")
    clipped = learned(PPO, env, Hub([source]), "finetune", level="outputs")
    with pytest.raises(
        NotPlainError,
        match="source 'calm' normalizes and clips observations, which SB3's policies do not",
    ):
        export(read_live(clipped, "agent"))
    mixed = learned(
        PPO,
        env,
        alike(env, PPO, PPO, activation_fn=torch.nn.ReLU),
        "lite-zoo-tuning",
        level="outputs",
    )
    with pytest.raises(
        NotPlainError,
        match="its actor and its critic have activations ReLU and Tanh, and SB3's policies have one",
    ):
        export(read_live(mixed, "agent"))
    sac = learned(SAC, env, alike(env, SAC, SAC), "lite-zoo-tuning", level="features")
    with pytest.raises(NotPlainError, match="it was trained by SAC, and PPO, A2C, DQN are merged"):
        export(read_live(sac, "agent"))


def test_what_is_in_no_layer_is_found_out():
    """A DQN that PPO trains further acts by the greatest of its Q-values, nearly always: logits are something else."""
    env = Toy(actions=CHOOSE)
    model = learned(
        PPO,
        env,
        alike(env, DQN),
        "finetune",
        level="outputs",
        settings={"activation_fn": torch.nn.ReLU},
    )
    with pytest.raises(NotPlainError, match="the merged network differs from it by"):
        export(read_live(model, "agent"))


def test_an_exported_agent_learns_on():
    env = Toy()
    plain = merged(learned(PPO, env, alike(env, PPO, PPO), "lite-zoo-tuning"))
    plain.set_env(DummyVecEnv([Toy]))
    before = plain.policy.action_net.weight.detach().clone()
    plain.learn(64)
    assert not torch.equal(before, plain.policy.action_net.weight)


CONFIG = """
task: Pendulum-v1
n_envs: 2
algorithm: {algorithm}
algorithm_kwargs: {kwargs}
method: {method}
normalize: {normalize}
hub: {hub}
steps: {steps}
eval_every: 512
eval_episodes: 2
"""


def finished_run(folder, method, *, normalize=False):
    env = "Pendulum-v1"
    agents = [PPO("MlpPolicy", env, seed=seed, n_steps=64, device="cpu") for seed in (1, 2)]
    for agent in agents:
        agent.policy.action_net.weight.data *= 100  # untrained actors do next to nothing
    Hub.from_agents(agents).save(folder / "hub")
    config = CONFIG.format(
        algorithm="ppo",
        kwargs="{n_steps: 128, batch_size: 64}",
        method=method,
        normalize=str(normalize).lower(),
        hub=folder / "hub",
        steps=512,
    )
    (folder / "config.yaml").write_text(config)
    run = start_run(folder / "config.yaml", [], folder / "runs", "run")
    train(run)
    return run


def test_a_run_is_exported_with_its_statistics_and_plays_the_same(tmp_path):
    run = finished_run(tmp_path, "lite-zoo-tuning", normalize=True)
    out = tmp_path / "out" / "plain.zip"
    export_run(run, out)
    assert (out.parent / "plain.vecnormalize.pkl").read_bytes() == (
        run / "vecnormalize.pkl"
    ).read_bytes()
    model = PPO.load(out, device="cpu")
    env = VecNormalize.load(
        str(out.parent / "plain.vecnormalize.pkl"),
        DummyVecEnv([lambda: Toy(spaces.Box(-8, 8, (3,)))]),
    )
    rows = env.normalize_obs(np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32))
    own = PPO.load(run / "model.zip", device="cpu")
    np.testing.assert_allclose(
        model.predict(rows, deterministic=True)[0],
        own.predict(rows, deterministic=True)[0],
        atol=1e-4,
    )
    with pytest.raises(
        OutputExists,
        match=r"plain.zip exists; choose another name or allow overwriting with --overwrite",
    ):
        export_run(run, out)
    export_run(run, out, overwrite=True)
    with pytest.raises(OutputExists, match=r"expected the name of a zip, as plain.zip"):
        export_run(run, tmp_path / "plain")
    with pytest.raises(BadFile, match="has no model.zip; finish it with"):
        export_run(tmp_path, tmp_path / "new.zip")


def test_a_run_is_distilled_and_both_are_played(tmp_path):
    run = finished_run(tmp_path, "uniform")
    out = tmp_path / "plain.zip"
    calls = []
    distilled = distill_run(
        run, out, steps=1000, net_arch=(32, 32), episodes=2, on_step=calls.append
    )
    assert calls[-1] == 1000
    assert len(distilled.before.returns) == len(distilled.after.returns) == 2
    assert distilled.before.returns == evaluate_run(run, 2).returns
    student = PPO.load(out, device="cpu")
    assert [layer.out_features for layer in student.policy.mlp_extractor.policy_net[::2]] == [
        32,
        32,
    ]
    with zipfile.ZipFile(out) as archive:
        assert b"hubrl" not in archive.read("data")
    # What an untrained student would do is much farther from its teacher.
    teacher = PPO.load(run / "model.zip", device="cpu")
    rows = np.concatenate(
        [
            np.cos(t := np.linspace(0, 6, 60))[:, None],
            np.sin(t)[:, None],
            np.linspace(-1, 1, 60)[:, None],
        ],
        axis=1,
    ).astype(np.float32)
    taught, learnt, untaught = (
        agent.predict(rows, deterministic=True)[0]
        for agent in (teacher, student, PPO("MlpPolicy", "Pendulum-v1", device="cpu"))
    )
    assert np.abs(taught - learnt).mean() < 0.5 * np.abs(taught - untaught).mean()
    # Readers would take statistics that another agent left there for this one's.
    stale = tmp_path / "again.vecnormalize.pkl"
    stale.write_bytes(b"of another agent")
    options = {"steps": 1000, "net_arch": (32, 32), "episodes": 2}
    with pytest.raises(OutputExists, match=r"again.vecnormalize.pkl exists; choose another name"):
        distill_run(run, tmp_path / "again.zip", **options)
    assert stale.read_bytes() == b"of another agent"
    again = distill_run(run, tmp_path / "again.zip", **options, overwrite=True)
    assert not stale.exists()
    assert again.after.returns == distilled.after.returns
    with pytest.raises(OutputExists, match="allow overwriting"):
        distill_run(run, out)
    assert Path(out).exists()


def test_a_dqn_is_distilled_into_a_dqn(tmp_path):
    Hub.from_agents([DQN("MlpPolicy", "CartPole-v1", seed=1, device="cpu")], ["one"]).save(
        tmp_path / "hub"
    )
    kwargs = "{learning_starts: 16, buffer_size: 500, train_freq: 8}"
    text = CONFIG.format(
        algorithm="dqn",
        kwargs=kwargs,
        method="frozen",
        normalize="false",
        hub=tmp_path / "hub",
        steps=128,
    )
    (tmp_path / "config.yaml").write_text(text.replace("Pendulum-v1", "CartPole-v1"))
    run = start_run(tmp_path / "config.yaml", [], tmp_path / "runs", "run")
    train(run)
    distilled = distill_run(run, tmp_path / "plain.zip", steps=1000, net_arch=(16,), episodes=2)
    assert isinstance(DQN.load(tmp_path / "plain.zip", device="cpu"), DQN)
    rows = np.random.default_rng(0).normal(scale=0.05, size=(200, 4)).astype(np.float32)
    teacher = DQN.load(run / "model.zip", device="cpu")
    agree = (
        teacher.predict(rows, deterministic=True)[0]
        == distilled.model.predict(rows, deterministic=True)[0]
    )
    assert agree.mean() > 0.8
