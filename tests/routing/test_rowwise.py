"""Sources that serve a few rows each: what is gathered is what each would compute by itself."""

import pytest
import torch
from stable_baselines3 import PPO
from toys import Toy, tiny

from hubrl.methods.hub_pathway import HubPathway
from hubrl.reading import read_live
from hubrl.routing import rowwise
from hubrl.routing.target import TargetSpec

SOURCES = [read_live(tiny(PPO, Toy(), seed), f"source-{seed}") for seed in range(12)]
ROWS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))


def method(level, **options):
    env = Toy()
    actions = env.action_space if level == "outputs" else None
    std = "auto" if level == "outputs" else None
    target = TargetSpec(env.observation_space, level, actions, std)
    torch.manual_seed(0)
    made = HubPathway(SOURCES, target, top_k=2, **options)
    torch.nn.init.normal_(made.router.mean.weight)
    return made


def gradients(made):
    return {name: each.grad for name, each in made.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("gathered", [False, True])
def test_features_of_the_active_alone_are_those_of_all_places(fresh, gathered, monkeypatch):
    made = method("features", fresh=fresh)
    if not gathered:
        monkeypatch.setattr(rowwise, "MOST_ROWS", 0)
    computed = made(ROWS)
    assert computed.pathway_outputs is None
    computed.features.square().sum().backward()
    found = gradients(made)
    made.zero_grad()
    (logs, active), _ = made.compute_weights(ROWS)
    every = made.pathways.compute_outputs(ROWS, active)
    expected = torch.bmm(logs.exp()[:, None], every).squeeze(1)
    torch.testing.assert_close(computed.features, expected)
    expected.square().sum().backward()
    assert found.keys() == gradients(made).keys()
    for name, gradient in gradients(made).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4)


def test_outputs_of_rows_are_those_of_their_own_pathways():
    made = method("outputs", fresh=True)
    with torch.no_grad():
        for index, pathway in enumerate(made.pathways.sources):
            pathway.log_std.fill_(-index)
        acted = torch.arange(20) % 13  # the last is the fresh pathway, whose rows are undefined
        found = made.pathways.selected_output(acted, ROWS)
        for row, index in enumerate(acted.tolist()):
            if index < 12:
                own = made.pathways.sources[index](ROWS[row : row + 1])[0]
                torch.testing.assert_close(found[row], own, atol=1e-5, rtol=1e-5)


def test_many_rows_of_few_sources_are_not_gathered():
    serves = rowwise.RowwiseSources(list(method("features").pathways.sources)).serves
    assert serves(20, 12)
    assert not serves(20, 1)
    assert not serves(rowwise.MOST_ROWS * 12 + 1, 12)
    assert not serves(rowwise.MOST_NUMBERS, 12 * rowwise.MOST_NUMBERS)
