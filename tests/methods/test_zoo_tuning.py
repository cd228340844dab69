"""Zoo-tuning: gates, alignment and aggregated kernels against numbers worked out by hand, and what cannot become one network."""

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.utils import polyak_update
from torch import nn
from toys import CHOOSE, STEER, VECTOR, Toy, target, tiny_hub
from zoo_cases import BOTH, gates_by_hand

from hubrl import BadConfig, HubCallback
from hubrl.methods import create
from hubrl.routing.target import TargetSpec

ALIKE = [
    (PPO, "outputs", STEER),
    (PPO, "outputs", CHOOSE),
    (PPO, "features", STEER),
    (DQN, "features", CHOOSE),
]
WAYS = pytest.mark.parametrize(("algorithm", "level", "actions"), ALIKE)


def method_in(model):
    parts = {"q_net": DQN, "": PPO}
    network = model.policy.q_net if isinstance(model, parts["q_net"]) else model.policy
    return network.method if hasattr(network, "method") else network.features_extractor.method


@BOTH
@WAYS
def test_of_one_source_without_gates_and_alignment_it_is_fine_tuning(
    name, algorithm, level, actions
):
    env = Toy(actions=actions)
    hub = tiny_hub(env, (PPO,))
    sources, parts = [], []
    # An actor of another shape, into which fine-tuning cannot copy the source.
    shape = {"net_arch": {"pi": [4], "vf": [8]}} if level == "outputs" else {}
    for method, options in (("finetune", {}), (name, {"align": False, "gate": False})):
        made = hub.agent(algorithm, method, level=level, source_lr=0.5, **options)
        made["policy_kwargs"] |= shape
        model = target(algorithm, Toy(actions=actions), made, learning_rate=1e-2)
        model.learn(96)
        sources.append(method_in(model).pathways.sources[0].source)
        parts.append(
            {
                key: value
                for key, value in model.policy.state_dict().items()
                if ".source." not in key and "noise_key" not in key and "started" not in key
            }
        )
    tuned = dict(sources[0].named_parameters())
    own = {key: value for key, value in sources[1].named_parameters() if key in tuned}
    assert len(own) >= 2 + 2 * (level == "outputs")
    assert any(
        not torch.equal(value, dict(hub[0].named_buffers())[key])
        for key, value in tuned.items()
        if key in own
    )
    for key, value in own.items():
        torch.testing.assert_close(value.reshape_as(tuned[key]), tuned[key], atol=1e-6, rtol=1e-5)
    assert set(parts[0]) == set(parts[1])
    for key, value in parts[0].items():
        torch.testing.assert_close(parts[1][key], value, atol=1e-6, rtol=1e-5)


@BOTH
@WAYS
def test_one_source_starts_with_its_own_outputs(name, algorithm, level, actions):
    hub = tiny_hub(Toy(actions=actions), (PPO,))
    method = create(name, list(hub), TargetSpec(VECTOR, level, actions), {})
    rows = torch.randn(20, 4)
    expected = hub[0].outputs(rows) if level == "outputs" else hub[0].features(rows)
    torch.testing.assert_close(method(rows).features, expected)


@BOTH
@WAYS
def test_several_sources_start_at_the_mean_of_their_kernels(name, algorithm, level, actions):
    sources = list(tiny_hub(Toy(actions=actions), (PPO, PPO)))
    rows = torch.randn(20, 4)
    made, soup = (
        create(method, sources, TargetSpec(VECTOR, level, actions), {}) for method in (name, "soup")
    )
    torch.testing.assert_close(made(rows).features, soup(rows).features)


def test_dqns_target_network_follows_at_its_next_update():
    env = Toy(actions=CHOOSE)
    model = target(
        DQN, env, tiny_hub(env, (PPO, PPO)).agent(DQN, "lite-zoo-tuning"), learning_rate=1e-2
    )
    rows = torch.randn(30, 4)
    online, late = model.q_net, model.q_net_target
    with torch.no_grad():
        first = late(rows)
    model.learn(100)
    model.policy.set_training_mode(False)
    ensembles = [name for name, _ in online.named_buffers() if "running_gates" in name]
    assert len(ensembles) == 1
    assert not torch.equal(online.get_buffer(ensembles[0]), torch.full((2,), 0.5))
    model._n_calls = 15
    model._on_step()
    assert torch.equal(late.get_buffer(ensembles[0]), online.get_buffer(ensembles[0]))
    with torch.no_grad():
        assert not torch.equal(late(rows), first)
        torch.testing.assert_close(late(rows), online(rows))


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_lite_learns_to_the_end_before_it_is_saved(algorithm, tmp_path):
    env = Toy(actions=CHOOSE)
    model = target(
        algorithm,
        env,
        tiny_hub(env, (PPO, PPO)).agent(algorithm, "lite-zoo-tuning"),
        learning_rate=1e-2,
    ).learn(96)
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    ensembles = []
    for each in (model, loaded):
        each.predict(rows)
        ensembles.append(
            [tensor for name, tensor in each.policy.named_buffers() if "running_gates" in name]
        )
    assert all(torch.equal(one, other) for one, other in zip(*ensembles, strict=True))


