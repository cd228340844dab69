"""Features of frozen sources added to SB3's own, through gates that start at zero."""

from collections.abc import Sequence
from typing import Any

import torch
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.nn import functional

from hubrl.errors import BadConfig
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.nn.freezing import is_sb3_init
from hubrl.routing.fresh_pathway import extractor_class
from hubrl.routing.pathways import Pathways, SourceOutputs
from hubrl.routing.target import TargetSpec
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source

GATE_SCALE = 10.0
"""Factor in a gate's tanh, which learns ten times as fast as a weight [new]."""

CLOSED = 0.05
"""Gates below this after `JUDGED_AFTER` are closed for good [new]."""

JUDGED_AFTER = 0.1
"""Share of the training after which gates are judged [new]."""


class OwnInit(nn.ModuleList):
    """Layers that SB3's orthogonal initialisation leaves alone, and draws no numbers for."""

    def apply(self, fn: Any) -> "OwnInit":
        """`nn.Module.apply`, except for SB3's initialisation."""
        if not is_sb3_init(fn):
            super().apply(fn)
        return self


@register("zero-gates")
class ZeroGates(Method):
    """SB3's own features, to which those of frozen sources are added through gates.

    `h = f(s) + sum_i tanh(10 g_i) A_i LayerNorm(F_i(s))`, where `f` is SB3's extractor (NatureCNN
    for images, the observation itself where it is flat), `F_i` are the sources and `g_i` starts at
    zero: training starts bit for bit as from scratch, and a source counts only as far as its gate
    opens. Gates that are nearly closed after a tenth of the training
    are closed for good, and their sources no longer computed. Gates by a tanh that starts at zero
    are those of Flamingo (Alayrac et al., NeurIPS 2022); their use here is hubrl's.

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.

    Raises:
        BadConfig: If there is no source.
    """

    summary = "SB3's extractor beside frozen sources behind gates that start at zero"
    levels = ("features",)
    passes_observations = False
    keeps_frozen = True
    needs_only_features = True
    starts_as_scratch = True

    def __init__(self, sources: Sequence[Source], target: TargetSpec) -> None:
        if not sources:
            raise BadConfig("Method 'zero-gates' needs a source; the hub has none.")
        super().__init__(Pathways(sources, target, fresh=False, project=False))
        self.column = self._new_network()
        self.features_dim = width = self.column.features_dim
        self.adapters = OwnInit(nn.Linear(source.width, width, bias=False) for source in sources)
        self.gates = nn.Parameter(torch.zeros(len(sources)))
        self.register_buffer("open", torch.ones(len(sources), dtype=torch.bool))
        self.register_buffer("judged", torch.zeros((), dtype=torch.bool))
        self._open: list[int] | None = None

    def draw_network(self) -> None:
        """Draw the new network as SB3 draws that of its own policies."""
        self.column = self._new_network()

    def _new_network(self) -> BaseFeaturesExtractor:
        target = self.pathways.target
        return extractor_class(target.observation_space, target.precision)(target.observation_space)

    def forward(
        self,
        observations: Observations,
        *,
        fresh: Tensor | None = None,
        noise: Tensor | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Routed:
        """Features of the new network, and of the sources as far as their gates are open."""
        features: Tensor = self.column(observations)
        members = self.open_sources
        if members:
            gates = (GATE_SCALE * self.gates).tanh()
            each = self.pathways.features_of(members, observations, source_outputs)
            for index, own in zip(members, each, strict=True):
                normal = functional.layer_norm(own, own.shape[1:])
                features = torch.addcmul(features, gates[index], self.adapters[index](normal))
        return Routed(features, features.new_zeros(()))

    @property
    def open_sources(self) -> list[int]:
        """Positions of the sources whose gates were not closed; not to be written to."""
        if self._open is None:
            # Read in every step; the buffer changes by `update_progress` and by loading alone.
            self._open = self.get_buffer("open").nonzero().flatten().tolist()
        return self._open

    @torch.no_grad()
    def update_progress(self, progress_remaining: float) -> None:
        """Close gates that are still nearly closed after a tenth of the training."""
        super().update_progress(progress_remaining)
        judged = self.get_buffer("judged")
        # DQN may not have begun to learn.
        too_early = progress_remaining > 1 - JUDGED_AFTER or not bool(self.gates.any())
        if too_early or bool(judged):
            return
        judged.fill_(True)
        self.get_buffer("open").copy_((GATE_SCALE * self.gates).tanh().abs() >= CLOSED)
        self._open = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._open = None

    @property
    def reads_observations(self) -> bool:
        """Whether it reads observations itself: always, by the new network."""
        return True

    @property
    def reads_bytes(self) -> bool:
        """Whether uint8 images may be given undivided, for the same result."""
        return isinstance(self.column, BF16NatureCNN) and self.pathways.reads_bytes

    def measures(self) -> dict[str, float]:
        """Opening of each source's gate, from -1 to 1; 0 where it was closed."""
        opening = ((GATE_SCALE * self.gates).tanh() * self.get_buffer("open")).tolist()
        return {
            f"zero-gates/{name}": gate
            for name, gate in zip(self.pathways.names, opening, strict=True)
        }
