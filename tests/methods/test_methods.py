"""The contract of a transfer method, for every method that is registered."""

import math
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from checks import Ratios, never_offered
from recorded import RecordedScalars
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.logger import Logger
from toys import CHOOSE, IMAGE, PARTS, STEER, VECTOR, Toy, target, tiny, tiny_hub

from hubrl import (
    BadConfig,
    HubCallback,
    SourcesNotLoaded,
    SpaceMismatch,
    UnknownName,
    load_agent,
    methods,
)
from hubrl.methods import create, options_of, register
from hubrl.methods.base import Method
from hubrl.methods.registry import q_learning
from hubrl.policies.extractor import parts_in
from hubrl.routing.pathways import FRESH
from hubrl.routing.target import TargetSpec
from hubrl.sources import shared

OPTIONS = {
    "single": {"source": "ppo-0"},
    "finetune": {"source": "ppo-0"},
    "frozen": {"source": "ppo-0"},
}
HUBS = {name: (PPO, PPO) for name in ("zoo-tuning", "lite-zoo-tuning", "soup", "progressive")}
"""Methods whose sources have to be alike."""
LOSSES = {"hub-pathway": "loss/exploration", "kickstart": "loss/kickstart"}
CHAINS = ("progressive",)
"""Methods that read no Dict observations."""
TEACHES = ("hub-pathway", "finetune", "kickstart", "multipolar", "componet")
"""Methods through which DQN hears outputs."""

ACTIONS = {"box": STEER, "discrete": CHOOSE}
METHODS = pytest.mark.parametrize("name", methods.available())
SERVED = [(name, level) for name in methods.available() for level in methods.find(name).levels]
LEVELS = pytest.mark.parametrize(("name", "level"), SERVED)
REFUSED = [
    (name, level)
    for name in methods.available()
    for level in ("features", "outputs")
    if (name, level) not in SERVED
]

ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


class Run(NamedTuple):
    """A method that an algorithm learns through."""

    name: str
    level: str
    algorithm: Any
    acts: str

    @property
    def actions(self):
        return ACTIONS[self.acts]

    @property
    def label(self):
        return f"{self.name}-{self.level}-{self.algorithm.__name__}-{self.acts}"


RUNS = [
    *(
        Run(name, "features", *how)
        for name, level in SERVED
        if level == "features"
        for how in ((PPO, "box"), (DQN, "discrete"))
    ),
    *(
        Run(name, "outputs", PPO, acts)
        for name, level in SERVED
        if level == "outputs"
        for acts in ("box", "discrete")
    ),
    *(Run(name, "outputs", DQN, "discrete") for name in TEACHES),
]
EVERY_RUN = pytest.mark.parametrize("run", RUNS, ids=lambda run: run.label)


class Learned(NamedTuple):
    """What became of a run."""

    hub: Any
    held: list
    before: dict
    after: dict
    model: Any
    memory: RecordedScalars
    ratios: Ratios | None = None


@cache
def hub_of(algorithms, acts):
    return tiny_hub(Toy(actions=ACTIONS[acts]), algorithms)


def hub_for(name, acts="box"):
    return hub_of(HUBS.get(name), acts)


def options_for(run):
    own_q_values = run.name == "finetune" and run.level == "outputs" and run.algorithm is DQN
    return {"source": "dqn-1"} if own_q_values else OPTIONS.get(run.name, {})


def made_for(run, hub):
    return hub.agent(run.algorithm, run.name, level=run.level, **options_for(run))


def trained(run, steps=64, seed=0):
    env = Toy(actions=run.actions)
    hub = hub_for(run.name, run.acts)
    held = [source.tensors() for source in hub]
    quick = {"n_epochs": 1} if run.algorithm is PPO else {}
    model = target(run.algorithm, env, made_for(run, hub), seed, learning_rate=1e-2, **quick)
    before = state_of(model)
    memory = RecordedScalars()
    model.set_logger(Logger(None, [memory]))
    ratios = [Ratios()] if (run.algorithm, run.level) == (PPO, "outputs") else []
    model.learn(
        steps,
        callback=[HubCallback(probe_share=0.0, warmup_share=0.0, log_every=1), *ratios],
        log_interval=1,
    )
    return Learned(hub, held, before, state_of(model), model, memory, *ratios)


def state_of(model):
    return {
        name: torch.nan_to_num(tensor.clone()) for name, tensor in model.policy.state_dict().items()
    }


@cache
def learned(run):
    return trained(run)


@pytest.fixture
def file(run, tmp_path):
    """Where a run is saved."""
    learned(run).model.save(tmp_path / "model.zip")
    return tmp_path / "model.zip"


@pytest.fixture
def no_source_at_hand(monkeypatch):
    monkeypatch.setattr(shared, "_registered", {})
    monkeypatch.setattr(shared, "_shared", WeakValueDictionary())


def built(name, level="features", hub=None, **options):
    target_of = TargetSpec(VECTOR, level, STEER, 0.05)
    return create(name, list(hub or hub_for(name)), target_of, OPTIONS.get(name, {}) | options)


