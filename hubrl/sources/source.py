"""A source: a pretrained agent that speaks, frozen unless said otherwise."""

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces
from jaxtyping import Float
from pydantic import ValidationError
from stable_baselines3.common.preprocessing import (
    get_flattened_obs_dim,
    maybe_transpose,
    preprocess_obs,
)
from torch import Tensor, nn

from hubrl.errors import BadConfig, BadFile, SourcesNotLoaded, SpaceMismatch
from hubrl.formats.cards import Declared, Key, Keys, Normalisation, Registered, SourceCard
from hubrl.formats.schema import first_problem
from hubrl.formats.spaces import describe, fits, space_to_dict
from hubrl.nn.freezing import freeze, is_sb3_init, stored_name
from hubrl.sources import action_params, networks
from hubrl.sources.heads import ActionValue, GreedyAction, OwnHead, OwnValue
from hubrl.sources.preprocessing import Normaliser, Observations, Statistics, preprocessed
from hubrl.sources.trunks import Encoder

MEMORY_BUILDER = "in-memory"
"""Builder named by sources made from a user's own modules without a registered one: they live in their process only."""


class Source(nn.Module):
    """A pretrained agent: its normaliser and encoder, its own action head and, where it has one, its value or Q head.

    It speaks at two levels: `features` are what its own head reads; `outputs` are the parameters of its action
    distribution in the environment's units (`hubrl.sources.action_params`). Frozen, its weights are buffers, so that no optimizer,
    no Polyak average and no initialisation can reach them.

    Made from the user's own modules it is the trusted way in for agents that hubrl cannot read from a file:
    `Source(encoder=my_encoder, head=my_head, name="mine", observation_space=..., action_space=...)`. To survive
    saving and loading in another process, such a source names a builder (`hubrl.register_network`).

    Args:
        encoder: From preprocessed observations to features `(batch, width)`.
        head: From features to the action distribution: for Box the means, or means and log standard deviations; for
            discrete actions the logits. None for an encoder alone.
        value: From features to what the observation is worth, `(batch,)` or `(batch, 1)`.
        card: The card, if there is one; otherwise it is made from `description`.
        statistics: Mean and variance that normalise its observations, by key of a Dict observation or under an empty key.
        frozen: Whether training leaves it as it is.
        description: Fields of the card: `name`, `observation_space`, `action_space` (spaces or plain data), `builder`
            and `kwargs` of a registered network, `algorithm`, `task`, and so on.

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
        card = card or _describe_card(description, statistics)
        if described:
            encoder, head, value = copy.deepcopy((encoder, head, value))
        self.space = card.observations
        self.actions = _target_actions(card)
        last = card.preprocessing[-1] if card.preprocessing else None
        parts = isinstance(last, Keys) and isinstance(self.space, spaces.Dict) and set(last.names) == set(self.space.spaces)
        if last is not None and not parts and not isinstance(self.space, spaces.Box):
            raise SpaceMismatch(f"The preprocessing of source {card.name!r} ends in {describe(self.space)}; expected a Box.")
        if not isinstance(card.network, Declared):
            head = None if head is None or card.actions is None else OwnHead(head, card.actions)
            value = None if value is None else OwnValue(value)
        self.encoder, self.action, self.critic = encoder, head, value
        self.normaliser = None
        if card.normalisation is not None:
            self.normaliser = Normaliser(self.space, card.normalisation, statistics)
        self.frozen = frozen
        self.arrived = True
        self.card = card
        if frozen:
            freeze(self)
        self.width = self._probe()
        if described:
            self._seal()

    @classmethod
    def from_card(cls, card: SourceCard, tensors: Mapping[str, Tensor] | None = None, *, frozen: bool = True) -> "Source":
        """The source that a card describes.

        Args:
            card: The card.
            tensors: Its weights, by name. Without them the source refuses to speak until `load_state_dict` brings them.
            frozen: Whether training leaves it as it is.

        Raises:
            BadFile: If the weights are not the card's: missing, superfluous, of another shape, or not finite.
        """
        built = networks.build(card)
        source = cls(encoder=built.encoder, head=built.action, value=built.value, card=card, frozen=frozen)
        source.arrived = False
        if tensors is not None:
            source.fill(tensors)
            if card.sha256 is None:
                source._seal()
        return source

    @property
    def name(self) -> str:
        """What the source is called."""
        return self.card.name

    def adapted(
        self,
        name: str | None = None,
        *,
        observes: str | Sequence[int] | Sequence[str] | Mapping[str, str] | None = None,
        order: Sequence[int] | None = None,
        signs: Sequence[int] | None = None,
        meanings: Sequence[str] | None = None,
    ) -> "Source":
        """The same agent for a target that observes more than it, or acts in another order or with other signs.

        Args:
            name: What to call it; as before if not given.
            observes: The entries of the target's flat observation that are this source's, in its order; or the key of the target's
                Dict observation. Of a source that reads a Dict itself, the keys that it reads, or for each of its own keys the
                target's.
            order: For every entry of the target's action (or every choice) the source's that stands for it.
            signs: For every entry of the target's action 1 or -1; a mirrored gait has some of the latter.
            meanings: What the source's discrete actions mean, in its order; a target that knows its own is then served.

        Raises:
            BadConfig: If the card that follows cannot be.
            SourcesNotLoaded: If the weights never arrived.
        """
        self._check_arrived()
        first: list[dict[str, Any]] = []
        if observes is not None:
            first = [_reading(observes)]
        plain = {**self.card.to_dict(), "name": name or self.name}
        if first:
            plain["preprocessing"] = [*first, *plain.get("preprocessing", [])]
        if order is not None or signs is not None:
            if self.card.action_map is not None:
                raise BadConfig(f"Source {self.name!r} has an action map already; adapt the source that it was made from.")
            plain["action_map"] = {"order": order and list(order), "signs": signs and list(signs)}
        if meanings is not None:
            plain["action_meanings"] = list(meanings)
        try:
            card = SourceCard.model_validate(plain)
        except ValidationError as error:
            raise BadConfig(f"Source {self.name!r} cannot be adapted so: {first_problem(error)}.") from error
        width, named = (
            math.prod(self.space.shape or ()),
            len(first[0].get("indices", ())) if first else 0,
        )
        if named and not self.card.preprocessing and named != width:
            raise BadConfig(f"Source {self.name!r} reads {width} numbers, and observes names {named}; name one for each of them.")
        return Source.from_card(card, self.tensors(), frozen=self.frozen)

    def features(self, observations: Observations) -> Float[Tensor, "batch width"]:
        """What the source's own head reads, for observations as SB3 preprocesses them.

        Raises:
            SourcesNotLoaded: If the weights never arrived.
        """
        features: Tensor = self.encoder(self.read(observations))
        return features

    def outputs(self, observations: Observations) -> Float[Tensor, "batch outputs"]:
        """The parameters of the source's action distribution, in the environment's units.

        Raises:
            SourcesNotLoaded: If the weights never arrived.
            SpaceMismatch: If the source is an encoder alone.
        """
        return self.spoken(self.features(observations))

    def spoken(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch outputs"]:
        """The same, from the source's features.

        Raises:
            SpaceMismatch: If the source is an encoder alone.
        """
        if self.action is None:
            raise SpaceMismatch(f"Source {self.name!r} is an encoder alone and has no actions; use its features.")
        return self.mapped(self.action(features))

    def mapped(self, said: Float[Tensor, "batch outputs"]) -> Float[Tensor, "batch outputs"]:
        """What its head says, by the card's map of actions if it has one."""
        if self.card.action_map is None or self.actions is None:
            return said
        return action_params.mapped(said, self.actions, self.card.action_map.order, self.card.action_map.signs)

    def value(self, observations: Observations) -> Float[Tensor, " batch"]:
        """What the source thinks its observations are worth, as a return on its own task's scale.

        Raises:
            SourcesNotLoaded: If the weights never arrived.
            SpaceMismatch: If the source has no value or Q head.
        """
        if self.critic is None:
            raise SpaceMismatch(f"Source {self.name!r} has no value or Q head.")
        read = self.read(observations)
        trunk = self.encoder.trunks(read) if isinstance(self.encoder, Encoder) else self.encoder(read)
        features = self.encoder.hidden(trunk) if isinstance(self.encoder, Encoder) else trunk
        worth: Tensor = self.critic(read, trunk, self._valued(features))
        return worth

    def _valued(self, features: Tensor) -> Tensor:
        """What a value head is asked about: an action's Q-values, the deterministic action, or nothing."""
        if isinstance(self.action, GreedyAction):
            return self.action.q_values(features)
        if isinstance(self.critic, ActionValue) and self.action is not None:
            mean: Tensor = self.action(features).chunk(2, dim=1)[0]
            return mean
        return features.new_empty(len(features), 0)

    @torch.no_grad()
    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, None]:
        """Actions for one observation or a batch, as SB3's models predict them.

        Observations are given as the task has them: the source normalises them itself.

        Args:
            observation: One observation, or a batch with a leading axis; images channel last or first.
            state: Ignored; there is no recurrent state.
            episode_start: Ignored.
            deterministic: Whether to take the most likely action.

        Raises:
            SpaceMismatch: If the observation has another shape, or the source no action head.
            SourcesNotLoaded: If the weights never arrived.
        """
        if self.actions is None:
            raise SpaceMismatch(f"Source {self.name!r} is an encoder alone and has no actions; use its features.")
        batch, batched = self._batch(observation)
        said = self.outputs(self._as_policies_see(batch))
        actions = action_params.act(said, self.actions, deterministic=deterministic)
        return (actions if batched else actions.squeeze(axis=0)), None

    def _as_policies_see(self, batch: Any) -> Observations:
        """A batch of what the task observes, as SB3 preprocesses it; what is given as an array to a preprocessing is so already."""
        steps, scales = self.card.preprocessing, self.card.normalize_images
        if not steps:
            seen: Any = preprocess_obs(batch, self.space, scales)
            return cast("Observations", seen)
        if isinstance(steps[0], Key):
            return {name: cast("Tensor", preprocess_obs(rows, self.space, scales)) for name, rows in batch.items()}
        if isinstance(steps[0], Keys) and isinstance(self.space, spaces.Dict):
            own = {name: self.space[key] for key, name in steps[0].names.items()}
            return {name: cast("Tensor", preprocess_obs(rows, own[name], scales)) for name, rows in batch.items()}
        return cast("Observations", batch)

    def accepts(self, space: spaces.Space[Any]) -> bool:
        """Whether the source can read observations of a target's space, after its preprocessing."""
        if not self.card.preprocessing:
            return fits(space, self.space)
        return isinstance(space, spaces.Box | spaces.Dict) and self._preprocesses(_zeros(space))

    def tensors(self) -> dict[str, Tensor]:
        """The weights by name, as copies on the CPU."""
        return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()}

    def to_bytes(self, *, half: bool = False) -> bytes:
        """The weights as the content of a `.safetensors` file; the card's sha256 is this content's digest.

        Args:
            half: Whether networks are rounded to float16; the statistics that normalise observations stay as they are.

        Raises:
            SourcesNotLoaded: If the weights never arrived.
        """
        self._check_arrived()
        tensors = self.tensors()
        return safetensors.torch.save({name: halved(tensor) for name, tensor in tensors.items()} if half else tensors)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Load weights by name.

        Raises:
            BadFile: If they are not the card's: missing, superfluous, of another shape, or not finite.
        """
        own = self.state_dict()
        tensors = {stored_name(own, name): tensor for name, tensor in tensors.items()}
        problems = [f"{name} is missing" for name in own if name not in tensors]
        problems += [f"{name} is not in its card" for name in tensors if name not in own]
        problems += [
            f"{name} has shape {tuple(tensors[name].shape)}, the card says {tuple(own[name].shape)}"
            for name in own
            if name in tensors and tensors[name].shape != own[name].shape
        ]
        problems += [f"{name} holds NaN or infinity" for name, tensor in tensors.items() if not _finite(tensor)]
        if problems:
            raise BadFile(f"The weights of source {self.name!r} do not fit: {problems[0]}.")
        self.arrived = False
        self.load_state_dict(tensors)

    def apply(self, fn: Any) -> "Source":
        """`nn.Module.apply`, except that SB3's orthogonal initialisation leaves pretrained weights alone."""
        if not is_sb3_init(fn):
            super().apply(fn)
        return self

    def train(self, mode: bool = True) -> "Source":
        """`nn.Module.train`, except that a frozen source stays in evaluation mode."""
        if self.frozen and not self.training:
            # SB3 asks at every `predict`, and walking through the layers took a quarter of DQN's time.
            return self
        return super().train(mode and not self.frozen)

    def _check_arrived(self) -> None:
        if not self.arrived:
            raise SourcesNotLoaded(
                f"The weights of source {self.name!r} never arrived; load a saved model, or make the keyword arguments "
                "with Hub.policy_kwargs or Hub.agent."
            )

    def _seal(self) -> None:
        self.card = self.card.model_copy(update={"sha256": hashlib.sha256(self.to_bytes()).hexdigest()})

    def read(self, observations: Observations) -> Observations:
        """What the networks read of observations as SB3 preprocesses them: selected, resized, normalised.

        Raises:
            SourcesNotLoaded: If the weights never arrived.
        """
        observations = self.selected(observations)
        return observations if self.normaliser is None else self.normaliser(observations)

    def selected(self, observations: Observations) -> Observations:
        """The same before its normaliser.

        Raises:
            SourcesNotLoaded: If the weights never arrived.
        """
        self._check_arrived()
        return preprocessed(observations, self.card.preprocessing) if self.card.preprocessing else observations

    def _batch(self, observation: np.ndarray | dict[str, np.ndarray]) -> tuple[Any, bool]:
        """A batch of tensors, and whether it was one already."""
        steps = self.card.preprocessing
        if steps and isinstance(steps[0], Key):
            if not isinstance(observation, dict) or steps[0].name not in observation:
                raise SpaceMismatch(f"Source {self.name!r} reads part {steps[0].name!r} of a Dict observation, which it was not given.")
            rows, batched = self._rows(np.asarray(observation[steps[0].name]), self.space)
            return {steps[0].name: rows}, batched
        if isinstance(self.space, spaces.Dict):
            names = steps[0].names if steps and isinstance(steps[0], Keys) else {key: key for key in self.space.spaces}
            if not isinstance(observation, dict) or not set(names.values()) <= set(observation):
                given = f"a dict of {sorted(observation)}" if isinstance(observation, dict) else "an array"
                raise SpaceMismatch(f"Source {self.name!r} reads {describe(self.space)}, it was given {given}.")
            parts = {names[key]: self._rows(np.asarray(observation[names[key]]), part) for key, part in self.space.spaces.items()}
            return {key: rows for key, (rows, _) in parts.items()}, all(batched for _, batched in parts.values())
        array = np.asarray(observation)
        return self._raw_rows(array) if steps else self._rows(array, self.space)

    def _raw_rows(self, array: np.ndarray) -> tuple[Tensor, bool]:
        """Observations of a target that the preprocessing still has to fit; images channel last or first."""
        batched = array.ndim > len(self.space.shape or ())
        rows = array if batched else array[None]
        orientations = [rows, np.moveaxis(rows, -1, 1)] if rows.ndim == 4 else [rows]
        fitting = [found for found in orientations if self._preprocesses(torch.zeros(1, *found.shape[1:]))]
        if not fitting:
            raise SpaceMismatch(f"Source {self.name!r} cannot preprocess an observation of shape {array.shape} to {describe(self.space)}.")
        tensor = torch.as_tensor(fitting[0].copy(), device=self._device())
        return (
            tensor.float() / 255 if tensor.dtype == torch.uint8 and self.card.normalize_images else tensor.float(),
            batched,
        )

    def _device(self) -> torch.device | None:
        return next((tensor.device for tensor in self.state_dict().values()), None)

    def _preprocesses(self, observation: Observations) -> bool:
        """Whether the preprocessing makes of such an observation what the network reads."""
        try:
            row = preprocessed(observation, self.card.preprocessing)
        except (RuntimeError, IndexError, ValueError):
            return False
        if isinstance(row, dict):
            own = self.space.spaces if isinstance(self.space, spaces.Dict) else {}
            return set(row) == set(own) and all(row[key].shape[1:] == _zeros_of(part).shape[1:] for key, part in own.items())
        return tuple(row.shape[1:]) == self.space.shape

    def _rows(self, array: np.ndarray, space: spaces.Space[Any]) -> tuple[Tensor, bool]:
        shape = tuple(space.shape or ())
        if array.ndim - len(shape) in (0, 1):
            array = maybe_transpose(array, space)
        batched = array.ndim > len(shape)
        rows = array if batched else array[None]
        if not self.card.preprocessing and rows.shape[1:] != shape:
            raise SpaceMismatch(f"Source {self.name!r} reads {describe(space)}, it was given an observation of shape {array.shape}.")
        return torch.as_tensor(rows, device=self._device()), batched

    @torch.no_grad()
    def _probe(self) -> int:
        """The width of the features, found by reading one observation of zeros."""
        self.eval()
        zeros = _zeros(self.space)
        # The sources of an agent that was itself trained through a hub: they come with its weights, after this.
        empty = [part for part in self.modules() if isinstance(part, Source) and not part.arrived]
        try:
            for source in empty:
                source.arrived = True
            features = self.encoder(zeros)
            width = int(features.shape[1])
            if self.action is not None and self.actions is not None:
                said = int(self.action(features).shape[1])
        except (RuntimeError, TypeError, IndexError, AttributeError) as error:
            raise SpaceMismatch(f"The networks of source {self.name!r} do not read {describe(self.space)} ({error}).") from error
        finally:
            for source in empty:
                source.arrived = False
        if self.action is not None and self.actions is not None and said != action_params.width(self.actions):
            raise SpaceMismatch(
                f"The head of source {self.name!r} says {said} numbers, {describe(self.actions)} takes {action_params.width(self.actions)}."
            )
        return width

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Note that the weights arrived; let no file replace what other models share."""
        own = {prefix + name: tensor for name, tensor in self.state_dict().items()}
        found = {name: state_dict[name] for name in own if name in state_dict}
        if self.frozen and self.arrived and found and any(not torch.equal(own[k].cpu(), v.cpu()) for k, v in found.items()):
            raise BadFile(
                f"Other weights of source {self.name!r} (sha256 {self.card.sha256}) are in use in this process; "
                "the file being loaded is damaged or claims a source it does not hold."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
        # SB3 fills a target network from its online network, which shares this very source: that brings nothing.
        brings = not own or any(found[name].data_ptr() != own[name].data_ptr() for name in found)
        self.arrived = self.arrived or (brings and len(found) == len(own))


def _describe_card(description: dict[str, Any], statistics: Statistics | None) -> SourceCard:
    fields = {"name": "custom", "algorithm": "custom", **description}
    network = Registered(
        kind="registered",
        builder=fields.pop("builder", MEMORY_BUILDER),
        kwargs=fields.pop("kwargs", {}),
    )
    for end in ("observation_space", "action_space"):
        if isinstance(fields.get(end), spaces.Space):
            fields[end] = space_to_dict(fields[end])
    if statistics is not None:
        fields.setdefault("normalisation", Normalisation(keys=tuple(statistics)))
    try:
        return SourceCard(network=network, **fields)
    except ValueError as error:
        raise BadConfig(f"A source cannot be described so: {' '.join(str(error).split())[:200]}") from error


def _target_actions(card: SourceCard) -> spaces.Space[Any] | None:
    """The actions in which a source speaks: its own head's, mapped.

    Raises:
        SpaceMismatch: If the card's action map does not fit the head's actions.
    """
    own, how = card.actions, card.action_map
    if card.action_meanings is not None and (not isinstance(own, spaces.Discrete) or len(card.action_meanings) != own.n):
        raise SpaceMismatch(f"The card of source {card.name!r} gives {len(card.action_meanings)} meanings to {_described(own)}.")
    if own is None or how is None:
        return own
    size = int(own.n) if isinstance(own, spaces.Discrete) else math.prod(own.shape) if isinstance(own, spaces.Box) else 0
    if how.order is not None and sorted(how.order) != list(range(size)):
        raise SpaceMismatch(f"The action map of source {card.name!r} orders {list(how.order)}, {describe(own)} has {size} to order.")
    if how.signs is not None and (not isinstance(own, spaces.Box) or len(how.signs) != size):
        raise SpaceMismatch(f"The action map of source {card.name!r} has {len(how.signs)} signs for {describe(own)}.")
    if not isinstance(own, spaces.Box):
        return own
    order = list(how.order or range(size))
    signs = np.array(how.signs or [1] * size)
    low, high = own.low.ravel()[order] * signs, own.high.ravel()[order] * signs
    shaped = (np.minimum(low, high).reshape(own.shape), np.maximum(low, high).reshape(own.shape))
    return spaces.Box(*(bound.astype(own.dtype) for bound in shaped), dtype=own.dtype.type)


def _described(space: spaces.Space[Any] | None) -> str:
    return "no actions" if space is None else describe(space)


def _zeros(space: spaces.Space[Any]) -> Observations:
    if isinstance(space, spaces.Dict):
        return {key: _zeros_of(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Box):
        return torch.zeros(1, *space.shape)
    return torch.zeros(1, get_flattened_obs_dim(space))


def _zeros_of(space: spaces.Space[Any]) -> Tensor:
    return cast("Tensor", _zeros(space))


def _reading(observes: str | Sequence[int] | Sequence[str] | Mapping[str, str]) -> dict[str, Any]:
    """The step of a card that reads these."""
    if isinstance(observes, str):
        return {"op": "key", "name": observes}
    if isinstance(observes, Mapping):
        return {"op": "keys", "names": dict(observes)}
    if observes and all(isinstance(each, str) for each in observes):
        return {"op": "keys", "names": {str(each): str(each) for each in observes}}
    return {"op": "select", "indices": list(observes)}


def halved(tensor: Tensor) -> Tensor:
    """A network's weights rounded to float16; anything but float32 as it is."""
    return tensor.half() if tensor.dtype == torch.float32 else tensor


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
