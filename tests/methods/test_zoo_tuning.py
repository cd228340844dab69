"""Zoo-tuning: gates, alignment and aggregated kernels against numbers worked out by hand, and what cannot become one network."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.utils import polyak_update
from torch import nn
from torch.nn import functional
from toys import CHOOSE, STEER, VECTOR, Toy, target, tiny, tiny_hub

from hubrl import BadConfig, Hub, HubCallback, Source, SpaceMismatch
from hubrl.methods import create
from hubrl.methods.gated_layers import GatedLayer, Gates
from hubrl.methods.lite_zoo_tuning import LiteLayer
from hubrl.reading import read_live
from hubrl.routing.target import TargetSpec

KINDS = pytest.mark.parametrize("kind", ["linear", "conv"])
ZOO = ("zoo-tuning", "lite-zoo-tuning")
BOTH = pytest.mark.parametrize("name", ZOO)


def layers_of(kind, count=3, **how):
    torch.manual_seed(0)
    return [
        nn.Linear(5, 4, **how)
        if kind == "linear"
        else nn.Conv2d(2, 4, 3, **({"stride": 2, "padding": 1} | how))
        for _ in range(count)
    ]


def rows_of(kind, count=6):
    return torch.randn(count, 5) if kind == "linear" else torch.randn(count, 2, 7, 7)


def layer_of(kind, layer=GatedLayer, count=3, align=True, gate=True, moved=True, **how):
    """A layer of several, away from where it starts."""
    made = layer(
        layers_of(kind, count, **how), 5 if kind == "linear" else 2, align=align, gate=gate
    )
    if moved:
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.5)
    return made


def one_by_one(made, rows, gates):
    """For every row the kernel `sum_i a_i T_i W_i`, made and applied for this row alone."""
    said = []
    for row, row_gates in zip(rows, gates, strict=True):
        kernel, bias = 0.0, 0.0
        for index, gate in enumerate(row_gates):
            mixing = torch.eye(4) if made.alignment is None else made.alignment[index]
            kernel = kernel + gate * (mixing @ made.weight[index].flatten(1)).view_as(
                made.weight[index]
            )
            bias = bias + gate * (
                mixing @ (torch.zeros(4) if made.bias is None else made.bias[index])
            )
        conv = kernel.ndim == 4
        said.append(
            functional.conv2d(row[None], kernel, bias, 2, 1)
            if conv
            else functional.linear(row[None], kernel, bias)
        )
    return torch.cat(said)


def gates_by_hand(gates, rows, start=None):
    pooled = rows if rows.ndim == 2 else rows.mean(dim=(2, 3))
    hidden = (pooled @ gates.squeeze.weight.T).clamp_min(0)
    shares = (
        2 / gates.n_sources / (1 + torch.exp(-(hidden @ gates.excite.weight.T + gates.excite.bias)))
    )
    return shares if start is None else shares - 1 / gates.n_sources + start


@KINDS
@pytest.mark.parametrize("count", [1, 2, 3])
def test_gates_start_at_equal_shares(kind, count):
    made = layer_of(kind, count=count, moved=False)
    assert torch.equal(made.gates(rows_of(kind), made.start), torch.full((6, count), 1 / count))


@KINDS
@pytest.mark.parametrize("layer", [GatedLayer, LiteLayer])
@pytest.mark.parametrize("gate", [True, False])
def test_a_layer_that_starts_at_one_source_computes_what_that_source_computes(kind, layer, gate):
    made, rows = layer_of(kind, layer, gate=gate, moved=False), rows_of(kind)
    for index, source in enumerate(layers_of(kind)):
        made.set_start(torch.eye(3)[index])
        torch.testing.assert_close(made(rows), source(rows))
        torch.testing.assert_close(made.mean_gates, torch.eye(3)[index])


@KINDS
def test_gates_move_about_where_they_start(kind):
    made, rows = layer_of(kind), rows_of(kind)
    start = torch.tensor([1.0, 0.0, 0.0])
    made.set_start(start)
    gates = gates_by_hand(made.gates, rows, start)
    torch.testing.assert_close(made(rows), one_by_one(made, rows, gates), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made.mean_gates, gates.mean(dim=0))


def test_gates_lie_within_one_share_of_where_they_start():
    gates = Gates(2, 2)
    gates.excite.bias.data.copy_(torch.tensor([3.0, 1 / 3]).log())
    rows = torch.randn(1, 2)
    torch.testing.assert_close(gates(rows, torch.tensor([0.5, 0.5])), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(gates(rows, torch.tensor([1.0, 0.0])), torch.tensor([[1.25, -0.25]]))


@pytest.mark.parametrize("n_rows", [3, 40])
def test_linear_layers_are_aligned_where_it_costs_less_with_equal_outputs(n_rows):
    made, rows = layer_of("linear"), rows_of("linear", n_rows)
    torch.testing.assert_close(
        made(rows), one_by_one(made, rows, gates_by_hand(made.gates, rows)), atol=1e-5, rtol=1e-5
    )


@KINDS
@pytest.mark.parametrize("align", [True, False])
def test_a_gated_layer_is_an_aggregated_kernel_for_every_row(kind, align):
    made, rows = layer_of(kind, align=align), rows_of(kind)
    gates = gates_by_hand(made.gates, rows)
    assert gates.std(dim=0).min() > 1e-3
    torch.testing.assert_close(made.gates(rows, made.start), gates)
    torch.testing.assert_close(made(rows), one_by_one(made, rows, gates), atol=1e-5, rtol=1e-5)


@KINDS
def test_without_gates_every_kernel_counts_the_same(kind):
    made, rows = layer_of(kind, gate=False), rows_of(kind)
    torch.testing.assert_close(
        made(rows), one_by_one(made, rows, torch.full((6, 3), 1 / 3)), atol=1e-5, rtol=1e-5
    )


@KINDS
def test_a_layer_without_biases_has_none(kind):
    made, rows = layer_of(kind, bias=False, align=False), rows_of(kind)
    assert made.bias is None
    expected = one_by_one(made, rows, gates_by_hand(made.gates, rows))
    torch.testing.assert_close(made(rows), expected, atol=1e-5, rtol=1e-5)


def test_a_convolution_keeps_its_geometry():
    for how in ({"dilation": 2}, {"stride": (1, 2), "padding": (2, 0)}):
        layers, rows = layers_of("conv", 1, **how), rows_of("conv")
        for layer in (GatedLayer, LiteLayer):
            made = layer(layers, 2, align=True, gate=False)
            torch.testing.assert_close(made(rows), layers[0](rows), atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(
                made.to_plain_layer()(rows), layers[0](rows), atol=1e-5, rtol=1e-5
            )


def test_pointwise_convolutions_are_not_aligned():
    assert layer_of("conv", moved=False).alignment.shape == (3, 4, 4)
    pointwise = GatedLayer([nn.Conv2d(2, 4, 1)] * 2, 2, align=True, gate=True)
    assert pointwise.alignment is None
    assert GatedLayer([nn.Linear(1, 4)] * 2, 1, align=True, gate=True).alignment is not None


def test_what_was_flattened_behind_convolutions_is_pooled_by_channel():
    gates = Gates(3, 2)
    nn.init.normal_(gates.excite.weight)
    images, start = torch.randn(5, 3, 2, 4), torch.full((2,), 0.5)
    assert torch.equal(gates(images, start), gates(images.flatten(1), start))
    torch.testing.assert_close(gates(images.flatten(1), start), gates_by_hand(gates, images))
    shuffled = images.flatten(2)[:, :, torch.randperm(8)].flatten(1)
    torch.testing.assert_close(
        gates(shuffled, start), gates(images, start), msg="places within a channel do not matter"
    )


def test_the_layers_of_an_image_encoder_count_channels():
    env = Toy(spaces.Box(0, 255, (44, 44, 3), np.uint8))
    space = tiny(PPO, env).observation_space
    method = create(
        "zoo-tuning", list(tiny_hub(env, (PPO, PPO))), TargetSpec(space, "outputs", STEER), {}
    )
    found = {
        path.split(".source.")[1]: part
        for path, part in method.named_modules()
        if isinstance(part, GatedLayer)
    }
    reader = "encoder.trunks.readers.0"
    assert {name: layer.gates.channels for name, layer in found.items()} == {
        **{f"{reader}.convs.0": 3, f"{reader}.convs.2": 32, f"{reader}.convs.4": 64},
        **{f"{reader}.linear.0": 64, "encoder.hidden.0": 8, "action.mean": 8},
    }
    assert found[f"{reader}.linear.0"].weight.shape == (2, 8, 64 * 4)


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
    for method, options in (("finetune", {}), (name, {"align": False, "gate": False})):
        made = hub.agent(algorithm, method, level=level, source_lr=0.5, **options)
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
    ours = {key: value for key, value in sources[1].named_parameters() if key in tuned}
    assert len(ours) >= 2 + 2 * (level == "outputs")
    assert any(
        not torch.equal(value, dict(hub[0].named_buffers())[key])
        for key, value in tuned.items()
        if key in ours
    )
    for key, value in ours.items():
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


@KINDS
def test_lite_gates_start_at_equal_shares_and_act_alike_in_training_and_evaluation(kind):
    made, rows = layer_of(kind, LiteLayer), rows_of(kind)
    assert torch.equal(made.running_gates, torch.full((3,), 1 / 3))
    made.running_gates.copy_(torch.tensor([0.7, -0.2, 0.4]))
    expected = one_by_one(made, rows, made.running_gates.expand(6, 3))
    learning = made.train()(rows)
    torch.testing.assert_close(learning, expected, atol=1e-5, rtol=1e-5)
    assert learning.requires_grad
    with torch.no_grad():
        assert torch.equal(made(rows), learning)
    made.eval()
    assert torch.equal(made(rows), made(rows))
    with torch.no_grad():
        torch.testing.assert_close(
            made(rows),
            one_by_one(made, rows, made.running_gates.expand(6, 3)),
            atol=1e-5,
            rtol=1e-5,
        )


@KINDS
def test_lite_acts_exactly_through_its_ensemble_in_a_gradient_step(kind):
    made, rows = layer_of(kind, LiteLayer), rows_of(kind)
    for seed in range(20):
        torch.manual_seed(seed)
        made.running_gates.copy_(torch.rand(3))
        nn.init.normal_(made.gates.excite.weight)
        learning = made.train()(rows)
        with torch.no_grad():
            assert torch.equal(made(rows), learning), (
                "PPO's ratio is 1 only if nothing is rounded otherwise"
            )


@KINDS
def test_the_gradient_of_lite_gates_is_that_of_the_batchs_mean(kind):
    made, rows = layer_of(kind, LiteLayer), rows_of(kind)
    made.running_gates.copy_(torch.tensor([0.7, -0.2, 0.4]))
    wanted = torch.randn_like(made(rows))
    of_gates, others = list(made.gates.parameters()), [made.weight, made.bias, made.alignment]
    found = torch.autograd.grad((made(rows) - wanted).square().sum(), [*of_gates, *others])
    ensemble = made.running_gates.clone().requires_grad_()
    loss = (one_by_one(made, rows, ensemble.expand(6, 3)) - wanted).square().sum()
    on_ensemble, *on_others = torch.autograd.grad(loss, [ensemble, *others])
    on_gates = torch.autograd.grad(
        gates_by_hand(made.gates, rows).mean(dim=0), of_gates, on_ensemble
    )
    assert all(gradient.abs().max() > 1e-3 for gradient in on_gates)
    for gradient, expected in zip(found, [*on_gates, *on_others], strict=True):
        torch.testing.assert_close(gradient, expected, atol=1e-3, rtol=1e-4)


def test_the_ensemble_advances_when_an_update_is_over():
    made = layer_of("linear", LiteLayer)
    batches = [torch.randn(6, 5), torch.randn(6, 5)]
    with torch.no_grad():
        mean = torch.stack([gates_by_hand(made.gates, rows).mean(dim=0) for rows in batches]).mean(
            dim=0
        )
        made(torch.randn(6, 5))
    for rows in batches:
        made(rows)
    assert torch.equal(made.running_gates, torch.full((3,), 1 / 3)), "not within an update"
    made.train(False)
    expected = 0.9 / 3 + 0.1 * mean
    assert (expected - 1 / 3).abs().max() > 1e-3
    torch.testing.assert_close(made.running_gates, expected)
    made(batches[0])
    made.train(True)
    made.train(False)
    torch.testing.assert_close(made.running_gates, expected, msg="nothing was learned since")


def change_in_place(layer, part):
    with torch.no_grad():
        part.add_(torch.randn_like(part))


def average(layer, part):
    polyak_update([torch.randn_like(part)], [part], 0.5)


def load(layer, part):
    layer.load_state_dict(
        {name: torch.randn_like(tensor) for name, tensor in layer.state_dict().items()}
    )


def replace(layer, part):
    part.data = torch.randn_like(part)


@KINDS
@pytest.mark.parametrize("change", [change_in_place, average, load, replace])
@pytest.mark.parametrize("part", ["weight", "bias", "alignment", "running_gates"])
def test_a_lite_layer_is_never_stale(kind, change, part):
    made, rows = layer_of(kind, LiteLayer).eval(), rows_of(kind)
    with torch.no_grad():
        before = made(rows)
        for _ in range(3):
            change(made, getattr(made, part))
            after = made(rows)
            assert not torch.equal(after, before)
            torch.testing.assert_close(
                after, one_by_one(made, rows, made.running_gates.expand(6, 3)), atol=1e-4, rtol=1e-4
            )
            before = after


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


@KINDS
@pytest.mark.parametrize("align", [True, False])
def test_a_lite_layer_merges_to_a_plain_one(kind, align):
    made, rows = layer_of(kind, LiteLayer, align=align), rows_of(kind, 1000)
    made.running_gates.copy_(torch.tensor([0.5, 0.1, 0.6]))
    plain = made.to_plain_layer()
    assert type(plain) is (nn.Linear if kind == "linear" else nn.Conv2d)
    torch.testing.assert_close(plain(rows), made.eval()(rows), atol=1e-5, rtol=1e-5)


@KINDS
def test_only_gates_that_depend_on_nothing_merge(kind):
    rows = rows_of(kind, 1000)
    ungated = layer_of(kind, gate=False)
    torch.testing.assert_close(ungated.to_plain_layer()(rows), ungated(rows), atol=1e-5, rtol=1e-5)
    with pytest.raises(BadConfig, match="The gates of zoo-tuning depend on what each layer reads"):
        layer_of(kind).to_plain_layer()


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


def agents(*makes, observations=VECTOR, actions=STEER):
    env = Toy(observations, actions)
    return Hub.from_agents([tiny(kind, env, seed, **how) for seed, (kind, how) in enumerate(makes)])


RELU = {"activation_fn": nn.ReLU}
UNLIKE = [
    (
        [(PPO, {}), (PPO, {"net_arch": [6]})],
        "features",
        r"source 'ppo-1' has Linear\(.*out_features=6.*\) at layer encoder.hidden.0 where 'ppo-0' has",
    ),
    (
        [(PPO, {}), (PPO, {"net_arch": [8, 8]})],
        "features",
        r"source 'ppo-1' has Linear\(.*\) at layer encoder.hidden.2 where 'ppo-0' has nothing",
    ),
    (
        [(PPO, {"net_arch": [8, 8]}), (PPO, {})],
        "features",
        r"source 'ppo-1' has nothing at layer encoder.hidden.2 where 'ppo-0' has Linear",
    ),
    (
        [(PPO, {}), (PPO, RELU)],
        "features",
        r"source 'ppo-1' has activations \[.*'ReLU'.*\] where 'ppo-0' has \[.*'Tanh'.*\]",
    ),
    (
        [(PPO, RELU), (SAC, {})],
        "outputs",
        r"source 'sac-1' has Linear\(.*\) at layer action.log_std where 'ppo-0' has nothing",
    ),
    (
        [(PPO, RELU), (TD3, {})],
        "outputs",
        r"source 'td3-1' has a deterministic head where 'ppo-0' has a gaussian one",
    ),
]


@pytest.mark.parametrize("name", [*ZOO, "soup"])
@pytest.mark.parametrize(("makes", "level", "difference"), UNLIKE)
def test_sources_that_differ_are_refused_in_one_sentence(name, makes, level, difference):
    does = "averages layers" if name == "soup" else "aggregates layers of one shape"
    with pytest.raises(
        SpaceMismatch,
        match=rf"^Method '{name}' {does}, and {difference}.*; leave it out, or use method 'hub-pathway'\.$",
    ):
        create(name, list(agents(*makes)), TargetSpec(VECTOR, level, STEER), {})


@pytest.mark.parametrize("name", [*ZOO, "soup"])
def test_sources_of_other_observations_are_refused(name):
    here = agents((PPO, {}))[0]
    there = Hub.from_agents([tiny(PPO, Toy(spaces.Box(-1.0, 1.0, (6,))))], ["other"])[0]
    with pytest.raises(
        SpaceMismatch, match=r"and source 'other' reads .*\(6,\).* where 'ppo-0' reads .*\(4,\)"
    ):
        create(name, [here, there], TargetSpec(VECTOR), {})
    adapted = there.adapted("selects", observes=[0, 1, 2, 3, 0, 1])
    with pytest.raises(SpaceMismatch, match=r"and source 'selects' reads "):
        create(name, [here, adapted], TargetSpec(VECTOR), {})
    other_way = here.adapted("mirrored", signs=[-1, 1])
    with pytest.raises(
        SpaceMismatch, match=r"and source 'mirrored' has another action_map than 'ppo-0'"
    ):
        create(name, [here, other_way], TargetSpec(VECTOR, "outputs", STEER), {})


@pytest.mark.parametrize("name", [*ZOO, "soup"])
@pytest.mark.parametrize("count", [1, 2])
def test_greedy_heads_are_refused_at_the_outputs(name, count):
    sources = list(agents(*[(DQN, {})] * count, actions=CHOOSE))
    with pytest.raises(
        SpaceMismatch,
        match="'dqn-0' acts by the greatest of its Q-values, which has no gradient; use level='features'",
    ):
        create(name, sources, TargetSpec(VECTOR, "outputs", CHOOSE), {})
    assert create(name, sources, TargetSpec(VECTOR), {}).features_dim == 8


@pytest.mark.parametrize("name", [*ZOO, "soup"])
def test_an_empty_hub_is_refused(name):
    with pytest.raises(BadConfig, match=rf"Method '{name}' needs a source; the hub has none\."):
        create(name, [], TargetSpec(VECTOR), {})


@pytest.mark.parametrize("name", [*ZOO, "soup"])
def test_heads_with_a_spread_that_depends_on_what_is_seen_become_one_too(name):
    sources = list(agents((SAC, {}), (SAC, {})))
    for method in (
        create(name, sources, TargetSpec(VECTOR, "outputs", STEER), {}),
        create(name, sources[:1], TargetSpec(VECTOR, "outputs", STEER), {}),
    ):
        rows = torch.randn(5, 4)
        said = method(rows).features
        assert said.shape == (5, 4)
    torch.testing.assert_close(said, sources[0].outputs(rows))


def normalises(name, seed, statistics):
    torch.manual_seed(seed)
    parts = {
        "encoder": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh()),
        "head": nn.Linear(6, 2),
    }
    return Source(
        **parts, statistics=statistics, name=name, observation_space=VECTOR, action_space=STEER
    )


@BOTH
@pytest.mark.parametrize("level", ["features", "outputs"])
@pytest.mark.parametrize("first", [0, 1])
def test_sources_that_normalise_differently_keep_their_outputs(name, level, first):
    statistics = {"": (np.array([1.0, -2.0, 0.5, 3.0]), np.array([4.0, 0.25, 1.0, 9.0]))}
    others = {"": (np.array([0.0, 1.0, -1.0, 2.0]), np.array([1.0, 2.0, 0.5, 4.0]))}
    pairs = [
        (normalises("one", 1, statistics), normalises("other", 2, others)),
        (normalises("plain", 3, None), normalises("one", 1, statistics)),
    ]
    rows = torch.randn(50, 4)
    for pair in pairs:
        sources = [pair[first], pair[1 - first]]
        method = create(name, sources, TargetSpec(VECTOR, level, STEER), {})
        for index, source in enumerate(sources):
            for part in method.modules():
                if isinstance(part, LiteLayer):
                    part.running_gates.copy_(torch.eye(2)[index])
                elif isinstance(part, Gates):
                    part.excite.bias.data.copy_(200.0 * torch.eye(2)[index] - 100.0)
            expected = source.outputs(rows) if level == "outputs" else source.features(rows)
            torch.testing.assert_close(method.eval()(rows).features, expected, atol=1e-5, rtol=1e-5)


def with_layer_norm(name):
    encoder = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh())
    return Source(
        encoder=encoder,
        head=nn.Linear(6, 2),
        name=name,
        observation_space=VECTOR,
        action_space=STEER,
    )


def learned_through_a_hub(name):
    env = Toy()
    return read_live(target(PPO, env, tiny_hub(env, (PPO, PPO)).agent(PPO, "zoo-tuning")), name)


@pytest.mark.parametrize("name", [*ZOO, "soup"])
@pytest.mark.parametrize("make", [with_layer_norm, learned_through_a_hub])
def test_sources_with_more_than_layers_are_refused_and_not_half_averaged(name, make):
    with pytest.raises(SpaceMismatch, match="and source 'one' holds"):
        create(name, [make("one"), make("other")], TargetSpec(VECTOR, "outputs", STEER), {})


def test_sources_of_images_that_normalise_are_refused():
    space = spaces.Box(0.0, 1.0, (2, 5, 5))
    statistics = {"": (np.full(space.shape, 0.5), np.ones(space.shape))}

    def reads(name, given):
        encoder = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten())
        return Source(encoder=encoder, name=name, observation_space=space, statistics=given)

    with pytest.raises(
        SpaceMismatch, match="and source 'one' normalises its .*; only flat observations can be"
    ):
        create(
            "zoo-tuning", [reads("plain", None), reads("one", statistics)], TargetSpec(space), {}
        )


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
    said = method.probe_candidates.compute_outputs(rows, active)
    for index, expected in enumerate([mean, *(source.outputs(rows) for source in sources)]):
        torch.testing.assert_close(said[index::3, index], expected[index::3])
        assert not said[index::3, [other for other in range(3) if other != index]].any()
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
        "the buffer that SB3 copies is the one that is heard"
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


@pytest.mark.parametrize("how", [{"groups": 2}, {"padding": 1, "padding_mode": "circular"}])
@BOTH
def test_convolutions_of_another_kind_are_refused(name, how):
    space = spaces.Box(0, 255, (2, 8, 8), np.uint8)
    encoders = [nn.Sequential(nn.Conv2d(2, 4, 3, **how), nn.ReLU(), nn.Flatten()) for _ in range(2)]
    sources = [
        Source(encoder=encoder, name=f"odd-{index}", observation_space=space)
        for index, encoder in enumerate(encoders)
    ]
    with pytest.raises(
        SpaceMismatch,
        match=f"Method '{name}' aggregates convolutions of one group padded by zeros, and source 'odd-0'",
    ):
        create(name, sources, TargetSpec(space), {})
