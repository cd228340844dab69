"""CompoNet: attention over what the sources would do, and an internal policy that may overrule it."""

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
from hubrl.routing.pathways import Pathways
from hubrl.routing.target import Target
from hubrl.sources.preprocessing import Observations
from hubrl.sources.source import Source
from hubrl.sources.trunks import mlp


@register("componet")
class CompoNet(Method):
    """A module over frozen policies that composes what they would do (Malagon et al., ICML 2024, self-composing policies).

    With the sources' outputs as rows of `Phi` and the state's encoding `h`: an *output head* attends to them and proposes
    `v = softmax(q(h) k(Phi + E)^T / sqrt(d)) Phi`; an *input head* attends to `[Phi; v]` and hands what it finds, beside
    `h`, to an *internal policy*, whose output is added: `out = v + internal([found, h])`. `E` are sinusoidal encodings of
    the sources' places. As in the authors' code, outputs are means for continuous actions and probabilities for discrete
    ones; there the sum `out` is taken as logits.

    Departures: the module stands on a hub of independent sources instead of a chain of its own predecessors; the standard
    deviation is SB3's, which does not depend on the state; under DQN `out` is taken as Q-values [ours].

    Args:
        sources: The sources, in order.
        target: What they have to fit.
        hidden_dim: Width of the heads' queries and keys, and of the internal policy's two hidden layers.
    """

    summary = "attention over the sources' outputs and an internal policy (ICML 2024)"
    levels = ("outputs",)
    aggregation = "whole"
    own_std = True
    corrects = False
    serves_q_values = True

    def __init__(self, sources: Sequence[Source], target: Target, *, hidden_dim: int = 64) -> None:
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
        self.output_query, self.output_key = nn.Linear(width, hidden_dim), nn.Linear(n_actions, hidden_dim)
        self.input_query, self.input_key = nn.Linear(width, hidden_dim), nn.Linear(n_actions, hidden_dim)
        self.input_value = nn.Linear(n_actions, hidden_dim)
        hidden = Layers(widths=(hidden_dim, hidden_dim), activation="relu")
        self.internal = mlp(hidden_dim + width, hidden).append(nn.Linear(hidden_dim, n_actions))
        self.register_buffer("places", place_encodings(len(sources) + 1, n_actions))
        self.attention = torch.zeros(len(sources))

    def forward(self, observations: Observations, *, fresh: Tensor | None = None, noise: Tensor | None = None) -> Routed:
        """Attend, propose, correct."""
        assert fresh is not None
        active = torch.ones(len(fresh), len(self.pathways.names), dtype=torch.bool, device=fresh.device)
        said = self.pathways.speak(observations, active, fresh)[:, :-1]
        out = self.compose(self.encoder(observations), said.softmax(dim=2) if self.discrete else said.chunk(2, dim=2)[0])
        if self.discrete:
            return Routed(out, fresh.new_zeros(()))
        return Routed(torch.cat([out, fresh.chunk(2, dim=1)[1]], dim=1), fresh.new_zeros(()))

    def compose(self, state: Float[Tensor, "batch width"], said: Float[Tensor, "batch sources actions"]) -> Float[Tensor, "batch actions"]:
        """The module's output for the state's encoding and what the sources would do."""
        places = self.get_buffer("places")
        weights = attention(self.output_query(state), self.output_key(said + places[:-1]))
        self.attention = weights.detach().mean(dim=0).cpu()
        proposed = torch.einsum("bs,bsa->ba", weights, said)
        seen = torch.cat([said, proposed[:, None]], dim=1)
        found = torch.einsum("bs,bsd->bd", attention(self.input_query(state), self.input_key(seen + places)), self.input_value(seen))
        internal: Tensor = self.internal(torch.cat([found, state], dim=1))
        return proposed + internal

    def measures(self) -> dict[str, float]:
        """What the output head paid each source of its attention, over the last batch."""
        return {f"componet/attention/{name}": float(share) for name, share in zip(self.pathways.names, self.attention, strict=False)}


def attention(query: Float[Tensor, "batch dim"], keys: Float[Tensor, "batch rows dim"]) -> Float[Tensor, "batch rows"]:
    """Scaled dot-product attention of one query over some rows (Vaswani et al. 2017, eq. 1, without the values)."""
    scores: Tensor = torch.einsum("bd,bsd->bs", query, keys) / math.sqrt(query.shape[1])
    return scores.softmax(dim=1)


def place_encodings(rows: int, dim: int) -> Float[Tensor, "rows dim"]:
    """Sinusoidal encodings of places (Vaswani et al. 2017, section 3.5)."""
    place = torch.arange(rows, dtype=torch.float32)[:, None]
    column = torch.arange(dim)
    angle = place / 10_000 ** (2 * (column // 2) / dim)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())
