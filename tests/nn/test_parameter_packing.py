"""Many small parameters stepped as few: nothing else is different."""

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn
from toys import CHOOSE, STEER, VECTOR, Toy, target, tiny_hub

from hubrl.nn.optimizers import AutogradInputs, HubAdam, ParameterPack
from hubrl.policies.on_policy.step import RecordedBatch, StepRecord, TrainingState
from hubrl.training.callback import HubCallback


def parameters(*shapes):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def test_members_share_memory_until_they_are_released():
    members = parameters((2, 3), (2,))
    before = [member.detach().clone() for member in members]
    pack = ParameterPack(members)
    assert pack.flat.shape == (8,)
    with torch.no_grad():
        pack.flat.add_(1.0)
    assert all(torch.equal(member, own + 1.0) for member, own in zip(members, before, strict=True))
    pack.flat.grad = torch.arange(8.0)
    pack.release()
    assert members[0].grad.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert members[1].grad.tolist() == [6.0, 7.0]
    with torch.no_grad():
        pack.flat.zero_()
    assert torch.equal(members[0], before[0] + 1.0), "it has memory of its own again"
    assert not any(hasattr(member, "pack") for member in members)


def test_members_that_lie_below_one_another_are_one_block():
    upper, lower, bias, other = parameters((2, 3), (1, 3), (3,), (3,))
    pack = ParameterPack([upper, lower, bias, other])
    block = pack.block([upper, lower])
    assert torch.equal(block, torch.cat([upper, lower]))
    with torch.no_grad():
        lower.zero_()
    assert (block[2] == 0).all(), "a view, not a copy"
    assert torch.equal(pack.block([bias, other]).view(2, 3), torch.stack([bias, other]))
    assert pack.block([upper, bias]) is None
    assert pack.block([lower, upper]) is None, "in another order they are no block"
    assert pack.block([nn.Parameter(torch.zeros(3))]) is None


def test_what_is_handed_to_autograd_is_packs_or_each_parameter():
    first, second, third = parameters((2, 2), (2,), (3,))
    each = [torch.full((2, 2), 1.0), torch.full((2,), 2.0), torch.full((3,), 3.0)]
    assert AutogradInputs([first, second, third]).tensors == [first, second, third]
    assert AutogradInputs([first, second, third]).gradients(each) == each
    pack = ParameterPack([first, third])
    op_inputs = AutogradInputs([first, second, third])
    assert [id(given) for given in op_inputs.tensors] == [id(pack.flat), id(second)]
    whole, single = op_inputs.gradients(each)
    assert whole.tolist() == [1.0] * 4 + [3.0] * 3
    assert single is each[1]
    assert op_inputs.gradients([None, each[1], None])[0] is None


def give(optimizer, own, gradients):
    """Gradients as autograd gives them: to each parameter, or to the pack that it lies in."""
    of = dict(zip(own, gradients, strict=True))
    for parameter, gradient in of.items():
        parameter.grad = None if optimizer.packs or gradient is None else gradient.clone()
    for pack in optimizer.packs:
        parts = [of[member] for member in pack.members]
        pack.flat.grad = None if parts[0] is None else torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_packed_parameters_are_stepped_as_if_each_was_by_itself(weight_decay):
    shapes = [(3, 2), (3,), (4,), (2,)]
    alone, together = parameters(*shapes), parameters(*shapes)
    alone[3].lr_scale = together[3].lr_scale = 10.0
    one, other = (HubAdam(own, lr=0.1, weight_decay=weight_decay) for own in (alone, together))
    for index in range(6):
        if index == 1:
            other.pack([together[:2], together[2:]])
            assert [len(pack.members) for pack in other.packs] == [2, 1, 1], (
                "two rates are two packs"
            )
        if index == 4:
            other.unpack()
        gradients = [torch.randn(shape) for shape in shapes]
        if index == 2:
            gradients[2:] = None, None  # as of an actor that waits
        for optimizer, own in ((one, alone), (other, together)):
            optimizer.zero_grad()
            give(optimizer, own, gradients)
            optimizer.step()
    for mine, own in zip(alone, together, strict=True):
        torch.testing.assert_close(own, mine)
        assert own.is_leaf
    assert other.param_groups[0]["params"] == together[:3], "in their order again"
    for mine, own in zip(
        one.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True
    ):
        assert mine.keys() == own.keys()
        assert all(torch.allclose(mine[name], own[name]) for name in mine)


def test_parameters_that_were_stepped_unlike_often_are_packs_of_their_own():
    members = parameters((2,), (2,), (2,))
    optimizer = HubAdam(members, lr=0.1)
    members[0].grad = torch.ones(2)
    optimizer.step()
    optimizer.pack([members])
    assert [[id(member) for member in pack.members] for pack in optimizer.packs] == [
        [id(members[0])],
        [id(each) for each in members[1:]],
    ]


