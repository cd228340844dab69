"""The callback that probes before training, watches the pathways during it, and writes both to the logger."""

from typing import Any

import numpy as np
import torch
from stable_baselines3.a2c import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import HParam
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO

from hubrl.buffers import remember_steps
from hubrl.errors import BadConfig
from hubrl.extractor import HubExtractor, parts_in, see_through_normalisation
from hubrl.formats.hub_spec import HubSpec
from hubrl.formats.schema import write_yaml
from hubrl.growth import Growth
from hubrl.methods.base import Method
from hubrl.nn.popart import DiscountedReturns, PopArtLinear
from hubrl.pathways import FRESH
from hubrl.policies import HubActorCriticPolicy
from hubrl.q_policies import HubDQNPolicy, Pausing
from hubrl.solos import Solos
from hubrl.standing import Standing
from hubrl.trust import Verdict, probe, true_rewards

MUCH_EXPLORATION = 0.2
"""Share of random actions above which an episode says little about who played it."""

# SB3's table cuts keys at 36 characters and refuses two that are then alike; names of sources can be long.
NO_TABLE = ("stdout", "log")
TENSORBOARD_ONLY = ("stdout", "log", "json", "csv")


class HubCallback(BaseCallback):
    """Probes the sources on the target, keeps them seeing through VecNormalize, and logs who speaks.

    Every tag and its formula stands in `docs/metrics.md`. All shares are of the steps that `learn` is called for, with those before if
    `reset_num_timesteps=False`: a training that is cut into many calls knows of a short training only, and decides by that whom to drop.

    Args:
        probe_share: Share of the training's steps that a probe may take before it, counted among them; 0 for no probe.
            Only models that hear outputs and have a fresh pathway are probed, once.
        warmup_share: Share of the training's steps behind the probe in which only the critic learns; actors that are good
            already would be spoiled by advantages that mean nothing yet. Nobody waits where every source was dropped.
        log_every: Environment steps between two records, over all parallel environments.
        verbose: 1 to print what the probe found out.

    Raises:
        BadConfig: If a share is none.
    """

    def __init__(self, probe_share: float = 0.02, warmup_share: float = 0.02, log_every: int = 1000, verbose: int = 0) -> None:
        super().__init__(verbose)
        for name, share in (("probe_share", probe_share), ("warmup_share", warmup_share)):
            if not isinstance(share, int | float) or not 0 <= share < 1:
                raise BadConfig(f"{name}={share!r} was given; expected a share of the training's steps, at least 0 and below 1.")
        self.probe_share = probe_share
        self.warmup_share = warmup_share
        self.log_every = log_every
        self.verdict: Verdict | None = None
        self._logged_at = 0

    def _on_training_start(self) -> None:
        # SB3 brings it up to date when the first rollout is over, and saves it with the model.
        self.model._update_current_progress_remaining(self.model.num_timesteps, self.locals["total_timesteps"])
        self._goes_on = self.model.num_timesteps > 0
        see_through_normalisation(self.model.policy, self.training_env)
        # Looked up once: off-policy algorithms begin a rollout every few steps.
        self._methods = parts_in(self.model.policy, Method)  # type: ignore[type-abstract]
        self._log_cards()
        self._logged_at = self.model.num_timesteps
        if isinstance(self.model.policy, HubActorCriticPolicy) and not isinstance(self.model, PPO | A2C):
            raise BadConfig(
                f"What hub.agent makes for PPO or A2C was given to {type(self.model).__name__}; use hub.agent({type(self.model).__name__})."
            )
        if isinstance(self.model, OnPolicyAlgorithm) and isinstance(self.model.policy, HubActorCriticPolicy):
            if remember_steps(self.model, self.model.policy):
                self.model.policy.commit()
                self.model.policy.quick = isinstance(self.model, PPO)
                self.model.policy.bonus = self.model.ent_coef != 0
            self.model.policy.release(np.ones(self.training_env.num_envs, dtype=bool))
            # What has learned is not probed.
            if self.probe_share > 0 and self.model.policy.method.awaits_probe and not self._goes_on and self.model._n_updates == 0:
                self._probe()
            self._count_from_now(whole=not self._goes_on)
            self._measure_from_now(self.model.policy)
            if self.model.policy.solos is not None:
                self._begin_solos(self.model.policy, self.model.policy.solos)
            if not self._goes_on:
                self._warm_up(self.model.policy)
        if isinstance(self.model, DQN) and isinstance(self.model.policy, HubDQNPolicy):
            self.model.policy.begin(self.training_env.num_envs)
            self._count_from_now(whole=not self._goes_on)
            self._began = np.full(self.training_env.num_envs, self.model.num_timesteps)
            self._pause_exploration(self.model, self.model.policy)

    def _begin_solos(self, policy: HubActorCriticPolicy, solos: Solos) -> None:
        """Tell what plays alone how long the training is, and let it begin."""
        solos.remaining = self.model._current_progress_remaining
        if solos.growth is not None:
            solos.growth.count_to(self.locals["total_timesteps"], anew=not self._goes_on)
        if policy.holds:
            solos.begin(self.training_env.num_envs, policy.method.trusted_pathways)

    def _measure_from_now(self, policy: HubActorCriticPolicy) -> None:
        """Discounted rewards from here on, and what the critic knows of earlier ones."""
        head = policy.value_net
        known = head.units if isinstance(head, PopArtLinear) and head.rescaled else None
        assert isinstance(self.model, OnPolicyAlgorithm)
        self._discounted = DiscountedReturns(self.training_env.num_envs, self.model.gamma, known)

    def _begin_anew(self, policy: HubActorCriticPolicy) -> None:
        """Another actor begins with new episodes: a critic that saw what others earn would take long to forget it."""
        self._reset_envs()
        self._measure_from_now(policy)
        self._count_from_now(whole=True)
        policy.release(np.ones(self.training_env.num_envs, dtype=bool))
        assert policy.solos is not None
        policy.solos.begin(self.training_env.num_envs, policy.method.trusted_pathways)

    def _reset_envs(self) -> None:
        self.model._last_obs = self.training_env.reset()  # type: ignore[assignment]
        self.model._last_episode_starts = np.ones(self.training_env.num_envs, dtype=bool)

    def _count_from_now(self, *, whole: bool) -> None:
        """Returns of episodes from here on; those that are going on when a training goes on are not seen whole, from their beginning."""
        self._earned, self._steps = np.zeros(self.training_env.num_envs), 0
        self._whole = np.full(self.training_env.num_envs, whole)

    def _pause_exploration(self, model: DQN, policy: HubDQNPolicy) -> None:
        """No random actions while an episode shows what its pathway earns."""
        _explore_as_before(model)
        model.exploration_schedule = Pausing(model.exploration_schedule, lambda: policy.calm)
        if policy.calm:
            model.exploration_rate = 0.0

    def _warm_up(self, policy: HubActorCriticPolicy) -> None:
        """From now on only the critic learns, for a while."""
        now = self.model.num_timesteps
        policy.get_buffer("warm_until").fill_(now + self.warmup_share * (self.locals["total_timesteps"] - now))

    def _revise(self, policy: HubActorCriticPolicy) -> None:
        """Let trust follow what pathways earned alone, between an update and the next rollout."""
        solos = policy.solos
        if solos is None:
            return
        solos.remaining = policy.method.remaining
        self._take_back(policy, solos)
        self._settle(policy, solos)
        if not policy.holds:
            return
        claimed, trusted = solos.claimed, policy.method.trusted_pathways
        if not claimed:
            # While the fresh pathway learns alone, the hub that acts in evaluations stays as it is.
            policy.method.revise(solos.revised(trusted))
        if solos.grow(trusted, self.locals["total_timesteps"]):
            policy.method.trust([name == FRESH for name in policy.method.pathways.names], [0.0] * len(trusted))
        elif claimed != solos.claimed:
            policy.exchange()
            self._begin_anew(policy)
            if claimed:
                self._warm_up(policy)

    def _settle(self, policy: HubActorCriticPolicy, solos: Solos) -> None:
        """Drop whom whole episodes say to, or all others for one source."""
        if not policy.holds:
            return
        trusted = policy.method.trusted_pathways
        settled, chosen = solos.settle(trusted), solos.chosen
        if settled is None and chosen >= 0 and sum(trusted) > 1:
            settled = [index == chosen for index in range(len(trusted))], [0.0] * len(trusted)
        if settled is not None:
            policy.method.trust(*settled)
            solos.drop(settled[0])
            self._tell_fates(["kept" if stays else "dropped" for stays in settled[0]])

    def _take_back(self, policy: HubActorCriticPolicy, solos: Solos) -> None:
        """Leave those in doubt that the probe set aside, now that an episode ended early."""
        again = solos.taken_back(policy.method.trusted_pathways)
        if again is None:
            return
        policy.method.trust(*again)
        doubted: list[bool] = solos.get_buffer("doubted").tolist()
        self._tell_fates(["in doubt" if doubt else "kept" if stays else "dropped" for doubt, stays in zip(doubted, again[0], strict=True)])
        self._begin_anew(policy)
        self._warm_up(policy)

    def _on_rollout_start(self) -> None:
        for method in self._methods:
            method.remaining = self.model._current_progress_remaining
        if isinstance(self.model.policy, HubActorCriticPolicy):
            self._revise(self.model.policy)
            self.model.policy.look_again()
            solos = self.model.policy.solos
            waits = self.model.num_timesteps < float(self.model.policy.get_buffer("warm_until"))
            self.model.policy.warming = waits and not (solos is not None and solos.claimed)
        see_through_normalisation(self.model.policy, self.training_env)

    def _scale_values(self, policy: HubActorCriticPolicy) -> None:
        """Let the critic speak in units of the returns; the first time what it said in the rollout is said anew."""
        head = policy.value_net
        if not isinstance(head, PopArtLinear) or (policy.fresh_alone and not head.rescaled):
            return
        if not self._discounted.ready:
            return
        first = not head.rescaled
        mean, std = self._discounted.moments()
        if std == 0.0:
            return
        head.rescale(mean, std, learned=head.weight in policy.optimizer.state)
        if first:
            assert isinstance(self.model, OnPolicyAlgorithm)
            value_again(self.model)

    def _tell_steps(self, solos: Solos) -> None:
        """Let the steps since the last episode ended, or the last rollout, count."""
        solos.stepped(1 / self.locals["total_timesteps"], self._steps)
        self._steps = 0

    def _on_rollout_end(self) -> None:
        if isinstance(self.model.policy, HubActorCriticPolicy):
            if self.model.policy.solos is not None and self.model.policy.holds:
                self._tell_steps(self.model.policy.solos)
            self._scale_values(self.model.policy)
        if self.model.num_timesteps - self._logged_at < self.log_every:
            return
        self._logged_at = self.model.num_timesteps
        if isinstance(self.model.policy, HubDQNPolicy):
            self._record_standing(self.model.policy.standing)
            for index, name in enumerate(self.model.policy.pathways.names):
                acts = float(index == self.model.policy.standing.acting)
                self.logger.record(f"pathway/weight/{name}", acts, exclude=NO_TABLE)
        if isinstance(self.model.policy, HubActorCriticPolicy) and self.model.policy.solos is not None:
            self._record_standing(self.model.policy.solos.standing)
            self._record_standing(self.model.policy.solos.together)
            self.logger.record("trust/acting", self.model.policy.lead, exclude=NO_TABLE)
            self._record_growth(self.model.policy.solos.growth)
        for method in self._methods[:1]:
            self._record(method)
            # Those of the last update are still there; SB3 clears them before the next.
            self._record_gradient(method)
            method.tally.reset()

    def _on_training_end(self) -> None:
        if isinstance(self.model, DQN):
            _explore_as_before(self.model)
        if isinstance(self.model.policy, HubDQNPolicy):
            self.model.policy.end()
        if isinstance(self.model.policy, HubActorCriticPolicy):
            # A training without the callback, later, must not find the actor still waiting, or anybody alone, or hold whom it cannot.
            self.model.policy.warming = self.model.policy.remembers = self.model.policy.quick = False
            self.model.policy.bonus = True
            self.model.policy.unpack()
            if self.model.policy.solos is not None:
                self.model.policy.solos.end()

    def _on_step(self) -> bool:
        if isinstance(self.model.policy, HubActorCriticPolicy):
            if self.locals["dones"].any():
                self.model.policy.release(self.locals["dones"])
            self._discounted.add(self.locals["rewards"], self.locals["dones"])
            self._count_solos(self.model.policy)
        if isinstance(self.model.policy, HubDQNPolicy):
            self._earned += true_rewards(self.training_env, self.locals["rewards"])
            assert isinstance(self.model, DQN)
            telling = self.model.exploration_rate <= max(MUCH_EXPLORATION, self.model.exploration_final_eps)
            for env in np.flatnonzero(self.locals["dones"]):
                counts = telling and bool(self._whole[env]) and int(self._began[env]) >= self.model.learning_starts
                self.model.policy.ended(int(env), float(self._earned[env]), counts=counts)
                self._earned[env], self._whole[env], self._began[env] = 0.0, True, self.model.num_timesteps
        return True

    def _count_solos(self, policy: HubActorCriticPolicy) -> None:
        if policy.solos is None:
            return
        self._earned += true_rewards(self.training_env, self.locals["rewards"])
        self._steps += 1
        if not self.locals["dones"].any():
            return
        ends = {int(env): not self.locals["infos"][env].get("TimeLimit.truncated", False) for env in np.flatnonzero(self.locals["dones"])}
        if any(ends.values()):
            policy.solos.see_early_end()
        if not policy.holds:
            return
        self._tell_steps(policy.solos)
        total = self.locals["total_timesteps"]
        for env, early in ends.items():
            trusted = policy.method.trusted_pathways
            done, whole = self.model.num_timesteps / total, bool(self._whole[env])
            policy.solos.ended(env, float(self._earned[env]), trusted, done=done, whole=whole, early=early)
            self._earned[env], self._whole[env] = 0.0, True

    def _probe(self) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm)
        budget = int(self.probe_share * (self.locals["total_timesteps"] - self.model.num_timesteps))
        self.verdict = probe(self.model, budget)
        if self.verdict is None:
            if self.verbose:
                print(f"No probe: {budget} steps are too few; train for more, or give it a greater probe_share.")  # noqa: T201 - as below
            return
        assert isinstance(self.model.policy, HubActorCriticPolicy)
        if self.model.policy.solos is not None:
            judged = self.verdict.judged
            self.model.policy.solos.believe(list(judged.start.values()), judged.doubted, judged.aside)
        self.model.num_timesteps += self.verdict.steps
        self.num_timesteps = self.model.num_timesteps
        self._reset_envs()
        self.logger.record("probe/steps", self.verdict.steps)
        for name, returns in self.verdict.returns.items():
            self.logger.record(f"probe/return/{name}", float(np.mean(returns)), exclude=NO_TABLE)
            kept = 0.5 if name in self.verdict.judged.doubted else float(self.verdict.judged.kept[name])
            self.logger.record(f"probe/kept/{name}", kept, exclude=NO_TABLE)
        if self.verbose:
            print(describe_verdict(self.verdict))  # noqa: T201 - what verbose=1 asks for, as SB3's callbacks do

    def _tell_fates(self, fates: list[str]) -> None:
        """Whom episodes show to be worth keeping, or leave in doubt: a word for each pathway."""
        told = dict(zip(self._methods[0].pathways.names, fates, strict=True))
        for name, fate in told.items():
            self.logger.record(f"trust/kept/{name}", {"kept": 1.0, "dropped": 0.0}.get(fate, 0.5), exclude=NO_TABLE)
        if self.verbose:
            said = ", ".join(f"{name} {fate}" for name, fate in told.items())
            print(f"Whole episodes after {self.model.num_timesteps} steps: {said}")  # noqa: T201 - as the verdict

    def _record(self, method: Method) -> None:
        for tag, value in method.measures().items():
            self.logger.record(tag, value, exclude=NO_TABLE)
        sums = method.tally.sums
        if sums.passes:
            self.logger.record(f"loss/{method.loss_name}", sums.loss / sums.passes)
        rows = sums.rows
        if not rows:
            # Methods without weights, and off-policy algorithms while they act at random.
            return
        for index, name in enumerate(method.tally.names):
            self.logger.record(f"pathway/weight/{name}", float(sums.weight[index]) / rows, exclude=NO_TABLE)
            self.logger.record(f"pathway/active/{name}", float(sums.active[index]) / rows, exclude=NO_TABLE)
            if len(sums.last):
                self.logger.record(f"pathway/weights/{name}", sums.last[:, index].clone(), exclude=TENSORBOARD_ONLY)
        self.logger.record("pathway/entropy_nats", sums.entropy / rows)
        self.logger.record("pathway/active_sources", float(sums.active.sum()) / rows)

    def _record_standing(self, standing: Standing) -> None:
        counts, worth = standing.get_buffer("counts"), standing.worth
        for index, name in enumerate(standing.names):
            self.logger.record(f"trust/episodes/{name}", int(counts[index]), exclude=NO_TABLE)
            if int(counts[index]):
                self.logger.record(f"trust/return/{name}", float(worth[index]), exclude=NO_TABLE)

    def _record_growth(self, growth: Growth | None) -> None:
        if growth is None:
            return
        self.logger.record("growth/phase", int(growth.at))
        if growth.forecasts is not None:
            self.logger.record("growth/fresh_forecast", growth.forecasts[0], exclude=NO_TABLE)
            self.logger.record("growth/hub_forecast", growth.forecasts[1], exclude=NO_TABLE)
        if len(growth.shown):
            self.logger.record("growth/shown", float(growth.shown.latest[:, 1].mean()), exclude=NO_TABLE)

    def _record_gradient(self, method: Method) -> None:
        router = getattr(method, "router", None)
        gradients = [] if router is None else [p.grad.norm() for p in router.parameters() if p.grad is not None]
        if gradients:
            self.logger.record("router/gradient_norm", float(torch.stack(gradients).norm()))

    def _log_cards(self) -> None:
        spec = hub_spec(self.model.policy)
        if spec is None:
            return
        card = "\n".join(f"    {line}" for line in write_yaml(spec.to_dict()).splitlines())
        self.logger.record("hub/card", card, exclude=TENSORBOARD_ONLY)
        hparams: dict[str, Any] = {
            "algorithm": type(self.model).__name__,
            "method": spec.method,
            "sources": ", ".join(source.name for source in spec.sources),
            "tuned": spec.tuned,
            **{
                f"options/{key}": value if isinstance(value, bool | int | float | str) else str(value)
                for key, value in spec.options.items()
            },
        }
        metrics: dict[str, float] = {"rollout/ep_rew_mean": 0.0, "pathway/entropy_nats": 0.0}
        self.logger.record("hparams", HParam(hparams, metrics), exclude=TENSORBOARD_ONLY)


