"""DQN policy whose sources explore for a learner and teach it while they earn more than it.

The design follows Jump-Start and Policy Reuse (sources act for whole episodes), DQfD and QDagger
(a teaching loss toward the sources' actions, of falling weight), and RPI (the learner is a member
of the set it learns from). Q-values of different agents are never compared: pathways are compared
by their returns on the target.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from pydantic import Field
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor
from torch.nn import functional

from hubrl.errors import BadConfig, UnknownName, unknown
from hubrl.formats.cards import SourceCard
from hubrl.formats.hub_spec import HubSpec, parse_spec
from hubrl.formats.schema import Schema
from hubrl.formats.search import Between
from hubrl.methods import check_options, create
from hubrl.methods.base import TeacherMethod
from hubrl.methods.registry import check_q_learning, q_learning
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.nn.losses import inject
from hubrl.policies.dqn_exploration import never
from hubrl.policies.dqn_networks import (
    RoutedQNetwork,
    SourceQNetwork,
    TaughtQNetwork,
    teaching_loss,
)
from hubrl.routing.fresh_pathway import extractor_class
from hubrl.routing.pathways import Pathways, spec_sources
from hubrl.routing.target import TargetSpec, check_fit, check_meanings
from hubrl.selection.arm_selection import ArmSelection
from hubrl.selection.fresh_trial import Phase
from hubrl.selection.settings import TrustSettings
from hubrl.sources import shared
from hubrl.sources.observation_batch import check_division, check_no_nan
from hubrl.sources.preprocessing import Observations


class TeachingOptions(Schema):
    """Options of DQN at the level of outputs."""

    teach_coef: Annotated[float, Field(ge=0), Between(0.1, 3.0, log=True)] = 1.0
    """Weight of the teaching loss while the learner earns nothing yet; it shrinks as the learner
    catches up."""
    judging_share: Annotated[float, Field(gt=0, lt=1), Between(0.2, 0.7)] = 0.5
    """Share of the episodes that judge arms without random actions: half of them the learner, half
    the sources, whose actions are then exploration for it."""
    temperature: Annotated[float, Field(gt=0), Between(0.1, 1.0, log=True)] = 0.3
    """Temperature of the teaching loss, in units of the spread of the learner's Q-values."""
    action_meanings: tuple[str, ...] | None = None
    """Meanings of the target's actions, for sources whose cards name those of theirs."""
    window: Annotated[int, Field(ge=3)] = 5
    """Number of latest episodes by which the learner is judged; sources do not change, and all of
    theirs count."""