def test_an_optimizer_is_saved_and_loaded_as_if_nothing_was_packed():
    members = parameters((2, 2), (2,))
    optimizer = HubAdam(members, lr=0.1)
    for member in members:
        member.grad = torch.ones_like(member)
    optimizer.step()
    expected = {key: dict(value) for key, value in optimizer.state_dict()["state"].items()}
    optimizer.pack([members])
    saved = optimizer.state_dict()
    assert not optimizer.packs
    assert saved["param_groups"][0]["params"] == [0, 1]
    for key, state in expected.items():
        assert all(torch.equal(saved["state"][key][name], state[name]) for name in state)
    optimizer.pack([members])
    optimizer.load_state_dict(saved)
    assert not optimizer.packs


def test_step_hooks_are_called_for_packed_parameters_too():
    members, calls = parameters((2,), (2,)), []
    optimizer = HubAdam(members, lr=0.1)
    optimizer.register_step_post_hook(lambda *given: calls.append(given))
    optimizer.pack([members])
    for _ in range(2):
        calls.clear()
        optimizer.packs[0].flat.grad = torch.ones(4)
        optimizer.step()
    assert len(calls) == 1


class Watch(BaseCallback):
    """Sees what an update leaves, and what it is done with."""

    def _on_training_start(self):
        self.seen, evaluate = [], self.model.policy.evaluate_actions

        def watched(*args):
            made = evaluate(*args)
            self.seen.append(len(getattr(self.model.policy.optimizer, "packs", [])))
            return made

        self.model.policy.evaluate_actions = watched

    def _on_step(self):
        return True

    def _on_rollout_start(self):
        assert not getattr(self.model.policy.optimizer, "packs", [])
        assert {id(each) for each in self.model.policy.parameters()} == {
            id(each) for each in nn.Module.parameters(self.model.policy)
        }


@pytest.mark.parametrize(("algorithm", "actions"), [(PPO, STEER), (PPO, CHOOSE), (A2C, STEER)])
def test_parameters_are_packed_while_ppo_updates_and_at_no_other_time(algorithm, actions, tmp_path):
    env, watch = Toy(VECTOR, actions), Watch()
    model = target(algorithm, env, tiny_hub(env).agent(algorithm))
    model.learn(128, callback=[HubCallback(probe_share=0), watch])
    assert set(watch.seen) == ({2} if algorithm is PPO else {0}), (
        "the critic's; of who acts and what it does"
    )
    assert model.policy.training_state == TrainingState()
    assert all(
        parameter.untyped_storage().nbytes() == 4 * parameter.numel()
        for parameter in nn.Module.parameters(model.policy)
    )
    del model.policy.evaluate_actions
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model")
    rows = np.zeros((3, 4), dtype=np.float32)
    assert np.array_equal(
        again.predict(rows, deterministic=True)[0], model.predict(rows, deterministic=True)[0]
    )


def test_a_model_can_be_saved_when_an_update_was_interrupted(tmp_path):
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO))
    model.learn(64, callback=HubCallback(probe_share=0))
    step, steps = model.policy.optimizer.step, []

    def interrupted(*args):
        steps.append(step(*args))
        if len(steps) == 3:
            raise KeyboardInterrupt

    model.policy.optimizer.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, callback=HubCallback(probe_share=0), reset_num_timesteps=False)
    assert model.policy.optimizer.packs
    del model.policy.optimizer.step
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", env=env)
    for name, tensor in model.policy.state_dict().items():
        assert torch.equal(tensor, again.policy.state_dict()[name]), name
    for model_goes_on in (model, again):
        model_goes_on.learn(64, callback=HubCallback(probe_share=0), reset_num_timesteps=False)


def test_a_lone_parameter_is_not_packed():
    """SB3's own way gives each parameter its gradient by itself."""
    env = Toy()
    model = target(PPO, env, tiny_hub(env).agent(PPO))
    policy = model.policy
    model.learn(64, callback=HubCallback(probe_share=0))
    rows, fresh = torch.randn(4, 4), len(policy.method.pathways.sources)
    policy.training_state = TrainingState(records_steps=True, fused_update=True)
    policy._commitments.some_fresh = True
    policy.set_training_mode(True)
    before = policy.action_net.weight.detach().clone()
    for previous in (-1, -2 - fresh):
        record = StepRecord(
            torch.full((4,), previous), torch.full((4,), fresh), torch.zeros(4, fresh + 1)
        )
        values, log_prob, _ = policy.evaluate_actions(
            RecordedBatch(rows, record), torch.zeros(4, 2)
        )
        assert bool(policy.optimizer.packs) == (previous == -1)
        policy.optimizer.zero_grad()
        (values.sum() + log_prob.sum()).backward()
        policy.optimizer.step()
        assert (policy.action_net.weight != before).any()
        before = policy.action_net.weight.detach().clone()
