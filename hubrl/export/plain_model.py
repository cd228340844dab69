"""From an agent that learned through a hub to one ordinary SB3 agent, where one network says exactly the same.

What the agent computes is read off as a chain of layers for its actor and one for its critic.
Linear layers without an activation between them are multiplied out; what is left must have the
shape of SB3's own policies. What has not is refused with a reason, and can be distilled
(`hubrl.export.distill`).
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.a2c import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.extractor import HubExtractor
from hubrl.formats.cards import Select
from hubrl.formats.hub_spec import Precision
from hubrl.formats.spaces import describe
from hubrl.gated import GatedLayer
from hubrl.methods.base import Method
from hubrl.methods.kickstart import Kickstart
from hubrl.methods.single import Alone
from hubrl.nn.popart import PopArtLinear
from hubrl.pathways import FreshPathway, Original, SourcePathway
from hubrl.policies import HubActorCriticPolicy
from hubrl.q_policies import HubDQNPolicy, RoutedQNetwork, SourceQNetwork
from hubrl.sources.heads import CategoricalAction, DeterministicAction, GaussianAction, GreedyAction, StateValue
from hubrl.sources.source import Source
from hubrl.sources.trunks import NATURE, Encoder, HubTrunk, Reader, Trunks
from hubrl.trained import HubActor, HubGreedyActor

ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"PPO": PPO, "A2C": A2C, "DQN": DQN}

OBSERVATIONS = 1000
"""Observations on which an exported agent is compared with the agent it was made of."""

TOLERANCE: dict[Precision, float] = {"float32": 1e-5, "bfloat16": 1e-3}
"""Difference above which an agent is not what it was: something that it does is in no layer. What was computed in bfloat16 is rounded."""

Chain = list[nn.Module]


class NotPlainError(BadConfig):
    """There is no one network of SB3's shapes that says the same."""


class Chains(NamedTuple):
    """What an agent computes, layer by layer."""

    actor: Chain
    """From observations to means, logits or Q-values."""
    critic: Chain | None
    """From observations to the value; None for Q-learners."""
    log_std: Float[Tensor, " actions"] | None
    """Of a Gaussian, the same for every observation."""


class Shape(NamedTuple):
    """A chain in the shape of SB3's networks: perhaps convolutions, then linear layers with one activation between them."""

    convolutions: list[nn.Conv2d]
    features: nn.Linear | None
    """NatureCNN's linear layer."""
    linear: list[nn.Linear]
    activation: type[nn.Module] | None
    """None where there is but one layer."""


class Exported(NamedTuple):
    """An ordinary SB3 agent."""

    model: BaseAlgorithm
    difference: float
    """Greatest difference of means, logits or Q-values over random observations, relative to their size where that is above 1."""


def export(agent: Source) -> Exported:
    """One ordinary SB3 agent that says the same, which SB3 loads where hubrl is not installed.

    Its deterministic actions are the agent's. The statistics of a VecNormalize around the target
    stay outside, as SB3 has them. Learning may go on from it, with a new optimizer.

    Args:
        agent: A trained agent, as `read_agent` or `read_live` gives it.

    Raises:
        NotPlainError: Saying why no one network of SB3's shapes says the same; a `BadConfig`.
    """
    kind = ALGORITHMS.get(agent.card.algorithm)
    if kind is None or agent.actions is None:
        raise NotPlainError(_refusal(agent, f"it was trained by {agent.card.algorithm}, and {', '.join(ALGORITHMS)} are merged"))
    try:
        with torch.no_grad():
            chains = _chains(agent)
            actor, critic = _shape(chains.actor), None if chains.critic is None else _shape(chains.critic)
            model = _plain_model(agent, kind, actor, critic)
            _fill(model, actor, critic, chains.log_std)
    except NotPlainError as error:
        raise NotPlainError(_refusal(agent, str(error))) from error
    model.policy.set_training_mode(False)
    difference = _difference(agent, model)
    tolerance = TOLERANCE[_precision(agent)]
    if difference > tolerance:
        raise NotPlainError(_refusal(agent, f"the merged network differs from it by {difference:.1e}, more than {tolerance:.0e}"))
    return Exported(model, difference)


def _refusal(agent: Source, reason: str) -> str:
    return f"The agent {agent.name!r} cannot be merged into one plain network: {reason}. Distil it with `hubrl distill`."


