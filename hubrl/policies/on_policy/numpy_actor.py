"""`predict` over outputs in numpy: the faster twin of `PredictingActor` for a few observations."""

from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from stable_baselines3.common.torch_layers import MlpExtractor
from torch import Tensor, nn

from hubrl.methods.base import RoutedMethod
from hubrl.nn.manual_gradients import MAX_NUMPY_PRODUCTS, ManualMLP, has_hooks
from hubrl.nn.numpy_layers import NumpyLayers, Rows, Watched
from hubrl.policies.on_policy.pathway_actor import PathwayActor, check_output
from hubrl.routing.numpy_source import NumpySource, shift_logits, with_std
from hubrl.routing.pathways import FRESH
from hubrl.routing.router import Router, SymLog
from hubrl.routing.source_pathway import SourcePathway
from hubrl.sources.preprocessing import Observations


class NumpyActor:
    """`solo_actions` and `committed_actions` of a policy whose actor and router are MLPs.

    Args:
        policy: One that `supports` accepts.
    """

    def __init__(self, policy: PathwayActor) -> None:
        method, extractor = cast("RoutedMethod", policy.method), policy.mlp_extractor
        pathways, router = method.pathways, cast("Router", method.router)
        heads = _heads(policy)
        networks = [extractor.policy_net, router, *(layer for layer in heads if layer is not None)]
        self.watched = Watched(
            [part for network in networks for part in network.modules()],
            [policy, extractor, method, pathways, pathways.sources],
        )
        """What the twin reads; it is not to be called when this is no longer current."""
        self._method, self._extract = method, policy.pi_features_extractor
        self._actor = NumpyLayers(extractor.policy_net)
        self._router = NumpyLayers([*router.hidden, router.mean])
        self._fresh, self._residual, self._stay = (
            None if layer is None else NumpyLayers([layer]) for layer in heads
        )
        self.largest = max(self._actor.largest, self._router.largest)
        """Weights of the largest layer."""
        is_box = isinstance(policy.action_space, spaces.Box)
        self._log_std = policy.log_std.detach().numpy() if is_box else None
        self._binds = policy.outputs.hold > 1
        self._pathways = cast("list[SourcePathway]", list(pathways.sources))
        self._sources: dict[int, NumpySource | None] = {}
        self._index, self._width = np.arange(len(pathways.names)), pathways.width

    def __reduce__(self) -> tuple[Any, ...]:
        # Copies and files of a policy have no twin, whose arrays would be copied with it.
        return type(None), ()

    @staticmethod
    def supports(policy: PathwayActor) -> bool:
        """Whether the policy's actor and router are MLPs, and no part has hooks."""
        method, extractor = policy.method, policy.mlp_extractor
        routing = method.routing if isinstance(method, RoutedMethod) else None
        if routing is None or type(routing.router) is not Router:
            return False
        router, heads = routing.router, [head for head in _heads(policy) if head is not None]
        return (
            type(extractor) is MlpExtractor
            and [type(reader) for reader in router.readers] == [SymLog]
            and ManualMLP.supports(extractor.policy_net)
            and ManualMLP.supports(router.hidden)
            and all(isinstance(head, nn.Linear) and head.bias is not None for head in heads)
            and not any(has_hooks(part) for part in [router, *heads])
        )

    @np.errstate(all="ignore")
    def solo_actions(
        self, observations: Observations, pathway: int, *, deterministic: bool
    ) -> Tensor:
        """As of `PredictingActor`."""
        assert isinstance(observations, Tensor)
        if pathway < len(self._pathways):
            params = self._source_output(pathway, observations.numpy())
        else:
            params = self._fresh_output(self._latent(observations))
            if self._log_std is None:
                params = shift_logits(params)
        check_output(params)
        return self._draw(params, deterministic)

    @np.errstate(all="ignore")
    def committed_actions(
        self,
        observations: Observations,
        previous: Int[np.ndarray, " batch"],
        *,
        deterministic: bool,
    ) -> tuple[Tensor, Int[Tensor, " batch"]]:
        """As of `PredictingActor`."""
        assert isinstance(observations, Tensor)
        rows, latent = observations.numpy(), self._latent(observations)
        logits = self._weigh(rows.reshape(len(rows), -1), latent, previous)
        acted = draw_index(logits, deterministic)
        params = self._outputs(acted, rows, latent)
        check_output(params if self._log_std is None else params[:, : len(self._log_std)])
        return self._draw(params, deterministic), torch.from_numpy(acted)

    def _latent(self, observations: Tensor) -> Rows:
        return self._actor(self._extract(observations).numpy())

    def _weigh(self, rows: Rows, latent: Rows, previous: Int[np.ndarray, " batch"]) -> Rows:
        """Log-probabilities of the next pathway, up to a constant."""
        logits = self._router(np.copysign(np.log1p(np.abs(rows)), rows))
        routing = self._method.routing
        assert routing is not None
        if routing.trusted is not None:
            logits[:, ~routing.trusted.numpy()] = -np.inf
        if routing.top_k < len(self._index):
            order = (-logits).argsort(axis=1, kind="stable")
            np.put_along_axis(logits, order[:, routing.top_k :], -np.inf, axis=1)
        stayed: Bool[np.ndarray, "batch pathways"] = self._index == previous[:, None]
        if self._stay is not None:
            logits += stayed * self._stay(latent)
        elif self._binds:
            stayed &= np.isfinite(logits)
            logits[stayed.any(axis=1, keepdims=True) & ~stayed] = -np.inf
        return logits

    def _outputs(
        self, acted: Int[np.ndarray, " batch"], rows: Float[np.ndarray, " batch *obs"], latent: Rows
    ) -> Rows:
        """Outputs of the acting pathways, those of sources corrected."""
        # Rows of a pathway are brought together, those of the fresh one, the last, to the end.
        order: Any = acted.argsort(kind="stable") if len(acted) > 1 else slice(None)
        acted, rows, latent = acted[order], rows[order], latent[order]
        params = np.empty((len(rows), self._width), np.float32)
        end = 0
        for index, own in groupby(acted.tolist()):
            if index < len(self._pathways):
                start, end = end, end + len(list(own))
                params[start:end] = self._source_output(index, rows[start:end])
        if self._residual is not None and end:
            correction = self._residual(latent[:end])
            if self._log_std is not None:
                correction *= np.exp(params[:end, len(self._log_std) :])
            params[:end, : correction.shape[1]] += correction
        if end < len(rows):
            params[end:] = self._fresh_output(latent[end:])
        ordered = np.empty_like(params)
        ordered[order] = params
        return ordered

    def _fresh_output(self, latent: Rows) -> Rows:
        assert self._fresh is not None
        output = self._fresh(latent)
        return output if self._log_std is None else with_std(output, self._log_std)

    def _source_output(self, index: int, rows: Float[np.ndarray, " batch *obs"]) -> Rows:
        pathway, twin = self._pathways[index], self._sources.get(index)
        if twin is None or not twin.watched.is_current:
            twin = NumpySource(pathway) if NumpySource.supports(pathway) else None
            self._sources[index] = twin
        if twin is not None and len(rows) * twin.largest <= MAX_NUMPY_PRODUCTS:
            return twin(rows)
        output: Rows = pathway(torch.from_numpy(rows)).numpy()
        return output

    def _draw(self, params: Rows, deterministic: bool) -> Tensor:
        if self._log_std is None:
            return torch.from_numpy(draw_index(params, deterministic))
        mean, log_std = params[:, : len(self._log_std)], params[:, len(self._log_std) :]
        if not deterministic:
            mean = mean + np.exp(log_std) * torch.randn(mean.shape, dtype=torch.float32).numpy()
        return torch.from_numpy(mean)


def draw_index(logits: Rows, deterministic: bool) -> Int[np.ndarray, " batch"]:
    """As `head.draw_pathway`, with the same random numbers."""
    if not deterministic:
        race = torch.empty(logits.shape, dtype=torch.float32).exponential_(1.0).numpy()
        logits = np.exp(logits - logits.max(axis=1, keepdims=True)) / race
    drawn: Int[np.ndarray, " batch"] = logits.argmax(axis=1)
    return drawn


def _heads(policy: PathwayActor) -> tuple[nn.Module | None, ...]:
    """Last layers of the fresh pathway, the correction and the commitment; none for absent ones."""
    joins = policy.method.pathways.names[-1] == FRESH
    return policy.action_net if joins else None, policy.residual, policy.stay_logit
