"""The rivals of a hub against numbers worked out by hand: MULTIPOLAR, CompoNet, progressive networks, kickstarting and the plain ones."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from recorded import RecordedScalars
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.logger import Logger
from torch import nn
from torch.distributions import Categorical, Normal, kl_divergence
from toys import CHOOSE, IMAGE, PARTS, SETTINGS, STEER, VECTOR, Toy, target, tiny, tiny_hub

from hubrl import BadConfig, Hub, HubCallback, Source, SpaceMismatch, UnknownName
from hubrl.methods import create
from hubrl.methods.componet import attention, position_encodings
from hubrl.methods.kickstart import annealed, cross_entropy
from hubrl.methods.multipolar import aggregate_actions
from hubrl.reading import read_live
from hubrl.routing.target import TargetSpec

ROWS = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
ACTIONS = pytest.mark.parametrize("actions", [STEER, CHOOSE], ids=["box", "discrete"])


def method_of(name, sources, level="outputs", actions=STEER, space=VECTOR, **options):
    return create(name, list(sources), TargetSpec(space, level, actions), options)


def stirred(method):
    """The same with every parameter somewhere else."""
    torch.manual_seed(1)
    for parameter in method.parameters():
        nn.init.normal_(parameter, std=0.5)
    return method


def two(actions=STEER, algorithms=(PPO, PPO)):
    return tiny_hub(Toy(actions=actions), algorithms)


def sharper(hub):
    """The same sources, which do something."""
    stronger = [{name: 5 * tensor for name, tensor in source.tensors().items()} for source in hub]
    cards = [source.card.model_copy(update={"sha256": None}) for source in hub]
    return Hub(
        Source.from_card(card, tensors) for card, tensors in zip(cards, stronger, strict=True)
    )


# MULTIPOLAR


def test_scaled_actions_are_averaged_by_hand():
    actions = torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])
    theta = torch.tensor([[1.0, 0.5], [2.0, -1.0]])
    assert aggregate_actions(actions, theta).tolist() == [[(1 + 6) / 2, (1 + 4) / 2]]


@ACTIONS
def test_multipolar_is_the_mean_of_scaled_actions_and_a_residual(actions):
    hub = two(actions)
    method = method_of("multipolar", hub, actions=actions)
    assert torch.equal(method.theta, torch.ones(2, 2 if actions is STEER else 3))
    stirred(method)
    fresh = torch.randn(6, method.pathways.width)
    said = method(ROWS, fresh=fresh).features
    expected = fresh.clone()
    for row in range(6):
        for theta, source in zip(method.theta, hub, strict=True):
            outputs = source.outputs(ROWS[row : row + 1])[0]
            does = outputs[:2] if actions is STEER else torch.eye(3)[outputs.argmax()]
            expected[row, : len(does)] += theta * does / 2
    torch.testing.assert_close(said, expected)
    assert method.measures() == pytest.approx(
        {f"multipolar/theta/ppo-{index}": method.theta[index].mean().item() for index in (0, 1)}
    )


def test_multipolar_of_one_source_is_that_of_a_hub_of_one():
    hub = two()
    method = method_of("multipolar", hub, source="ppo-1")
    assert method.pathways.names == ["ppo-1", "fresh"]
    stirred(method)
    fresh = torch.randn(6, 4)
    expected = method.theta[0] * hub[1].outputs(ROWS)[:, :2] + fresh[:, :2]
    torch.testing.assert_close(
        method(ROWS, fresh=fresh).features, torch.cat([expected, fresh[:, 2:]], dim=1)
    )
    with pytest.raises(UnknownName, match="Unknown source 'ppo1'. Did you mean 'ppo-1'"):
        method_of("multipolar", hub, source="ppo1")


def test_multipolars_residual_is_the_algorithms_own_network_and_so_is_its_spread():
    hub = sharper(two())
    model = target(PPO, Toy(), hub.agent(PPO, "multipolar"))
    policy = model.policy
    own = policy.action_net(policy.mlp_extractor.forward_actor(ROWS))
    mean = torch.stack([source.outputs(ROWS)[:, :2] for source in hub]).mean(dim=0)
    distribution = policy.get_distribution(ROWS).distribution
    torch.testing.assert_close(distribution.mean, mean + own)
    torch.testing.assert_close(distribution.stddev, policy.log_std.exp().expand(6, 2))
    assert mean.abs().max() > 5 * own.abs().max(), "the sources act at the start"


def test_multipolar_makes_q_values_for_dqn():
    env = Toy(actions=CHOOSE)
    hub = two(CHOOSE, (PPO, DQN))
    model = target(DQN, env, hub.agent(DQN, "multipolar"), learning_rate=1e-2)
    model.learn(100)
    for network in (model.q_net, model.q_net_target):
        votes = torch.stack(
            [torch.eye(3)[source.outputs(ROWS).argmax(dim=1)] for source in hub], dim=1
        )
        expected = (votes * network.method.theta).mean(dim=1) + network.q_net(ROWS)
        torch.testing.assert_close(network(ROWS), expected)
        assert not torch.equal(network.method.theta, torch.ones(2, 3)), (
            "the factors learn, in the target network too"
        )
    acted = model.predict(ROWS.numpy(), deterministic=True)[0]
    assert np.array_equal(acted, model.q_net(ROWS).argmax(dim=1))


# CompoNet


def test_attention_by_hand():
    weights = attention(
        torch.tensor([[1.0, 1.0]]), torch.tensor([[[1.0, 1.0], [0.0, 0.0], [-1.0, 0.0]]])
    )
    scores = [math.exp(score / math.sqrt(2)) for score in (2.0, 0.0, -1.0)]
    assert weights[0].tolist() == pytest.approx([score / sum(scores) for score in scores])


def test_position_encodings_by_hand():
    expected = [[math.sin(p), math.cos(p), math.sin(p / 10_000 ** (2 / 3))] for p in (0.0, 1.0)]
    torch.testing.assert_close(position_encodings(2, 3), torch.tensor(expected))


def componet_by_hand(method, state, said):
    """One row at a time, by the paper's equations."""
    out = []
    places, d = method.places, method.output_query.out_features
    for h, phi in zip(state, said, strict=True):
        n = len(phi)
        scores = method.output_key(phi + places[:n]) @ method.output_query(h) / math.sqrt(d)
        proposed = scores.softmax(dim=0) @ phi
        seen = torch.cat([phi, proposed[None]])
        scores = method.input_key(seen + places) @ method.input_query(h) / math.sqrt(d)
        found = scores.softmax(dim=0) @ method.input_value(seen)
        out.append(proposed + method.internal(torch.cat([found, h])))
    return torch.stack(out)


