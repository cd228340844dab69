"""Sources that are trained further, at rates of their own, and the optimizers that step them."""

import copy

import numpy as np
import pytest
import torch
from checks import never_offered
from extractor_cases import assert_same, differs, frozen, observe, weights_in
from stable_baselines3 import A2C, DQN, PPO, SAC
from toys import Toy, target, tiny_hub, toy_for

from hubrl import SourcesNotLoaded
from hubrl.nn.optimizers import HubAdam, HubRMSprop


def test_a_tuned_hub_without_weights_refuses_to_run():
    env = toy_for(DQN)
    model = target(DQN, env, never_offered(tiny_hub(env).agent(DQN, tuned=True)))
    with pytest.raises(SourcesNotLoaded):
        model.predict(observe(env.observation_space), deterministic=True)


@pytest.mark.parametrize(
    "algorithm", [PPO, A2C, DQN, SAC], ids=lambda algorithm: algorithm.__name__
)
@pytest.mark.parametrize("level", ["features", "outputs"])
def test_tuned_sources_learn_in_the_model_and_stay_as_they_were_in_the_hub(
    algorithm, level, tmp_path
):
    if level == "outputs" and algorithm not in (PPO, A2C):
        pytest.skip("it learns from features")
    env = toy_for(algorithm)
    hub = tiny_hub(env)
    held = weights_in(hub)
    made = hub.agent(algorithm, level=level, tuned=True, source_lr=0.5)
    model = target(algorithm, env, made)
    assert not differs(frozen(model.policy), held)
    model.learn(64)
    after = frozen(model.policy)
    assert {name.split(".pathways.sources.")[1][0] for name in differs(after, held)} == {"0", "1"}
    assert_same(held, weights_in(hub))
    model.save(tmp_path / "model.zip")
    loaded = algorithm.load(tmp_path / "model.zip", env=env, device="cpu")
    rows = observe(env.observation_space)
    assert np.array_equal(
        model.predict(rows, deterministic=True)[0], loaded.predict(rows, deterministic=True)[0]
    )
    assert_same(after, frozen(loaded.policy))
    loaded.learn(32)


def test_tuned_sources_are_in_the_optimizer_at_their_own_rate():
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO, tuned=True, source_lr=0.25))
    scales = {
        parameter: group["lr_scale"]
        for group in model.policy.optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.policy.named_parameters():
        assert scales[parameter] == (0.25 if ".source." in name else 1.0)


@pytest.mark.parametrize(
    ("own", "theirs"), [(HubAdam, torch.optim.Adam), (HubRMSprop, torch.optim.RMSprop)]
)
def test_a_step_is_exactly_that_of_the_plain_optimizer_at_the_scaled_rate(own, theirs):
    starts = [torch.randn(3), torch.randn(3), torch.randn(3)]
    mixed, plain = ([torch.nn.Parameter(start.clone()) for start in starts] for _ in range(2))
    mixed[1].lr_scale = 0.125
    # HubAdam steps by the fused kernel by default, which rounds in another place.
    extra = {"fused": True} if own is HubAdam else {"alpha": 0.99, "eps": 1e-5}
    scaled = own(mixed, lr=0.01)
    alone = [
        theirs([parameter], lr=rate, **extra)
        for parameter, rate in zip(plain, (0.01, 0.00125, 0.01), strict=True)
    ]
    for step in range(5):
        for group in scaled.param_groups:
            group["lr"] = 0.01  # as SB3 does before every update
        for parameters in (mixed, plain):
            for number, parameter in enumerate(parameters):
                parameter.grad = torch.sin(parameter.detach() * (number + step + 1))
        scaled.step()
        for optimizer in alone:
            optimizer.step()
        assert all(torch.equal(one, other) for one, other in zip(mixed, plain, strict=True))
        assert all(group["lr"] == 0.01 for group in scaled.param_groups)


def test_an_optimizer_goes_on_where_it_was_saved():
    def parameters():
        made = [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))]
        made[1].lr_scale = 0.5
        return made

    def step(optimizer, members):
        for member in members:
            member.grad = member.detach() * 2
        optimizer.step()

    members = parameters()
    optimizer = HubAdam(members, lr=0.1)
    step(optimizer, members)
    again = parameters()
    resumed = HubAdam(again, lr=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for member, saved in zip(again, members, strict=True):
        member.data.copy_(saved)
    for held, owner in ((members, optimizer), (again, resumed)):
        step(owner, held)
    assert all(torch.equal(one, other) for one, other in zip(members, again, strict=True))
