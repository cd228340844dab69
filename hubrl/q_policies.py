"""The policy for DQN in which sources explore for the learner and teach it, as long as they earn more than it does.

The design is ours, after Jump-Start and Policy Reuse (sources act for whole episodes), DQfD and QDagger (the learner is
taught what they would do, less and less), and RPI (the learner is a member of the set it learns from). Q-values of
different agents are never compared: what counts is what each pathway earns on the target.
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from pydantic import Field
from stable_baselines3.common.preprocessing import is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn
from torch.nn import functional

from hubrl.cards import Plain
from hubrl.errors import BadConfig
from hubrl.losses import inject
from hubrl.networks import Observations
from hubrl.pathways import Pathways, Target, spec_sources
from hubrl.spec import HubSpec, parse_spec
from hubrl.standing import Standing


class Teaching(Plain):
    """Options of DQN at the level of outputs."""

    teach_coef: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the teaching loss while the learner earns nothing yet; it shrinks as the learner catches up."""
    learner_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of episodes that the learner plays while a source is in favour beside it; all of them afterwards."""
    temperature: Annotated[float, Field(gt=0)] = 0.3
    """Of the learner's choice in the teaching loss, in units of the spread of its Q-values."""
    window: Annotated[int, Field(ge=3)] = 20
    """Episodes of each pathway that are remembered."""


def teaching_loss(q_values: Float[Tensor, "batch actions"], taught: Int[Tensor, " batch"], temperature: float) -> Float[Tensor, ""]:
    """Cross-entropy between what a teacher would do and a softmax over the learner's Q-values [ours].

    The temperature is in units of the Q-values' spread over actions, so that the scale of returns does not matter.
    """
    spread = q_values.detach().std(dim=1).mean().clamp_min(1e-6)
    return functional.cross_entropy(q_values / (temperature * spread), taught)


class TaughtQNetwork(QNetwork):
    """SB3's Q-network, on whose loss a second one rides."""

    teach: Callable[[PyTorchObs, Tensor], Tensor] | None = None

    def forward(self, obs: PyTorchObs) -> Float[Tensor, "batch actions"]:
        """Q-values; in a gradient step the teaching loss rides on them."""
        q_values = super().forward(obs)
        return self.teach(obs, q_values) if self.teach is not None and self.training and torch.is_grad_enabled() else q_values


class HubDQNPolicy(DQNPolicy):
    """SB3's DQN policy among the sources: a pathway plays whole episodes, and the best of them is what `predict` does.

    Args:
        observation_space: The target's observations.
        action_space: The target's actions.
        lr_schedule: SB3's learning rate schedule.
        args: SB3's positional arguments.
        hub: What `Hub.agent` makes: the sources' cards, the method and its options, as plain data.
        teaching: Options, see `Teaching`.
        kwargs: SB3's keyword arguments; they shape the learner's network.

    Raises:
        SpaceMismatch: If a source does not fit the target's observations or actions.
        BadConfig: If the method is not one that DQN can follow at this level.
    """

    action_space: spaces.Discrete

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        *args: Any,
        hub: HubSpec | dict[str, Any],
        teaching: Teaching | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.spec = parse_spec(hub)
        self.teaching = teaching if isinstance(teaching, Teaching) else Teaching.model_validate(teaching or {})
        if self.spec.method != "hub-pathway" or self.spec.options or self.spec.tuned:
            raise BadConfig("DQN hears outputs through method 'hub-pathway' without options and frozen sources; use level='features'.")
        kwargs.setdefault("features_extractor_class", _extractor_for(observation_space))
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    @property
    def learner(self) -> int:
        """Position of the learner among the pathways: the last."""
        return len(self.pathways.names) - 1

    def begin(self, n_envs: int) -> None:
        """Choose who plays in each of some environments, whose episodes begin."""
        self.playing = torch.tensor([self._draw() for _ in range(n_envs)])

    def ended(self, env: int, earned: float) -> None:
        """An episode ended: remember what its pathway earned, and choose the next."""
        self.standing.note(int(self.playing[env]), earned)
        self.playing[env] = self._draw()

    def make_q_net(self) -> QNetwork:
        """SB3's network, which can be taught."""
        return TaughtQNetwork(**self._update_features_extractor(self.net_args, features_extractor=None)).to(self.device)

    def act_as(self, obs: PyTorchObs, pathway: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """What one pathway a row would do; only those asked are computed.

        Args:
            obs: Observations as tensors, not yet preprocessed.
            pathway: Position of the pathway, row by row.
        """
        preprocessed: Any = preprocess_obs(obs, self.observation_space, normalize_images=self.normalize_images)
        return self.choose(preprocessed, pathway)

    def choose(self, observations: Observations, pathway: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
        """The same for observations as SB3 preprocesses them."""
        active = functional.one_hot(pathway, self.learner + 1).bool()
        learnt = torch.zeros(len(pathway), int(self.action_space.n), device=pathway.device)
        if bool(active[:, -1].any()):
            learnt = self.q_net.q_net(self.q_net.features_extractor(observations))
        said = self.pathways.speak(observations, active, learnt)
        return said[torch.arange(len(pathway)), pathway].argmax(dim=1)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        target = Target(self.observation_space, "outputs", self.action_space)
        self.pathways = Pathways(spec_sources(self.spec), target, fresh=True)
        self.standing = Standing(self.pathways.names, self.teaching.window)
        self.playing = torch.full((0,), self.learner)
        assert isinstance(self.q_net, TaughtQNetwork)
        self.q_net.teach = self._taught

    def _predict(self, obs: PyTorchObs, deterministic: bool = True) -> Tensor:
        n_rows = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
        training = not deterministic and len(self.playing) == n_rows
        pathway = self.playing if training else torch.full((n_rows,), self.standing.best)
        return self.act_as(obs, pathway.to(self.device))

    def _draw(self) -> int:
        """Who plays the next episode; from numpy's generator, as DQN's own exploration is."""
        favoured = self.standing.in_favour
        sources = [index for index in favoured if index != self.learner]
        unknown = [index for index in sources if not self.standing.of(index)]
        if unknown:
            return unknown[0]
        if not sources or np.random.random() < self.teaching.learner_share:
            return self.learner
        return int(np.random.choice(sources))

    def _taught(self, obs: PyTorchObs, q_values: Tensor) -> Tensor:
        """Q-values that carry the teaching loss of the best source, if it earns more than the learner."""
        if not len(self.playing):
            raise BadConfig("A DQN that hears outputs learns from whoever plays its episodes; pass HubCallback() to learn.")
        worth = self.standing.worth[: self.learner]
        if self.teaching.teach_coef == 0 or worth.isnan().all():
            return q_values
        teacher = int(worth.nan_to_num(nan=-torch.inf).argmax())
        weight = self.teaching.teach_coef * self.standing.gap(self.learner, teacher)
        if weight == 0:
            return q_values
        with torch.no_grad():
            taught = self.act_as(obs, torch.full((len(q_values),), teacher, device=q_values.device))
        return inject(q_values, weight * teaching_loss(q_values, taught, self.teaching.temperature))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "hub": self.spec.plain(), "teaching": self.teaching.plain()}


def _extractor_for(space: spaces.Space[Any]) -> type[nn.Module]:
    if isinstance(space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if isinstance(space, spaces.Box) and is_image_space(space) else FlattenExtractor
