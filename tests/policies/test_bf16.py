"""NatureCNN in bfloat16: the same weights and nearly the same features, one precision in a rollout and its update."""

import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.utils import polyak_update
from toys import CHOOSE, IMAGE, OFF_POLICY, SETTINGS, Toy, tiny_hub

import hubrl
from hubrl import Hub
from hubrl.errors import BadConfig
from hubrl.experiments.build_model import build_model
from hubrl.experiments.config import parse_config
from hubrl.nn import bf16
from hubrl.nn.bf16 import BF16NatureCNN, fold_blocks
from hubrl.policies.bf16 import BF16CnnPolicy, BF16DQNPolicy
from hubrl.reading import read_live
from hubrl.routing.fresh_pathway import FreshPathway
from hubrl.tasks.make_env import make_env

SHAPES = [(4, 84, 84), (3, 37, 50)]

FEW = {"features_extractor_kwargs": {"features_dim": 16}}


def space_of(shape):
    return spaces.Box(0, 255, shape, np.uint8)


def twins(shape):
    torch.manual_seed(0)
    plain, precise = NatureCNN(space_of(shape), 64), BF16NatureCNN(space_of(shape), 64)
    precise.load_state_dict(plain.state_dict())
    return plain, precise


def bytes_of(shape, rows=8):
    return torch.randint(
        0, 256, (rows, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def game():
    return Toy(IMAGE, CHOOSE)


@pytest.mark.parametrize("shape", SHAPES)
def test_features_are_nearly_those_of_float32(shape):
    plain, precise = twins(shape)
    seen = bytes_of(shape).float() / 255
    expected, computed = plain(seen), precise(seen)
    assert computed.dtype == torch.float32
    assert (computed - expected).abs().max() < 0.03 * expected.std()
    assert not torch.equal(computed, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_give_the_same_features_to_the_last_bit(shape):
    _, precise = twins(shape)
    seen = bytes_of(shape)
    assert torch.equal(precise(seen), precise(seen.float() / 255))


def test_whole_pixels_survive_the_way_through_sb3s_division():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal((every.float() / 255 * 255).bfloat16().float(), every.float())


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_are_nearly_those_of_float32(shape):
    plain, precise = twins(shape)
    seen = bytes_of(shape, 32)
    for network, given in ((plain, seen.float() / 255), (precise, seen)):
        network(given).square().sum().backward()
    for (name, expected), found in zip(plain.named_parameters(), precise.parameters(), strict=True):
        assert found.grad.dtype == torch.float32
        assert (found.grad - expected.grad).norm() < 0.05 * expected.grad.norm(), name


def test_an_image_that_wants_a_gradient_gets_it():
    plain, precise = twins((4, 84, 84))
    seen = [(bytes_of((4, 84, 84)).float() / 255).requires_grad_() for _ in range(2)]
    for network, given in zip((plain, precise), seen, strict=True):
        network(given).square().sum().backward()
    assert (seen[1].grad - seen[0].grad).norm() < 0.1 * seen[0].grad.norm()


def test_blocks_contain_every_pixel_once():
    image = torch.arange(2 * 8 * 12, dtype=torch.uint8).view(1, 2, 8, 12)
    found = fold_blocks(image)
    assert found.shape == (1, 32, 2, 3)
    assert sorted(found.flatten().tolist()) == list(range(2 * 8 * 12))
    assert found[0, 16:, 1, 2].tolist() == image[0, 1, 4:, 8:].flatten().tolist()
    assert torch.equal(found, fold_blocks(image.bfloat16()))


def test_images_that_are_not_normalised_are_read_as_they_are():
    torch.manual_seed(0)
    plain, precise = (
        kind(space_of((4, 84, 84)), 64, normalized_image=True)
        for kind in (NatureCNN, BF16NatureCNN)
    )
    precise.load_state_dict(plain.state_dict())
    seen = bytes_of((4, 84, 84)).float()
    expected = plain(seen)
    assert (precise(seen) - expected).abs().max() < 0.03 * expected.std()


def averaged(network, other):
    polyak_update(other.parameters(), network.parameters(), 0.5)


def stepped(network, other):
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    network(bytes_of((4, 84, 84))).sum().backward()
    optimizer.step()


def loaded(network, other):
    network.load_state_dict(other.state_dict())


@pytest.mark.parametrize("change", [averaged, stepped, loaded])
def test_cached_weights_are_cast_again_when_they_change(change):
    _, network = twins((4, 84, 84))
    torch.manual_seed(5)
    other = BF16NatureCNN(space_of((4, 84, 84)), 64)
    seen = bytes_of((4, 84, 84))
    with torch.no_grad():
        before = network(seen)
        assert torch.equal(before, network(seen))
    change(network, other)
    new = BF16NatureCNN(space_of((4, 84, 84)), 64)
    new.load_state_dict(network.state_dict())
    with torch.no_grad():
        after = network(seen)
        assert torch.equal(after, new(seen))
    assert not torch.equal(after, before)


def log_ratios(model):
    """Of the first look at a rollout, before anything is learned from it."""
    model.policy.set_training_mode(True)
    ratios = []
    for data in model.rollout_buffer.get(32):
        _, log_prob, _ = model.policy.evaluate_actions(
            data.observations, data.actions.long().flatten()
        )
        ratios.append((log_prob - data.old_log_prob).abs())
    return torch.cat(ratios)


def test_the_ratio_of_ppo_is_one_before_the_first_step():
    model = PPO(BF16CnnPolicy, game(), seed=1, device="cpu", n_steps=64, batch_size=32)
    with torch.no_grad():
        model.policy.action_net.weight.mul_(100)  # so that a difference of precision would be seen
    _, callback = model._setup_learn(64)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    assert log_ratios(model).max() < 1e-5
    other = NatureCNN(model.observation_space, 512)
    other.load_state_dict(model.policy.features_extractor.state_dict())
    model.policy.features_extractor = model.policy.pi_features_extractor = (
        model.policy.vf_features_extractor
    ) = other
    assert log_ratios(model).max() > 1e-4


def test_heads_values_and_log_probabilities_stay_in_float32():
    policy = PPO(BF16CnnPolicy, game(), device="cpu", n_steps=8, batch_size=8).policy
    values, log_prob, entropy = policy.evaluate_actions(
        bytes_of((3, 36, 36)), torch.zeros(8, dtype=torch.long)
    )
    assert {values.dtype, log_prob.dtype, entropy.dtype} == {torch.float32}
    (values.sum() + log_prob.sum()).backward()
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in policy.parameters()} == {torch.float32}


def test_the_optimizer_is_fused_with_sb3s_epsilon_unless_one_is_given():
    made = PPO(BF16CnnPolicy, game(), n_steps=8, batch_size=8, device="cpu").policy.optimizer
    assert made.defaults["fused"]
    assert made.defaults["eps"] == 1e-5
    given = PPO(
        BF16CnnPolicy,
        game(),
        n_steps=8,
        batch_size=8,
        device="cpu",
        policy_kwargs={"optimizer_kwargs": {"eps": 0.1}},
    )
    assert given.policy.optimizer.defaults["eps"] == 0.1
    assert not given.policy.optimizer.defaults["fused"]


@pytest.mark.parametrize(
    ("algorithm", "policy"), [(PPO, BF16CnnPolicy), (A2C, BF16CnnPolicy), (DQN, BF16DQNPolicy)]
)
def test_an_agent_learns_is_saved_and_loaded_and_its_weights_are_sb3s(algorithm, policy, tmp_path):
    model = algorithm(
        policy, game(), seed=1, device="cpu", policy_kwargs=FEW, **SETTINGS[algorithm]
    ).learn(64)
    model.save(tmp_path / "agent.zip")
    seen = bytes_of((3, 36, 36), 64).numpy()
    actions, _ = model.predict(seen, deterministic=True)
    again = algorithm.load(tmp_path / "agent.zip", device="cpu")
    assert (again.predict(seen, deterministic=True)[0] == actions).all()
    plain = algorithm(
        "CnnPolicy", game(), seed=2, device="cpu", policy_kwargs=FEW, **SETTINGS[algorithm]
    )
    plain.policy.load_state_dict(model.policy.state_dict())
    source = hubrl.load_agent(tmp_path / "agent.zip")
    assert source.card.algorithm == algorithm.__name__
    assert (
        source.predict(seen, deterministic=True)[0] == plain.predict(seen, deterministic=True)[0]
    ).all()


def test_the_target_network_of_dqn_follows():
    model = DQN(
        BF16DQNPolicy,
        game(),
        seed=1,
        device="cpu",
        policy_kwargs=FEW,
        **OFF_POLICY,
        tau=0.5,
        target_update_interval=8,
    )
    seen = bytes_of((3, 36, 36))
    before = model.q_net_target(seen)
    model.learn(64)
    new = DQN(BF16DQNPolicy, game(), device="cpu", policy_kwargs=FEW, **OFF_POLICY).q_net_target
    new.load_state_dict(model.q_net_target.state_dict())
    with torch.no_grad():
        assert torch.equal(model.q_net_target(seen), new(seen))
    assert not torch.equal(model.q_net_target(seen), before)


def config_of(algorithm, **fields):
    return parse_config(
        {
            "task": "toy",
            "steps": 1,
            "method": "scratch",
            "algorithm": algorithm,
            "device": "cpu",
            **fields,
        },
        "test",
    )


@pytest.mark.parametrize(
    ("algorithm", "name"), [(PPO, "ppo"), (A2C, "a2c"), (DQN, "dqn"), (QRDQN, "qrdqn")]
)
def test_a_config_of_any_algorithm_asks_for_it(algorithm, name):
    env = PPO("CnnPolicy", game(), n_steps=8, batch_size=8, device="cpu").env
    settings = {"algorithm_kwargs": SETTINGS[algorithm]}
    models = [
        build_model(config_of(name, precision=precision, **settings), env, None)
        for precision in ("float32", "bfloat16")
    ]
    nets = [
        next(part for part in model.policy.modules() if isinstance(part, NatureCNN))
        for model in models
    ]
    assert [type(net) for net in nets] == [NatureCNN, BF16NatureCNN]
    names = [
        {name: tuple(tensor.shape) for name, tensor in model.policy.state_dict().items()}
        for model in models
    ]
    assert names[0] == names[1]


def test_a_wrong_precision_is_refused():
    with pytest.raises(BadConfig, match="precision: Input should be 'float32' or 'bfloat16'"):
        config_of("ppo", precision="half")


def test_it_is_refused_where_no_image_is_observed():
    for make in (
        lambda hub: hub.agent(PPO, precision="bfloat16"),
        lambda hub: hub.policy_kwargs(precision="bfloat16"),
    ):
        with pytest.raises(
            BadConfig,
            match="precision='bfloat16' was given and no source reads images; it is for NatureCNNs, leave it out",
        ):
            make(tiny_hub(Toy()))
    with pytest.raises(
        BadConfig, match="bfloat16 was asked for where the target observes .*for images"
    ):
        build_model(config_of("ppo", precision="bfloat16"), make_env("CartPole-v1"), None)


@pytest.mark.parametrize("level", ["features", "outputs"])
def test_the_networks_of_a_hub_are_of_its_precision_and_stay_so_when_loaded(level, tmp_path):
    hub = tiny_hub(game())
    made = hub.agent(PPO, level=level, precision="bfloat16")
    model = PPO(
        env=game(), seed=1, device="cpu", n_steps=32, batch_size=16, n_epochs=1, **made
    ).learn(32)
    natures = [part for part in model.policy.modules() if isinstance(part, NatureCNN)]
    assert natures
    assert all(isinstance(part, BF16NatureCNN) for part in natures)
    assert model.policy.optimizer.defaults["fused"]
    model.save(tmp_path / "target.zip")
    again = PPO.load(tmp_path / "target.zip", device="cpu")
    assert any(isinstance(part, BF16NatureCNN) for part in again.policy.modules())
    seen = bytes_of((3, 36, 36)).numpy()
    assert (
        model.predict(seen, deterministic=True)[0] == again.predict(seen, deterministic=True)[0]
    ).all()


@pytest.mark.parametrize("level", ["features", "outputs"])
@pytest.mark.parametrize("method", ["zoo-tuning", "lite-zoo-tuning"])
def test_layers_that_are_made_of_several_are_computed_as_they_are(method, level):
    hub = Hub.from_agents(
        [PPO("CnnPolicy", game(), seed=seed, device="cpu", n_steps=32) for seed in (1, 2)]
    )
    made = hub.agent(PPO, method, level=level, precision="bfloat16")
    model = PPO(
        env=game(), seed=1, device="cpu", n_steps=32, batch_size=16, n_epochs=1, **made
    ).learn(32)
    assert model.num_timesteps == 32


def test_a_target_of_a_hub_in_bfloat16_is_a_source_itself():
    made = tiny_hub(game()).agent(PPO, level="features", precision="bfloat16")
    model = PPO(
        env=game(), seed=1, device="cpu", n_steps=32, batch_size=16, n_epochs=1, **made
    ).learn(32)
    seen = bytes_of((3, 36, 36)).numpy()
    assert (
        read_live(model, "target").predict(seen, deterministic=True)[0]
        == model.predict(seen, deterministic=True)[0]
    ).all()


def test_the_ratio_of_a_hub_is_one_before_the_first_step():
    made = tiny_hub(game()).agent(PPO, level="outputs", precision="bfloat16", hold=1)
    model = PPO(env=game(), seed=1, device="cpu", n_steps=64, batch_size=32, **made)
    model.set_logger(configure(None, []))
    _, callback = model._setup_learn(64)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 64)
    assert log_ratios(model).max() < 1e-5


@pytest.mark.parametrize(
    "options",
    [{"tuned": True, "top_k": 1, "fresh": False}, {"tuned": False}, {"router_reads": "features"}],
)
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_hub_reads_bytes_as_it_reads_what_sb3_divides(algorithm, options):
    made = tiny_hub(game()).agent(algorithm, level="features", precision="bfloat16", **options)
    model = algorithm(env=game(), seed=1, device="cpu", **SETTINGS[algorithm], **made)
    network = model.policy if algorithm is PPO else model.q_net
    extractor = network.features_extractor
    assert extractor.reads_bytes
    seen = bytes_of((3, 36, 36))
    given = []
    extractor.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].dtype))
    read = network.extract_features(seen, extractor)
    assert given == [torch.uint8]
    assert torch.equal(read, extractor(seen.float() / 255))
    network.normalize_images = False
    network.extract_features(seen, extractor)
    assert given[-1] == torch.float32, "where nothing is divided, SB3's way"