@ACTIONS
def test_componet_attends_proposes_and_corrects(actions):
    hub = two(actions)
    method = stirred(method_of("componet", hub, actions=actions, hidden_dim=5))
    fresh = torch.randn(6, method.pathways.width)
    said = torch.stack([source.outputs(ROWS) for source in hub], dim=1)
    does = said[:, :, :2] if actions is STEER else said.exp()
    expected = componet_by_hand(method, ROWS, does)
    if actions is STEER:
        expected = torch.cat([expected, fresh[:, 2:]], dim=1)
    torch.testing.assert_close(method(ROWS, fresh=fresh).features, expected, atol=1e-5, rtol=1e-5)
    shares = method.measures()
    assert list(shares) == ["componet/attention/ppo-0", "componet/attention/ppo-1"]
    assert sum(shares.values()) == pytest.approx(1.0)


def test_without_its_internal_policy_componet_does_something_between_what_its_sources_do():
    hub = sharper(two())
    method = stirred(method_of("componet", hub))
    nn.init.zeros_(method.internal[-1].weight)
    nn.init.zeros_(method.internal[-1].bias)
    means = torch.stack([source.outputs(ROWS)[:, :2] for source in hub])
    does = method(ROWS, fresh=torch.zeros(6, 4)).features[:, :2]
    assert (does >= means.amin(dim=0) - 1e-5).all()
    assert (does <= means.amax(dim=0) + 1e-5).all()


