"""Options of the methods, and what single methods do."""

import math

import numpy as np
import pytest
import torch
from method_cases import LEVELS, OPTIONS, built, hub_for, routed
from stable_baselines3 import PPO
from toys import VECTOR, Toy, target, tiny_hub

from hubrl import (
    BadConfig,
    UnknownName,
    methods,
)
from hubrl.methods import create, options_of, register
from hubrl.methods.base import Method
from hubrl.methods.registry import q_learning
from hubrl.routing.pathways import FRESH
from hubrl.routing.target import TargetSpec

METHODS = pytest.mark.parametrize("name", methods.available())


@METHODS
def test_an_unknown_option_is_refused_with_the_nearest_one(name):
    known = next(iter(options_of(name)), None)
    wrong = "widht" if known is None else known[1:] + "x"
    nearest = "Known: none" if known is None else rf"Did you mean '{known}'\?"
    level = methods.find(name).levels[0]
    with pytest.raises(
        UnknownName, match=rf"Unknown option of method '{name}' '{wrong}'\. {nearest}"
    ):
        built(name, level, **{wrong: 3})
    with pytest.raises(UnknownName, match=rf"Unknown option of method '{name}' '{wrong}'\."):
        hub_for(name).agent(PPO, name, level=level, **OPTIONS.get(name, {}), **{wrong: 3})


@METHODS
def test_every_option_has_a_default_and_is_documented(name):
    method = methods.find(name)
    assert method.summary
    assert method.method_name == name
    assert method.levels
    for option, parameter in options_of(name).items():
        assert parameter.default is not parameter.empty
        assert f"        {option}: " in method.__doc__


@pytest.mark.parametrize(
    "name", [name for name in methods.available() if "width" in options_of(name)]
)
def test_width_is_that_of_the_features(name):
    assert built(name, width=5).features_dim == 5


@LEVELS
def test_every_method_accepts_the_result_of_a_probe(name, level):
    method = built(name, level)
    n_racing = len(method.probe_candidates.names)
    method.apply_probe([True] * n_racing, [0.0] * n_racing)
    assert not method.awaits_probe
    assert method.fresh_alone == (name == "scratch")
    assert routed(method, torch.randn(3, 4)).features.shape == (3, method.features_dim)


@LEVELS
def test_router_and_top_k_are_members_of_every_method(name, level):
    method = built(name, level)
    assert 1 <= method.top_k <= len(method.pathways.names)
    assert (method.router is not None) == (name in ("hub-pathway", "probe-commit", "warm-start"))
    parts = dict(method.named_children())
    assert ("router" in parts) == (method.router is not None)


def test_top_k_is_the_option():
    assert built("hub-pathway", "features", top_k=1).top_k == 1


@pytest.mark.parametrize("name", methods.available())
def test_methods_that_serve_q_learning_work_on_outputs(name):
    assert methods.find(name).q_learning is None or "outputs" in methods.find(name).levels


@pytest.mark.parametrize(
    ("options", "tuned", "served"),
    [({}, False, True), ({"top_k": 1}, False, False), ({}, True, False)],
)
def test_sources_explore_for_dqn_if_frozen_and_without_options(options, tuned, served):
    assert (q_learning("hub-pathway", options, tuned=tuned) == "explorers") == served
    assert q_learning("probe-commit", {}, tuned=False) is None


def test_the_documented_methods_are_the_registered_ones():
    assert set(methods.available()) == {
        *(
            "hub-pathway",
            "scratch",
            "single",
            "uniform",
            "finetune",
            "probe-commit",
            "zoo-tuning",
            "lite-zoo-tuning",
        ),
        *("frozen", "soup", "concat", "kickstart", "progressive", "multipolar", "componet"),
        "warm-start",
        "zero-gates",
    }


def test_an_unknown_method_is_refused_with_the_nearest_one():
    with pytest.raises(UnknownName, match="Unknown method 'unifrom'. Did you mean 'uniform'"):
        methods.find("unifrom")


