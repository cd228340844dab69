"""How the policy over sources' outputs is built."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.formats.hub_spec import HubSpec, parse_spec
from hubrl.formats.spaces import describe
from hubrl.methods import create, find
from hubrl.methods.base import Method
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.nn.freezing import CachedParameters
from hubrl.nn.popart import PopArtLinear
from hubrl.policies.bf16 import ReadsBytes
from hubrl.policies.on_policy.actor_snapshot import ActorSnapshot
from hubrl.policies.on_policy.copied_source import (
    actor_parts,
    check_copies,
    copy_layers,
    critic_layers,
    problem_of_copy,
    shape_of_copy,
    shape_to_copy,
)
from hubrl.policies.on_policy.head import CommittedHead
from hubrl.policies.on_policy.options import OutputOptions, check_selection
from hubrl.policies.on_policy.raw_observations import RawExtractor
from hubrl.routing.fresh_pathway import extractor_class
from hubrl.routing.pathways import FRESH, spec_sources
from hubrl.routing.router import ZeroLinear
from hubrl.routing.source_pathway import Denormalizer, SourcePathway
from hubrl.routing.target import TargetSpec, check_meanings
from hubrl.selection.arm_selection import ArmSelection
from hubrl.selection.settings import TrustSettings
from hubrl.sources.observation_batch import check_division
from hubrl.sources.source import Source


class BuiltNetworks(CachedParameters, ActorCriticPolicy, ReadsBytes):
    """SB3's actor and critic, a method over the sources, and the layers that join them.

    All parts of SB3's policy are built first and unchanged: they are the fresh pathway and the
    critic. The hub is built after them and without the surrounding random numbers, so that with
    every source dropped the policy is SB3's, bit for bit. Arguments as of `HubActorCriticPolicy`.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        hub: HubSpec | dict[str, Any],
        outputs: OutputOptions | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._head: tuple[CommittedHead | None] | None = None
        self._awaited: tuple[Source, ...] = ()
        """Source of which the networks are a copy, as long as its weights have not arrived."""
        self.is_copy_from_start = False
        """Whether actor and critic started as a copy of the method's source."""
        self.critic_was_copied = False
        """Whether the critic was part of that copy, so that it knows returns of the source."""
        if kwargs.get("use_sde"):
            raise BadConfig(
                "use_sde=True was given; pathways have standard deviations of their own, "
                "leave it out."
            )
        if not isinstance(action_space, spaces.Box | spaces.Discrete):
            raise SpaceMismatch(
                f"The target acts in {describe(action_space)}; "
                "outputs are mixed for Box and Discrete, use level='features'."
            )
        self.spec = parse_spec(hub)
        self.outputs = OutputOptions.model_validate(outputs or {})
        self.aggregation = find(self.spec.method).aggregation or self.outputs.aggregation
        if self.outputs.hold > 1 and self.aggregation != "mixture":
            by_method = self.outputs.aggregation == "mixture"
            given = f"method {self.spec.method!r}" if by_method else "aggregation='mean'"
            raise BadConfig(
                f"hold={self.outputs.hold:g} was given for {given}, which draws no pathway; "
                "leave it out."
            )
        if "features_extractor_class" not in kwargs:
            extractor = extractor_class(observation_space, self.spec.precision)
            kwargs["features_extractor_class"] = extractor
        shape = self._shape_to_copy(kwargs)
        self._may_copy = shape is not None
        kwargs = {**(shape or {}), **kwargs}
        if kwargs["features_extractor_class"] is BF16NatureCNN:
            kwargs.setdefault("net_arch", [])  # as SB3 has it behind NatureCNN
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    def _shape_to_copy(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """SB3's keyword arguments for a copy of a source; None where none can be made at first."""
        method, cards = find(self.spec.method), self.spec.sources
        if method.copies_source:
            return shape_to_copy(cards)
        name = self.spec.options.get("source")
        chosen = [card for card in cards if name in (None, card.name)]
        if not method.starts_copied or len(chosen) != 1:
            return None
        return shape_of_copy(chosen[0], given)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"hub": self.spec.to_dict(), "outputs": self.outputs.to_dict()}
        return {**super()._get_constructor_parameters(), **own}

    @property
    def q_net(self) -> nn.Module:
        """Not supported.

        Raises:
            BadConfig: Always; algorithms that the policy was not made for read it.
        """
        raise BadConfig(
            "What hub.agent makes for PPO or A2C was given to another algorithm; "
            "use hub.agent with that algorithm's class."
        )

    actor = lstm_actor = q_net
    """Not supported, like `q_net`; SAC, TD3 and RecurrentPPO read them."""

    @property
    def draws_in_evaluation(self) -> bool:
        """Whether evaluations draw actions, as on Atari, where deterministic agents may loop."""
        return isinstance(self.action_space, spaces.Discrete) and is_image_space(
            self.observation_space
        )

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        with torch.random.fork_rng(devices=[]):
            self._build_hub()
        self.optimizer = self.optimizer_class(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )  # type: ignore[call-arg]

    def _build_hub(self) -> None:
        check_division(self.spec.sources, self.observation_space, self.normalize_images)
        meanings = check_meanings(self.outputs.action_meanings, self.action_space)
        std = None if find(self.spec.method).keeps_source_std else self.outputs.source_std
        target = TargetSpec(
            self.observation_space, "outputs", self.action_space, std, meanings, self.spec.precision
        )
        self.method: Method = create(
            self.spec.method, spec_sources(self.spec), target, self.spec.options
        )
        self.register_buffer("noise_key", torch.randint(2**31, ()))
        self.register_buffer("warm_until", torch.zeros((), dtype=torch.float64))
        self.selection: ArmSelection | None = self._make_selection()
        self._build_commitment()
        if self.outputs.scale_values and len(self.method.pathways.sources):
            self.value_net: nn.Linear = PopArtLinear(self.value_net)
        self.actor_snapshot: ActorSnapshot | None = None
        holds_trial = self.outputs.trial_share > 0 and not self.method.copies_source
        if self.selection is not None and holds_trial:
            self.actor_snapshot = ActorSnapshot(self)
        self.residual = None
        if (
            self.outputs.residual
            and self.method.allows_residual
            and len(self.method.pathways.sources)
        ):
            self.residual = ZeroLinear(
                self.mlp_extractor.latent_dim_pi, get_action_width(self.action_space)
            )
        if self.method.copies_source and self.selection is not None:
            self.selection.copyable = check_copies(self, self._sources, meanings)
        if self.method.starts_copied and self._may_copy:
            self._start_copied(*self._sources)

    def _start_copied(self, source: Source) -> None:
        """Make the actor a copy of the method's only source, if it has the source's layers."""
        pathways = self.method.pathways
        extractor = extractor_class(self.observation_space, self.spec.precision)
        meanings = pathways.target.action_meanings
        if type(self.pi_features_extractor) is not extractor:
            return
        if problem_of_copy(self, source, meanings) is not None:
            return
        self.is_copy_from_start = True
        self.critic_was_copied = bool(critic_layers(self, source))
        if source.weights_loaded:
            copy_layers(self, source, meanings)
        else:
            self._awaited = (source,)
        for std in pathways.log_stds:
            self.log_std.data.copy_(std)
        for part in actor_parts(self):
            for parameter in part.parameters():
                parameter.lr_scale = self.spec.source_lr  # type: ignore[attr-defined]
        self._read_raw()
        self.method.hand_over()

    def _read_raw(self) -> None:
        """Read observations as the source does, before the target's VecNormalize."""
        space, shared = self.observation_space, self.share_features_extractor
        if not Denormalizer(space).keys:
            return
        actors = RawExtractor(space, self.pi_features_extractor)
        critics = actors if shared else RawExtractor(space, self.vf_features_extractor)
        self.features_extractor = self.pi_features_extractor = actors
        self.vf_features_extractor = critics

    def _make_selection(self) -> ArmSelection | None:
        names = self.method.pathways.names
        if self.outputs.judging_share == 0 or len(names) == 1:
            return None
        check_selection(self.aggregation, self.method)
        settings = TrustSettings(
            judging_share=self.outputs.judging_share, trial_share=self.outputs.trial_share
        )
        return ArmSelection(
            [name for name in names if name != FRESH],
            settings,
            fresh=names[-1] == FRESH,
            tuned=self.spec.tuned,
            every_episode_counts=self.draws_in_evaluation,
            copies=self.method.copies_source,
        )

    def _build_commitment(self) -> None:
        n_pathways, hold = len(self.method.pathways.names), self.outputs.hold
        may_commit = (hold > 1 or self.selection is not None) and n_pathways > 1
        self.committed: Tensor | None
        self.register_buffer("committed", torch.zeros((), dtype=torch.bool) if may_commit else None)
        self.stay_logit = None
        if may_commit and hold > 1 and self.outputs.release == "learned":
            self.stay_logit = ZeroLinear(self.mlp_extractor.latent_dim_pi, n_pathways)
            # Equal weights then end a commitment once in `hold` steps.
            nn.init.constant_(self.stay_logit.bias, math.log((hold - 1) * (n_pathways - 1)))

    @property
    def _sources(self) -> list[Source]:
        pathways = self.method.pathways.sources
        return [cast("SourcePathway", pathway).source for pathway in pathways]


def get_action_width(space: spaces.Space[Any]) -> int:
    """Width of a correction of a source's output: action dimensions, or discrete actions."""
    return int(space.n) if isinstance(space, spaces.Discrete) else get_action_dim(space)