@pytest.mark.parametrize("observations", [IMAGE, PARTS], ids=["image", "dict"])
def test_componet_encodes_images_and_dicts(observations):
    env = Toy(observations)
    space = tiny(PPO, env).observation_space
    method = method_of("componet", tiny_hub(env, (PPO, PPO)), space=space)
    parts = space.spaces if observations is PARTS else {"": space}
    rows = {key: torch.rand(3, *part.shape) for key, part in parts.items()}
    loss = (
        method(rows if observations is PARTS else rows[""], fresh=torch.zeros(3, 4))
        .features.square()
        .sum()
    )
    loss.backward()
    assert all(
        parameter.grad.abs().max() > 0
        for parameter in method.encoder.parameters()
        if parameter.ndim > 1
    )


def test_componets_output_is_dqns_q_values():
    model = target(
        DQN, Toy(actions=CHOOSE), two(CHOOSE, (PPO, DQN)).agent(DQN, "componet"), learning_rate=1e-2
    ).learn(100)
    said = torch.stack([source.outputs(ROWS) for source in two(CHOOSE, (PPO, DQN))], dim=1)
    expected = componet_by_hand(model.q_net.method, ROWS, said.exp())
    torch.testing.assert_close(model.q_net(ROWS), expected, atol=1e-5, rtol=1e-5)
    assert np.array_equal(
        model.predict(ROWS.numpy(), deterministic=True)[0], expected.argmax(dim=1)
    )


# Progressive networks


def deep(*widths, seed=0, activation=nn.Tanh):
    return tiny(PPO, Toy(), seed, net_arch=list(widths), activation_fn=activation)


def progressive_by_hand(method, hub, rows, act=torch.tanh):
    """`h_i = act(W_i h_{i-1} + U_i act(V_i [alpha_j h_{i-1}^j]))`, layer by layer."""
    columns = []
    for source in hub:
        read, said = rows, []
        for layer in source.encoder.hidden[::2]:
            read = act(read @ layer.weight.T + layer.bias)
            said.append(read)
        columns.append(said)
    read, adapted = rows, None
    for index, layer in enumerate(method.column):
        before = layer(read)
        if adapted is not None:
            before = before + adapted @ method.laterals[index - 1].weight.T
        read = act(before)
        adapter = method.adapters[index]
        heard = torch.cat(
            [scale * column[index] for scale, column in zip(adapter.scales, columns, strict=True)],
            dim=1,
        )
        adapted = act(heard @ adapter.squeeze.weight.T + adapter.squeeze.bias)
    return torch.cat([read, adapted], dim=1)


def test_progressive_columns_by_hand():
    hub = sharper(Hub.from_agents([deep(8, 7, 6), deep(8, 5, 4, seed=1)]))
    method = stirred(method_of("progressive", hub, "features"))
    assert method.features_dim == 2 * 6
    torch.testing.assert_close(method(ROWS).features, progressive_by_hand(method, hub, ROWS))


def test_progressive_scales_start_at_a_tenth_and_are_logged():
    method = method_of("progressive", Hub.from_agents([deep(8, 7), deep(8, 7, seed=1)]), "features")
    expected = {
        f"progressive/scale/{layer}/ppo-{index}": 0.1 for layer in (0, 1) for index in (0, 1)
    }
    assert method.measures() == pytest.approx(expected)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("layer", [0, 2])
def test_every_column_is_read_at_every_layer_including_the_first(which, layer):
    hub = Hub.from_agents([deep(8, 7), deep(8, 7, seed=1)])
    method = stirred(method_of("progressive", hub, "features"))
    before = method(ROWS).features
    hub[which].encoder.hidden[layer].weight.add_(1.0)
    after = method(ROWS).features
    assert not torch.allclose(before[:, 7:], after[:, 7:]), "the head hears the last layer"
    assert torch.allclose(before[:, :7], after[:, :7]) == (layer == 2), (
        "the new column hears what was before its own"
    )


