"""The simple methods against numbers worked out by hand: soup, concat, uniform, frozen."""

import numpy as np
import pytest
import torch
from small_methods import ROWS, method_of, sharper, two
from stable_baselines3 import DQN, PPO
from toys import CHOOSE, Toy, target, tiny, tiny_hub

from hubrl import BadConfig, Hub


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
