"""MULTIPOLAR against numbers worked out by hand."""

import numpy as np
import pytest
import torch
from small_methods import ACTIONS, ROWS, method_of, sharper, stirred, two
from stable_baselines3 import DQN, PPO
from toys import CHOOSE, STEER, Toy, target

from hubrl import UnknownName
from hubrl.methods.multipolar import aggregate_actions


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
    computed = method(ROWS, fresh=fresh).features
    expected = fresh.clone()
    for row in range(6):
        for theta, source in zip(method.theta, hub, strict=True):
            outputs = source.outputs(ROWS[row : row + 1])[0]
            does = outputs[:2] if actions is STEER else torch.eye(3)[outputs.argmax()]
            expected[row, : len(does)] += theta * does / 2
    torch.testing.assert_close(computed, expected)
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