def test_a_name_is_given_once():
    with pytest.raises(BadConfig, match="Another method is registered as 'uniform'"):
        register("uniform")(type("Other", (Method,), {}))


def test_uniform_weights_are_equal():
    assert routed(built("uniform"), torch.randn(3, 4)).weights.tolist() == [[0.5, 0.5]] * 3
    torch.testing.assert_close(
        routed(built("uniform", fresh=True), torch.randn(3, 4)).weights, torch.full((3, 3), 1 / 3)
    )


def test_uniform_features_are_the_mean_of_what_is_projected():
    method, rows = built("uniform"), torch.randn(3, 4)
    projected = [
        pathway.projection(pathway.source.features(rows)) for pathway in method.pathways.sources
    ]
    torch.testing.assert_close(routed(method, rows).features, (projected[0] + projected[1]) / 2)


def test_scratch_of_the_hubs_size_has_about_as_many_parameters():
    sources = list(tiny_hub(Toy()))
    wide = [source.adapted(name) for source in sources for name in ("one", "two")] * 64
    wanted = sum(
        tensor.numel() for source in wide for tensor in source.encoder.state_dict().values()
    )
    made = create("scratch", wide, TargetSpec(VECTOR), {"hub_sized": True})
    own = sum(parameter.numel() for parameter in made.pathways.fresh.reader.parameters())
    usual = sum(
        parameter.numel()
        for parameter in create(
            "scratch", wide, TargetSpec(VECTOR), {}
        ).pathways.fresh.reader.parameters()
    )
    assert wanted > 2 * usual, "or nothing would have to be made wider"
    assert 0.5 * wanted < own < 2 * wanted


@pytest.mark.parametrize("name", ["kickstart", "multipolar", "componet"])
def test_sources_that_never_act_keep_their_standard_deviations(name):
    hub = tiny_hub(Toy())
    with pytest.raises(
        BadConfig,
        match=f"source_std=0.01 was given for method '{name}', whose sources never act; leave it out.",
    ):
        hub.agent(PPO, name, source_std=0.01)
    model = target(PPO, Toy(), hub.agent(PPO, name))
    assert not model.policy.method.pathways.log_stds


def test_single_names_its_source_or_has_but_one():
    assert built("single", source="sac-1").pathways.names == ["sac-1"]
    assert create("single", list(tiny_hub(Toy()))[:1], TargetSpec(VECTOR), {}).pathways.names == [
        "ppo-0"
    ]
    with pytest.raises(BadConfig, match="Method 'single' needs source=..., one of ppo-0, sac-1"):
        create("single", list(tiny_hub(Toy())), TargetSpec(VECTOR), {})
    with pytest.raises(UnknownName, match="Unknown source 'sac1'. Did you mean 'sac-1'"):
        built("single", source="sac1")


def test_scratch_is_alone():
    method = built("scratch")
    assert method.fresh_alone
    assert method.pathways.names == [FRESH]


