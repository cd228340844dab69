"""A source: a pretrained agent with features, action parameters and values, frozen by default."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

from hubrl.errors import BadConfig, NotFinite, SpaceMismatch
from hubrl.formats.cards import Declared, Registered, SourceCard
from hubrl.formats.spaces import describe
from hubrl.nn.freezing import freeze
from hubrl.sources import action_params, networks, observation_batch
from hubrl.sources.adaptation import Observes, adapted_card, check_steps, make_card, mapped_actions
from hubrl.sources.heads import (
    ActionValue,
    CategoricalAction,
    CustomHead,
    CustomValue,
    GreedyAction,
)
from hubrl.sources.observation_batch import NumpyObservation
from hubrl.sources.preprocessing import Normaliser, Observations, Statistics, apply_steps
from hubrl.sources.pretrained import Pretrained
from hubrl.sources.trunks import Encoder


class Source(Pretrained):
    """A pretrained agent: normaliser, encoder, action head and, where it has one, value head.

    Targets read it at one of two levels: `features`, the input of its own action head, or
    `outputs`, the parameters of its action distribution in the environment's units
    (`hubrl.sources.action_params`). The weights of a frozen source are buffers, out of reach of
    optimizers, Polyak averages and initialisation.

    Built from the user's own modules, it is the trusted way in for agents that hubrl cannot read
    from a file: `Source(encoder=my_encoder, head=my_head, name="mine", observation_space=...,
    action_space=...)`. To be saved and loaded in another process, such a source names a builder
    (`hubrl.register_network`).

    Args:
        encoder: From preprocessed observations to features `(batch, width)`.
        head: From features to the action distribution: for Box the means, or means and log
            standard deviations; for discrete actions the logits. None for an encoder alone.
        value: From features to values `(batch,)` or `(batch, 1)`.
        card: The card, if there is one; otherwise it is made from `description`.
        statistics: Mean and variance of its observations, by key of a Dict or under an empty key.
        frozen: Whether training leaves it unchanged.
        description: Fields of the card: `name`, `observation_space`, `action_space` (spaces or
            plain data), `builder` and `kwargs` of a registered network, `algorithm`, `task`, ...

    Raises:
        BadConfig: If the description is not a card's.
        SpaceMismatch: If the encoder or the head does not fit the spaces.
    """

    def __init__(
        self,
        *,
        encoder: nn.Module,
        head: nn.Module | None = None,
        value: nn.Module | None = None,
        card: SourceCard | None = None,
        statistics: Statistics | None = None,
        frozen: bool = True,
        **description: Any,
    ) -> None:
        super().__init__()
        described = card is None
        if card is None:
            card = make_card(description, statistics)
            encoder, head, value = copy.deepcopy((encoder, head, value))
        self.space = card.observations
        self.actions = mapped_actions(card)
        check_steps(card)
        if not isinstance(card.network, Declared):
            actions = card.actions
            head = None if head is None or actions is None else CustomHead(head, actions)
            value = None if value is None else CustomValue(value)
        self.encoder, self.action, self.critic = encoder, head, value
        self.normaliser = None
        if card.normalisation is not None:
            self.normaliser = Normaliser(self.space, card.normalisation, statistics)
        self.frozen = frozen
        self.weights_loaded = True
        self.card = card
        if frozen:
            freeze(self)
        self.width = _measured_width(self)
        if described:
            self._seal()

    @classmethod
    def from_card(
        cls, card: SourceCard, tensors: Mapping[str, Tensor] | None = None, *, frozen: bool = True
    ) -> "Source":
        """The source that a card describes.

        Args:
            card: The card.
            tensors: Weights by name. Without them the source raises until weights are loaded.
            frozen: Whether training leaves it unchanged.

        Raises:
            BadFile: If weights are missing, superfluous, of another shape, or not finite.
        """
        built = networks.build(card)
        source = cls(
            encoder=built.encoder, head=built.action, value=built.value, card=card, frozen=frozen
        )
        source.weights_loaded = False
        if tensors is not None:
            source.load_weights(tensors)
            if card.sha256 is None:
                source._seal()
        return source

    def adapted(
        self,
        name: str | None = None,
        *,
        observes: Observes | None = None,
        constants: Mapping[int, float] | None = None,
        order: Sequence[int] | None = None,
        signs: Sequence[int] | None = None,
        meanings: Sequence[str] | None = None,
    ) -> "Source":
        """The same agent for a target that observes more, or orders or mirrors its actions.

        Args:
            name: Name of the result; None for this source's.
            observes: Indices of this source's entries in the target's flat observation, in its
                order; or the key of the target's Dict observation. For a source that reads a Dict
                itself, the keys that it reads, or the target's key for each of its own.
            constants: Values of entries that the source reads and the target does not have, by the
                source's own index: a time feature, contact forces. `observes` names the others.
            order: This source's action entry (or choice) for every one of the target's.
            signs: 1 or -1 for every entry of the target's action, as a mirrored gait needs them.
            meanings: Meanings of the source's discrete actions, in its order, by which a target
                that knows its own is matched.

        Raises:
            BadConfig: If the changes do not fit the card.
            SourcesNotLoaded: If no weights were loaded.
        """
        self.check_loaded()
        card = adapted_card(
            self.card,
            name=name,
            observes=observes,
            constants=constants,
            order=order,
            signs=signs,
            meanings=meanings,
        )
        return Source.from_card(card, self.tensors(), frozen=self.frozen)

    def features(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """Features, the input of the source's own action head.

        Args:
            observations: A batch as SB3 preprocesses it.

        Raises:
            SourcesNotLoaded: If no weights were loaded.
        """
        features: Tensor = self.encoder(self.preprocess(observations))
        return features

    def outputs(self, observations: Observations) -> Float[Tensor, "batch outputs"]:
        """Parameters of the source's action distribution, in the environment's units.

        Args:
            observations: A batch as SB3 preprocesses it.

        Raises:
            SourcesNotLoaded: If no weights were loaded.
            SpaceMismatch: If the source is an encoder alone.
        """
        return self.compute_outputs(self.features(observations))

    def compute_outputs(
        self, features: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch outputs"]:
        """Action parameters from the source's features.

        Raises:
            SpaceMismatch: If the source is an encoder alone.
        """
        if self.action is None:
            raise self._no_actions()
        return self.map_outputs(self.action(features))

    def map_outputs(
        self, outputs: Float[Tensor, "batch outputs"]
    ) -> Float[Tensor, "batch outputs"]:
        """The head's outputs after the card's action map, if it has one."""
        mapping = self.card.action_map
        if mapping is None or self.actions is None:
            return outputs
        return action_params.remap(outputs, self.actions, mapping.order, mapping.signs)

    def value(self, observations: Observations) -> Float[Tensor, " batch"]:
        """Values of observations, in returns of the source's own task.

        Args:
            observations: A batch as SB3 preprocesses it.

        Raises:
            SourcesNotLoaded: If no weights were loaded.
            SpaceMismatch: If the source has no value or Q head.
        """
        if self.critic is None:
            raise SpaceMismatch(f"Source {self.name!r} has no value or Q head.")
        inputs, encoder = self.preprocess(observations), self.encoder
        if isinstance(encoder, Encoder):
            trunk = encoder.trunks(inputs)
            features = encoder.hidden(trunk)
        else:
            trunk = features = encoder(inputs)
        values: Tensor = self.critic(inputs, trunk, self._critic_action(features))
        return values

    def _critic_action(self, features: Tensor) -> Tensor:
        """The critic's last input: Q-values, the deterministic action, or nothing."""
        if isinstance(self.action, GreedyAction):
            return self.action.q_values(features)
        if isinstance(self.critic, ActionValue) and self.action is not None:
            mean: Tensor = self.action(features).chunk(2, dim=1)[0]
            return mean
        return features.new_empty(len(features), 0)

    @torch.no_grad()
    def predict(
        self,
        observation: NumpyObservation,
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, None]:
        """Actions for one observation or a batch, as by SB3's models.

        Args:
            observation: One observation, or a batch with a leading axis, as the task returns it
                (the source normalises it itself); images channel last or first.
            state: Ignored; there is no recurrent state.
            episode_start: Ignored.
            deterministic: Whether to take the most likely action.
            action_masks: Allowed choices, as MaskablePPO takes them: a row of booleans for every
                observation.

        Raises:
            SpaceMismatch: If the observation has another shape, or the source no action head.
            SourcesNotLoaded: If no weights were loaded.
            NotFinite: If the observation has NaN, or the networks' outputs for it are not finite.
            BadConfig: If masks do not fit, or the source has no logits to mask.
        """
        if self.actions is None:
            raise self._no_actions()
        observation_batch.check_no_nan(observation, f"Source {self.name!r}")
        batch, batched = observation_batch.to_batch(observation, self.card, self._device())
        outputs = self.outputs(batch)
        if action_masks is not None:
            outputs = _masked(self, outputs, self.actions, action_masks)
        if bool(outputs.isnan().any()):
            raise self._no_numbers()
        actions = action_params.get_actions(outputs, self.actions, deterministic=deterministic)
        if not np.isfinite(actions).all():
            raise self._no_numbers()
        return (actions if batched else actions.squeeze(axis=0)), None

    def _no_numbers(self) -> NotFinite:
        return NotFinite(
            f"The networks of source {self.name!r} compute NaN or infinity for an observation; it "
            "may be too great for float32."
        )

    def __repr__(self) -> str:
        acts = "none, an encoder alone" if self.actions is None else describe(self.actions)
        state = "frozen" if self.frozen else "trained further"
        return (
            f"Source({self.name!r}, {self.card.algorithm}, observes {describe(self.space)}, "
            f"actions {acts}, {self.width} features, {state})"
        )

    def _no_actions(self) -> SpaceMismatch:
        return SpaceMismatch(
            f"Source {self.name!r} is an encoder alone and has no actions; use its features."
        )

    def _device(self) -> torch.device | None:
        tensors = itertools.chain(self.parameters(), self.buffers())
        return next((tensor.device for tensor in tensors), None)

    def accepts(self, space: spaces.Space[Any]) -> bool:
        """Whether the source can read a target's observations, after its preprocessing."""
        return observation_batch.accepts(self.card, space)

    def preprocess(self, observations: Observations) -> Observations:
        """The networks' inputs: observations after the card's steps and the normaliser.

        Args:
            observations: A batch as SB3 preprocesses it.

        Raises:
            SourcesNotLoaded: If no weights were loaded.
        """
        observations = self.apply_steps(observations)
        return observations if self.normaliser is None else self.normaliser(observations)

    def apply_steps(self, observations: Observations) -> Observations:
        """Observations after the card's steps, before the normaliser.

        Raises:
            SourcesNotLoaded: If no weights were loaded.
        """
        self.check_loaded()
        steps = self.card.preprocessing
        return apply_steps(observations, steps) if steps else observations


