"""The computation of an agent as chains of layers, one for its actor and one for its critic."""

from typing import Any, NamedTuple, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.torch_layers import FlattenExtractor, NatureCNN
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.formats.cards import Constants, Select
from hubrl.methods.base import Method, TeacherMethod
from hubrl.methods.frozen import Frozen
from hubrl.methods.gated_layers import GatedLayer
from hubrl.methods.single import SingleSource
from hubrl.methods.zero_gates import ZeroGates
from hubrl.nn.popart import PopArtLinear
from hubrl.policies.as_source import HubActor, HubGreedyActor
from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.dqn_networks import RoutedQNetwork, SourceQNetwork
from hubrl.policies.extractor import HubExtractor
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.policies.on_policy.raw_observations import RawExtractor
from hubrl.routing.fresh_pathway import FreshPathway
from hubrl.routing.source_pathway import Denormalizer, SourcePathway
from hubrl.sources.heads import (
    CategoricalAction,
    DeterministicAction,
    GaussianAction,
    GreedyAction,
    StateValue,
)
from hubrl.sources.preprocessing import apply_steps
from hubrl.sources.source import Source
from hubrl.sources.trunks import Encoder, HubTrunk, Reader, Trunks

Chain = list[nn.Module]


class NotPlainError(BadConfig):
    """No single network of SB3's shapes has an agent's outputs."""


class Chains(NamedTuple):
    """The layers of an agent."""

    actor: Chain
    """From observations to means, logits or Q-values."""
    critic: Chain | None = None
    """From observations to the value; None for Q-learners."""
    log_std: Float[Tensor, " actions"] | None = None
    """Logarithm of a Gaussian's standard deviation, the same for every observation."""


def read_chains(agent: Source) -> Chains:
    """The layers of an agent.

    Raises:
        NotPlainError: If a part of it is no chain of layers.
    """
    encoder = agent.encoder
    if isinstance(encoder, HubActor):
        return _actor_critic_chains(encoder.policy)
    if isinstance(encoder, HubGreedyActor):
        return _q_chains(encoder.policy)
    if not isinstance(encoder, Encoder):
        raise NotPlainError("its network is not one of SB3's")
    trunk = _trunk(encoder.trunks)
    head, log_std = _action_head(agent)
    actor = [*trunk, *encoder.hidden, *head]
    if isinstance(agent.action, GreedyAction):
        return Chains(actor)
    if not isinstance(agent.critic, StateValue):
        raise NotPlainError("its critic is not a value function")
    own = agent.critic.trunks
    own_trunk = trunk if own is None else _trunk(own)
    return Chains(actor, [*own_trunk, *agent.critic.hidden, agent.critic.value], log_std)


def _actor_critic_chains(policy: HubActorCriticPolicy) -> Chains:
    """The layers of PPO or A2C over its sources' outputs."""
    value = policy.value_net
    value = value.to_linear() if isinstance(value, PopArtLinear) else value
    extractor = _sb3_extractor(policy.vf_features_extractor)
    critic = [*extractor, *policy.mlp_extractor.value_net, value]
    method, acting = policy.method, policy.evaluation_pathway
    fresh_acts = policy.fresh_alone or acting == policy.fresh_index
    if fresh_acts or isinstance(method, TeacherMethod):
        extractor = _sb3_extractor(policy.pi_features_extractor)
        actor = [*extractor, *policy.mlp_extractor.policy_net, policy.action_net]
        return Chains(actor, critic, getattr(policy, "log_std", None))
    if acting < 0:
        _check_single(policy)
    pathway = cast("SourcePathway", method.pathways.sources[max(acting, 0)])
    source, target = pathway.source, pathway.target
    own, wanted = source.card.action_meanings, target.action_meanings
    if own is not None and wanted is not None and own != wanted:
        raise NotPlainError(f"actions of source {source.name!r} are matched by their meanings")
    features = _pathway_features(pathway)
    head, log_std = _action_head(source)
    tuned_std = pathway.log_std if pathway.log_std is not None else log_std
    return Chains([*features, *head], critic, tuned_std)