def _precision(agent: Source) -> Precision:
    """In what its networks were computed."""
    encoder = agent.encoder
    if isinstance(encoder, HubActor | HubGreedyActor):
        return encoder.policy.spec.precision
    trunks = getattr(encoder, "trunks", None)
    extractor = trunks.extractor if isinstance(trunks, HubTrunk) else None
    return extractor.spec.precision if isinstance(extractor, HubExtractor) else "float32"


def _chains(agent: Source) -> Chains:
    encoder = agent.encoder
    if isinstance(encoder, HubActor):
        return _heard(encoder.policy)
    if isinstance(encoder, HubGreedyActor):
        return _learnt(encoder.policy)
    if not isinstance(encoder, Encoder):
        raise NotPlainError("its network is not one of SB3's")
    trunk = _trunk(encoder.trunks)
    actor, log_std = _acting(agent)
    chain = [*trunk, *encoder.hidden, *actor]
    if isinstance(agent.action, GreedyAction):
        return Chains(chain, None, None)
    if not isinstance(agent.critic, StateValue):
        raise NotPlainError("its critic is not a value function")
    own = agent.critic.trunks
    return Chains(chain, [*(trunk if own is None else _trunk(own)), *agent.critic.hidden, agent.critic.value], log_std)


def _heard(policy: HubActorCriticPolicy) -> Chains:
    """An agent that heard its sources' outputs."""
    value = policy.value_net.to_linear() if isinstance(policy.value_net, PopArtLinear) else policy.value_net
    critic = [*_sb3_extractor(policy.vf_features_extractor), *policy.mlp_extractor.value_net, value]
    method = policy.method
    if policy.fresh_alone or isinstance(method, Kickstart):
        actor = [*_sb3_extractor(policy.pi_features_extractor), *policy.mlp_extractor.policy_net, policy.action_net]
        return Chains(actor, critic, getattr(policy, "log_std", None))
    if not isinstance(method, Alone):
        raise NotPlainError(f"method {policy.spec.method!r} lets several pathways speak")
    if policy.residual is not None:
        raise NotPlainError(f"method {policy.spec.method!r} adds a residual to what its source says")
    pathway = cast("SourcePathway", method.pathways.sources[0])
    chain, log_std = _pathway(pathway, head=True)
    return Chains(chain, critic, pathway.log_std if pathway.log_std is not None else log_std)


def _learnt(policy: HubDQNPolicy) -> Chains:
    """A DQN that heard its sources' outputs."""
    network = policy.q_net
    if policy.selection.evaluation_arm != policy.learner:
        raise NotPlainError(
            f"source {policy.pathways.names[policy.selection.evaluation_arm]!r} earns more than the learner and acts for it"
        )
    if isinstance(network, SourceQNetwork):
        source = network.source
        if source.normaliser is not None:
            raise NotPlainError(f"source {source.name!r} normalises observations and clips them, which SB3's policies do not")
        assert isinstance(source.encoder, Encoder)
        return Chains(
            [*_selected(source, policy.observation_space), *_trunk(source.encoder.trunks), *source.encoder.hidden, *_acting(source)[0]],
            None,
            None,
        )
    if isinstance(network, RoutedQNetwork):
        raise NotPlainError(f"method {policy.spec.method!r} lets several pathways speak")
    return Chains([*_sb3_extractor(network.features_extractor), *network.q_net], None, None)


def _trunk(trunk: nn.Module) -> Chain:
    if isinstance(trunk, HubTrunk):
        extractor = trunk.extractor
        assert isinstance(extractor, HubExtractor)
        if extractor.beside:
            raise NotPlainError(f"method {extractor.spec.method!r} passes observations on beside the sources' features")
        return _features(extractor.method, extractor.spec.method)
    assert isinstance(trunk, Trunks)
    if len(trunk.readers) != 1:
        raise NotPlainError("it reads several observations")
    return _read(trunk.readers[0])


def _read(reader: nn.Module) -> Chain:
    if isinstance(reader, Reader):
        return [*reader.convs, nn.Flatten(), *reader.linear]
    return list(reader) if isinstance(reader, nn.Sequential) else _sb3_extractor(reader)


