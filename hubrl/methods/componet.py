"""CompoNet: attention over the sources' outputs, and an internal policy."""

import math
from collections.abc import Sequence

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from torch import Tensor, nn

from hubrl.errors import BadConfig
from hubrl.formats.cards import Layers
from hubrl.methods.base import Method, Routed
from hubrl.methods.registry import register
from hubrl.routing.fresh_pathway import extractor_class
from hubrl.routing.pathways import Pathways, SourceOutputs
from hubrl.routing.target import TargetSpec
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source
from hubrl.sources.trunks import mlp


@register("componet")
class CompoNet(Method):
    """A module over frozen policies that composes their outputs (Malagon et al., ICML 2024).

    With the sources' outputs as rows of `Phi` and the state's encoding `h`, an *output head*
    attends to them and proposes `v = softmax(q(h) k(Phi + E)^T / sqrt(d)) Phi`; an *input head*
    attends to `[Phi; v]`, and its result and `h` go to an *internal policy*, whose output is added:
    `out = v + internal([found, h])`. `E` are sinusoidal encodings of the sources' positions. As in
    the authors' code, outputs are means for continuous actions and probabilities for discrete ones,
    where the sum `out` are logits.

    Departures: the sources are independent instead of a chain of predecessors; the standard
    deviation is SB3's, the same in all states; under DQN `out` are Q-values [new].

    Args:
        sources: The sources, in order.
        target: The target's spaces and level.
        hidden_dim: Width of queries and keys, and of the internal policy's two hidden layers.
    """

    summary = "attention over the sources' outputs and an internal policy (ICML 2024)"
    levels = ("outputs",)
    aggregation = "whole"
    keeps_source_std = True
    allows_residual = False
    q_learning = "q_values"

    def __init__(
        self, sources: Sequence[Source], target: TargetSpec, *, hidden_dim: int = 64
    ) -> None:
        if not sources:
            raise BadConfig("Method 'componet' needs a source; the hub has none.")
        super().__init__(Pathways(sources, target, fresh=True))
        self.discrete = isinstance(target.action_space, spaces.Discrete)
        n_actions = self.pathways.width if self.discrete else self.pathways.width // 2
        space = target.observation_space
        self.encoder: nn.Module = nn.Flatten()
        width = get_flattened_obs_dim(space)
        if isinstance(space, spaces.Dict) or len(space.shape or ()) > 1:
            extractor = extractor_class(space)(space)
            self.encoder, width = extractor, extractor.features_dim
        self.output_query = nn.Linear(width, hidden_dim)
        self.output_key = nn.Linear(n_actions, hidden_dim)
        self.input_query = nn.Linear(width, hidden_dim)
        self.input_key = nn.Linear(n_actions, hidden_dim)
        self.input_value = nn.Linear(n_actions, hidden_dim)
        hidden = Layers(widths=(hidden_dim, hidden_dim), activation="relu")
        self.internal = mlp(hidden_dim + width, hidden).append(nn.Linear(hidden_dim, n_actions))
        self.register_buffer("places", position_encodings(len(sources) + 1, n_actions))
        self.attention = torch.zeros(len(sources))

    def forward(
        self,
        observations: Observations,
        *,
        fresh: Tensor | None = None,
        noise: Tensor | None = None,
        source_outputs: SourceOutputs | None = None,
    ) -> Routed:
        """Parameters of the composed action distribution."""
        assert fresh is not None
        shape = len(fresh), len(self.pathways.names)
        active = torch.ones(shape, dtype=torch.bool, device=fresh.device)
        outputs = self.pathways.compute_outputs(observations, active, fresh, source_outputs)
        own = outputs[:, :-1]
        actions = own.softmax(dim=2) if self.discrete else own.chunk(2, dim=2)[0]
        out = self.compose(self.encoder(observations), actions)
        if self.discrete:
            return Routed(out, fresh.new_zeros(()))
        log_std = fresh.chunk(2, dim=1)[1]
        return Routed(torch.cat([out, log_std], dim=1), fresh.new_zeros(()))

    def compose(
        self, state: Float[Tensor, "batch width"], actions: Float[Tensor, "batch sources actions"]
    ) -> Float[Tensor, "batch actions"]:
        """Output of the module for the state's encoding and the sources' actions."""
        positions = self.get_buffer("places")
        keys = self.output_key(actions + positions[:-1])
        weights = attention(self.output_query(state), keys)
        self.attention = weights.detach().mean(dim=0).cpu()
        proposed = torch.einsum("bs,bsa->ba", weights, actions)
        rows = torch.cat([actions, proposed[:, None]], dim=1)
        weights = attention(self.input_query(state), self.input_key(rows + positions))
        found = torch.einsum("bs,bsd->bd", weights, self.input_value(rows))
        internal: Tensor = self.internal(torch.cat([found, state], dim=1))
        return proposed + internal

    def measures(self) -> dict[str, float]:
        """Attention of the output head to each source, averaged over the last batch."""
        each = zip(self.pathways.names, self.attention, strict=False)
        return {f"componet/attention/{name}": float(share) for name, share in each}


def attention(
    query: Float[Tensor, "batch dim"], keys: Float[Tensor, "batch rows dim"]
) -> Float[Tensor, "batch rows"]:
    """Weights of scaled dot-product attention (Vaswani et al. 2017, eq. 1), of one query a row."""
    scores: Tensor = torch.einsum("bd,bsd->bs", query, keys) / math.sqrt(query.shape[1])
    return scores.softmax(dim=1)


def position_encodings(rows: int, dim: int) -> Float[Tensor, "rows dim"]:
    """Sinusoidal position encodings (Vaswani et al. 2017, section 3.5)."""
    position = torch.arange(rows, dtype=torch.float32)[:, None]
    column = torch.arange(dim)
    angle = position / 10_000 ** (2 * (column // 2) / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())
