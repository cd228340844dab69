"""Networks of the policy over sources' outputs."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor, nn

from hubrl.methods.base import RoutedMethod
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.nn.manual_gradients import ManualMLP, has_hooks
from hubrl.nn.optimizers import HubAdam
from hubrl.policies.on_policy.built_networks import BuiltNetworks
from hubrl.policies.on_policy.copied_source import copy_source
from hubrl.policies.on_policy.head import CommittedHead
from hubrl.policies.on_policy.step import StepContext, TrainingState
from hubrl.routing.router import Router, Routing
from hubrl.sources.preprocessing import Observations


class PathwayNetworks(BuiltNetworks):
    """Networks of the policy: features, fresh pathway, and the head of a committed decision."""

    _is_committed = False
    """Whether the buffer `committed` is known to be set, as it is once and for all but by loading;
    every step asks, and a GPU would be waited for."""
    _training_state = TrainingState()

    @property
    def training_state(self) -> TrainingState:
        """State of the running training since the rollout began; the default where none runs."""
        return self._training_state

    @training_state.setter
    def training_state(self, state: TrainingState) -> None:
        self._training_state = state
        self.method.update_progress(state.progress_remaining)

    @property
    def fresh_alone(self) -> bool:
        """Whether only SB3's policy is left: every source was dropped, or the only one copied."""
        return self.method.fresh_alone

    @property
    def commits(self) -> bool:
        """Whether drawn pathways bind the next steps: an option, once a training records steps."""
        if not self._is_committed:
            self._is_committed = self.committed is not None and bool(self.committed)
        return self._is_committed and not self.fresh_alone

    @property
    def evaluation_pathway(self) -> int:
        """Best pathway, which acts alone outside training; -1 where all act together."""
        if self.selection is None or not self.commits:
            return -1
        arm = self.selection.evaluation_arm
        return -1 if arm == self.selection.together else arm

    @property
    def acts_by_snapshot(self) -> bool:
        """Whether the hub acts by its actor's snapshot, while the fresh pathway trains alone."""
        swapped = self.selection is not None and self.selection.trial.is_swapped
        return self.actor_snapshot is not None and swapped and not self.fresh_alone

    @property
    def fresh_index(self) -> int:
        """Position of the fresh pathway, after the sources."""
        return len(self.method.pathways.sources)

    def _apply(self, fn: Any, recurse: bool = True) -> "PathwayNetworks":
        """`nn.Module._apply` but for the selection, whose numbers the driver of episodes reads.

        On a GPU each of them would be waited for.
        """
        selection = self._modules.get("selection")
        if selection is None:
            return cast("PathwayNetworks", super()._apply(fn, recurse))
        self._modules["selection"] = None
        try:
            return cast("PathwayNetworks", super()._apply(fn, recurse))
        finally:
            self._modules["selection"] = selection

    def _load_from_state_dict(self, *args: Any) -> None:
        self._is_committed, self._head, self._awaited = False, None, ()
        super()._load_from_state_dict(*args)

    def preprocess(self, obs: PyTorchObs) -> Observations:
        """Observations as SB3 preprocesses them; images stay bytes where all readers take bytes."""
        given: Any = obs
        if (
            isinstance(self.pi_features_extractor, BF16NatureCNN)
            and self.normalize_images
            and self.method.reads_bytes
        ):
            return cast("Observations", given)
        return preprocess_obs(given, self.observation_space, normalize_images=self.normalize_images)

    def extract_both(self, observations: Observations) -> tuple[Tensor, Tensor]:
        """Features of the actor and of the critic."""
        actor = self.pi_features_extractor(observations)
        return actor, actor if self.share_features_extractor else self.vf_features_extractor(
            observations
        )

    def extract_latents(self, observations: Observations) -> tuple[Tensor, Tensor]:
        """Last hidden layers of the actor and of the critic."""
        actor, critic = self.extract_both(observations)
        return self.mlp_extractor.forward_actor(actor), self.mlp_extractor.forward_critic(critic)

    def fresh_params(
        self, latent: Float[Tensor, "batch latent"], *, of_snapshot: bool = False
    ) -> Float[Tensor, "batch outputs"] | None:
        """Action parameters of the fresh pathway, or of the actor's snapshot; none without it."""
        if not self.method.pathways.has_fresh:
            return None
        owner = self.actor_snapshot if of_snapshot and self.actor_snapshot is not None else self
        params: Tensor = owner.action_net(latent)
        if isinstance(self.action_space, spaces.Discrete):
            return nn.functional.log_softmax(params, dim=1)
        return torch.cat([params, owner.log_std.expand_as(params)], dim=1)

    def current_head(self, context: StepContext) -> CommittedHead | None:
        """Head of the committed decision; none where the full distribution is used.

        That is where the fresh pathway alone plays, the hub's snapshot acts, a layer has hooks, or
        the method does not route.
        """
        if context.previous is None or context.only_fresh:
            return None
        if self._head is None:
            # Once a rollout and once an update, for layers that were replaced, or given hooks, in
            # between.
            self._head = (self.make_head(),)
        return self._head[0]

    def make_head(self) -> CommittedHead | None:
        """Head that computes one pathway per row; none if all are needed, or a layer has hooks."""
        assert isinstance(self.action_space, spaces.Box | spaces.Discrete)
        pathways, extractor = self.method.pathways, self.mlp_extractor
        fresh = pathways.has_fresh
        heads = (self.action_net if fresh else None, self.residual, self.stay_logit)
        hooked = any(has_hooks(layer) for layer in heads if layer is not None)
        if self.acts_by_snapshot or hooked or not isinstance(self.method, RoutedMethod):
            return None
        hidden = (extractor.value_net, extractor.policy_net)
        # Hidden layers of another kind stay torch's, and the head reads their outputs.
        reads_features = type(extractor) is MlpExtractor and all(
            ManualMLP.supports(layers) for layers in hidden
        )
        routing = self._head_routing(self.method)
        networks = [*hidden] if reads_features else [nn.Sequential(), nn.Sequential()]
        if routing is not None:
            networks.append(routing.router.hidden)
        fresh_net, residual, stay_logit = cast("tuple[nn.Linear | None, ...]", heads)
        return CommittedHead(
            self.action_space,
            len(pathways.sources),
            len(pathways.names),
            [ManualMLP(layers) for layers in networks],
            self.value_net if has_hooks(self.value_net) else self.value_net.forward,
            self.value_net,
            fresh=fresh_net,
            residual=residual,
            stay_logit=stay_logit,
            log_stds=pathways.log_stds,
            log_std=self.log_std if fresh and isinstance(self.action_space, spaces.Box) else None,
            routing=routing,
            judges=self.selection is not None,
            reads_features=reads_features,
            fixed=not self.training and self._training_state.records_steps,
        )

    def _head_routing(self, method: RoutedMethod) -> Routing | None:
        """Router that the head computes with its own layers; none where the method does."""
        routing, binds = method.routing, self.stay_logit is None and self.outputs.hold > 1
        # A fixed commitment replaces the weights by certainty.
        if routing is None or binds or type(routing.router) is not Router:
            return None
        if has_hooks(routing.router):
            return None
        return routing if ManualMLP.supports(routing.router.hidden) else None

    def swap_actor(self) -> None:
        """Swap actor and critic with their snapshot, at the start and end of the fresh trial."""
        if self.actor_snapshot is not None:
            self.actor_snapshot.swap(self)

    @property
    def is_copy(self) -> bool:
        """Whether actor and critic went on from a copy of a source."""
        copied = self.selection is not None and self.selection.copied >= 0
        return copied or self.is_copy_from_start

    def copy_source(self, index: int) -> None:
        """Let actor and critic go on from a copy of a source."""
        copy_source(self, self._sources[index], self.method.pathways.target.action_meanings)

    @property
    def most_steps(self) -> float | None:
        """Steps after which a commitment always ends; none where its end is learned."""
        return self.outputs.hold if self.outputs.release == "fixed" else None

    def pack_parameters(self, head: CommittedHead) -> None:
        """Pack parameters with manual gradients into few tensors for autograd and optimizer."""
        if isinstance(self.optimizer, HubAdam) and not self.optimizer.packs:
            self.optimizer.pack([each for block in part for each in block] for part in head.parts)

    def end_update(self) -> None:
        """Unpack parameters, before code outside the update reads them or their gradients."""
        optimizer = self.__dict__.get("optimizer")
        if isinstance(optimizer, HubAdam) and optimizer.packs:
            optimizer.unpack()
            self._head = None

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """`nn.Module.parameters`; in an update the optimizer's packs, so that SB3 clips those."""
        optimizer = self.__dict__.get("optimizer")
        if recurse and isinstance(optimizer, HubAdam) and optimizer.packs:
            return (parameter for group in optimizer.param_groups for parameter in group["params"])
        return super().parameters(recurse)