def test_a_policy_over_outputs_of_images_reads_bytes():
    made = tiny_hub(game()).agent(PPO, level="outputs", precision="bfloat16")
    policy = PPO(env=game(), seed=1, device="cpu", n_steps=64, batch_size=32, **made).policy
    assert policy.method.reads_bytes
    seen = bytes_of((3, 36, 36))
    read, divided = (policy.route(rows) for rows in (seen, seen.float() / 255))
    assert torch.equal(read.weights, divided.weights)
    assert torch.equal(read.pathway_outputs, divided.pathway_outputs)
    plain = PPO(
        env=game(),
        device="cpu",
        n_steps=64,
        batch_size=32,
        **tiny_hub(game()).agent(PPO, level="outputs"),
    ).policy
    assert not plain.method.reads_bytes, "float32 says the sources' own numbers"


@pytest.mark.parametrize("level", ["features", "outputs"])
def test_parameters_are_looked_for_once_and_are_all_there(level):
    made = tiny_hub(game()).agent(PPO, level=level, precision="bfloat16", tuned=True)
    policy = PPO(env=game(), seed=1, device="cpu", n_steps=64, batch_size=32, **made).policy
    everything = [id(parameter) for _, parameter in policy.named_parameters()]
    assert [id(parameter) for parameter in policy.parameters()] == everything
    assert {
        id(parameter) for group in policy.optimizer.param_groups for parameter in group["params"]
    } == set(everything)
    policy.to(torch.float64)
    assert all(parameter.dtype == torch.float64 for parameter in policy.parameters())
    assert [id(parameter) for parameter in policy.parameters()] == [
        id(parameter) for _, parameter in policy.named_parameters()
    ]


