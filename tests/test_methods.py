"""The contract of a transfer method, for every method that is registered."""

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO
from toys import PARTS, STEER, VECTOR, Toy, target, tiny, tiny_hub, toy_for

from hubrl import BadConfig, Hub, UnknownName, methods
from hubrl.methods import create, options_of, register
from hubrl.methods.base import Method
from hubrl.pathways import FRESH, Target

OPTIONS = {"single": {"source": "ppo-0"}, "finetune": {"source": "ppo-0"}}

METHODS = pytest.mark.parametrize("name", methods.available())
LEVELS = pytest.mark.parametrize("level", ["features", "outputs"])


def built(name, level="features", hub=None, **options):
    target_of = Target(VECTOR, level, STEER, 0.05)
    return create(name, list(hub or tiny_hub(Toy())), target_of, OPTIONS.get(name, {}) | options)


def routed(method, rows, noise_key=None):
    pathways = method.pathways
    fresh = torch.ones(len(rows), pathways.width) if pathways.target.level == "outputs" and pathways.names[-1] == FRESH else None
    return method(rows, fresh=fresh, noise_key=noise_key)


@METHODS
@LEVELS
def test_every_method_says_what_was_routed_in_the_agreed_shapes(name, level):
    method = built(name, level)
    n_pathways = len(method.pathways.names)
    said = routed(method, torch.randn(7, 4), noise_key=1)
    assert said.speech.shape == (7, n_pathways, method.pathways.width)
    assert said.weights.shape == (7, n_pathways)
    assert said.features.shape == (7, method.features_dim)
    assert said.loss.shape == ()
    assert (said.weights >= 0).all()
    torch.testing.assert_close(said.weights.sum(dim=1), torch.ones(7))
    torch.testing.assert_close(said.features, torch.einsum("bpw,bp->bw", said.speech, said.weights))
    assert (said.speech[said.weights == 0] == 0).all()


@METHODS
def test_every_method_reads_images_and_dicts(name):
    env = Toy(PARTS)
    model = tiny(PPO, env)
    space = model.observation_space
    method = create(name, list(Hub.from_agents([model])), Target(space), OPTIONS.get(name, {}))
    rows = {key: torch.rand(3, *part.shape) for key, part in space.spaces.items()}
    assert method(rows).features.shape == (3, method.features_dim)


@METHODS
@LEVELS
def test_every_method_learns_and_leaves_the_sources_as_they_were(name, level, tmp_path):
    algorithm = PPO if level == "outputs" else DQN
    env = toy_for(algorithm)
    hub = tiny_hub(env)
    before = [source.tensors() for source in hub]
    made = hub.agent(algorithm, name, level=level, **OPTIONS.get(name, {}))
    model = target(algorithm, env, made)
    parameters = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(32)
    assert any(not torch.equal(old, new) for old, new in zip(parameters, model.policy.parameters(), strict=True))
    for source, tensors in zip(hub, before, strict=True):
        assert all(torch.equal(tensors[key], tensor) for key, tensor in source.tensors().items())
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", device="cpu")
    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert np.array_equal(model.predict(rows, deterministic=True)[0], loaded.predict(rows, deterministic=True)[0])


@METHODS
@LEVELS
def test_one_seed_gives_one_result(name, level):
    algorithm = PPO if level == "outputs" else DQN
    env = toy_for(algorithm)
    hub = tiny_hub(env)
    made = [hub.agent(algorithm, name, level=level, **OPTIONS.get(name, {})) for _ in range(2)]
    one, other = (target(algorithm, toy_for(algorithm), kwargs, seed=5).learn(32).policy.state_dict() for kwargs in made)
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@METHODS
def test_an_unknown_option_is_refused_with_the_nearest_one(name):
    known = "width"
    assert known in options_of(name)
    with pytest.raises(UnknownName, match=rf"Unknown option of method '{name}' 'widht'. Did you mean '{known}'\?"):
        tiny_hub(Toy()).policy_kwargs(name, **OPTIONS.get(name, {}), widht=3)
    with pytest.raises(UnknownName, match="Did you mean"):
        built(name, widht=3)


@METHODS
def test_every_option_has_a_default_and_is_documented(name):
    method = methods.find(name)
    assert method.summary
    for option, parameter in options_of(name).items():
        assert parameter.default is not parameter.empty
        assert f"        {option}: " in method.__doc__


@METHODS
def test_width_is_that_of_the_features(name):
    assert built(name, width=5).features_dim == 5


@METHODS
def test_a_probe_may_tell_any_method_what_it_found_out(name):
    method = built(name, "outputs")
    n_pathways = len(method.pathways.names)
    method.trust([True] * n_pathways, [0.0] * n_pathways)
    assert not method.awaits_probe
    assert routed(method, torch.randn(3, 4)).weights.shape == (3, n_pathways)