def _check_single(policy: HubActorCriticPolicy) -> None:
    """Refuse a policy whose pathways act together, or with a correction."""
    if not isinstance(policy.method, SingleSource):
        raise NotPlainError(f"method {policy.spec.method!r} mixes several pathways")
    if policy.residual is not None:
        raise NotPlainError(
            f"method {policy.spec.method!r} adds a residual to the output of its source"
        )


def _q_chains(policy: HubDQNPolicy) -> Chains:
    """The layers of a DQN over its sources' outputs."""
    network = policy.q_net
    if policy.selection.evaluation_arm != policy.learner:
        name = policy.pathways.names[policy.selection.evaluation_arm]
        raise NotPlainError(f"source {name!r} earns more than the learner and acts for it")
    if isinstance(network, SourceQNetwork):
        source = network.source
        body = _source_features(source, policy.observation_space)
        return Chains([*body, *_action_head(source)[0]])
    if isinstance(network, RoutedQNetwork):
        raise NotPlainError(f"method {policy.spec.method!r} mixes several pathways")
    return Chains([*_sb3_extractor(network.features_extractor), *network.q_net])


def _trunk(trunk: nn.Module) -> Chain:
    if isinstance(trunk, HubTrunk):
        extractor = trunk.extractor
        assert isinstance(extractor, HubExtractor)
        if extractor.beside:
            raise NotPlainError(
                f"method {extractor.spec.method!r} passes observations on beside the sources' "
                "features"
            )
        return _method_features(extractor.method, extractor.spec.method)
    assert isinstance(trunk, Trunks)
    if len(trunk.readers) != 1:
        raise NotPlainError("it reads several observations")
    return _reader(trunk.readers[0])


def _reader(reader: nn.Module) -> Chain:
    if isinstance(reader, Reader):
        return [*reader.convs, nn.Flatten(), *reader.linear]
    return list(reader) if isinstance(reader, nn.Sequential) else _sb3_extractor(reader)


def _method_features(method: Method, name: str) -> Chain:
    if isinstance(method, SingleSource):
        features = _pathway_features(cast("SourcePathway", method.pathways.sources[0]))
        last = method.last if isinstance(method, Frozen) else None
        return features if last is None else [*features, last, nn.ReLU()]
    if isinstance(method, ZeroGates):
        if method.open_sources:
            raise NotPlainError(f"method {name!r} has open gates and adds features of sources")
        return _sb3_extractor(method.column)
    fresh = method.pathways.fresh
    if method.fresh_alone and isinstance(fresh, FreshPathway):
        return [*_reader(fresh.reader), fresh.projection]
    raise NotPlainError(f"method {name!r} makes its features of several sources")


def _pathway_features(pathway: SourcePathway) -> Chain:
    """The layers from the target's observations to a pathway's features."""
    features = _source_features(pathway.source, pathway.target.observation_space)
    projection = [] if pathway.projection is None else [pathway.projection]
    return [*_denormalizer(pathway.denormalizer), *features, *projection]


def _source_features(source: Source, space: spaces.Space[Any]) -> Chain:
    """The layers from the target's observations to a source's features."""
    encoder = source.encoder
    if source.normaliser is not None:
        raise NotPlainError(
            f"source {source.name!r} normalizes and clips observations, which SB3's policies do not"
        )
    if isinstance(source.space, spaces.Dict) or not isinstance(encoder, Encoder):
        raise NotPlainError(f"the network of source {source.name!r} is not one of SB3's")
    return [*_selection(source, space), *_trunk(encoder.trunks), *encoder.hidden]


