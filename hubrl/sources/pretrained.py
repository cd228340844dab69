"""Pretrained weights in a module: loading, digest, freezing, and protection from SB3."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from hubrl.errors import BadFile, NotFinite, SourcesNotLoaded
from hubrl.formats.cards import SourceCard
from hubrl.nn.freezing import is_sb3_init, stored_name

Own = TypeVar("Own", bound="Pretrained")


class Pretrained(nn.Module):
    """A module whose weights come from a file, by the names and digest of its card.

    A frozen one keeps them through training, and refuses other weights once it has them.
    """

    card: SourceCard
    frozen: bool
    weights_loaded: bool

    @property
    def name(self) -> str:
        """The name on the card."""
        return self.card.name

    def tensors(self) -> dict[str, Tensor]:
        """Weights by name, as copies on the CPU."""
        return {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in self.state_dict().items()
        }

    def to_bytes(self, *, half: bool = False) -> bytes:
        """Weights as the content of a `.safetensors` file, whose digest is the card's sha256.

        Args:
            half: Whether networks are rounded to float16; statistics of observations are not.

        Raises:
            SourcesNotLoaded: If no weights were loaded.
            NotFinite: If a weight is NaN or infinite.
        """
        self.check_loaded()
        tensors = self.tensors()
        spoilt = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
        if spoilt:
            raise NotFinite(
                f"{spoilt[0]} of source {self.name!r} holds NaN or infinity, and nothing was "
                "saved; go on from an agent that was saved before."
            )
        if half:
            tensors = {name: to_half(tensor) for name, tensor in tensors.items()}
        return safetensors.torch.save(tensors)

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Load weights by name.

        Raises:
            BadFile: If weights are missing, superfluous, of another shape, or not finite.
        """
        own = self.state_dict()
        tensors = {stored_name(own, name): tensor for name, tensor in tensors.items()}
        problem = next(_problems(own, tensors), None)
        if problem is not None:
            raise BadFile(f"The weights of source {self.name!r} do not fit: {problem}.")
        self.weights_loaded = False
        self.load_state_dict(tensors)
        # Numbers of float64 may be too great for the network's float32.
        infinite = [name for name, tensor in self.state_dict().items() if not _is_finite(tensor)]
        if infinite:
            raise BadFile(
                f"The weights of source {self.name!r} do not fit: {infinite[0]} holds numbers too "
                "great for float32."
            )

    def apply(self: Own, fn: Any) -> Own:
        """`nn.Module.apply`, except that SB3's initialisation leaves pretrained weights alone."""
        if not is_sb3_init(fn):
            super().apply(fn)
        return self

    def train(self: Own, mode: bool = True) -> Own:
        """`nn.Module.train`, except that a frozen source stays in evaluation mode."""
        if self.frozen and not self.training:
            # SB3 calls this at every `predict`; the walk took a quarter of DQN's time.
            return self
        return super().train(mode and not self.frozen)

    def check_loaded(self) -> None:
        """Check that weights were loaded.

        Raises:
            SourcesNotLoaded: If not.
        """
        if not self.weights_loaded:
            raise SourcesNotLoaded(
                f"The weights of source {self.name!r} never arrived; load a saved model, or make "
                "the keyword arguments with Hub.policy_kwargs or Hub.agent."
            )

    def _seal(self) -> None:
        digest = hashlib.sha256(self.to_bytes()).hexdigest()
        self.card = self.card.model_copy(update={"sha256": digest})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Set `weights_loaded`; refuse other weights for a source that models share."""
        own = {prefix + name: tensor for name, tensor in self.state_dict().items()}
        found = {name: state_dict[name] for name in own if name in state_dict}
        if self.frozen and self.weights_loaded and not _equal(found, own):
            raise BadFile(
                f"Other weights of source {self.name!r} (sha256 {self.card.sha256}) are in use in "
                "this process; the file being loaded is damaged or claims another's name."
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
        # SB3 fills a target network from its online network, which shares this source.
        new = not own or any(found[name].data_ptr() != own[name].data_ptr() for name in found)
        self.weights_loaded = self.weights_loaded or (new and len(found) == len(own))


def to_half(tensor: Tensor) -> Tensor:
    """Float32 weights rounded to float16; tensors of other dtypes unchanged."""
    return tensor.half() if tensor.dtype == torch.float32 else tensor


def _problems(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Iterator[str]:
    """Sentences about weights that do not fit a source's own, the worst first."""
    yield from (f"{name} is missing" for name in own if name not in given)
    yield from (f"{name} is not in its card" for name in given if name not in own)
    for name, tensor in own.items():
        if given[name].shape != tensor.shape:
            shapes = tuple(given[name].shape), tuple(tensor.shape)
            yield f"{name} has shape {shapes[0]}, the card says {shapes[1]}"
    for name, tensor in given.items():
        if not _is_finite(tensor):
            yield f"{name} holds NaN or infinity"
        if name.startswith("normaliser.var_") and bool((tensor < 0).any()):
            yield f"{name} holds negative variances"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _equal(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(own[name].cpu(), tensor.cpu()) for name, tensor in found.items())