def test_progressive_columns_of_images_are_read_by_pointwise_convolutions():
    env = Toy(IMAGE)
    space = tiny(PPO, env).observation_space
    method = method_of("progressive", tiny_hub(env, (PPO, PPO)), "features", space=space)
    assert [type(layer) for layer in method.column] == [nn.Conv2d] * 3 + [nn.Linear] * 2
    assert [adapter.squeeze.kernel_size for adapter in method.adapters[:3]] == [(1, 1)] * 3
    assert [adapter.squeeze.in_channels for adapter in method.adapters[:3]] == [64, 128, 128]
    method(torch.rand(3, *space.shape)).features.square().sum().backward()
    assert all(
        parameter.grad.abs().max() > 0
        for name, parameter in method.named_parameters()
        if "bias" not in name
    )


def test_progressive_reads_what_its_sources_select_of_the_targets_observations():
    wide = spaces.Box(-10.0, 10.0, (6,))
    hub = Hub(
        [
            source.adapted(observes=range(4))
            for source in Hub.from_agents([deep(8), deep(8, seed=1)])
        ]
    )
    method = method_of("progressive", hub, "features", space=wide)
    assert method(torch.randn(5, 6)).features.shape == (5, 16)


def test_columns_that_cannot_stand_side_by_side_are_refused():
    with pytest.raises(
        SpaceMismatch,
        match="of one depth, and source 'ppo-1' has 2 layers where 'ppo-0' has 1; leave it out",
    ):
        method_of("progressive", Hub.from_agents([deep(8), deep(8, 8, seed=1)]), "features")
    with pytest.raises(
        SpaceMismatch, match="that end in a linear one, and source 'ppo-0' has none; leave it out"
    ):
        method_of("progressive", Hub.from_agents([deep()]), "features")
    with pytest.raises(BadConfig, match="Method 'progressive' needs a column; the hub has none"):
        method_of("progressive", [], "features")


# Kickstarting


def test_the_cross_entropy_of_gaussians_is_divergence_and_entropy():
    taught, said = torch.randn(5, 3, 4), torch.randn(5, 4)
    teacher = Normal(taught[:, :, :2], taught[:, :, 2:].exp())
    student = Normal(said[:, None, :2], said[:, None, 2:].exp())
    expected = (kl_divergence(teacher, student) + teacher.entropy()).sum(dim=2)
    torch.testing.assert_close(
        cross_entropy(taught, said, discrete=False), expected, atol=1e-4, rtol=1e-4
    )


def test_the_cross_entropy_of_choices_is_divergence_and_entropy():
    taught, said = torch.randn(5, 3, 4).log_softmax(dim=2), torch.randn(5, 4)
    teacher, student = Categorical(logits=taught), Categorical(logits=said[:, None])
    expected = kl_divergence(teacher, student) + teacher.entropy()
    torch.testing.assert_close(cross_entropy(taught, said, discrete=True), expected)


def test_the_coefficient_falls_linearly_to_zero():
    assert [
        annealed(2.0, 0.5, remaining) for remaining in (1.0, 0.75, 0.5, 0.2, 0.0)
    ] == pytest.approx([2.0, 1.0, 0.0, 0.0, 0.0])
    assert annealed(2.0, 1.0, 0.25) == pytest.approx(0.5)


@pytest.mark.parametrize("options", [{"coef": -1.0}, {"anneal": 0.0}, {"anneal": 1.5}])
def test_a_schedule_that_cannot_be_is_refused(options):
    with pytest.raises(
        BadConfig, match="expected coef of at least 0, and anneal above 0 and at most 1"
    ):
        method_of("kickstart", two(), **options)


@ACTIONS
def test_the_students_loss_is_the_mean_over_teachers_and_states(actions):
    hub = two(actions)
    method = method_of("kickstart", hub, actions=actions, coef=3.0, anneal=0.5)
    method.progress_remaining = 0.75
    fresh = torch.randn(6, method.pathways.width, requires_grad=True)
    routed = method.train()(ROWS, fresh=fresh)
    assert routed.features is fresh
    each = [
        cross_entropy(source.outputs(ROWS)[:, None], fresh, discrete=actions is CHOOSE)
        for source in hub
    ]
    torch.testing.assert_close(routed.loss, 1.5 * torch.cat(each).mean())
    assert torch.autograd.grad(routed.loss, fresh)[0].abs().max() > 0