def is_hub_agent(card: SourceCard) -> bool:
    """Whether an agent was itself trained on a hub's outputs."""
    return isinstance(card.network, Registered) and card.network.builder.startswith("hubrl.")


def _masked(
    source: Source, outputs: Tensor, actions: spaces.Space[Any], masks: np.ndarray
) -> Tensor:
    """Outputs in which choices that masks forbid have no probability."""
    size = action_params.mask_width(actions)
    # A hub's agent may act as a DQN, whose greedy action leaves no order among the others.
    logits = isinstance(source.action, CategoricalAction | CustomHead)
    if size is None or not logits or is_hub_agent(source.card):
        raise BadConfig(
            f"Source {source.name!r} ({source.card.algorithm}, {describe(actions)}) was given "
            "action_masks and has no logits of choices to mask; leave them out."
        )
    rows = np.asarray(masks, dtype=bool)
    if rows.size != len(outputs) * size:
        raise BadConfig(
            f"Source {source.name!r} was given action_masks of shape {rows.shape}; expected "
            f"{size} for each of {len(outputs)} observations."
        )
    allowed = torch.as_tensor(rows.reshape(-1, size), device=outputs.device)
    return action_params.mask(outputs, actions, allowed)


@torch.no_grad()
def _measured_width(source: Source) -> int:
    """Width of the features, from one observation of zeros; checks the head's too."""
    source.eval()
    space, actions, outputs = source.space, source.actions, None
    try:
        with _unloaded_sources_run(source):
            features = source.encoder(observation_batch.zero_observations(space))
            width = int(features.shape[1])
            if source.action is not None and actions is not None:
                outputs = int(source.action(features).shape[1])
    except (RuntimeError, TypeError, IndexError, AttributeError) as error:
        raise SpaceMismatch(
            f"The networks of source {source.name!r} do not read {describe(space)} ({error})."
        ) from error
    if actions is not None and outputs not in (None, action_params.width(actions)):
        raise SpaceMismatch(
            f"The head of source {source.name!r} returns {outputs} numbers, "
            f"{describe(actions)} takes {action_params.width(actions)}."
        )
    return width


@contextmanager
def _unloaded_sources_run(source: Source) -> Iterator[None]:
    """Let an agent's own sources, whose weights come with its own, compute without weights."""
    unloaded = [
        part for part in source.modules() if isinstance(part, Source) and not part.weights_loaded
    ]
    try:
        for part in unloaded:
            part.weights_loaded = True
        yield
    finally:
        for part in unloaded:
            part.weights_loaded = False
