"""An ordinary SB3 model from the layers of an agent."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.dqn import DQN
from torch import nn

from hubrl.export.chains import Chain, Chains, NotPlainError, linear_layer, plain_layer
from hubrl.sources.source import Source
from hubrl.sources.trunks import NATURE


class NetworkShape(NamedTuple):
    """A chain in the shape of SB3's networks: perhaps NatureCNN, then an MLP of one activation."""

    convolutions: list[nn.Conv2d]
    features: nn.Linear | None
    """NatureCNN's linear layer."""
    linear: list[nn.Linear]
    activation: type[nn.Module] | None
    """None of a single layer."""

    @property
    def hidden_widths(self) -> list[int]:
        """Widths of the MLP's hidden layers."""
        return [layer.out_features for layer in self.linear[:-1]]

    @property
    def cnn(self) -> list[nn.Conv2d | nn.Linear]:
        """The layers of NatureCNN; empty without images."""
        return [*self.convolutions, *([] if self.features is None else [self.features])]


class SpacesEnv(gym.Env[Any, Any]):
    """An environment that has spaces only, which is enough for SB3 to build an agent.

    Args:
        observation_space: Space of the observations.
        action_space: Space of the actions.
    """

    def __init__(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        self.observation_space, self.action_space = observation_space, action_space


@torch.no_grad()
def build_plain_model(agent: Source, kind: type[BaseAlgorithm], chains: Chains) -> BaseAlgorithm:
    """A model of SB3's own policy with the weights of an agent's layers.

    Args:
        agent: The agent, for its spaces.
        kind: PPO, A2C or DQN.
        chains: The agent's layers.

    Raises:
        NotPlainError: If the layers have not the shape of SB3's policies.
    """
    actor = _shape_of(chains.actor)
    critic = None if chains.critic is None else _shape_of(chains.critic)
    kwargs = _policy_kwargs(actor, critic)
    if not agent.card.normalize_images:
        kwargs["normalize_images"] = False
    policy = "CnnPolicy" if actor.convolutions else "MlpPolicy"
    small: dict[str, Any] = {"buffer_size": 1} if kind is DQN else {}
    assert agent.actions is not None
    env = SpacesEnv(agent.space, agent.actions)
    model = kind(policy, env, policy_kwargs=kwargs, device="cpu", **small)
    if critic is None:
        for network in (model.q_net, model.q_net_target):  # type: ignore[attr-defined]
            _fill_cnn(network.features_extractor, actor)
            _fill(network.q_net, actor.linear)
        return model
    own = model.policy
    assert isinstance(own, ActorCriticPolicy)
    _fill_cnn(own.pi_features_extractor, actor)
    _fill_cnn(own.vf_features_extractor, critic)
    _fill([*own.mlp_extractor.policy_net, own.action_net], actor.linear)
    _fill([*own.mlp_extractor.value_net, own.value_net], critic.linear)
    if chains.log_std is not None:
        own.log_std.copy_(chains.log_std)
    return model


def _policy_kwargs(actor: NetworkShape, critic: NetworkShape | None) -> dict[str, Any]:
    shapes = [actor] if critic is None else [actor, critic]
    activations = {shape.activation for shape in shapes if shape.activation is not None}
    if len(activations) > 1:
        raise NotPlainError(
            f"its actor and its critic have activations {_names(activations)}, and SB3's policies "
            "have one (set policy_kwargs' activation_fn)"
        )
    kwargs: dict[str, Any] = {"activation_fn": activations.pop() if activations else nn.Tanh}
    kwargs["net_arch"] = actor.hidden_widths
    if actor.features is not None:
        kwargs["features_extractor_kwargs"] = {"features_dim": actor.features.out_features}
    if critic is None:
        return kwargs
    if (actor.features is None) != (critic.features is None):
        raise NotPlainError("its actor and its critic read images in different ways")
    widths = {shape.features.out_features for shape in shapes if shape.features is not None}
    if len(widths) > 1:
        raise NotPlainError("its actor and its critic have convolutions of different widths")
    shared = all(
        torch.equal(a.weight, b.weight) for a, b in zip(actor.cnn, critic.cnn, strict=True)
    )
    architecture = {"pi": actor.hidden_widths, "vf": critic.hidden_widths}
    return {**kwargs, "net_arch": architecture, "share_features_extractor": shared}


def _shape_of(chain: Chain) -> NetworkShape:
    """A chain in the shape of SB3's networks; adjacent linear layers are multiplied.

    Raises:
        NotPlainError: If it has another shape.
    """
    layers = [plain_layer(one) for one in chain if not isinstance(one, nn.Flatten | nn.Identity)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    features = None
    if convolutions:
        layers, features = _after_nature_cnn(layers, convolutions)
    linear: list[nn.Linear] = []
    activations: list[type[nn.Module]] = []
    for layer, before in zip(layers, [None, *layers], strict=False):
        if isinstance(layer, nn.Linear):
            follows = isinstance(before, nn.Linear)
            linear.append(_product(linear.pop(), layer) if follows else layer)
        elif isinstance(before, nn.Linear):
            activations.append(type(layer))
        else:
            raise NotPlainError(f"it has {type(layer).__name__} behind no linear layer")
    if len(set(activations)) > 1:
        raise NotPlainError(f"its layers have activations {_names(activations)}, SB3's have one")
    if len(activations) != len(linear) - 1:
        raise NotPlainError("its last layer has an activation")
    return NetworkShape(convolutions, features, linear, activations[0] if activations else None)


def _names(activations: Iterable[type[nn.Module]]) -> str:
    return " and ".join(sorted({kind.__name__ for kind in activations}))


def _after_nature_cnn(layers: Chain, convolutions: list[nn.Conv2d]) -> tuple[Chain, nn.Linear]:
    """The layers after a NatureCNN, and its linear layer."""
    sizes = tuple((one.out_channels, one.kernel_size[0], one.stride[0]) for one in convolutions)
    own = layers[: 2 * len(NATURE) + 2]
    kinds = [nn.Conv2d, nn.ReLU] * len(NATURE) + [nn.Linear, nn.ReLU]
    padded = any(one.padding != (0, 0) for one in convolutions)
    if sizes != NATURE or [type(layer) for layer in own] != kinds or padded:
        raise NotPlainError("its convolutions are not NatureCNN's")
    features = own[-2]
    assert isinstance(features, nn.Linear)
    return layers[len(own) :], features


def _product(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """One linear layer for two without an activation between them."""
    weight, bias = second.weight.double(), second.bias.double()
    return linear_layer(weight @ first.weight.double(), weight @ first.bias.double() + bias)


def _fill_cnn(extractor: nn.Module, shape: NetworkShape) -> None:
    if isinstance(extractor, NatureCNN) and shape.features is not None:
        _fill([*extractor.cnn, *extractor.linear], shape.cnn)


def _fill(own: Iterable[nn.Module], given: Iterable[nn.Linear | nn.Conv2d]) -> None:
    """Copy weights into the linear and convolutional layers among some modules."""
    layers = [layer for layer in own if isinstance(layer, nn.Linear | nn.Conv2d)]
    for layer, source in zip(layers, given, strict=True):
        layer.weight.copy_(source.weight)
        if layer.bias is not None:
            layer.bias.copy_(torch.zeros_like(layer.bias) if source.bias is None else source.bias)