def routed(method, rows, noise_key=None):
    pathways = method.pathways
    fresh = (
        torch.ones(len(rows), pathways.width)
        if pathways.target.level == "outputs" and pathways.names[-1] == FRESH
        else None
    )
    noise = None if noise_key is None else method.draw_noise(rows, noise_key)
    return method(rows, fresh=fresh, noise=noise)


@LEVELS
def test_every_method_returns_its_routing_in_the_agreed_shapes(name, level):
    method = built(name, level)
    n_pathways = len(method.pathways.names)
    said = routed(method, torch.randn(7, 4), noise_key=1)
    assert said.features.shape == (7, method.features_dim)
    assert level == "features" or method.features_dim == method.pathways.width == 4
    assert said.loss.shape == ()
    if said.weights is None:
        assert said.pathway_outputs is None
        return
    assert said.pathway_outputs.shape == (7, n_pathways, method.pathways.width)
    assert said.weights.shape == (7, n_pathways)
    assert (said.weights >= 0).all()
    torch.testing.assert_close(said.weights.sum(dim=1), torch.ones(7))
    torch.testing.assert_close(
        said.features, torch.einsum("bpw,bp->bw", said.pathway_outputs, said.weights)
    )
    assert (said.pathway_outputs[said.weights == 0] == 0).all()


@LEVELS
@pytest.mark.parametrize("observations", [IMAGE, PARTS], ids=["image", "dict"])
def test_every_method_reads_images_and_dicts(name, level, observations):
    env = Toy(observations)
    space = tiny(PPO, env).observation_space
    sources = list(tiny_hub(env, (PPO, PPO)))
    if name in CHAINS and observations is PARTS:
        with pytest.raises(
            SpaceMismatch,
            match=rf"Method '{name}' reads chains of layers, and source 'ppo-0' is not one; leave it out\.",
        ):
            create(name, sources, TargetSpec(space, level, STEER), {})
        return
    method = create(name, sources, TargetSpec(space, level, STEER, 0.05), OPTIONS.get(name, {}))
    parts = space.spaces if observations is PARTS else {"": space}
    rows = {key: torch.rand(3, *part.shape) for key, part in parts.items()}
    fresh = (
        torch.ones(3, method.pathways.width)
        if level == "outputs" and method.pathways.names[-1] == FRESH
        else None
    )
    said = method(rows if observations is PARTS else rows[""], fresh=fresh)
    assert said.features.shape == (3, method.features_dim)


@EVERY_RUN
def test_every_method_learns(run):
    done = learned(run)
    learns = {name for name, _ in done.model.policy.named_parameters()}
    assert any(not torch.equal(done.before[name], done.after[name]) for name in learns)
    assert all(torch.isfinite(done.after[name]).all() for name in learns)


@EVERY_RUN
def test_the_hub_is_left_as_it_was(run):
    done = learned(run)
    for source, tensors in zip(done.hub, done.held, strict=True):
        assert all(torch.equal(tensors[name], tensor) for name, tensor in source.tensors().items())


@EVERY_RUN
def test_sources_in_the_model_stay_as_they_were_unless_the_method_tunes_them(run):
    done = learned(run)
    changed = [
        name
        for name, tensor in done.after.items()
        if ".source." in f".{name}" and not torch.equal(done.before[name], tensor)
    ]
    assert bool(changed) == methods.find(run.name).tunes


@EVERY_RUN
def test_a_saved_model_is_what_it_was(run, file):
    assert_same(learned(run).model, run.algorithm.load(file, device="cpu"))


@EVERY_RUN
@pytest.mark.usefixtures("no_source_at_hand")
def test_a_saved_model_is_what_it_was_where_its_sources_are_not_at_hand(run, file):
    assert_same(learned(run).model, run.algorithm.load(file, device="cpu"))


def assert_same(model, loaded):
    state = state_of(loaded)
    assert all(torch.equal(tensor, state[name]) for name, tensor in state_of(model).items())
    assert np.array_equal(
        model.predict(ROWS, deterministic=True)[0], loaded.predict(ROWS, deterministic=True)[0]
    )


@EVERY_RUN
@pytest.mark.usefixtures("no_source_at_hand")
def test_what_a_method_trained_is_a_source_of_the_next_hub(run, file):
    model = learned(run).model
    if run.acts == "discrete" and getattr(model.policy, "holds", False):
        pytest.skip("where pathways are held, a source speaks as their mixture")
    expected = model.predict(ROWS, deterministic=True)[0]
    np.testing.assert_allclose(
        load_agent(file).predict(ROWS, deterministic=True)[0], expected, atol=1e-5
    )


@EVERY_RUN
def test_sources_without_weights_do_not_act(run):
    env = Toy(actions=run.actions)
    if run.name == "scratch":
        pytest.skip("it has none")
    with pytest.raises(SourcesNotLoaded, match=r"never arrived; load a saved model"):
        target(run.algorithm, env, never_offered(made_for(run, hub_for(run.name, run.acts)))).learn(
            64, callback=HubCallback()
        )


