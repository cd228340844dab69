"""The contract of a transfer method, for every method that is registered."""

from functools import cache
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
import pytest
import torch
from checks import Ratios, never_offered
from method_cases import LEVELS, OPTIONS, REFUSED, RUNS, SERVED, TEACHES, built, hub_for, routed
from recorded import RecordedScalars
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.logger import Logger
from toys import CHOOSE, IMAGE, PARTS, STEER, Toy, target, tiny, tiny_hub

from hubrl import (
    BadConfig,
    HubCallback,
    SourcesNotLoaded,
    SpaceMismatch,
    load_agent,
    methods,
)
from hubrl.methods import create
from hubrl.methods.base import Method
from hubrl.policies.extractor import parts_in
from hubrl.routing.pathways import FRESH
from hubrl.routing.target import TargetSpec
from hubrl.sources import shared

LOSSES = {"hub-pathway": "loss/exploration", "kickstart": "loss/kickstart"}
CHAINS = ("progressive",)
"""Methods that read no Dict observations."""

ROWS = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
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


@LEVELS
def test_every_method_returns_its_routing_in_the_agreed_shapes(name, level):
    method = built(name, level)
    n_pathways = len(method.pathways.names)
    computed = routed(method, torch.randn(7, 4), noise_key=1)
    assert computed.features.shape == (7, method.features_dim)
    assert level == "features" or method.features_dim == method.pathways.width == 4
    assert computed.loss.shape == ()
    if computed.weights is None:
        assert computed.pathway_outputs is None
        return
    assert computed.pathway_outputs.shape == (7, n_pathways, method.pathways.width)
    assert computed.weights.shape == (7, n_pathways)
    assert (computed.weights >= 0).all()
    torch.testing.assert_close(computed.weights.sum(dim=1), torch.ones(7))
    torch.testing.assert_close(
        computed.features, torch.einsum("bpw,bp->bw", computed.pathway_outputs, computed.weights)
    )
    assert (computed.pathway_outputs[computed.weights == 0] == 0).all()


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
    computed = method(rows if observations is PARTS else rows[""], fresh=fresh)
    assert computed.features.shape == (3, method.features_dim)


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
    copied = getattr(done.model.policy, "is_copy_from_start", False)
    assert bool(changed) == (methods.find(run.name).tunes and not copied)


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