def value_again(model: OnPolicyAlgorithm) -> None:
    """Ask the critic again what the states of a rollout are worth, and compute advantages from that.

    What SB3 added to the rewards where an episode ran out of time stays as the critic said it first.
    """
    buffer, policy = model.rollout_buffer, model.policy
    with torch.no_grad():
        for step in range(buffer.buffer_size):
            seen: Any = buffer.observations
            seen = {key: rows[step] for key, rows in seen.items()} if isinstance(seen, dict) else seen[step]
            buffer.values[step] = policy.predict_values(obs_as_tensor(seen, model.device)).cpu().numpy().flatten()
        last: Any = model._last_obs
        last_values = policy.predict_values(obs_as_tensor(last, model.device))
    assert model._last_episode_starts is not None
    buffer.compute_returns_and_advantage(last_values=last_values, dones=model._last_episode_starts)


def _explore_as_before(model: DQN) -> None:
    """Undo the pauses of a training, also of one that was interrupted."""
    if isinstance(model.exploration_schedule, Pausing):
        model.exploration_schedule = model.exploration_schedule.schedule


def hub_spec(policy: torch.nn.Module) -> HubSpec | None:
    """The hub that a policy was built with, if any."""
    found = (part.spec for part in policy.modules() if isinstance(part, HubActorCriticPolicy | HubDQNPolicy | HubExtractor))
    return next(found, None)


def describe_verdict(verdict: Verdict) -> str:
    """What a probe found out, a line for each pathway."""
    lines = [f"Probe: {verdict.steps} steps in segments of {verdict.segment}."]
    judged = verdict.judged
    fates = {name: "kept" if kept else "dropped" for name, kept in judged.kept.items()}
    fates |= dict.fromkeys(judged.doubted, "in doubt, whole episodes decide")
    fates |= dict.fromkeys(judged.aside, "dropped, unless an episode ends early")
    for name, returns in verdict.returns.items():
        spread = np.std(returns, ddof=1) / np.sqrt(len(returns)) if len(returns) > 1 else float("nan")
        lines.append(f"  {name}: {np.mean(returns):.1f} ± {spread:.1f} over {len(returns)} segments, {fates[name]}")
    return "\n".join(lines)