def test_gates_are_logged_by_layer_and_source():
    method = create(
        "zoo-tuning", list(tiny_hub(Toy(), (PPO, PPO))), TargetSpec(VECTOR, "outputs", STEER), {}
    )
    found = method.measures()
    assert found == {
        f"gate/{layer}/{name}": 0.5
        for layer in ("encoder.hidden.0", "action.mean")
        for name in ("ppo-0", "ppo-1")
    }
    layer = method.pathways.sources[0].source.encoder.hidden[0]
    nn.init.normal_(layer.gates.excite.weight)
    rows = torch.randn(6, 4)
    method(rows)
    gates = gates_by_hand(layer.gates, rows).mean(dim=0)
    assert method.measures()["gate/encoder.hidden.0/ppo-1"] == pytest.approx(
        gates[1].item(), abs=1e-6
    )
    assert gates[1].item() != 0.5


@BOTH
def test_every_part_learns_at_its_own_rate(name):
    env = Toy()
    options = {"source_lr": 0.25, "align_lr": 0.5, "gate_lr": 2.0, "source_std": None}
    model = target(PPO, env, tiny_hub(env, (PPO, PPO)).agent(PPO, name, **options))
    scales = {
        parameter: group["lr_scale"]
        for group in model.policy.optimizer.param_groups
        for parameter in group["params"]
    }
    for path, parameter in model.policy.named_parameters():
        kernel = 0.25 if ".source." in path else 1.0
        assert scales[parameter] == (
            2.0 if "gates" in path else 0.5 if "alignment" in path else kernel
        ), path


@BOTH
def test_a_start_that_acts_well_has_a_small_learning_rate_by_default(name):
    env = Toy()
    hub = tiny_hub(env, (PPO, PPO))
    model = target(PPO, env, hub.agent(PPO, name))
    scales = {
        parameter: group["lr_scale"]
        for group in model.policy.optimizer.param_groups
        for parameter in group["params"]
    }
    for path, parameter in model.policy.named_parameters():
        assert scales[parameter] == (0.03 if ".source." in path else 1.0), path
    under_a_new_head = target(PPO, env, hub.agent(PPO, name, level="features"))
    assert [group["lr_scale"] for group in under_a_new_head.policy.optimizer.param_groups] == [1.0]


@BOTH
@pytest.mark.parametrize("actions", [STEER, CHOOSE])
def test_a_probe_lets_the_mean_kernel_and_every_source_race(name, actions):
    sources = list(tiny_hub(Toy(actions=actions), (PPO, PPO)))
    method = create(name, sources, TargetSpec(VECTOR, "outputs", actions), {})
    rows = torch.randn(12, 4)
    mean = method(rows).features
    assert method.probe_candidates.names == ["uniform", "ppo-0", "ppo-1"]
    assert method.awaits_probe
    active = torch.eye(3, dtype=torch.bool)[torch.arange(12) % 3]
    computed = method.probe_candidates.compute_outputs(rows, active)
    for index, expected in enumerate([mean, *(source.outputs(rows) for source in sources)]):
        torch.testing.assert_close(computed[index::3, index], expected[index::3])
        assert not computed[index::3, [other for other in range(3) if other != index]].any()
    torch.testing.assert_close(method(rows).features, mean, msg="racing leaves no trace")
    method.apply_probe([True, True, True], [0.0, -1.0, 0.0], [1.0, 2.0, 3.0])
    assert not method.awaits_probe
    torch.testing.assert_close(method(rows).features, sources[1].outputs(rows))
    assert method.measures()["gate/encoder.hidden.0/ppo-1"] == 1.0


@BOTH
@pytest.mark.parametrize(
    ("kept", "worth", "best"),
    [
        ([True, True, True], [5.0, 2.0, 3.0], [0.5, 0.5]),
        ([False, True, True], [9.0, 4.0, 3.0], [1.0, 0.0]),
        ([True, True, True], [float("nan"), float("nan"), 3.0], [0.0, 1.0]),
    ],
)
def test_the_best_that_was_kept_is_the_start(name, kept, worth, best):
    method = create(
        name, list(tiny_hub(Toy(), (PPO, PPO))), TargetSpec(VECTOR, "outputs", STEER), {}
    )
    method.apply_probe(kept, [0.0] * 3, worth)
    assert list(method.measures().values()) == best * 2