def test_there_are_the_methods_that_the_documentation_speaks_of():
    assert set(methods.available()) >= {"hub-pathway", "scratch", "single", "uniform"}


def test_an_unknown_method_is_refused_with_the_nearest_one():
    with pytest.raises(UnknownName, match="Unknown method 'unifrom'. Did you mean 'uniform'"):
        methods.find("unifrom")


def test_a_name_is_given_once():
    with pytest.raises(BadConfig, match="Another method is registered as 'uniform'"):
        register("uniform")(type("Other", (Method,), {}))


def test_uniform_weights_are_equal():
    assert routed(built("uniform"), torch.randn(3, 4)).weights.tolist() == [[0.5, 0.5]] * 3
    torch.testing.assert_close(routed(built("uniform", fresh=True), torch.randn(3, 4)).weights, torch.full((3, 3), 1 / 3))


def test_single_names_its_source_or_has_but_one():
    assert built("single", source="sac-1").pathways.names == ["sac-1"]
    assert create("single", list(tiny_hub(Toy()))[:1], Target(VECTOR), {}).pathways.names == ["ppo-0"]
    with pytest.raises(BadConfig, match="Method 'single' needs source=..., one of ppo-0, sac-1"):
        create("single", list(tiny_hub(Toy())), Target(VECTOR), {})
    with pytest.raises(UnknownName, match="Unknown source 'sac1'. Did you mean 'sac-1'"):
        built("single", source="sac1")


def test_scratch_is_alone():
    method = built("scratch")
    assert method.fresh_alone
    assert method.pathways.names == [FRESH]


@LEVELS
@pytest.mark.parametrize("top_k", [1, 2])
def test_top_k_pathways_are_active(level, top_k):
    method = built("hub-pathway", level, top_k=top_k)
    said = routed(method, torch.randn(20, 4), noise_key=1)
    assert ((said.weights > 0).sum(dim=1) == top_k).all()


def test_a_new_hub_without_noise_weighs_all_alike_and_with_noise_all_differently():
    method = built("hub-pathway", "outputs")
    rows = torch.randn(20, 4)
    torch.testing.assert_close(routed(method, rows).weights, torch.full((20, 3), 1 / 3))
    noisy = routed(method, rows, noise_key=2).weights
    assert torch.equal(noisy, routed(method, rows, noise_key=2).weights)
    assert noisy.std(dim=0).min() > 0.01
    quiet = built("hub-pathway", "outputs", noise=False)
    torch.testing.assert_close(routed(quiet, rows, noise_key=2).weights, torch.full((20, 3), 1 / 3))


def test_the_exploration_loss_is_the_coefficient_times_the_chosen_one():
    rows = torch.randn(20, 4)
    for exploration, expected in (("entropy", -np.log(3)), ("load", 0.0)):
        method = built("hub-pathway", exploration=exploration, explore_coef=2.0)
        assert routed(method, rows).loss.item() == pytest.approx(2 * expected, abs=1e-6)
    assert not routed(built("hub-pathway", explore_coef=0.0), rows).loss.requires_grad
    with pytest.raises(BadConfig, match="exploration='entrpy' was given; expected 'entropy' or 'load'"):
        built("hub-pathway", exploration="entrpy")


def test_what_a_probe_dropped_is_never_active_and_not_explored():
    method = built("hub-pathway", "outputs", explore_coef=1.0)
    assert method.awaits_probe
    method.trust([True, False, True], [0.0, 0.0, -4.0])
    assert not method.awaits_probe
    assert not method.fresh_alone
    said = routed(method, torch.randn(50, 4))
    assert (said.weights[:, 1] == 0).all()
    share = torch.tensor([0.0, -4.0]).softmax(dim=0)
    torch.testing.assert_close(said.weights[:, [0, 2]], share.expand(50, 2))
    torch.testing.assert_close(said.loss, (share * share.log()).sum())
    with pytest.raises(BadConfig, match="A probe dropped every pathway"):
        method.trust([False, False, False], [0.0, 0.0, 0.0])


def test_hubs_without_a_fresh_pathway_await_no_probe():
    assert not built("hub-pathway", "outputs", fresh=False).awaits_probe
    with pytest.raises(BadConfig, match="A hub without sources was given"):
        create("hub-pathway", [], Target(VECTOR), {"fresh": False})


def test_the_tally_adds_batches_up():
    tally = built("uniform").tally
    tally.count(torch.tensor([[1.0, 0.0], [0.5, 0.5]]), torch.tensor(2.0))
    tally.count(torch.tensor([[0.0, 1.0]]))
    assert (tally.rows, tally.passes, tally.loss) == (3, 1, 2.0)
    assert tally.weight.tolist() == [1.5, 1.5]
    assert tally.active.tolist() == [2, 2]
    assert tally.entropy == pytest.approx(np.log(2))
    tally.reset()
    assert (tally.rows, tally.weight.tolist()) == (0, [0.0, 0.0])
