"""A declared network and its weights in hubrl's names, from a state dict in SB3's names.

Names and shapes of the weights determine the network; the caller adds what they leave open
(activation, squashing). A weight without a place in SB3's networks is refused.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from hubrl.errors import BadFile
from hubrl.formats.cards import Conv, Trunk

NATURE_STRIDES = {8: 4, 4: 2, 3: 1}

OWN_NETWORK = "make a hubrl.Source from your own modules instead"


WRAPPERS = ("_orig_mod", "module")
"""Parts of names that torch.compile and DataParallel add."""


def without_wrappers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that they have without torch.compile and DataParallel."""
    renamed = {
        ".".join(part for part in name.split(".") if part not in WRAPPERS): tensor
        for name, tensor in tensors.items()
    }
    return renamed if len(renamed) == len(tensors) else dict(tensors)


class StateDict:
    """SB3's weights, taken out one by one under new names."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors = dict(tensors)
        self.where = where
        self.taken: set[str] = set()
        self.renamed: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def has(self, prefix: str) -> bool:
        """Whether any weight's name begins with a prefix."""
        return any(name.startswith(prefix) for name in self.tensors)

    def take(self, old: str, new: str, dims: int | None = None) -> Tensor:
        """Move one weight to its new name.

        Raises:
            BadFile: If it is missing or has another number of dimensions.
        """
        if old not in self.tensors:
            raise BadFile(
                f"{self.where} holds no weights {old!r}; its network is not SB3's, {OWN_NETWORK}."
            )
        tensor = self.tensors[old]
        if dims is not None and tensor.ndim != dims:
            raise BadFile(
                f"{self.where}: {old} has {tensor.ndim} dimensions, expected {dims}; {OWN_NETWORK}."
            )
        self.taken.add(old)
        self.renamed[new] = tensor
        return tensor

    def linear(self, old: str, new: str) -> int:
        """Move a linear layer; returns its width."""
        width = int(self.take(f"{old}.weight", f"{new}.weight", dims=2).shape[0])
        self.take(f"{old}.bias", f"{new}.bias", dims=1)
        return width

    def indices(self, prefix: str) -> list[int]:
        """The positions of the layers of an `nn.Sequential` that hold weights, in order."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight")
        found = (pattern.fullmatch(name) for name in self.tensors)
        return sorted(int(match.group(1)) for match in found if match)

    def linears(
        self, prefixes: tuple[str, ...], new: str, *, drop_last: bool = False
    ) -> tuple[tuple[int, ...], str | None]:
        """Move the linear layers of one or more `nn.Sequential`, as one; returns their widths.

        Args:
            prefixes: The stacks, in order.
            new: Prefix of the new names; layers are two apart, with an activation between.
            drop_last: Whether to leave out the last layer, whose old name is returned too.
        """
        layers = [f"{prefix}.{index}" for prefix in prefixes for index in self.indices(prefix)]
        last = layers.pop() if drop_last and layers else None
        return tuple(self.linear(old, f"{new}.{2 * n}") for n, old in enumerate(layers)), last

    def conv_trunk(self, old: str, new: str) -> Trunk:
        """Move SB3's NatureCNN."""
        convs = []
        for index in self.indices(f"{old}.cnn"):
            weight = self.take(f"{old}.cnn.{index}.weight", f"{new}.convs.{index}.weight", dims=4)
            self.take(f"{old}.cnn.{index}.bias", f"{new}.convs.{index}.bias", dims=1)
            channels, _, kernel, _ = (int(n) for n in weight.shape)
            if kernel not in NATURE_STRIDES:
                raise BadFile(
                    f"{self.where} has a convolution of kernel {kernel}, NatureCNN has 8, 4 "
                    f"and 3; {OWN_NETWORK}."
                )
            convs.append(Conv(channels=channels, kernel=kernel, stride=NATURE_STRIDES[kernel]))
        return Trunk(convs=tuple(convs), linear=self.linear(f"{old}.linear.0", f"{new}.linear.0"))

    def trunks(self, old: str, new: str, keys: list[str]) -> dict[str, Trunk]:
        """Move a features extractor: NatureCNN, CombinedExtractor, a hub's, or FlattenExtractor.

        The last one has no weights.
        """
        if self.has(f"{old}.method."):
            for name in [name for name in self.tensors if name.startswith(f"{old}.")]:
                self.take(name, f"{new}.extractor.{name.removeprefix(old + '.')}")
            return {}
        if keys == [""]:
            found = self.has(f"{old}.cnn.")
            return {"": self.conv_trunk(old, f"{new}.readers.0") if found else Trunk()}
        trunks = {}
        for n, key in enumerate(keys):
            part = f"{old}.extractors.{key}"
            trunks[key] = (
                self.conv_trunk(part, f"{new}.readers.{n}") if self.has(f"{part}.cnn.") else Trunk()
            )
        return trunks

    def ignore_copies(self, trunk: str, *copies: str) -> None:
        """Leave out the other names under which SB3 holds a features extractor that was moved."""
        moved = [name.removeprefix(trunk) for name in self.taken if name.startswith(f"{trunk}.")]
        self.taken |= {copy + name for copy in copies for name in moved}

    def ignore(self, *prefixes: str) -> None:
        """Leave out weights that no source needs."""
        self.taken |= {name for name in self.tensors if name.startswith(prefixes)}

    def finish(self) -> dict[str, Tensor]:
        """The renamed weights, once every weight has found its place.

        Raises:
            BadFile: If one has not.
        """
        left = sorted(set(self.tensors) - self.taken)
        if left:
            raise BadFile(
                f"{self.where} holds weights that SB3's networks do not have ({left[0]!r}); "
                f"{OWN_NETWORK}."
            )
        return self.renamed