@pytest.mark.parametrize(
    "run",
    [
        run
        for run in RUNS
        if (run.algorithm is DQN) != (run.acts == "box" and run.level == "outputs")
    ],
    ids=lambda run: run.label,
)
def test_one_seed_gives_one_result(run):
    one, other = learned(run).after, trained(run).after
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@EVERY_RUN
def test_every_method_is_logged(run):
    done = learned(run)
    tags = {tag for record in done.memory.records for tag in record}
    if run.algorithm is DQN and run.level == "outputs":
        assert "pathway/weight/fresh" in tags
    for method in parts_in(done.model.policy, Method)[:1]:
        assert set(method.measures()) <= tags
        weighs = method.routing_stats.names if has_weights(run) else []
        assert {
            f"pathway/{what}/{name}" for what in ("weight", "active") for name in weighs
        } <= tags
        assert ("pathway/entropy_nats" in tags) == has_weights(run)


def has_weights(run):
    return routed(built(run.name, run.level), torch.zeros(2, 4)).weights is not None


@EVERY_RUN
def test_a_loss_is_logged_where_one_is_added(run):
    values = [
        value
        for tag in ("loss/exploration", "loss/kickstart")
        for value in learned(run).memory.values(tag)
    ]
    if run.name in LOSSES and not (
        run.name == "hub-pathway" and run.algorithm is DQN and run.level == "outputs"
    ):
        assert learned(run).memory.values(LOSSES[run.name])[0] != 0
    else:
        assert not any(values)


@pytest.mark.parametrize(
    "run",
    [run for run in RUNS if run.algorithm is PPO and run.level == "outputs"],
    ids=lambda run: run.label,
)
def test_the_ratio_is_one_at_the_start_of_every_update(run):
    assert learned(run).ratios.rollouts == 2
    assert learned(run).ratios.greatest < 1e-5


@pytest.mark.parametrize(("name", "level"), REFUSED)
def test_a_level_at_which_a_method_does_not_serve_is_refused(name, level):
    hub = hub_for(name)
    served = " or ".join(methods.find(name).levels)
    sentence = rf"Method '{name}' was asked to work at the level of {level}; it works at the level of {served} alone\."
    with pytest.raises(BadConfig, match=sentence):
        built(name, level)
    with pytest.raises(BadConfig, match=sentence):
        hub.agent(PPO, name, level=level, **OPTIONS.get(name, {}))
    if level == "features":
        with pytest.raises(BadConfig, match=sentence):
            hub.policy_kwargs(name, **OPTIONS.get(name, {}))


@pytest.mark.parametrize(
    "name", [name for name, level in SERVED if level == "outputs" and name not in TEACHES]
)
def test_dqn_refuses_the_outputs_of_methods_that_it_cannot_follow(name):
    env = Toy(actions=CHOOSE)
    otherwise = (
        r"use level='features'\."
        if "features" in methods.find(name).levels
        else r"use one of these\."
    )
    with pytest.raises(
        BadConfig,
        match=rf"DQN cannot use outputs through method '{name}' as it was given, .*{otherwise}",
    ):
        target(
            DQN,
            env,
            hub_for(name, "discrete").agent(DQN, name, level="outputs", **OPTIONS.get(name, {})),
        )


@pytest.mark.parametrize(
    "name", [name for name in methods.available() if methods.find(name).levels == ("outputs",)]
)
def test_other_algorithms_are_refused_where_outputs_are_needed(name):
    with pytest.raises(
        BadConfig,
        match=rf"SAC cannot use outputs; PPO, A2C and DQN can, method '{name}' needs them\.",
    ):
        hub_for(name).agent(SAC, name)


@pytest.mark.parametrize(
    "name", [name for name in methods.available() if methods.find(name).keeps_frozen]
)
def test_methods_that_keep_their_sources_frozen_refuse_to_tune_them(name):
    with pytest.raises(
        BadConfig,
        match=rf"tuned=True was given for method '{name}', whose sources stay frozen; leave it out\.",
    ):
        hub_for(name).agent(PPO, name, tuned=True, **OPTIONS.get(name, {}))


TUNABLE = [
    run
    for run in RUNS
    if not methods.find(run.name).keeps_frozen
    and run.name not in ("scratch", "hub-pathway", "probe-commit")
]


@pytest.mark.parametrize(
    "run", [run for run in TUNABLE if run.acts == "discrete"], ids=lambda run: run.label
)
def test_sources_that_are_trained_further_learn_at_their_own_rate(run):
    env = Toy(actions=run.actions)
    made = hub_for(run.name, run.acts).agent(
        run.algorithm, run.name, level=run.level, tuned=True, source_lr=0.25, **options_for(run)
    )
    groups = target(run.algorithm, env, made).policy.optimizer.param_groups
    assert 0.25 in [group.get("lr_scale") for group in groups]


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
    assert (method.router is not None) == (name in ("hub-pathway", "probe-commit"))
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
    said = routed(method, torch.randn(50, 4))
    assert (said.weights[:, 1] == 0).all()
    share = torch.tensor([0.0, -4.0]).softmax(dim=0)
    torch.testing.assert_close(said.weights[:, [0, 2]], share.expand(50, 2))
    torch.testing.assert_close(said.loss, (share * share.log()).sum())
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