def _features(method: Method, name: str) -> Chain:
    if isinstance(method, Alone):
        return _pathway(cast("SourcePathway", method.pathways.sources[0]), head=False)[0]
    fresh = method.pathways.fresh
    if method.fresh_alone and isinstance(fresh, FreshPathway):
        return [*_read(fresh.reader), fresh.projection]
    raise NotPlainError(f"method {name!r} makes its features of several sources")


def _pathway(pathway: SourcePathway, *, head: bool) -> tuple[Chain, Tensor | None]:
    """A source as the target hears it."""
    source = pathway.source
    encoder = source.encoder
    if source.normaliser is not None:
        raise NotPlainError(f"source {source.name!r} normalises observations and clips them, which SB3's policies do not")
    if isinstance(source.space, spaces.Dict) or not isinstance(encoder, Encoder):
        raise NotPlainError(f"the network of source {source.name!r} is not one of SB3's")
    chain: Chain = [
        *_undone(pathway.original),
        *_selected(source, pathway.target.observation_space),
        *_trunk(encoder.trunks),
        *encoder.hidden,
    ]
    if pathway.projection is not None:
        chain.append(pathway.projection)
    if not head:
        return chain, None
    acting, log_std = _acting(source)
    return [*chain, *acting], log_std


def _acting(source: Source) -> tuple[Chain, Tensor | None]:
    """A source's action head, and the logarithm of its standard deviation."""
    action = source.action
    if isinstance(action, GreedyAction) and source.card.algorithm == "DQN":
        return [_ordinary(action.q)], None
    if isinstance(action, CategoricalAction) and isinstance(action.space, spaces.Discrete):
        return [_ordinary(action.logits), *_mapped(source)], None
    if isinstance(action, GaussianAction) and action.head.kind == "gaussian":
        if action.head.log_std == "sde" or action.head.mean_clip is not None:
            raise NotPlainError(f"source {source.name!r} explores in a way that depends on its state")
        log_std = action.log_std if isinstance(action.log_std, Tensor) else None
        return [_ordinary(action.mean), *_mapped(source)], log_std
    squashed = isinstance(action, DeterministicAction | GaussianAction)
    reason = (
        "acts through a tanh, which PPO's and A2C's policies have not" if squashed else "has a head that SB3's PPO, A2C and DQN have not"
    )
    raise NotPlainError(f"{source.name!r} {reason}")


def _mapped(source: Source) -> Chain:
    """A source's action map as a layer."""
    how, actions = source.card.action_map, source.actions
    if how is None:
        return []
    size = int(actions.n) if isinstance(actions, spaces.Discrete) else int(np.prod(cast("spaces.Box", actions).shape))
    order, signs = list(how.order or range(size)), torch.tensor(how.signs or [1] * size, dtype=torch.float64)
    return [_linear(torch.eye(size, dtype=torch.float64)[order] * signs[:, None])]


def _undone(original: Original) -> Chain:
    """What turns the target's normalised observations back, as a layer."""
    if not original.keys:
        return []
    mean, std = original.get_buffer("running_mean_0").flatten(), original.get_buffer("running_std_0").flatten()
    return [] if bool((mean == 0).all() and (std == 1).all()) else [_linear(torch.diag(std.double()), mean.double())]


def _selected(source: Source, space: spaces.Space[Any]) -> Chain:
    """The entries that a source reads of the target's flat observation, as a layer."""
    chain: Chain = []
    width = int(np.prod(space.shape or (0,)))
    for step in source.card.preprocessing:
        if not isinstance(step, Select) or isinstance(space, spaces.Dict):
            raise NotPlainError(f"source {source.name!r} preprocesses observations in a way that is no layer ({step.op})")
        chain.append(_linear(torch.eye(width, dtype=torch.float64)[list(step.indices)]))
        width = len(step.indices)
    return chain


def _sb3_extractor(extractor: nn.Module) -> Chain:
    if isinstance(extractor, NatureCNN):
        return [*extractor.cnn, *extractor.linear]
    if isinstance(extractor, FlattenExtractor):
        return [nn.Flatten()]
    raise NotPlainError(f"it reads observations through {type(extractor).__name__}")


def _ordinary(layer: nn.Module) -> nn.Module:
    try:
        return layer.plain() if isinstance(layer, GatedLayer) else layer
    except BadConfig as error:
        raise NotPlainError(str(error)[0].lower() + str(error)[1:]) from error