class HubDQNPolicy(DQNPolicy):
    """SB3's DQN policy with sources: pathways play whole episodes, and `predict` acts by the best.

    That is method `hub-pathway`. With `kickstart` the learner plays every episode and all sources
    teach it, with a falling weight; with `finetune` one source's Q-network is trained further and
    there is no other learner; with methods whose outputs can be Q-values (`multipolar`, `componet`)
    those are the learner's.

    Args:
        observation_space: The target's observations.
        action_space: The target's actions.
        lr_schedule: SB3's learning rate schedule.
        args: SB3's positional arguments.
        hub: Plain data from `Hub.agent`: the sources' cards, the method and its options.
        teaching: Options, see `TeachingOptions`.
        kwargs: SB3's keyword arguments, for the learner's network.

    Raises:
        SpaceMismatch: If a source does not fit the target's observations or actions.
        BadConfig: If DQN at the level of outputs does not support the method.
    """

    __module__ = "hubrl"  # saved files name the class by this
    plain_module: ClassVar[str] = "hubrl.HubDQNPolicy"
    """Name by which its zip is read without unpickling."""

    action_space: spaces.Discrete
    _is_learning: Callable[[], bool]
    _acted: Int[np.ndarray, " pathways"]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *args: Any,
        hub: HubSpec | dict[str, Any],
        teaching: TeachingOptions | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if "use_sde" in kwargs:
            raise BadConfig(
                "What hub.agent makes for DQN was given to another algorithm; "
                "use hub.agent with that algorithm's class."
            )
        self.spec = parse_spec(hub)
        self.teaching = TeachingOptions.model_validate(teaching or {})
        check_options(self.spec.method, self.spec.options)
        check_q_learning(self.spec.method, self.spec.options, tuned=self.spec.tuned)
        self.q_learning = q_learning(self.spec.method, self.spec.options, tuned=self.spec.tuned)
        self.tuned_card = _tuned_card(self.spec) if self.q_learning == "source" else None
        if "features_extractor_class" not in kwargs:
            extractor = extractor_class(observation_space, self.spec.precision)
            kwargs["features_extractor_class"] = extractor
        if kwargs["features_extractor_class"] is BF16NatureCNN:
            kwargs.setdefault("net_arch", [])  # as SB3 has it behind NatureCNN
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    @property
    def learner(self) -> int:
        """Position of the learner among the pathways: the last."""
        return len(self.pathways.names) - 1

    @property
    def deterministic_episode(self) -> bool:
        """Whether the current episode judges an arm, so that no action may be random.

        False in several environments, because SB3 draws once for all of them.
        """
        return self._pauses and bool(self.selection.deterministic[0]) and self._is_learning()

    def begin(self, n_envs: int, is_learning: Callable[[], bool]) -> None:
        """Choose the arm that plays the first episode of each environment.

        Args:
            n_envs: Number of environments.
            is_learning: Whether the training that begins still runs; once it does not, its arms
                and lessons have no effect.
        """
        self._is_learning = is_learning
        self._pauses = n_envs == 1 and self.learner > 0
        self.selection.begin(n_envs)
        self._lesson = self._next_lesson()

    def update_progress(self, progress_remaining: float) -> None:
        """Update schedules to the share of the training that remains."""
        self.selection.done = 1.0 - progress_remaining
        if self.teachers is not None:
            self.teachers.update_progress(progress_remaining)

    def end(self) -> None:
        """End the training: `predict` acts by the best arm from now on."""
        self.selection.end()
        self._pauses, self._is_learning = False, never

    def ended(self, env: int, value: float, now: int, *, counts: bool = True) -> None:
        """Record an episode's return, and choose the arm of its environment's next episode.

        Args:
            env: Position of the environment.
            value: The return.
            now: Environment steps so far.
            counts: Whether the return measures the arm; false where many actions were random.
        """
        self.selection.record(env, value, now, counts=counts)
        self._lesson = self._next_lesson()
        self.selection.next_turn(env, counts=counts or self._pauses)

    def take_acted(self) -> Int[np.ndarray, " pathways"]:
        """Steps in which each pathway chose the action of the training since the last call."""
        acted, self._acted = self._acted, np.zeros_like(self._acted)
        return acted

    def make_q_net(self) -> QNetwork:
        """SB3's Q-network with a teaching loss, or that of the source that is trained further."""
        if self.tuned_card is not None:
            args = self._update_features_extractor(self.net_args, features_extractor=None)
            source = shared.make_trainable(self.tuned_card)
            for parameter in source.parameters():
                parameter.lr_scale = self.spec.source_lr  # type: ignore[attr-defined]
            return SourceQNetwork(**args, source=source).to(self.device)
        if self.q_learning == "q_values":
            args = self._update_features_extractor(self.net_args, features_extractor=None)
            return RoutedQNetwork(**args, spec=self.spec, target=self._target).to(self.device)
        return TaughtQNetwork(
            **self._update_features_extractor(self.net_args, features_extractor=None)
        ).to(self.device)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """SB3's `predict`.

        Raises:
            NotFinite: If the observation has NaN.
        """
        check_no_nan(observation, "The policy")
        return super().predict(observation, state, episode_start, deterministic)

    def act_as(self, obs: PyTorchObs, pathway: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """Actions of one pathway per row; no other pathway is computed.

        Args:
            obs: Observations as tensors, not yet preprocessed.
            pathway: Position of the pathway, row by row.
        """
        preprocessed: Any = preprocess_obs(
            obs, self.observation_space, normalize_images=self.normalize_images
        )
        return self.choose(preprocessed, pathway)

    def choose(
        self, observations: Observations, pathway: Int[Tensor, " batch"]
    ) -> Int[Tensor, " batch"]:
        """`act_as` for observations as SB3 preprocesses them."""
        active = functional.one_hot(pathway, self.learner + 1).bool()
        learnt = torch.zeros(len(pathway), int(self.action_space.n), device=pathway.device)
        if bool(active[:, -1].any()):
            learnt = self.learnt(observations)
        outputs = self.pathways.compute_outputs(observations, active, learnt)
        return outputs[torch.arange(len(pathway)), pathway].argmax(dim=1)

    def learnt(self, observations: Observations) -> Float[Tensor, "batch actions"]:
        """The learner's Q-values for observations as SB3 preprocesses them."""
        if isinstance(self.q_net, SourceQNetwork | RoutedQNetwork):
            return self.q_net.values(observations)
        learnt: Tensor = self.q_net.q_net(self.q_net.features_extractor(observations))
        return learnt

    def _build(self, lr_schedule: Schedule) -> None:
        check_division(self.spec.sources, self.observation_space, self.normalize_images)
        meanings = check_meanings(self.teaching.action_meanings, self.action_space)
        self._target = target = TargetSpec(
            self.observation_space,
            "outputs",
            self.action_space,
            None,
            meanings,
            self.spec.precision,
        )
        if self.tuned_card is not None:
            check_fit(shared.get(self.tuned_card), target)
        super()._build(lr_schedule)
        self.pathways = Pathways(
            spec_sources(self.spec) if self.q_learning == "explorers" else [], target, fresh=True
        )
        self.teachers: TeacherMethod | None = None
        if self.q_learning == "teachers":
            made = create(self.spec.method, spec_sources(self.spec), target, self.spec.options)
            assert isinstance(made, TeacherMethod)
            self.teachers = made
        settings = TrustSettings(
            judging_share=self.teaching.judging_share, window=self.teaching.window
        )
        self.selection = ArmSelection(
            self.pathways.names[: self.learner], settings, sources_explore=True
        )
        # Off-policy: the learner learns from the episodes of every arm.
        self.selection.trial.go(Phase.ALONE)
        self._pauses = False
        self._is_learning = never
        self._lesson = (self.learner, 0.0)
        self._acted = np.zeros(self.learner + 1, dtype=np.int64)
        if isinstance(self.q_net, TaughtQNetwork):
            self.q_net.teach = self._taught

    def _predict(self, obs: PyTorchObs, deterministic: bool = True) -> Tensor:
        n_rows = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        training = (
            not deterministic and len(self.selection.playing) == n_rows and self._is_learning()
        )
        acting = (
            self.selection.playing if training else np.full(n_rows, self.selection.evaluation_arm)
        )
        if training:
            self._acted += np.bincount(acting, minlength=len(self._acted))
        return self.act_as(obs, torch.as_tensor(acting, device=self.device))

    def _taught(self, obs: PyTorchObs, q_values: Tensor) -> Tensor:
        """Q-values with the best source's teaching loss, if it earns more than the learner."""
        if self.teachers is not None:
            return self._taught_by_all(obs, q_values, self.teachers)
        if not self.selection.turns or not self._is_learning():
            raise BadConfig(
                "DQN at the level of outputs needs a pathway chosen for each episode; "
                "pass HubCallback() to learn."
            )
        teacher, weight = self._lesson
        if weight == 0:
            return q_values
        with torch.no_grad():
            taught = self.act_as(obs, torch.full((len(q_values),), teacher, device=q_values.device))
        return inject(q_values, weight * teaching_loss(q_values, taught, self.teaching.temperature))

    def _taught_by_all(self, obs: PyTorchObs, q_values: Tensor, teachers: TeacherMethod) -> Tensor:
        """Q-values with the mean of all sources' teaching losses."""
        if teachers.coef_now == 0:
            return q_values
        preprocessed: Any = preprocess_obs(
            obs, self.observation_space, normalize_images=self.normalize_images
        )
        with torch.no_grad():
            taught = teachers.teach(preprocessed).argmax(dim=2)
        losses = [
            teaching_loss(q_values, column, self.teaching.temperature)
            for column in taught.unbind(dim=1)
        ]
        loss = teachers.coef_now * torch.stack(losses).mean()
        teachers.routing_stats.add(None, loss)
        return inject(q_values, loss)

    def _next_lesson(self) -> tuple[int, float]:
        """Teaching source and the weight of its loss; both change only as returns are recorded."""
        teacher = self.selection.best_source
        if teacher is None or not self.selection.records.count(teacher):
            return self.learner, 0.0
        remaining = 1.0 - self.selection.done
        return teacher, self.teaching.teach_coef * remaining * self.selection.gap(
            self.learner, teacher
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "hub": self.spec.to_dict(),
            "teaching": self.teaching.to_dict(),
        }


def _tuned_card(spec: HubSpec) -> SourceCard:
    """Card of the source that is trained further.

    Raises:
        BadConfig: If option `source` is missing, or that source has no Q-values.
        UnknownName: If no source has that name.
    """
    by_name = {card.name: card for card in spec.sources}
    name = spec.options.get("source") or (next(iter(by_name)) if len(by_name) == 1 else None)
    if name is None:
        raise BadConfig(f"Method {spec.method!r} needs source=..., one of {', '.join(by_name)}.")
    if name not in by_name:
        raise UnknownName(unknown("source", name, by_name))
    if by_name[name].algorithm != "DQN" or by_name[name].action_map is not None:
        raise BadConfig(
            f"Source {name!r} has no Q-values of its own that DQN could train further; "
            "use level='features'."
        )
    return by_name[name]
