"""`predict` in numpy: the actions of torch's networks, whatever happened to these in between."""

import copy
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from torch import nn
from toys import CHOOSE, IMAGE, PARTS, STEER, VECTOR, Toy, target, tiny, tiny_hub

from hubrl import Hub, HubCallback, NotFinite, Source
from hubrl.nn.manual_gradients import MAX_NUMPY_ROWS
from hubrl.policies.on_policy.numpy_actor import NumpyActor
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.reading import read_live
from hubrl.routing.numpy_source import NumpySource

ROWS = 2 * torch.randn(12, 4, generator=torch.Generator().manual_seed(0))


def sources_of(*algorithms, actions=STEER, **policy_kwargs):
    env = Toy(actions=actions)
    agents = [tiny(each, env, seed, **policy_kwargs) for seed, each in enumerate(algorithms)]
    return [read_live(agent, f"source-{seed}") for seed, agent in enumerate(agents)]


def normalised(source):
    """The same source behind statistics by which some of what it sees is clipped."""
    card = {**source.card.to_dict(), "name": "normalised", "normalisation": {"clip": 0.7}}
    made = Source.from_card(type(source.card).model_validate(card))
    numbers = torch.rand(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    statistics = {"normaliser.mean_0": numbers[0], "normaliser.var_0": numbers[1]}
    made.load_weights({**source.tensors(), **statistics})
    return made


def committed(sources, env=None, *, activation_fn=nn.Tanh, **options):
    """A policy with commitments and no layer that returns zeros."""
    env = env or Toy()
    made = Hub(sources).agent(PPO, **{"hold": 3, "judging_share": 0.0, **options})
    made["policy_kwargs"]["activation_fn"] = activation_fn
    policy = target(PPO, env, made).policy
    policy.enable_commitment()
    torch.manual_seed(1)
    for layer in (policy.residual, policy.stay_logit, policy.method.router.mean):
        if layer is not None:
            nn.init.normal_(layer.weight)
    return policy


def acting(policy, rows, previous, *, solo=-1, deterministic=True):
    """Actions and pathways of the twin, and of torch's networks, under the same random numbers."""
    with torch.no_grad():
        twin = policy._find_actor(rows)
        assert type(twin) is NumpyActor
        found = []
        for actor in (twin, policy):
            torch.manual_seed(0)
            policy._head = None
            found.append(
                actor.committed_actions(rows, previous, deterministic=deterministic)
                if solo < 0
                else (actor.solo_actions(rows, solo, deterministic=deterministic), torch.ones(1))
            )
    return found


def check_equal(policy, rows=ROWS):
    n_pathways = len(policy.method.pathways.names)
    for chosen in [rows, *rows[:4, None]]:
        previous = np.arange(len(chosen)) % (n_pathways + 1) - 1
        for solo in range(-1, n_pathways):
            for deterministic in (True, False):
                (actions, acted), (wanted, pathways) = acting(
                    policy, chosen, previous, solo=solo, deterministic=deterministic
                )
                assert torch.equal(acted, pathways)
                assert actions.dtype == wanted.dtype
                torch.testing.assert_close(actions, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("actions", [STEER, CHOOSE, spaces.Discrete(3, start=5)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"release": "fixed"},
        {"top_k": 1, "release": "fixed"},
        {"top_k": 2},
        {"fresh": False},
        {"residual": False, "activation_fn": nn.ReLU},
        {"source_std": None},
        {"judging_share": 0.5},
    ],
    ids=str,
)
def test_actions_are_those_of_torch_under_every_option(actions, options):
    other = SAC if actions is STEER else DQN
    sources = sources_of(PPO, PPO, other, actions=actions, net_arch=[8, 8])
    policy = committed(sources, Toy(actions=actions), **options)
    check_equal(policy)
    twins = policy._numpy_actor._sources
    assert all(isinstance(twin, NumpySource) for twin in twins.values())
    acted = acting(policy, ROWS, np.full(len(ROWS), -1), deterministic=False)[0][1]
    assert len(acted.unique()) > 1, "rows of several pathways were compared"


@pytest.mark.parametrize(
    "source",
    [
        lambda: sources_of(PPO, activation_fn=nn.ReLU)[0],
        lambda: sources_of(PPO, activation_fn=nn.ELU)[0],
        lambda: sources_of(TD3)[0],
        lambda: normalised(sources_of(PPO)[0]),
        lambda: sources_of(PPO)[0].adapted(order=[1, 0], signs=[1, -1]),
        lambda: sources_of(PPO)[0].adapted(observes=[3, 0, 1], constants={2: 0.5}),
    ],
)
@pytest.mark.parametrize("source_std", ["auto", None])
def test_actions_are_those_of_torch_for_every_source(source, source_std):
    made = source()
    policy = committed(
        [made, made.adapted("other")], Toy(actions=made.actions), source_std=source_std
    )
    check_equal(policy)
    variance = np.array([0.1, 1.0, 5.0, 9.0])
    policy.method.pathways.set_statistics({"": (np.arange(4.0), variance)}, 1e-8)
    check_equal(policy)


def test_actions_are_those_of_torch_where_discrete_actions_have_names():
    sources = [
        each.adapted(each.name, meanings=["FIRE", "LEFT", "NOOP"])
        for each in sources_of(PPO, DQN, actions=CHOOSE)
    ]
    meanings = ["NOOP", "LEFT", "RIGHT"]
    check_equal(committed(sources, Toy(actions=CHOOSE), action_meanings=meanings))


def test_predict_returns_the_same_actions_and_states_in_numpy(monkeypatch):
    policy, rows = committed(sources_of(PPO, PPO)), ROWS.double().numpy()

    def played():
        torch.manual_seed(0)
        state, found = None, []
        for turn in range(12):
            seen = rows if turn % 2 else rows[0]
            state = None if len(np.atleast_2d(seen)) != len(state[0] if state else []) else state
            actions, state = policy.predict(3 * seen, state, deterministic=turn < 6)
            found += [actions, *state]
        return found

    def kinds(arrays):
        return [(array.shape, array.dtype) for array in arrays]

    in_numpy = played()
    assert policy._numpy_actor is not None
    monkeypatch.setattr(policy, "_find_actor", lambda observations: policy)
    in_torch = played()
    assert kinds(in_numpy) == kinds(in_torch)
    for one, other in zip(in_numpy, in_torch, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def in_place(tensor):
    with torch.no_grad():
        tensor.mul_(-1.5).add_(0.3)


def elsewhere(tensor):
    tensor.data = tensor.detach() * -1.5 + 0.3


def replaced(owner, name):
    layer = getattr(owner, name)
    made = nn.Linear(layer.in_features, layer.out_features)
    if isinstance(owner, nn.Sequential):
        owner[int(name)] = made
    else:
        setattr(owner, name, made)


def hooked(module):
    module.register_forward_hook(lambda module, given, output: -2 * output - 1)


def acting_source(policy):
    return policy.method.pathways.sources[0]


def reload(policy, assign):
    state = {name: -1.5 * tensor for name, tensor in policy.state_dict().items() if "net" in name}
    policy.load_state_dict(state, strict=False, assign=assign)


CHANGES = {
    "actor, in place": lambda policy: in_place(policy.mlp_extractor.policy_net[0].weight),
    "actor, elsewhere": lambda policy: elsewhere(policy.mlp_extractor.policy_net[0].bias),
    "actor, replaced": lambda policy: replaced(policy.mlp_extractor.policy_net, "0"),
    "actor, another activation": lambda policy: policy.mlp_extractor.policy_net.__setitem__(
        1, nn.ReLU()
    ),
    "actor, a layer more": lambda policy: policy.mlp_extractor.policy_net.extend(
        [nn.Linear(8, 8), nn.Tanh()]
    ),
    "actor, whole": lambda policy: setattr(
        policy.mlp_extractor, "policy_net", nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    ),
    "actor, parameter": lambda policy: setattr(
        policy.mlp_extractor.policy_net[0], "weight", nn.Parameter(torch.ones(8, 4))
    ),
    "actor, loaded": lambda policy: reload(policy, assign=False),
    "actor, loaded elsewhere": lambda policy: reload(policy, assign=True),
    "actor, features": lambda policy: hooked(policy.pi_features_extractor),
    "correction, in place": lambda policy: in_place(policy.residual.bias),
    "correction, elsewhere": lambda policy: elsewhere(policy.residual.weight),
    "correction, replaced": lambda policy: replaced(policy, "residual"),
    "router, in place": lambda policy: in_place(policy.method.router.mean.weight),
    "router, elsewhere": lambda policy: elsewhere(policy.method.router.hidden[2].weight),
    "router, replaced": lambda policy: replaced(policy.method.router, "mean"),
    "commitment, in place": lambda policy: in_place(policy.stay_logit.bias),
    "commitment, replaced": lambda policy: replaced(policy, "stay_logit"),
    "probe": lambda policy: policy.method.apply_probe([False, True, True], [0.0, 1.0, 2.0]),
    "trusted": lambda policy: policy.method.apply_probe([False, False, True], [0.0, 0.0, 0.0]),
    "top-k": lambda policy: setattr(policy.method, "top_k", 1),
    "source, in place": lambda policy: in_place(
        acting_source(policy).source.encoder.hidden[0].bias
    ),
    "source, elsewhere": lambda policy: elsewhere(acting_source(policy).source.action.mean.weight),
    "source, replaced": lambda policy: replaced(acting_source(policy).source.encoder.hidden, "0"),
    "source, head replaced": lambda policy: replaced(acting_source(policy).source.action, "mean"),
    "source, statistics": lambda policy: in_place(acting_source(policy).source.normaliser.mean_0),
    "source, another": lambda policy: setattr(
        acting_source(policy), "source", acting_source(policy).source.adapted(signs=[-1, -1])
    ),
    "source, denormaliser": lambda policy: policy.method.pathways.set_statistics(
        {"": (np.ones(4), np.full(4, 9.0))}, 0.0
    ),
    "source, pathway": lambda policy: policy.method.pathways.sources.__setitem__(
        0, policy.method.pathways.sources[1]
    ),
}


def everything(policy):
    """Actions and pathways for each observation, by all pathways together and by each alone."""
    found = []
    with torch.no_grad():
        for row in ROWS[:, None]:
            actor = policy._find_actor(row)
            for previous in (-1, 0, 1):
                torch.manual_seed(0)
                found += actor.committed_actions(row, np.array([previous]), deterministic=False)
            for solo in range(len(policy.method.pathways.names)):
                found.append(actor.solo_actions(row, solo, deterministic=True))
    return torch.cat([each.flatten().float() for each in found])


def in_torch(policy, monkeypatch):
    policy._head = None
    with monkeypatch.context() as patched:
        patched.setattr(policy, "_find_actor", lambda observations: policy)
        return everything(policy)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_every_change_of_a_network_is_seen(change, monkeypatch):
    one, other = sources_of(PPO, PPO)
    policy = committed([normalised(one), other])
    before, twin = everything(policy), policy._numpy_actor
    change(policy)
    after = everything(policy)
    assert not torch.allclose(before, after), "the change matters"
    torch.testing.assert_close(after, in_torch(policy, monkeypatch), atol=1e-6, rtol=1e-5)
    assert twin is not None
    assert policy._numpy_actor is not None, "and it is seen in numpy"


@pytest.mark.parametrize(
    ("part", "twin"),
    [
        (lambda policy: policy.mlp_extractor.policy_net[0], False),
        (lambda policy: policy.mlp_extractor.policy_net, False),
        (lambda policy: policy.method.router.hidden[1], False),
        (lambda policy: policy.action_net, False),
        (lambda policy: policy.pi_features_extractor, True),
        (lambda policy: acting_source(policy), True),
        (lambda policy: acting_source(policy).source.encoder.hidden[0], True),
        (lambda policy: acting_source(policy).source.action, True),
    ],
)
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_runs_as_soon_and_as_long_as_it_is_there(part, twin, kind):
    policy, called = committed(sources_of(PPO, PPO)), []
    first = everything(policy)
    hook = getattr(part(policy), kind)(lambda *given: called.append(1))
    torch.testing.assert_close(everything(policy), first, atol=1e-6, rtol=1e-5)
    assert called
    assert (policy._numpy_actor is not None) == twin
    hook.remove()
    called.clear()
    torch.testing.assert_close(everything(policy), first, atol=1e-6, rtol=1e-5)
    assert bool(called) is False
    assert policy._numpy_actor is not None
    assert all(isinstance(each, NumpySource) for each in policy._numpy_actor._sources.values())


def test_a_training_that_goes_on_is_seen(monkeypatch):
    env = make_vec_env(Toy, n_envs=2, seed=0)
    model = target(PPO, env, tiny_hub(Toy()).agent(PPO, judging_share=0.0), learning_rate=1e-2)
    seen = []
    for _ in range(3):
        model.learn(128, HubCallback(probe_share=0, warmup_share=0), reset_num_timesteps=False)
        seen.append(everything(model.policy))
        assert model.policy._numpy_actor is not None
        torch.testing.assert_close(
            seen[-1], in_torch(model.policy, monkeypatch), atol=1e-6, rtol=1e-5
        )
    assert not torch.allclose(seen[0], seen[1])
    assert not torch.allclose(seen[1], seen[2])


def test_a_copy_and_a_file_read_weights_of_their_own():
    policy = committed(sources_of(PPO, PPO))
    before = everything(policy)
    for other in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert other._numpy_actor is None
        assert torch.equal(everything(other), before)
        in_place(other.residual.bias)
        assert not torch.allclose(everything(other), before)
        assert torch.equal(everything(policy), before)


def test_the_hubs_snapshot_acts_by_torch(monkeypatch):
    policy = committed(sources_of(PPO, PPO))
    assert type(policy._find_actor(ROWS[:1])) is not NumpyActor, "gradients are wanted"
    with torch.no_grad():
        assert type(policy._find_actor(ROWS)) is NumpyActor
        assert policy._find_actor(ROWS.repeat(MAX_NUMPY_ROWS, 1)) is policy
        monkeypatch.setattr(HubActorCriticPolicy, "acts_by_snapshot", True)
        assert policy._find_actor(ROWS) is policy


def test_a_policy_elsewhere_than_on_the_cpu_stays_torchs():
    policy = committed(sources_of(PPO, PPO))
    with torch.no_grad():
        policy.to("meta")
        assert policy._find_actor(ROWS.to("meta")) is policy


@pytest.mark.parametrize("observations", [IMAGE, PARTS])
def test_convolutions_and_parts_stay_torchs(observations):
    env = Toy(observations)
    model = target(PPO, env, tiny_hub(env).agent(PPO, judging_share=0.0))
    model.policy.enable_commitment()
    env.reset(seed=0)
    model.predict(env._observe(observations))
    assert model.policy._numpy_actor is None


def test_an_agent_of_ones_own_is_called_by_torch():
    body = nn.Sequential(nn.Linear(4, 8), nn.GELU())
    own = Source(
        encoder=body, head=nn.Linear(8, 2), name="own", observation_space=VECTOR, action_space=STEER
    )
    policy = committed([own, *sources_of(PPO)])
    check_equal(policy)
    assert policy._numpy_actor._sources[0] is None
    assert isinstance(policy._numpy_actor._sources[1], NumpySource)


@pytest.mark.parametrize("actions", [STEER, CHOOSE])
def test_outputs_that_are_no_numbers_are_refused(actions):
    policy = committed(sources_of(PPO, PPO, actions=actions), Toy(actions=actions))
    policy.predict(ROWS.numpy())
    with torch.no_grad():
        policy.residual.bias.fill_(torch.nan)
    with pytest.raises(NotFinite, match="compute NaN for an observation"):
        policy.predict(ROWS.numpy())


@pytest.mark.parametrize("solo", [-1, 0, 2])
def test_observations_too_great_for_float32_end_as_in_torch(solo, monkeypatch):
    """Without a warning of numpy's, which would be an error here."""
    policy = committed(sources_of(PPO, PPO, activation_fn=nn.ReLU), activation_fn=nn.ReLU)
    monkeypatch.setattr(HubActorCriticPolicy, "evaluation_pathway", solo)
    ends = []
    for number in (1e38, np.inf, -np.inf):
        row = np.full(4, number, np.float32)
        for torchs in (False, True):
            with monkeypatch.context() as patched:
                if torchs:
                    patched.setattr(policy, "_find_actor", lambda observations: policy)
                try:
                    ends.append(policy.predict(row, deterministic=True)[0].tolist())
                except NotFinite as error:
                    ends.append(str(error))
    assert ends[::2] == ends[1::2]
    assert any(isinstance(end, str) for end in ends)