def _linear(weight: Float[Tensor, "outputs inputs"], bias: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    made.weight.data = weight
    made.bias.data = weight.new_zeros(len(weight)) if bias is None else bias
    return made


def _shape(chain: Iterable[nn.Module]) -> Shape:
    """A chain in the shape of SB3's networks.

    Raises:
        NotPlainError: If it has another.
    """
    layers = [_ordinary(layer) for layer in chain if not isinstance(layer, nn.Flatten | nn.Identity)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    features = None
    if convolutions:
        layers, features = _behind_convolutions(layers, convolutions)
    linear: list[nn.Linear] = []
    activations: list[type[nn.Module]] = []
    for layer, before in zip(layers, [None, *layers], strict=False):
        if isinstance(layer, nn.Linear):
            linear.append(_multiplied(linear.pop(), layer) if isinstance(before, nn.Linear) else layer)
        elif isinstance(before, nn.Linear):
            activations.append(type(layer))
        else:
            raise NotPlainError(f"it has {type(layer).__name__} behind no linear layer")
    if len(set(activations)) > 1:
        raise NotPlainError(f"its layers have activations {' and '.join(sorted({kind.__name__ for kind in activations}))}, SB3's have one")
    if len(activations) != len(linear) - 1:
        raise NotPlainError("its last layer has an activation")
    return Shape(convolutions, features, linear, activations[0] if activations else None)


def _behind_convolutions(layers: list[nn.Module], convolutions: list[nn.Conv2d]) -> tuple[list[nn.Module], nn.Linear]:
    """What comes behind a NatureCNN, and its linear layer."""
    found = tuple((conv.out_channels, conv.kernel_size[0], conv.stride[0]) for conv in convolutions)
    own = layers[: 2 * len(NATURE) + 2]
    kinds = [nn.Conv2d, nn.ReLU] * len(NATURE) + [nn.Linear, nn.ReLU]
    if found != NATURE or [type(layer) for layer in own] != kinds or any(conv.padding != (0, 0) for conv in convolutions):
        raise NotPlainError("its convolutions are not NatureCNN's")
    features = own[-2]
    assert isinstance(features, nn.Linear)
    return layers[len(own) :], features


def _multiplied(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Two linear layers without an activation between them as one."""
    weight, bias = second.weight.double(), second.bias.double()
    return _linear(weight @ first.weight.double(), weight @ first.bias.double() + bias)


class Spaces(gym.Env[Any, Any]):
    """The spaces of a task without the task: all that SB3 needs to build an agent."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


def _plain_model(agent: Source, kind: type[BaseAlgorithm], actor: Shape, critic: Shape | None) -> BaseAlgorithm:
    activations = {shape.activation for shape in (actor, critic) if shape is not None and shape.activation is not None}
    if len(activations) > 1:
        names = " and ".join(sorted(activation.__name__ for activation in activations))
        raise NotPlainError(
            f"its actor and its critic have activations {names}, and SB3's policies have one (set policy_kwargs' activation_fn)"
        )
    kwargs: dict[str, Any] = {"activation_fn": activations.pop() if activations else nn.Tanh}
    widths = [layer.out_features for layer in actor.linear[:-1]]
    kwargs["net_arch"] = widths if critic is None else {"pi": widths, "vf": [layer.out_features for layer in critic.linear[:-1]]}
    if actor.features is not None:
        kwargs["features_extractor_kwargs"] = {"features_dim": actor.features.out_features}
    if critic is not None:
        if [layer is None for layer in (actor.features, critic.features)] in ([True, False], [False, True]):
            raise NotPlainError("its actor and its critic read images in different ways")
        if actor.features is not None and critic.features is not None and actor.features.out_features != critic.features.out_features:
            raise NotPlainError("its actor and its critic have convolutions of different widths")
        kwargs["share_features_extractor"] = _same(actor, critic)
    if not agent.card.normalize_images:
        kwargs["normalize_images"] = False
    policy = "CnnPolicy" if actor.convolutions else "MlpPolicy"
    small = {"buffer_size": 1} if kind is DQN else {}
    assert agent.actions is not None
    return kind(policy, Spaces(agent.space, agent.actions), policy_kwargs=kwargs, device="cpu", **small)  # type: ignore[arg-type]


def _same(actor: Shape, critic: Shape) -> bool:
    """Whether actor and critic read images through the same convolutions."""
    own: list[Any] = [*actor.convolutions, *([] if actor.features is None else [actor.features])]
    others: list[Any] = [*critic.convolutions, *([] if critic.features is None else [critic.features])]
    return all(torch.equal(a.weight, b.weight) for a, b in zip(own, others, strict=True))


def _fill(model: BaseAlgorithm, actor: Shape, critic: Shape | None, log_std: Tensor | None) -> None:
    policy = model.policy
    if critic is None:
        for network in (model.q_net, model.q_net_target):  # type: ignore[attr-defined]
            _fill_extractor(network.features_extractor, actor)
            _fill_layers([layer for layer in network.q_net if isinstance(layer, nn.Linear)], actor.linear)
        return
    assert isinstance(policy, ActorCriticPolicy)
    _fill_extractor(policy.pi_features_extractor, actor)
    _fill_extractor(policy.vf_features_extractor, critic)
    hidden = [
        [layer for layer in part if isinstance(layer, nn.Linear)]
        for part in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net)
    ]
    _fill_layers([*hidden[0], cast("nn.Linear", policy.action_net)], actor.linear)
    _fill_layers([*hidden[1], policy.value_net], critic.linear)
    if log_std is not None:
        policy.log_std.copy_(log_std)


def _fill_extractor(extractor: nn.Module, shape: Shape) -> None:
    if isinstance(extractor, NatureCNN) and shape.features is not None:
        _fill_layers([layer for layer in extractor.cnn if isinstance(layer, nn.Conv2d)], shape.convolutions)
        _fill_layers([layer for layer in extractor.linear if isinstance(layer, nn.Linear)], [shape.features])


def _fill_layers(own: Iterable[nn.Linear | nn.Conv2d], given: Iterable[nn.Linear | nn.Conv2d]) -> None:
    for layer, source in zip(own, given, strict=True):
        layer.weight.copy_(source.weight)
        if layer.bias is not None:
            layer.bias.copy_(torch.zeros_like(layer.bias) if source.bias is None else source.bias)


@torch.no_grad()
def _difference(agent: Source, model: BaseAlgorithm) -> float:
    """How far the two are apart at random observations."""
    generator = np.random.default_rng(0)
    space = agent.space
    assert isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary), describe(space)
    if isinstance(space, spaces.Box) and space.dtype != np.uint8:
        rows: Any = generator.normal(size=(OBSERVATIONS, *space.shape)).clip(space.low, space.high).astype(np.float32)
    else:
        space.seed(0)
        rows = np.stack([space.sample() for _ in range(OBSERVATIONS)])
    worst = 0.0
    for part in np.array_split(rows, OBSERVATIONS // 100):
        seen = torch.as_tensor(part)
        own, plain = _said(agent, seen), _said_plainly(model, seen)
        worst = max(worst, float(((own - plain).abs() / own.abs().clamp_min(1)).max()))
    return worst


def _said(agent: Source, observations: Tensor) -> Tensor:
    """Means, log-probabilities or Q-values of the agent, without the statistics of its target's VecNormalize."""
    seen: Any = preprocess_obs(observations, agent.space, normalize_images=agent.card.normalize_images)
    if isinstance(agent.encoder, HubGreedyActor):
        return agent.encoder.policy.learnt(seen)
    features = agent.encoder(seen)
    if isinstance(agent.action, GreedyAction):
        return agent.action.q_values(features)
    assert agent.action is not None
    said: Tensor = agent.action(features)
    return said.chunk(2, dim=1)[0] if isinstance(agent.actions, spaces.Box) else said


def _said_plainly(model: BaseAlgorithm, observations: Tensor) -> Tensor:
    if not isinstance(model, OnPolicyAlgorithm):
        values: Tensor = model.q_net(observations)  # type: ignore[attr-defined]
        return values
    distribution: Any = model.policy.get_distribution(observations).distribution
    space = model.action_space
    if isinstance(space, spaces.Box):
        mean: Tensor = distribution.mean
        return mean.clamp(torch.as_tensor(space.low), torch.as_tensor(space.high))
    logits: Tensor = distribution.logits
    return logits