def test_there_is_no_lesson_outside_of_gradient_steps_or_when_it_is_over():
    method = method_of("kickstart", two(), anneal=0.5)
    fresh = torch.randn(6, 4, requires_grad=True)
    assert method.train()(ROWS, fresh=fresh).loss.item() > 0
    with torch.no_grad():
        assert method(ROWS, fresh=fresh).loss.item() == 0
    assert method.eval()(ROWS, fresh=fresh).loss.item() == 0
    method.train().progress_remaining = 0.5
    over = method(ROWS, fresh=fresh).loss
    assert over.item() == 0
    assert not over.requires_grad


@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=["ppo", "dqn"])
def test_the_coefficient_follows_the_callback(algorithm):
    env = Toy(actions=CHOOSE)
    memory = RecordedScalars()
    model = target(algorithm, env, two(CHOOSE).agent(algorithm, "kickstart", coef=2.0, anneal=0.5))
    model.set_logger(Logger(None, [memory]))
    model.learn(128, callback=HubCallback(log_every=1), log_interval=1)
    values = memory.values("kickstart/coef")
    if algorithm is PPO:
        assert values == pytest.approx([2.0, 1.0, 0.0, 0.0])
    else:
        assert values == sorted(values, reverse=True)
        assert 1 < values[0] <= 2
        assert values[-1] == 0


@ACTIONS
def test_ppos_student_is_pulled_towards_its_teachers(actions):
    env = Toy(actions=actions)
    hub = sharper(two(actions, (PPO,)))
    apart = {}
    for coef in (0.0, 20.0):
        made = hub.agent(PPO, "kickstart", coef=coef, anneal=1.0)
        model = target(PPO, env, made, learning_rate=1e-2, n_epochs=4).learn(
            192, callback=HubCallback()
        )
        with torch.no_grad():
            said = model.policy.route(ROWS).features
            apart[coef] = (
                cross_entropy(model.policy.method.teach(ROWS), said, discrete=actions is CHOOSE)
                .mean()
                .item()
            )
    assert apart[20.0] < apart[0.0] - 0.05


def test_dqns_student_is_taught_by_what_its_teachers_would_do():
    env = Toy(actions=CHOOSE)
    hub = Hub([read_live(tiny(PPO, env, 3), "teacher")])
    rows = np.random.default_rng(1).normal(size=(300, 4)).astype(np.float32)
    agree = {}
    for coef in (0.0, 5.0):
        made = hub.agent(DQN, "kickstart", coef=coef, anneal=1.0)
        settings = SETTINGS[DQN] | {
            "learning_rate": 3e-3,
            "train_freq": 1,
            "gamma": 0.0,
            "exploration_fraction": 0.01,
        }
        model = DQN(
            made["policy"],
            env,
            seed=0,
            device="cpu",
            policy_kwargs={"net_arch": [32], **made["policy_kwargs"]},
            **settings,
        )
        model.learn(400, callback=HubCallback())
        does = model.predict(rows, deterministic=True)[0]
        assert np.array_equal(does, model.q_net(torch.as_tensor(rows)).argmax(dim=1)), (
            "the student acts, and nobody else"
        )
        agree[coef] = (does == hub[0].predict(rows, deterministic=True)[0]).mean()
    assert agree[5.0] > agree[0.0] + 0.15


# The plain ones


@pytest.mark.parametrize("level", ["features", "outputs"])
def test_a_soup_starts_at_the_mean_of_all_parameters(level):
    hub = tiny_hub(Toy(), (PPO, PPO, PPO))
    source = method_of("soup", hub, level).pathways.sources[0].source
    parameters = dict(source.named_parameters())
    assert len(parameters) == (2 if level == "features" else 5)
    for name, parameter in parameters.items():
        torch.testing.assert_close(
            parameter, torch.stack([dict(one.named_buffers())[name] for one in hub]).mean(dim=0)
        )
    assert not torch.equal(parameters["encoder.hidden.0.weight"], hub[0].encoder.hidden[0].weight)