def test_the_fresh_pathway_draws_the_same_weights_in_either_precision():
    made = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(3)
        np.random.seed(3)
        made.append(FreshPathway(space_of((4, 84, 84)), 16, precision=precision))
    for (name, expected), found in zip(
        made[0].named_parameters(), made[1].parameters(), strict=True
    ):
        assert torch.equal(expected, found), name
    seen = bytes_of((4, 84, 84)).float() / 255
    assert (made[0](seen) - made[1](seen)).abs().max() < 0.1 * made[0](seen).std()


def test_a_frozen_hub_leaves_its_sources_as_they_were():
    hub = tiny_hub(game())
    before = {source.name: source.to_bytes() for source in hub}
    made = hub.agent(PPO, level="features", precision="bfloat16")
    PPO(env=game(), seed=1, device="cpu", n_steps=32, batch_size=16, n_epochs=1, **made).learn(32)
    assert {source.name: source.to_bytes() for source in Hub(hub)} == before


@pytest.mark.parametrize(("native", "warned"), [(False, 1), (True, 0)])
def test_a_processor_that_emulates_bfloat16_is_told_of(monkeypatch, native, warned):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    bf16.warn_where_slow.cache_clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            BF16NatureCNN(space_of((4, 84, 84)), 64)
    bf16.warn_where_slow.cache_clear()
    assert [str(one.message) for one in told] == [bf16.SLOW] * warned
    assert "leave precision='bfloat16' out" in bf16.SLOW