def _action_head(source: Source) -> tuple[Chain, Tensor | None]:
    """A source's action head, and the logarithm of its standard deviation."""
    action = source.action
    if isinstance(action, GreedyAction) and action.is_plain:
        return [plain_layer(action.q)], None
    if isinstance(action, CategoricalAction) and isinstance(action.space, spaces.Discrete):
        return [plain_layer(action.logits), *_action_map(source)], None
    if isinstance(action, GaussianAction) and action.head.kind == "gaussian":
        if action.head.log_std == "sde" or action.head.mean_clip is not None:
            raise NotPlainError(f"source {source.name!r} has exploration that depends on its state")
        log_std = action.log_std if isinstance(action.log_std, Tensor) else None
        return [plain_layer(action.mean), *_action_map(source)], log_std
    if isinstance(action, DeterministicAction | GaussianAction):
        raise NotPlainError(
            f"{source.name!r} acts through a tanh, which PPO's and A2C's policies lack"
        )
    raise NotPlainError(f"{source.name!r} has a head that SB3's PPO, A2C and DQN lack")


def _action_map(source: Source) -> Chain:
    """A source's action map as a layer."""
    how, actions = source.card.action_map, source.actions
    if how is None:
        return []
    shape = (
        (int(actions.n),)
        if isinstance(actions, spaces.Discrete)
        else cast("spaces.Box", actions).shape
    )
    size = int(np.prod(shape))
    signs = torch.tensor(how.signs or [1] * size, dtype=torch.float64)
    order = list(how.order or range(size))
    return [linear_layer(torch.eye(size, dtype=torch.float64)[order] * signs[:, None])]


def _denormalizer(denormalizer: Denormalizer) -> Chain:
    """The inverse of the target's VecNormalize as a layer."""
    if not denormalizer.keys:
        return []
    mean = denormalizer.get_buffer("running_mean_0").flatten()
    std = denormalizer.get_buffer("running_std_0").flatten()
    identity = bool((mean == 0).all() and (std == 1).all())
    return [] if identity else [linear_layer(torch.diag(std.double()), mean.double())]


def _selection(source: Source, space: spaces.Space[Any]) -> Chain:
    """A source's selection from the target's flat observation as a layer."""
    chain: Chain = []
    width = int(np.prod(space.shape or (0,)))
    for step in source.card.preprocessing:
        if not isinstance(step, Select | Constants) or isinstance(space, spaces.Dict):
            raise NotPlainError(
                f"source {source.name!r} has a preprocessing without layer ({step.op})"
            )
        # Either step is affine: its bias is what it makes of zeros.
        rows = torch.cat([torch.zeros(1, width), torch.eye(width)]).double()
        made = apply_steps(rows, (step,))
        assert isinstance(made, Tensor)
        chain.append(linear_layer((made[1:] - made[0]).T, made[0]))
        width = made.shape[1]
    return chain


def _sb3_extractor(extractor: nn.Module) -> Chain:
    if isinstance(extractor, RawExtractor):
        return [*_sb3_extractor(extractor.extractor), *_denormalizer(extractor.denormalizer)]
    if isinstance(extractor, NatureCNN):
        return [*extractor.cnn, *extractor.linear]
    if isinstance(extractor, FlattenExtractor):
        return [nn.Flatten()]
    raise NotPlainError(f"it reads observations through {type(extractor).__name__}")


def plain_layer(layer: nn.Module) -> nn.Module:
    """A layer of torch; of a gated layer, the merged one.

    Raises:
        NotPlainError: If its gates depend on its input.
    """
    try:
        return layer.to_plain_layer() if isinstance(layer, GatedLayer) else layer
    except BadConfig as error:
        raise NotPlainError(str(error)[0].lower() + str(error)[1:]) from error


def linear_layer(
    weight: Float[Tensor, "outputs inputs"], bias: Float[Tensor, " outputs"] | None = None
) -> nn.Linear:
    """A linear layer in double precision, without bias by default."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64)
    layer.weight.data = weight
    layer.bias.data = weight.new_zeros(len(weight)) if bias is None else bias
    return layer
