"""Targets, hubs and options that a policy over outputs refuses."""

import pytest
from gymnasium import spaces
from sb3_contrib import TRPO, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC, TD3
from toys import CHOOSE, Toy, target, tiny, tiny_hub

from hubrl import BadConfig, Hub, SpaceMismatch, UnknownName


def test_what_is_made_for_one_algorithm_is_refused_by_another():
    hub = tiny_hub(Toy(actions=CHOOSE))
    for algorithm, other in ((DQN, PPO), (PPO, DQN)):
        with pytest.raises(BadConfig, match=r"What hub.agent makes for .* was given to"):
            algorithm(env=Toy(actions=CHOOSE), device="cpu", **hub.agent(other))
    hub = tiny_hub(Toy())
    for algorithm in (SAC, TD3, RecurrentPPO):
        with pytest.raises(
            BadConfig, match=r"What hub.agent makes for .* was given to another algorithm"
        ):
            algorithm(env=Toy(), device="cpu", **hub.agent(PPO))
    with pytest.raises(BadConfig, match=r"was given to TRPO; use hub.agent\(TRPO\)"):
        TRPO(env=Toy(), device="cpu", n_steps=64, batch_size=32, **hub.agent(PPO)).learn(64)
    for given in ("PPO", PPO("MlpPolicy", Toy(), device="cpu")):
        with pytest.raises(
            BadConfig, match=r"expected an algorithm's class, as in hub.agent\(PPO\)"
        ):
            hub.agent(given)
    with pytest.raises(
        BadConfig, match=r"'ppo.zip' was given; expected a list of agents: \['ppo.zip'\]"
    ):
        Hub.from_agents("ppo.zip")


def test_state_dependent_exploration_is_refused():
    env = Toy()
    with pytest.raises(BadConfig, match="use_sde=True was given.*leave it out"):
        PPO(env=env, use_sde=True, device="cpu", **tiny_hub(env).agent(PPO))


def test_actions_that_are_neither_box_nor_discrete_are_refused():
    env = Toy(actions=spaces.MultiDiscrete([2, 3]))
    hub = Hub.from_agents([tiny(PPO, env)])
    with pytest.raises(
        SpaceMismatch, match=r"The target acts in MultiDiscrete\(2, 3\).*use level='features'"
    ):
        PPO(env=env, device="cpu", **hub.agent(PPO, level="outputs"))


def test_sources_that_act_otherwise_or_not_at_all_are_refused():
    env = Toy()
    with pytest.raises(
        SpaceMismatch,
        match=r"The target acts in Discrete\(3\), source 'ppo-0' in Box\(2,\); use level='features'",
    ):
        PPO(env=Toy(actions=CHOOSE), device="cpu", **tiny_hub(env).agent(PPO))


@pytest.mark.parametrize("level", ["features", "outputs"])
@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        (
            "hub-pathway",
            {"top_k": 3},
            BadConfig,
            "top_k=3 was given for a hub of 2 sources; expected 1 to 2",
        ),
        ("hub-pathway", {"top_k": 0}, BadConfig, "top_k=0 was given"),
        (
            "hub-pathwey",
            {},
            UnknownName,
            "Unknown method 'hub-pathwey'. Did you mean 'hub-pathway'",
        ),
        (
            "hub-pathway",
            {"explore_coeff": 1},
            UnknownName,
            "Unknown option of method 'hub-pathway' 'explore_coeff'. Did you mean 'explore_coef'",
        ),
    ],
)
def test_a_hub_that_cannot_be_is_refused_in_a_sentence(level, method, options, error, message):
    with pytest.raises(error, match=message):
        tiny_hub(Toy()).agent(PPO, method, level=level, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregation": "max"}, "aggregation: .*'mixture' or 'mean'"),
        ({"source_std": "wide"}, "source_std: "),
        ({"residual": []}, "residual: "),
    ],
)
def test_an_option_of_the_outputs_that_cannot_be_is_refused(options, message):
    with pytest.raises(BadConfig, match=message):
        tiny_hub(Toy()).agent(PPO, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"width": 32},
            "width=32 was given at the level of outputs, which are as wide as the actions; use level='features', or leave it out",
        ),
        (
            {"fresh": False, "trial_share": 0.1},
            "trial_share or fresh_joins was given with fresh=False, which leaves no fresh pathway",
        ),
        (
            {"trial_share": 0.1, "judging_share": 0.0},
            "trial_share=0.1 was given where no arms are judged; give judging_share",
        ),
        ({"trial_share": 0.1, "top_k": 1}, "trial_share=0.1 was given where no arms are judged"),
        (
            {"method": "uniform", "trial_share": 0.1},
            "trial_share=0.1 was given where no arms are judged",
        ),
        (
            {"hold": 1, "release": "fixed"},
            "release='fixed' was given with hold=1, which is no commitment; give a greater hold, or leave it out",
        ),
    ],
    ids=str,
)
def test_an_option_that_would_change_nothing_is_refused(options, message):
    with pytest.raises(BadConfig, match=message):
        tiny_hub(Toy()).agent(PPO, **options)


def test_noise_that_cannot_be_replayed_is_refused():
    with pytest.raises(
        BadConfig,
        match="noise=True was given at the level of features, where it cannot be replayed; use level='outputs'",
    ):
        target(PPO, Toy(), tiny_hub(Toy()).agent(PPO, level="features", noise=True))
