"""A frozen MLP's pathway in numpy: the faster twin of `SourcePathway` for a few observations."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from hubrl.nn.manual_gradients import ManualMLP, has_hooks
from hubrl.nn.numpy_layers import NumpyLayers, Rows, Watched
from hubrl.routing.source_pathway import SourcePathway
from hubrl.sources.batched import declared_encoder, group_key
from hubrl.sources.heads import CategoricalAction, DeterministicAction, GaussianAction


class NumpySource:
    """`SourcePathway.forward` over outputs, without a gradient; rare kinds of heads stay torch's.

    Args:
        pathway: One that `supports` accepts.
    """

    def __init__(self, pathway: SourcePathway) -> None:
        self._pathway, self._source = pathway, pathway.source
        critic = self._source.critic
        apart = set() if critic is None else {*critic.modules()}
        self.watched = Watched([part for part in pathway.modules() if part not in apart])
        """What the twin reads; it is not to be called when this is no longer current."""
        self._hidden = NumpyLayers(declared_encoder(self._source).hidden)
        self.largest = self._hidden.largest
        """Weights of the largest layer."""
        self._denormalizer, self._normaliser = pathway.denormalizer, self._source.normaliser
        self._statistics = [each.numpy() for each in self._denormalizer.buffers()]
        normalised = [] if self._normaliser is None else self._normaliser.buffers()
        self._moments = [each.numpy() for each in normalised]
        layer, action = _plain_head(pathway), self._source.action
        self._head = None if layer is None else NumpyLayers([layer])
        self._log_std = None if pathway.log_std is None else pathway.log_std.detach().numpy()
        if isinstance(action, GaussianAction | DeterministicAction):
            self._low, self._high = action.space.low.ravel(), action.space.high.ravel()
            gaussian = isinstance(action, GaussianAction) and action.head.kind == "gaussian"
            self._squashes = not gaussian

    @staticmethod
    def supports(pathway: SourcePathway) -> bool:
        """Whether the source is a frozen MLP over one array, and no part has hooks."""
        kind, *_ = group_key(pathway.source, "float32") or ("",)
        return (
            kind == "mlp"
            and not has_hooks(pathway)
            and ManualMLP.supports(declared_encoder(pathway.source).hidden)
        )

    def __call__(self, observations: Float[np.ndarray, " batch *obs"]) -> Rows:
        """Output of the pathway; of discrete actions log-probabilities up to a constant.

        Args:
            observations: As SB3 preprocesses them.

        Raises:
            SourcesNotLoaded: If no weights were loaded.
        """
        rows = observations
        if not self._denormalizer.is_identity:
            mean, std = self._statistics
            rows = mean + rows * std
        if self._source.card.preprocessing or not self._source.weights_loaded:
            read = self._source.apply_steps(torch.from_numpy(rows))
            assert isinstance(read, Tensor)
            rows = read.numpy()
        if self._normaliser is not None:
            (mean, var), settings = self._moments, self._normaliser.settings
            scaled = (rows - mean) / np.sqrt(var + settings.epsilon)
            rows = scaled.clip(-settings.clip, settings.clip).astype(np.float32)
        features = self._hidden(rows.reshape(len(rows), -1))
        if self._head is None:
            outputs = self._source.compute_outputs(torch.from_numpy(features))
            projected: Rows = self._pathway.project(self._pathway.match_actions(outputs)).numpy()
            return projected
        own = self._head(features)
        return shift_logits(own) if self._log_std is None else self._gaussian(own, self._log_std)

    def _gaussian(self, mean: Rows, log_std: Float[np.ndarray, " actions"]) -> Rows:
        """As `action_params.gaussian` and `squashed_gaussian`, with the pathway's deviation."""
        if self._squashes:
            mean = self._low + (np.tanh(mean) + 1) * (self._high - self._low) / 2
        else:
            mean = np.minimum(np.maximum(mean, self._low), self._high)
        return with_std(mean, log_std)


def with_std(mean: Rows, log_std: Float[np.ndarray, " actions"]) -> Rows:
    """Action parameters of Gaussians with one standard deviation for all states."""
    n_actions = mean.shape[1]
    params = np.empty((len(mean), 2 * n_actions), np.float32)
    params[:, :n_actions], params[:, n_actions:] = mean, log_std
    return params


def shift_logits(logits: Rows) -> Rows:
    """Log-probabilities up to a constant; NaN where torch's logarithms are."""
    shifted: Rows = logits - logits.max(axis=1, keepdims=True)
    return shifted


def _plain_head(pathway: SourcePathway) -> nn.Linear | None:
    """Last layer of a discrete head, or of a Gaussian's mean; None for what is left to torch."""
    action, mapped = pathway.source.action, pathway.source.card.action_map is not None
    layer: nn.Module | None = None
    if isinstance(action, CategoricalAction):
        layer = action.logits
    elif pathway.log_std is not None and isinstance(action, DeterministicAction | GaussianAction):
        clips = isinstance(action, GaussianAction) and action.head.mean_clip is not None
        layer = None if clips else action.mean
    if mapped or pathway.target.action_meanings is not None or type(layer) is not nn.Linear:
        return None
    return layer if layer.bias is not None else None