@pytest.mark.parametrize("level", ["features", "outputs"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_top_k_pathways_are_active(level, top_k):
    method = built("hub-pathway", level, top_k=top_k)
    computed = routed(method, torch.randn(20, 4), noise_key=1)
    assert ((computed.weights > 0).sum(dim=1) == top_k).all()


def test_a_new_hub_without_noise_weighs_all_alike_and_with_noise_all_differently():
    method = built("hub-pathway", "outputs")
    rows = torch.randn(20, 4)
    torch.testing.assert_close(routed(method, rows).weights, torch.full((20, 3), 1 / 3))
    noisy = routed(method, rows, noise_key=2).weights
    assert torch.equal(noisy, routed(method, rows, noise_key=2).weights)
    assert noisy.std(dim=0).min() > 0.01
    quiet = built("hub-pathway", "outputs", noise=False)
    torch.testing.assert_close(routed(quiet, rows, noise_key=2).weights, torch.full((20, 3), 1 / 3))


def test_the_exploration_loss_is_the_coefficient_times_the_negative_entropy():
    rows = torch.randn(20, 4)
    assert routed(built("hub-pathway", explore_coef=2.0), rows).loss.item() == pytest.approx(
        -2 * np.log(3), abs=1e-6
    )
    assert not routed(built("hub-pathway", explore_coef=0.0), rows).loss.requires_grad


def test_what_a_probe_dropped_is_never_active_and_not_explored():
    method = built("hub-pathway", "outputs", explore_coef=1.0)
    assert method.awaits_probe
    method.apply_probe([True, False, True], [0.0, 0.0, -4.0])
    assert not method.awaits_probe
    assert not method.fresh_alone
    computed = routed(method, torch.randn(50, 4))
    assert (computed.weights[:, 1] == 0).all()
    share = torch.tensor([0.0, -4.0]).softmax(dim=0)
    torch.testing.assert_close(computed.weights[:, [0, 2]], share.expand(50, 2))
    torch.testing.assert_close(computed.loss, (share * share.log()).sum())
    with pytest.raises(BadConfig, match="A probe dropped every pathway"):
        method.apply_probe([False, False, False], [0.0, 0.0, 0.0])


def test_hubs_without_a_fresh_pathway_await_no_probe():
    assert not built("hub-pathway", "outputs", fresh=False).awaits_probe
    with pytest.raises(BadConfig, match="A hub without sources was given"):
        create("hub-pathway", [], TargetSpec(VECTOR), {"fresh": False})


def test_the_tally_adds_batches_up():
    tally = built("uniform").routing_stats
    for times in (1, 200):
        tally.reset()
        for _ in range(times):
            tally.add(torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log(), torch.tensor(2.0))
            tally.add(torch.tensor([[0.0, 1.0]]).log())
        sums = tally.sums
        assert (sums.rows, sums.passes, sums.loss) == (3 * times, times, 2.0 * times)
        assert sums.weight.tolist() == [1.5 * times, 1.5 * times]
        assert sums.active.tolist() == [2 * times, 2 * times]
        assert sums.entropy == pytest.approx(times * np.log(2), rel=1e-5)
        assert sums.last.tolist() == [[0.0, 1.0]]
    tally.reset()
    assert (tally.sums.rows, tally.sums.weight.tolist()) == (0, [0.0, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"top_k": "2"},
            "top_k='2' was given for method 'hub-pathway': Input should be a valid integer.",
        ),
        ({"top_k": 1.5}, "top_k=1.5 was given for method 'hub-pathway'"),
        (
            {"hidden_dim": 0},
            "hidden_dim=0 was given for method 'hub-pathway': Input should be greater than or equal to 1.",
        ),
        ({"explore_coef": -1.0}, "explore_coef=-1.0 was given .* greater than or equal to 0"),
        ({"explore_coef": math.nan}, "explore_coef=nan was given"),
        ({"fresh": "no"}, "fresh='no' was given .*: Input should be a valid boolean"),
        ({"width": "a", "level": "features"}, "width='a' was given"),
        ({"source_std": 0.0}, "source_std: Input should be greater than 0"),
        ({"source_lr": -1.0, "tuned": True}, "source_lr: Input should be greater than 0"),
        ({"precision": "fp16"}, "precision: Input should be 'float32' or 'bfloat16'"),
        (
            {"method": "kickstart", "coef": "x"},
            "coef='x' was given for method 'kickstart': Input should be a valid number",
        ),
        (
            {"method": "single", "source": 0},
            "source=0 was given for method 'single': Input should be a valid string",
        ),
    ],
    ids=str,
)
def test_values_that_an_option_cannot_have_are_refused(options, message):
    with pytest.raises(BadConfig, match=message):
        tiny_hub(Toy()).agent(PPO, **options)


def test_numbers_of_numpy_are_numbers():
    assert tiny_hub(Toy()).agent(PPO, top_k=np.int64(2), explore_coef=np.float64(0.1))