@BOTH
def test_the_papers_start_awaits_no_probe(name):
    sources = list(tiny_hub(Toy(), (PPO, PPO)))
    assert not create(
        name, sources, TargetSpec(VECTOR, "outputs", STEER), {"start": "uniform"}
    ).awaits_probe
    assert not create(name, sources[:1], TargetSpec(VECTOR, "outputs", STEER), {}).awaits_probe
    with pytest.raises(
        BadConfig, match=r"^start='probes' was given; expected 'probe' or 'uniform'\.$"
    ):
        create(name, sources, TargetSpec(VECTOR), {"start": "probes"})
    for rate in ("align_lr", "gate_lr"):
        with pytest.raises(
            BadConfig, match=rf"^{rate}=-1 was given; a learning rate's factor must be above 0\.$"
        ):
            create(name, sources, TargetSpec(VECTOR), {rate: -1.0})


@BOTH
def test_a_training_starts_at_the_source_its_probe_chose_and_saves_it(name, tmp_path):
    env = Toy()
    model = target(PPO, env, tiny_hub(env, (PPO, PPO)).agent(PPO, name), learning_rate=1e-9)
    probing = HubCallback(probe_share=0.9, warmup_share=0)
    model.learn(2000, callback=probing)
    assert list(probing.probe_result.returns) == ["uniform", "ppo-0", "ppo-1"]
    worth = [
        np.mean(returns) if probing.probe_result.kept[name] else -np.inf
        for name, returns in probing.probe_result.returns.items()
    ]
    expected = [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]][int(np.argmax(worth))]
    assert list(model.policy.method.measures().values()) == pytest.approx(expected * 2, abs=1e-5)
    model.save(tmp_path / "model.zip")
    loaded = PPO.load(tmp_path / "model.zip", device="cpu")
    assert not loaded.policy.method.awaits_probe
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert np.array_equal(
        model.predict(rows, deterministic=True)[0], loaded.predict(rows, deterministic=True)[0]
    )


@BOTH
@pytest.mark.parametrize(
    ("algorithm", "level"),
    [(PPO, "outputs"), (A2C, "outputs"), (PPO, "features"), (DQN, "features"), (SAC, "features")],
)
def test_all_of_it_is_trained(name, algorithm, level):
    env = Toy(actions=CHOOSE if algorithm is DQN else STEER)
    made = tiny_hub(env, (PPO, PPO)).agent(algorithm, name, level=level)
    model = target(algorithm, env, made, learning_rate=1e-2)
    before = {
        path: parameter.detach().clone() for path, parameter in model.policy.named_parameters()
    }
    model.learn(96, callback=HubCallback(probe_share=0, warmup_share=0))
    still = {
        path
        for path, parameter in model.policy.named_parameters()
        if torch.equal(parameter, before[path])
    }
    unheard = (
        ("policy_net", "action_net", "log_std")
        if level == "outputs"
        else ("q_net_target", "critic_target", "pi_features", "vf_features")
    )
    assert not [path for path in still if not any(part in path for part in unheard)]


def test_sacs_target_critic_follows_the_ensemble():
    env = Toy()
    model = target(
        SAC, env, tiny_hub(env, (PPO, PPO)).agent(SAC, "lite-zoo-tuning"), learning_rate=1e-2
    )
    model.learn(100)
    model.policy.set_training_mode(False)
    (name,) = [name for name, _ in model.critic.named_buffers() if "running_gates" in name]
    online, late = model.critic.get_buffer(name), model.critic_target.get_buffer(name)
    assert not torch.equal(online, torch.full((2,), 0.5))
    polyak_update([online], [late], 1.0)
    assert torch.equal(model.critic_target.get_buffer(name), online), (
        "the buffer that SB3 copies is the one that is read"
    )
    assert late.data_ptr() in {each.data_ptr() for each in model.batch_norm_stats_target}


def test_the_ratio_of_lite_is_one_at_the_features_too():
    env = Toy()
    model = target(
        PPO,
        env,
        tiny_hub(env, (PPO, PPO)).agent(PPO, "lite-zoo-tuning", level="features"),
        n_epochs=1,
        batch_size=32,
    )
    seen, evaluate = [], model.policy.evaluate_actions

    def watched(*given):
        found = evaluate(*given)
        seen.append(found[1].detach().clone())
        return found

    model.policy.evaluate_actions = watched
    model.learn(32)
    before = model.rollout_buffer.log_probs.flatten()
    assert sorted(seen[0].tolist()) == pytest.approx(sorted(before.tolist()), abs=1e-5)
