"""The policy for PPO and A2C in which the sources' own heads speak."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float, Int
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space, preprocess_obs
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from hubrl.buffers import Memory
from hubrl.decision import Decider, Decision
from hubrl.distributions import CommittedDistribution, MixtureDistribution, PathwayDistribution, held, mixed_categorical
from hubrl.errors import BadConfig, SpaceMismatch
from hubrl.formats.hub_spec import HubSpec, parse_spec
from hubrl.formats.spaces import describe
from hubrl.methods import create, find
from hubrl.methods.base import Method, Routed, RoutedMethod
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.nn.freezing import CachedParameters, copy_weights, freeze
from hubrl.nn.losses import inject
from hubrl.nn.manual_mlp import ManualMLP, has_hooks
from hubrl.nn.optimizers import HubAdam
from hubrl.nn.popart import PopArtLinear
from hubrl.outputs import Hearing, Holding, Outputs, check_selection, solo
from hubrl.precision import ReadsBytes
from hubrl.routing.fresh_pathway import extractor_class
from hubrl.routing.pathways import FRESH, spec_sources
from hubrl.routing.router import Router, ZeroLinear
from hubrl.routing.target import TargetSpec, check_meanings
from hubrl.routing.weights import index_mask
from hubrl.selection.arm_selection import ArmSelection
from hubrl.selection.settings import TrustSettings
from hubrl.sources import action_params
from hubrl.sources.preprocessing import Observations


class HubActorCriticPolicy(CachedParameters, ActorCriticPolicy, ReadsBytes):
    """SB3's actor-critic policy, whose actor is one pathway among the sources.

    Everything that SB3's policy builds is built first and unchanged: it is the fresh pathway and the critic. The hub
    is added behind it and draws on no random number of the surrounding generator, so that with every source dropped
    what is left is SB3's policy, bit for bit.

    Args:
        observation_space: The target's observations.
        action_space: The target's actions: Box or Discrete.
        lr_schedule: SB3's learning rate schedule.
        args: SB3's positional arguments.
        hub: What `Hub.agent` makes: the sources' cards, the method and its options, as plain data.
        outputs: Options of the level of outputs, see `Outputs`.
        kwargs: SB3's keyword arguments (`net_arch`, `activation_fn`, ...); they shape the fresh pathway and the critic.

    Raises:
        SpaceMismatch: If a source does not fit the target's observations or actions.
        BadConfig: If the hub or an option cannot be, or state-dependent exploration is asked for.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *args: Any,
        hub: HubSpec | dict[str, Any],
        outputs: Outputs | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("use_sde"):
            raise BadConfig("use_sde=True was given; pathways have standard deviations of their own, leave it out.")
        if not isinstance(action_space, spaces.Box | spaces.Discrete):
            raise SpaceMismatch(
                f"The target acts in {describe(action_space)}; outputs are mixed for Box and Discrete, use level='features'."
            )
        self.spec = parse_spec(hub)
        self.outputs = outputs if isinstance(outputs, Outputs) else Outputs.model_validate(outputs or {})
        self.aggregation = find(self.spec.method).aggregation or self.outputs.aggregation
        if self.outputs.hold > 1 and self.aggregation != "mixture":
            given = f"method {self.spec.method!r}" if self.outputs.aggregation == "mixture" else "aggregation='mean'"
            raise BadConfig(f"hold={self.outputs.hold:g} was given for {given}, which holds nobody; leave it out.")
        self.remembers = False
        """Whether a buffer stores `memory` and brings it back by `recall`; a callback sees to it."""
        self.warming = False
        """Whether only the critic learns, so that the actor waits until advantages mean something."""
        self.quick = False
        """Whether PPO's own loop calls, in which weights change while an update lasts and then alone; a callback sees to it.

        Small parameters are then stepped together (`hubrl.nn.parameter_packing`).
        """
        self.bonus = True
        """Whether the algorithm may ask for the entropy's gradient; a callback says so."""
        self.memory: Memory = {}
        self._recalled: tuple[Any, Memory] | None = None
        self._hearing: Hearing | None = None
        self._distributed: Distribution | None = None
        self._holding: Holding | None = None
        self._noise_generator: np.random.Generator | None = None
        self._predicting = False
        self._before: np.ndarray | None = None
        """In `predict`, who acted before, as far as that binds; none where nobody is held."""
        self._some_fresh = False
        """Whether the fresh pathway played alone in this rollout."""
        self._bound: np.ndarray = np.zeros(0, dtype=np.int64)
        """In a rollout, who acted before, as far as that binds."""
        self._drawn: Tensor | None = None
        """In `predict`, who acts."""
        self._decider: tuple[Decider | None] | None = None
        self._knows_hidden = False
        """Whether the decider computes the hidden layers too."""
        kwargs.setdefault("features_extractor_class", extractor_class(observation_space, self.spec.precision))
        if kwargs["features_extractor_class"] is BF16NatureCNN:
            kwargs.setdefault("net_arch", [])  # as SB3 has it behind NatureCNN
        super().__init__(observation_space, action_space, lr_schedule, *args, **kwargs)

    @property
    def q_net(self) -> nn.Module:
        """There is none.

        Raises:
            BadConfig: An algorithm asks for it that the policy was not made for.
        """
        raise BadConfig("What hub.agent makes for PPO or A2C was given to another algorithm; use hub.agent with that algorithm's class.")

    actor = lstm_actor = q_net
    """As of `q_net`; SAC, TD3 and RecurrentPPO ask for them."""

    @property
    def fresh_alone(self) -> bool:
        """Whether every source was dropped, so that this is SB3's policy and nothing else."""
        return self.method.fresh_alone

    @property
    def holds(self) -> bool:
        """Whether a pathway that was drawn acts for a while: if asked for, once a buffer stores who acted."""
        return self.committed is not None and bool(self.committed) and not self.fresh_alone

    @property
    def lead(self) -> int:
        """The pathway that acts alone outside training, because it earns most; -1 where all pathways act together."""
        if self.selection is None or not self.holds:
            return -1
        arm = self.selection.evaluation_arm
        return -1 if arm == self.selection.together else arm

    @property
    def draws_in_evaluation(self) -> bool:
        """Whether the agent is evaluated with drawn actions, as in Atari games: a deterministic agent may play one game for ever."""
        return isinstance(self.action_space, spaces.Discrete) and is_image_space(self.observation_space)

    def commit(self) -> None:
        """From now on a buffer stores `memory` and brings it back by `recall`, so that pathways can be held."""
        self.remembers = True
        if self.committed is not None:
            self.committed.fill_(True)

    def route(self, observations: Observations) -> Routed:
        """What the hub makes of observations as SB3 preprocesses them, without noise."""
        features = self.pi_features_extractor(observations)
        latent_pi = self.mlp_extractor.forward_actor(features)
        lead = self.lead
        if lead < 0:
            routed = self._route(Hearing(observations, exploring=False), latent_pi)
            return routed._replace(whole=routed.features)
        alone = torch.full((len(latent_pi),), lead, device=latent_pi.device)
        hearing = Hearing(observations, exploring=False, previous=solo(alone), only_fresh=lead == self._fresh_index)
        routed = self._route(hearing, latent_pi)
        routed = routed._replace(log_weights=_sure(alone, len(self.method.pathways.names)))
        if hearing.only_fresh:
            fresh = cast("Tensor", self._fresh_speech(latent_pi))
            # The router gives the fresh pathway no weight while the hub plays, so that it is not among what was routed.
            before = cast("Tensor", routed.pathway_outputs)
            routed = routed._replace(pathway_outputs=torch.cat([before[:, :-1], fresh[:, None]], dim=1))
        return routed._replace(whole=routed.features)

    def trust_sources(self) -> None:
        """Let the router follow what is known of the sources: who is a pathway of the hub, and where it starts for each."""
        assert self.selection is not None
        members = self.selection.candidates
        kept = [index in members for index in range(self.selection.n_sources)]
        start = self.selection.router_start
        if self.method.pathways.names[-1] == FRESH:
            kept.append(not members or self.outputs.fresh_joins)
            start = [*start, -self.selection.settings.most_lag if members else 0.0]
        self.method.apply_probe(kept, start)

    @torch.no_grad()
    def act_as(self, obs: PyTorchObs, pathway: Int[Tensor, " batch"]) -> np.ndarray:
        """Actions that one candidate a row would take, not corrected, drawn with its own standard deviation.

        Args:
            obs: Observations as tensors, not yet preprocessed.
            pathway: Position among the method's candidates, which are its pathways unless it says otherwise, row by row.
        """
        observations = self._preprocessed(obs)
        latent_pi = self.mlp_extractor.forward_actor(self.pi_features_extractor(observations))
        racing = self.method.probe_candidates
        active = nn.functional.one_hot(pathway, len(racing.names)).bool()
        said = racing.compute_outputs(observations, active, self._fresh_speech(latent_pi))
        rows = said.gather(1, pathway[:, None, None].expand(-1, 1, said.shape[2])).squeeze(1)
        return action_params.get_actions(rows, self.action_space, deterministic=False)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Actions, values and log-probabilities for a rollout.

        Raises:
            BadConfig: If pathways were held so far and no buffer stores who acts.
        """
        self.memory = {}
        with self._hear(obs, exploring=True) as hearing:
            if not self.fresh_alone:
                self._remember(hearing)
            acted = self._act(hearing, deterministic) or super().forward(obs, deterministic)  # type: ignore[arg-type]
            self._note(hearing)
        return acted

    def evaluate_actions(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values, log-probabilities and entropy for an update, under the rollout's noise.

        Outside a training whose steps are recorded, log-probabilities are those of `get_distribution`: of the mixture, whoever acted.

        Raises:
            BadConfig: If steps of the training are recorded and these observations have no record.
        """
        memory = self._record_of(obs)
        with self._hear(obs, exploring=bool(memory) or not self.holds) as hearing:
            hearing.heard, hearing.said, hearing.noise = memory.get("heard"), memory.get("said"), memory.get("noise")
            if "choice" in memory:
                hearing.previous, hearing.acted = memory["choice"].unbind(dim=1)
            values, log_prob, entropy = self._evaluate(hearing, actions) or super().evaluate_actions(obs, actions)
        self._distributed = None  # it holds on to what the gradient is computed from
        if "calm" in memory:
            # What was done without noise says nothing of what its distribution should be.
            log_prob = torch.where(memory["calm"], log_prob.detach(), log_prob)
        if self.warming and not self.fresh_alone:
            # The ratio is 1 and has no gradient: only the critic learns.
            return values, log_prob.detach(), None if entropy is None else entropy.detach()
        return values, log_prob, entropy

    def _record_of(self, obs: PyTorchObs) -> Memory:
        """What the rollout buffer stored of a minibatch, which is recognised as the very object that the buffer yielded."""
        if self._recalled is not None and self._recalled[0] is obs:
            return self._recalled[1]
        if self.remembers and not self.fresh_alone and (self.holds or self.method.noisy):
            raise BadConfig(
                "evaluate_actions was given observations without a record of who acted and under which noise; during a training with "
                "HubCallback pass the observations that the rollout buffer yields, not a copy."
            )
        return {}

    def _act(self, hearing: Hearing, deterministic: bool) -> tuple[Tensor, Tensor, Tensor] | None:
        """A rollout's step where who acts is stored: it is drawn first, and nobody else is asked; none where SB3's way must be gone."""
        decider = self._asks_one(hearing)
        if decider is None:
            return None
        decision = self._decided(decider, hearing, deterministic)
        hearing.acted = decision.acted
        if self.remembers and self._recalls:
            self.memory.pop("heard", None)
            self.memory["said"] = decision.said
        return decision.actions.reshape((-1, *self.action_space.shape)), decision.values, decision.log_prob  # type: ignore[misc]

    def _decided(self, decider: Decider, hearing: Hearing, deterministic: bool) -> Decision:
        """Who acts and what it does, drawn."""
        pathways = self.method.pathways
        features, weights = self._features(hearing.observations), self._weights(hearing)
        answer = lambda asked: pathways.selected_output(asked, hearing.observations, hearing.heard)  # noqa: E731 - a closure over one step
        return decider.decide(features, weights, answer, hearing, deterministic=deterministic)

    def look_again(self) -> None:
        """A rollout begins: weights, and whom to trust, may be others than when it was last found out how to decide."""
        self._decider = None

    @property
    def _recalls(self) -> bool:
        """Whether what sources said in a rollout is not computed again in its update."""
        return self.outputs.recall and not self.spec.tuned

    @property
    def _routes(self) -> bool:
        """Whether some pathways are not active, so that not all sources are computed; all together cost little more than one."""
        n_pathways = len(self.method.pathways.names)
        return self.method.top_k < n_pathways

    def _evaluate(self, hearing: Hearing, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """The same for an update."""
        decider = self._asks_one(hearing)
        if decider is None or hearing.acted is None:
            self.unpack()
            return None
        if self.quick:
            self._pack(decider)
        said = hearing.said
        if said is None:
            said = self.method.pathways.selected_output(hearing.acted, hearing.observations, hearing.heard)
        values, log_prob = decider(self._features(hearing.observations), self._weights(hearing), said, hearing, actions)
        # What SB3 estimates it by if it is none, with a gradient that a coefficient of zero would then be multiplied with.
        return values, log_prob, None if self.bonus else -log_prob.detach()

    def _pack(self, decider: Decider) -> None:
        """Let autograd and the optimizer take all that is learned by hand for a few parameters."""
        if isinstance(self.optimizer, HubAdam) and not self.optimizer.packs:
            router = self.method.router
            manual_backward = self.method.noisy and isinstance(router, Router)
            self.optimizer.pack([*decider.parts, *([cast("Router", router).manual_backward()[1].parameters] if manual_backward else [])])

    def unpack(self) -> None:
        """Let each parameter be by itself again, before anybody else's gradients, or eyes, are for it."""
        optimizer = self.__dict__.get("optimizer")
        if isinstance(optimizer, HubAdam) and optimizer.packs:
            optimizer.unpack()
            self._decider = None

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """`nn.Module.parameters`; while an update lasts, what stands for them in the optimizer, so that SB3 clips that."""
        optimizer = self.__dict__.get("optimizer")
        if recurse and isinstance(optimizer, HubAdam) and optimizer.packs:
            return (parameter for group in optimizer.param_groups for parameter in group["params"])
        return super().parameters(recurse)

    def _asks_one(self, hearing: Hearing) -> Decider | None:
        """What decides where only who acts need be asked: pathways are drawn, who was is known, and no loss asks what the others say."""
        if hearing.previous is None or self._only_fresh(hearing):
            return None
        if self._decider is None:
            # Once a rollout and once an update, so that it knows layers that were replaced, or hooked, in between.
            own = self.mlp_extractor
            self._knows_hidden = type(own) is MlpExtractor and ManualMLP.supports(own.policy_net) and ManualMLP.supports(own.value_net)
            self._decider = (None if self._as_kept else self._made_decider(),)
        return self._decider[0]

    def _weights(self, hearing: Hearing) -> Float[Tensor, "batch pathways"]:
        """Logarithms of the pathway weights; what routing loses rides on them."""
        assert isinstance(self.method, RoutedMethod)
        (log_weights, _), loss = self.method.compute_weights(hearing.observations, self._noise(hearing))
        logs = self._learning(Routed(None, loss, None, log_weights)).log_weights
        assert logs is not None
        if self.stickiness is not None or self.outputs.hold == 1:
            return logs
        assert hearing.previous is not None
        return held(logs, hearing.previous)

    def _features(self, observations: Observations) -> tuple[Tensor, Tensor]:
        """What the actor's and the critic's hidden layers read; what they say, where the decider does not know their kind."""
        actor = self.pi_features_extractor(observations)
        critic = actor if self.share_features_extractor else self.vf_features_extractor(observations)
        if self._knows_hidden:
            return actor, critic
        return self.mlp_extractor.forward_actor(actor), self.mlp_extractor.forward_critic(critic)

    def recall(self, observations: Any, memory: Memory) -> None:
        """Be reminded of a rollout's steps, before `evaluate_actions` is called with these very observations."""
        self._recalled = (observations, memory)

    def exchange(self) -> None:
        """Let another actor and critic learn: the fresh pathway's new ones, while it learns alone, or the hub's again, as they were.

        The hub acts meanwhile by those that are kept. What it has learned is of no use to the fresh pathway alone: hidden layers that
        correct sources, and a critic of what sources' states are worth. So the optimizer forgets, too.
        """
        if self.kept is None:
            return
        learning = self._learning_parts()
        now = copy.deepcopy(learning)
        copy_weights(self.kept, learning)
        copy_weights(now, self.kept)
        for parameter in learning.parameters():
            self.optimizer.state.pop(parameter, None)
        if isinstance(self.value_net, PopArtLinear):
            self.value_net.clear_units()

    def _learning_parts(self) -> nn.ModuleList:
        """SB3's actor and critic: what reads observations, hidden layers, last layers, and for Box the standard deviation."""
        hidden = self.mlp_extractor
        std = [self.log_std] if isinstance(self.action_space, spaces.Box) else []
        layers = [self.pi_features_extractor, hidden.policy_net, self.action_net, nn.ParameterList(std), hidden.value_net, self.value_net]
        return nn.ModuleList([*layers, *([] if self.share_features_extractor else [self.vf_features_extractor])])

    @property
    def _as_kept(self) -> bool:
        """Whether the hub acts by the actor that was kept, because the fresh pathway learns alone."""
        return self.kept is not None and self.selection is not None and self.selection.trial.is_swapped and not self.fresh_alone

    def release(self, ended: np.ndarray) -> None:
        """Hold nobody any more in environments whose episode ended."""
        if self._holding is not None:
            self._holding.release(np.asarray(ended, dtype=bool))

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """The action distribution without the router's noise, as `predict` uses it."""
        with self._hear(obs, exploring=False) as hearing:
            self._bind(hearing)
            return super().get_distribution(obs)

    def predict(
        self,
        observation: np.ndarray | dict[str, np.ndarray],
        state: tuple[np.ndarray, ...] | None = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...] | None]:
        """SB3's `predict`; where pathways are held, the state says who is, and for how long.

        Args:
            observation: One observation, or a batch.
            state: What the last call returned; none at the start.
            episode_start: Where an episode begins and nobody is held.
            deterministic: Whether to take the likeliest action of the likeliest pathway.

        Raises:
            BadConfig: If the state is that of another number of observations.
        """
        training, self._predicting = self._holding, True
        try:
            if not self.holds:
                return super().predict(observation, state, episode_start, deterministic)
            if state is None:
                self._decider = None  # layers may have been replaced or hooked since
            self._holding = self._held(self._n_rows(observation), state, episode_start)
            self._before, self._drawn = self._previous(self._holding), None
            actions, _ = super().predict(observation, state, episode_start, deterministic)
            if self._drawn is not None:
                self._holding.acted(self._drawn, self._before)
            return actions, (self._holding.pathway, self._holding.steps)
        finally:
            self._holding, self._predicting, self._before = training, False, None

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        """SB3's; where only who acts need be asked, nobody else is."""
        if self._before is None:
            return super()._predict(observation, deterministic)
        with self._hear(observation, exploring=False) as hearing:
            self._bind(hearing)
            decider = self._asks_one(hearing)
            if decider is not None:
                decision = self._decided(decider, hearing, deterministic)
                self._drawn = decision.acted
                return decision.actions
        actions = super()._predict(observation, deterministic)
        if isinstance(self._distributed, CommittedDistribution):
            self._drawn = self._distributed.drawn
        return actions

    def _bind(self, hearing: Hearing) -> None:
        """In `predict`, complete a step's inputs with the previous pathway."""
        if self._before is not None:
            hearing.previous = torch.as_tensor(self._before, device=self.device)
            hearing.only_fresh = self.lead == self._fresh_index

    def _held(self, n_rows: int, state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None) -> Holding:
        """Who is held, by what the last `predict` returned."""
        holding = Holding(n_rows)
        if state is not None:
            holding.pathway, holding.steps = map(np.asarray, state)
            if len(holding.pathway) != n_rows:
                raise BadConfig(
                    f"A state for {len(holding.pathway)} observations was given with {n_rows}; pass state=None where other episodes begin."
                )
        if episode_start is not None:
            holding.release(np.asarray(episode_start, dtype=bool))
        return holding

    def train(self, mode: bool = True) -> "HubActorCriticPolicy":
        """`nn.Module.train`; going back to a rollout after an update draws new noise."""
        if self.training == mode:
            # SB3 asks before every step; going through all parts of all sources would take as long as they do.
            return self
        self._decider = None
        if self.training:
            self.unpack()
            self._some_fresh = False
        if self.training and hasattr(self, "noise_key"):
            self.get_buffer("noise_key").add_(1)
            self._noise_generator = None
        if mode and self.fresh_alone and isinstance(self.optimizer, HubAdam):
            self.optimizer.use_torch_kernel()
        return super().train(mode)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        with torch.random.fork_rng(devices=[]):
            self._build_hub()
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _build_hub(self) -> None:
        meanings = check_meanings(self.outputs.action_meanings, self.action_space)
        std = None if find(self.spec.method).keeps_source_std else self.outputs.source_std
        target = TargetSpec(self.observation_space, "outputs", self.action_space, std, meanings, self.spec.precision)
        self.method: Method = create(self.spec.method, spec_sources(self.spec), target, self.spec.options)
        self.register_buffer("noise_key", torch.randint(2**31, ()))
        self.register_buffer("warm_until", torch.zeros((), dtype=torch.float64))
        n_pathways = len(self.method.pathways.names)
        self.selection: ArmSelection | None = None
        if self.outputs.judging_share > 0 and n_pathways > 1:
            check_selection(self.aggregation, self.method)
            settings = TrustSettings(judging_share=self.outputs.judging_share, trial_share=self.outputs.trial_share)
            sources = [name for name in self.method.pathways.names if name != FRESH]
            self.selection = ArmSelection(
                sources,
                settings,
                fresh=self.method.pathways.names[-1] == FRESH,
                tuned=self.spec.tuned,
                every_episode_counts=self.draws_in_evaluation,
            )
        may_hold = (self.outputs.hold > 1 or self.selection is not None) and n_pathways > 1
        self.committed: Tensor | None
        self.register_buffer("committed", torch.zeros((), dtype=torch.bool) if may_hold else None)
        self.stickiness = None
        if may_hold and self.outputs.hold > 1 and self.outputs.release == "learned":
            self.stickiness = ZeroLinear(self.mlp_extractor.latent_dim_pi, n_pathways)
            # Equal weights then let go once in `hold` steps.
            nn.init.constant_(self.stickiness.bias, math.log((self.outputs.hold - 1) * (n_pathways - 1)))
        if self.outputs.scale_values and len(self.method.pathways.sources):
            self.value_net: nn.Linear = PopArtLinear(self.value_net)
        self.kept: nn.ModuleList | None = None
        if self.selection is not None and self.outputs.trial_share > 0:
            self.kept = copy.deepcopy(self._learning_parts())
            freeze(self.kept)
        self.residual = None
        if self.outputs.residual and self.method.allows_residual and len(self.method.pathways.sources):
            self.residual = ZeroLinear(self.mlp_extractor.latent_dim_pi, get_action_width(self.action_space))

    def _made_decider(self) -> Decider | None:
        """What decides where only who acts need be asked; none where all must be."""
        assert isinstance(self.action_space, spaces.Box | spaces.Discrete)
        pathways = self.method.pathways
        speaks = pathways.names[-1] == FRESH
        heads = (self.action_net if speaks else None, self.residual, self.stickiness)
        if not isinstance(self.method, RoutedMethod) or any(has_hooks(layer) for layer in heads if layer is not None):
            return None
        fresh, residual, stickiness = cast("tuple[nn.Linear | None, ...]", heads)
        # Hidden layers of another kind are torch's, and what they say is what is read here.
        actor, critic = (self.mlp_extractor.policy_net, self.mlp_extractor.value_net) if self._knows_hidden else (nn.Sequential(),) * 2
        return Decider(
            self.action_space,
            len(pathways.sources),
            ManualMLP(actor),
            ManualMLP(critic),
            self.value_net,
            fresh=fresh,
            residual=residual,
            stickiness=stickiness,
            log_stds=pathways.log_stds,
            log_std=self.log_std if speaks and isinstance(self.action_space, spaces.Box) else None,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "hub": self.spec.to_dict(), "outputs": self.outputs.to_dict()}

    @contextmanager
    def _hear(self, obs: PyTorchObs, *, exploring: bool) -> Iterator[Hearing]:
        """Keep the observations at hand while SB3's code asks for the distribution that follows from them."""
        self._hearing = Hearing(self._preprocessed(obs), exploring=exploring)
        try:
            yield self._hearing
        finally:
            self._hearing = None

    def _preprocessed(self, obs: PyTorchObs) -> Observations:
        """Observations as SB3 preprocesses them; images as the bytes they are, where everything that reads them takes those."""
        seen: Any = obs
        if self.method.reads_bytes and isinstance(self.pi_features_extractor, BF16NatureCNN) and self.normalize_images:
            return cast("Observations", seen)
        return preprocess_obs(seen, self.observation_space, normalize_images=self.normalize_images)

    def _remember(self, hearing: Hearing) -> None:
        """Begin a step's memory: what the sources say, and who is held."""
        if self.holds:
            self._remember_who(hearing)
        if not self.remembers or self._only_fresh(hearing):
            return
        if self._recalls and not (self._routes and self._asks_one(hearing) is not None):
            heard = self.method.pathways.compute_source_outputs(hearing.observations, self.method.trusted_pathways)
            hearing.heard = self.memory["heard"] = heard
        if self.method.noisy:
            hearing.noise = self.memory["noise"] = self._drawn_noise(hearing)

    def _remember_who(self, hearing: Hearing) -> None:
        if not self.remembers:
            raise BadConfig("This model was trained with pathways held and nothing stores who acts; pass HubCallback() to go on.")
        if self._holding is None or len(self._holding.pathway) != hearing.n_rows:
            self._holding = Holding(hearing.n_rows)
        self._bound = self._previous(self._holding)
        hearing.previous = self.memory["choice"] = torch.as_tensor(self._bound, device=self.device)
        fresh = self._bound == solo(self._fresh_index)
        hearing.only_fresh = bool(fresh.all())
        self._some_fresh |= bool(fresh.any())
        selection = self.selection
        if selection is not None and not self.draws_in_evaluation and selection.deterministic.any():
            # Arrays are made anew for every turn: before the step is stored, the next episodes have begun.
            hearing.calm = self.memory["calm"] = torch.as_tensor(selection.deterministic, device=self.device)

    def _note(self, hearing: Hearing) -> None:
        """Complete a step's memory: who acted."""
        if "choice" in self.memory and self._holding is not None:
            drawn = hearing.acted
            if drawn is None:
                assert isinstance(self._distributed, CommittedDistribution)
                drawn = self._distributed.drawn
            assert drawn is not None
            self.memory["choice"] = torch.stack([self.memory["choice"], drawn], dim=1)
            self._holding.acted(drawn, self._bound)

    def _previous(self, holding: Holding) -> Int[np.ndarray, " batch"]:
        """Who acted before, as far as that binds; nobody after a fixed number of steps."""
        previous = holding.pathway
        lead = self.lead if self._predicting else -1
        if lead >= 0:
            return solo(np.full_like(previous, lead))
        if self.outputs.release == "fixed":
            previous = np.where(holding.steps >= self.outputs.hold, -1, previous)
        selection = self.selection
        if selection is not None and not self._predicting and len(selection.playing) == len(previous):
            previous = np.where(selection.playing >= 0, solo(selection.playing), previous)
        return previous

    def _n_rows(self, observation: Any) -> int:
        tensor, _ = self.obs_to_tensor(observation)
        return len(next(iter(tensor.values())) if isinstance(tensor, dict) else tensor)

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        if self.fresh_alone:
            n_pathways = len(self.method.pathways.names)
            self._count(_sure(torch.full((len(latent_pi),), n_pathways - 1, device=latent_pi.device), n_pathways))
            return super()._get_action_dist_from_latent(latent_pi)
        assert self._hearing is not None
        if self._only_fresh(self._hearing):
            self._distributed = self._of_fresh(latent_pi, self._hearing)
            return self._distributed
        routed = self._learning(self._route(self._hearing, latent_pi))
        self._distributed = self._distribution(routed, latent_pi, self._hearing)
        return self._distributed

    def _learning(self, routed: Routed) -> Routed:
        """What was routed, counted; when it learns, the losses of routing ride on it."""
        learning = self.training and torch.is_grad_enabled() and not self.warming
        self._count(routed.log_weights, routed.loss if learning else None)
        return _carrying(routed) if learning and routed.loss.requires_grad else routed

    def _count(self, log_weights: Float[Tensor, "batch pathways"] | None, loss: Float[Tensor, ""] | None = None) -> None:
        """Count a batch for the logs; the weights in rollouts alone, whose rows an update goes through again and again."""
        self.method.routing_stats.add(None if self.training or self._predicting else log_weights, loss)

    @property
    def _fresh_index(self) -> int:
        """The fresh pathway's place, behind the sources."""
        return len(self.method.pathways.sources)

    def _only_fresh(self, hearing: Hearing) -> bool:
        """Whether the fresh pathway plays alone in all rows, so that nobody else need be asked, nor learn."""
        if hearing.only_fresh is None:
            possible = hearing.previous is not None and self.holds and (self._some_fresh or not self.quick)
            hearing.only_fresh = possible and not bool((cast("Tensor", hearing.previous) != solo(self._fresh_index)).any())
        return hearing.only_fresh

    def _of_fresh(self, latent_pi: Float[Tensor, "batch latent"], hearing: Hearing) -> Distribution:
        """The distribution where the fresh pathway plays alone."""
        fresh = self._fresh_speech(latent_pi)
        assert fresh is not None
        assert isinstance(self.action_space, spaces.Box | spaces.Discrete)
        n_pathways = len(self.method.pathways.names)
        logs = _sure(torch.full((len(fresh),), n_pathways - 1, device=fresh.device), n_pathways)
        self._count(logs)
        made = CommittedDistribution(self.action_space).of(hearing.acted, hearing.calm)
        return made.proba_distribution(fresh[:, None], logs)

    def _route(self, hearing: Hearing, latent_pi: Tensor) -> Routed:
        kept = self._as_kept and not hearing.exploring and not hearing.only_fresh
        fresh = self._fresh_speech(self._hub_latent(hearing.observations, latent_pi) if kept else latent_pi, kept=kept)
        routed: Routed = self.method(hearing.observations, fresh=fresh, noise=self._noise(hearing), source_outputs=hearing.heard)
        if routed.pathway_outputs is None or routed.log_weights is None:
            return routed
        return routed._replace(pathway_outputs=self._with_residual(routed.pathway_outputs, latent_pi, hearing), whole=None)

    def _drawn_noise(self, hearing: Hearing) -> Float[Tensor, "batch pathways"]:
        """Noise of a step that is remembered, so that it need not follow from the observations."""
        if self._noise_generator is None:
            self._noise_generator = np.random.default_rng(int(self.get_buffer("noise_key")))
        shape = hearing.n_rows, len(self.method.pathways.names)
        noise = torch.as_tensor(self._noise_generator.standard_normal(shape, dtype=np.float32), device=self.device)
        return noise if hearing.calm is None else noise.masked_fill(hearing.calm[:, None], 0.0)

    def _noise(self, hearing: Hearing) -> Float[Tensor, "batch pathways"] | None:
        """The router's noise: as it was, where that is remembered; none where it is to be quiet."""
        if not hearing.exploring or hearing.noise is not None:
            return hearing.noise
        noise = self.method.draw_noise(hearing.observations, int(self.get_buffer("noise_key")))
        return noise if noise is None or hearing.calm is None else noise.masked_fill(hearing.calm[:, None], 0.0)

    def _hub_latent(self, observations: Observations, latent_pi: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
        """What the residual and the stickiness read: the actor's hidden layers, as they were before the fresh pathway learned alone."""
        if not self._as_kept:
            return latent_pi
        assert self.kept is not None
        extractor, hidden, *_ = self.kept
        latent: Tensor = hidden(extractor(observations))
        return latent

    def _with_residual(
        self, said: Float[Tensor, "batch pathways outputs"], latent_pi: Float[Tensor, "batch latent"], hearing: Hearing
    ) -> Float[Tensor, "batch pathways outputs"]:
        if self.residual is None:
            return said
        n_sources = len(self.method.pathways.sources)
        correction = self.residual(self._hub_latent(hearing.observations, latent_pi))
        if self.selection is not None and hearing.alone is not None:
            # Whoever plays alone is judged as it is.
            correction = correction.masked_fill(hearing.alone[:, None], 0.0)
        corrected = self._corrected(said[:, :n_sources], correction[:, None])
        return torch.cat([corrected, said[:, n_sources:]], dim=1)

    def _corrected(self, said: Float[Tensor, "batch sources outputs"], correction: Float[Tensor, "batch 1 actions"]) -> Tensor:
        """Add the correction; to means in units of their standard deviation, so that a sharp source is moved gently."""
        if isinstance(self.action_space, spaces.Discrete):
            return said + correction
        mean, log_std = said.chunk(2, dim=2)
        return torch.cat([mean + correction * log_std.detach().exp(), log_std], dim=2)

    def _fresh_speech(self, latent: Float[Tensor, "batch latent"], *, kept: bool = False) -> Float[Tensor, "batch outputs"] | None:
        """What the fresh pathway says, or would by the actor that was kept."""
        if self.method.pathways.names[-1] != FRESH:
            return None
        said: Tensor = self.kept[2](latent) if kept and self.kept is not None else self.action_net(latent)
        if isinstance(self.action_space, spaces.Discrete):
            return nn.functional.log_softmax(said, dim=1)
        log_std: Tensor = cast("nn.ParameterList", self.kept[3])[0] if kept and self.kept is not None else self.log_std
        return torch.cat([said, log_std.expand_as(said)], dim=1)

    def distribution_parameters(self, routed: Routed) -> Float[Tensor, "batch outputs"]:
        """The action distribution as speech, so that its mode is what `predict` does: the heaviest pathway's.

        Where actions are discrete and nobody is held, the log-probabilities of the mixture.
        """
        if routed.pathway_outputs is None or routed.log_weights is None or self.aggregation != "mixture":
            return routed.features
        if isinstance(self.action_space, spaces.Discrete) and not self.holds:
            return mixed_categorical(routed.pathway_outputs, routed.log_weights).distribution.logits
        best = routed.log_weights.argmax(dim=1)
        return routed.pathway_outputs[torch.arange(len(best), device=best.device), best]

    def _distribution(self, routed: Routed, latent_pi: Float[Tensor, "batch latent"], hearing: Hearing) -> Distribution:
        assert isinstance(self.action_space, spaces.Box | spaces.Discrete)
        said, logs = routed.pathway_outputs, routed.log_weights
        if said is None or logs is None or self.aggregation != "mixture":
            return self._whole_distribution(routed.features)
        if self.holds:
            transition = self._transition(logs, self._hub_latent(hearing.observations, latent_pi), hearing)
            made: PathwayDistribution = CommittedDistribution(self.action_space).of(hearing.acted, hearing.calm)
            return made.proba_distribution(said, transition)
        if isinstance(self.action_space, spaces.Discrete):
            return mixed_categorical(said, logs)
        return MixtureDistribution(self.action_space).proba_distribution(said, logs)

    def _whole_distribution(self, said: Float[Tensor, "batch outputs"]) -> Distribution:
        if isinstance(self.action_space, spaces.Discrete):
            return CategoricalDistribution(said.shape[1]).proba_distribution(said)
        centre, log_std = said.chunk(2, dim=1)
        return DiagGaussianDistribution(get_action_dim(self.action_space)).proba_distribution(centre, log_std)

    def _transition(
        self, logs: Float[Tensor, "batch pathways"], latent: Float[Tensor, "batch latent"], hearing: Hearing
    ) -> Float[Tensor, "batch pathways"]:
        """Logarithms of weights given who acted before; without a record of it, as if nobody was held."""
        if hearing.previous is None:
            return logs
        if self.stickiness is not None or self.outputs.hold > 1:
            logs = held(logs, hearing.previous, None if self.stickiness is None else self.stickiness(latent))
        if self.selection is None or hearing.alone is None:
            return logs
        if hearing.acted is not None:
            # Whoever played alone and acted was sure to.
            return logs.masked_fill(hearing.alone[:, None], 0.0)
        if not bool(hearing.alone.any()):
            return logs
        return torch.where(hearing.alone[:, None], _sure(solo(hearing.previous), logs.shape[1]), logs)


def _carrying(routed: Routed) -> Routed:
    """The same, with its loss riding on what the distribution is made of."""
    if routed.log_weights is None:
        return routed._replace(whole=inject(routed.features, routed.loss))
    return routed._replace(log_weights=inject(routed.log_weights, routed.loss))


def get_action_width(space: spaces.Space[Any]) -> int:
    """How many numbers a correction of what a source says has: one an action dimension, or one a choice."""
    return int(space.n) if isinstance(space, spaces.Discrete) else get_action_dim(space)


def _sure(pathway: Int[Tensor, " batch"], n_pathways: int) -> Float[Tensor, "batch pathways"]:
    """Logarithms of pathway weights where one a row has all the say."""
    logs = torch.full((len(pathway), n_pathways), -torch.inf, device=pathway.device)
    return logs.masked_fill(index_mask(pathway, n_pathways), 0.0)