def test_a_soup_of_one_source_is_that_source():
    hub = two(algorithms=(PPO,))
    torch.testing.assert_close(method_of("soup", hub)(ROWS).features, hub[0].outputs(ROWS))


def test_concat_puts_features_side_by_side_in_the_hubs_order():
    wide, narrow = tiny(PPO, Toy(), 1, net_arch=[5]), tiny(DQN, Toy(actions=CHOOSE), 2)
    hub = Hub.from_agents([wide, narrow])
    for order in (hub, hub[::-1]):
        method = method_of("concat", order, "features")
        assert method.features_dim == 13
        assert torch.equal(
            method(ROWS).features, torch.cat([source.features(ROWS) for source in order], dim=1)
        )
    model = target(PPO, Toy(), hub.agent(PPO, "concat"))
    features = model.policy.extract_features(ROWS)
    assert torch.equal(
        features, torch.cat([*(source.features(ROWS) for source in hub), ROWS], dim=1)
    ), "observations stand beside"


@pytest.mark.parametrize("fresh", [False, True])
def test_uniform_at_the_outputs_does_the_mean_of_what_all_would_do(fresh):
    hub = sharper(tiny_hub(Toy()))
    model = target(PPO, Toy(), hub.agent(PPO, "uniform", fresh=fresh))
    means = [source.outputs(ROWS)[:, :2] for source in hub]
    if fresh:
        means.append(model.policy.action_net(model.policy.mlp_extractor.forward_actor(ROWS)))
    expected = torch.stack(means).mean(dim=0).detach()
    np.testing.assert_allclose(
        model.predict(ROWS.numpy(), deterministic=True)[0], expected.clamp(-1, 1), atol=1e-6
    )
    assert not torch.allclose(means[0], means[1], atol=1e-2)


def test_uniform_at_the_outputs_averages_the_log_probabilities_of_choices():
    hub = sharper(two(CHOOSE, (PPO, DQN)))
    model = target(PPO, Toy(actions=CHOOSE), hub.agent(PPO, "uniform"))
    mean = torch.stack([source.outputs(ROWS) for source in hub]).mean(dim=0)
    torch.testing.assert_close(
        model.policy.get_distribution(ROWS).distribution.logits, mean.log_softmax(dim=1)
    )


@pytest.mark.parametrize("algorithm", [PPO, DQN], ids=["ppo", "dqn"])
def test_a_frozen_source_is_all_that_the_new_head_sees(algorithm):
    env = Toy(actions=CHOOSE)
    hub = two(CHOOSE, (PPO, DQN))
    model = target(
        algorithm, env, hub.agent(algorithm, "frozen", source="dqn-1"), learning_rate=1e-2
    )
    expected = hub["dqn-1"].features(ROWS)
    model.learn(100)
    extractor = (
        model.q_net.features_extractor if algorithm is DQN else model.policy.features_extractor
    )
    assert torch.equal(extractor(ROWS), expected)
    assert len(list(extractor.parameters())) == 0
    assert extractor.features_dim == 8


@pytest.mark.parametrize("name", ["multipolar", "componet", "kickstart", "concat", "soup"])
def test_an_empty_hub_is_refused(name):
    level = "features" if name == "concat" else "outputs"
    with pytest.raises(
        BadConfig, match=rf"Method '{name}' needs a (source|teacher); the hub has none\."
    ):
        method_of(name, [], level)


@pytest.mark.parametrize("name", ["multipolar", "componet", "kickstart", "uniform"])
def test_without_a_drawn_pathway_there_is_no_commitment(name):
    made = two().agent(PPO, name)
    assert "hold" not in made["policy_kwargs"]["outputs"]
    with pytest.raises(
        BadConfig,
        match=rf"hold=3 was given for method '{name}', which draws no pathway; leave it out",
    ):
        target(PPO, Toy(), two().agent(PPO, name, hold=3))
