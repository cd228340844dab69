"""What SB3's algorithms take of a hub: `policy`, `policy_kwargs`, and the level they are served at."""

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces
from pydantic import ValidationError
from stable_baselines3.a2c import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO

from hubrl.cached import cached_policy
from hubrl.errors import BadConfig
from hubrl.extractor import HubExtractor
from hubrl.formats.hub_spec import HubSpec, Precision
from hubrl.formats.schema import first_problem
from hubrl.methods import check_options, find
from hubrl.methods.hub_pathway import check_top_k
from hubrl.methods.registry import check_cached, check_level, plain_values
from hubrl.nn.optimizers import HubAdam, HubRMSprop
from hubrl.outputs import Outputs, check_effect
from hubrl.policies import HubActorCriticPolicy
from hubrl.precision import byte_policy
from hubrl.q_policies import HubDQNPolicy, Teaching
from hubrl.sources import action_params, shared
from hubrl.sources.observation_batch import divides_images
from hubrl.sources.source import Source

RECOMMENDED = {"hold": 5.0}
"""Beside the options' own defaults, which must go on meaning what they meant in models saved before there were these."""


class AlgorithmKwargs(Sequence[Source]):
    """The part of a hub that makes arguments for SB3's algorithms."""

    def policy_kwargs(
        self,
        method: str = "hub-pathway",
        *,
        tuned: bool = False,
        source_lr: float | None = None,
        cached: bool = False,
        precision: Precision = "float32",
        **options: Any,
    ) -> dict[str, Any]:
        """What any torch algorithm of SB3 takes as `policy_kwargs`: the sources' features, through an extractor.

        Args:
            method: A method's name (`hubrl methods`).
            tuned: Whether the sources are trained further; otherwise they stay as they are, bit for bit.
            source_lr: Learning rate of tuned sources, as a factor on the algorithm's; if not given the method's
                own, 0.1 where it says nothing else.
            cached: Whether the environment is under CachedVecEnv, so that frozen sources are computed once a step.
            precision: In what NatureCNNs are computed, of sources and of the fresh pathway (docs/speed.md).
            options: Options of the method.

        Raises:
            UnknownName: If there is no such method or option.
            BadConfig: If an option's value cannot be.
        """
        check_level(method, "features")
        if cached:
            check_cached(method, tuned=tuned)
        spec = self._spec(method, "features", tuned, source_lr, options, precision=precision).model_copy(update={"cached": cached})
        kwargs: dict[str, Any] = {
            "features_extractor_class": HubExtractor,
            "features_extractor_kwargs": {"hub": spec.to_dict()},
            **self._image_scale(),
        }
        return {**kwargs, "optimizer_class": HubAdam} if spec.tuned else kwargs

    def agent(
        self,
        algorithm: type[BaseAlgorithm],
        method: str = "hub-pathway",
        *,
        level: action_params.Level | None = None,
        tuned: bool = False,
        source_lr: float | None = None,
        cached: bool = False,
        precision: Precision = "float32",
        **options: Any,
    ) -> dict[str, Any]:
        """`policy` and `policy_kwargs` for an algorithm, at the best level it can be served.

        PPO and A2C hear the sources' *outputs* through a policy, if every source has an action head. So does DQN by method
        `hub-pathway` where observations are flat and sources frozen, and by methods that know no other level. Every other
        algorithm hears their *features* through the extractor.

        Args:
            algorithm: The class that takes them: `PPO(env=env, **hub.agent(PPO))`.
            method: A method's name (`hubrl methods`).
            level: `features` or `outputs`, where the choice above is not wanted.
            tuned: Whether the sources are trained further.
            source_lr: Learning rate of tuned sources, as a factor on the algorithm's; if not given the method's
                own, 0.1 where it says nothing else.
            cached: Whether the environment is under CachedVecEnv, so that frozen sources are computed once a step; they then speak
                at the level of features.
            precision: In what NatureCNNs are computed, of sources and of the fresh pathway (docs/speed.md).
            options: Options of the method and, at the level of outputs, of the policy (`Outputs`, for DQN `Teaching`).

        Raises:
            UnknownName: If there is no such method or option.
            BadConfig: If an option's value cannot be, or the algorithm cannot hear outputs.
        """
        _check_algorithm(algorithm)
        if cached and level == "outputs":
            raise BadConfig("cached=True was given at the level of outputs, where what sources said is stored anyway; leave it out.")
        level = "features" if cached else level or self.level(algorithm, method, tuned=tuned)
        if level == "features":
            kwargs = self.policy_kwargs(method, tuned=tuned, source_lr=source_lr, cached=cached, precision=precision, **options)
            seen = spaces.Dict({}) if reads_parts(self[0]) else self[0].space
            made = cached_policy(algorithm) if cached else policy_for(algorithm, seen, precision)
            return {"policy": made, "policy_kwargs": {**kwargs, **_optimizer(algorithm, "optimizer_class" in kwargs, precision)}}
        if not issubclass(algorithm, PPO | A2C | DQN):
            otherwise = "for others use level='features'" if "features" in find(method).levels else f"method {method!r} needs them"
            raise BadConfig(f"{algorithm.__name__} cannot hear outputs; PPO, A2C and DQN can, {otherwise}.")
        check_level(method, level)
        kind = Teaching if issubclass(algorithm, DQN) else Outputs
        given = {name: options.pop(name) for name in list(options) if name in kind.model_fields}
        if given.get("source_std") is not None and find(method).own_std:
            raise BadConfig(f"source_std={given['source_std']} was given for method {method!r}, whose sources never act; leave it out.")
        chooses = (find(method).aggregation or given.get("aggregation", "mixture")) == "mixture"
        recommended: dict[str, Any] = {}
        if kind is Outputs and chooses:
            # A source plays alone only where all are computed.
            recommended = {**RECOMMENDED, "judging_share": 0.0 if options.get("top_k") else find(method).judging_share}
        own = _own_options(kind, recommended, given, options)
        spec = self._spec(method, level, tuned, source_lr, options, also=tuple(kind.model_fields), precision=precision)
        if issubclass(algorithm, DQN):
            kwargs = {"hub": spec.to_dict(), "teaching": own.to_dict(), **self._image_scale()}
            return {"policy": HubDQNPolicy, "policy_kwargs": {**kwargs, **_optimizer(algorithm, spec.tuned, precision)}}
        kwargs = {"hub": spec.to_dict(), "outputs": own.to_dict(), **self._image_scale()}
        # Its optimizer also where all learn at one rate: a hub has many small parameters, which it steps at once.
        return {"policy": HubActorCriticPolicy, "policy_kwargs": {**kwargs, **_optimizer(algorithm, scaled=True, precision=precision)}}

    def _image_scale(self) -> dict[str, bool]:
        """The policy's keyword argument by which images reach the sources as they learned from them."""
        return {} if divides_images(source.card for source in self) else {"normalize_images": False}

    def level(self, algorithm: type[BaseAlgorithm], method: str = "hub-pathway", *, tuned: bool = False) -> action_params.Level:
        """At what level an algorithm is served unless told otherwise: the best that it, the method and the sources can do."""
        levels = find(method).levels
        if len(levels) == 1:
            return levels[0]
        flat = all(len(source.space.shape or ()) <= 1 for source in self)
        q_learner = issubclass(algorithm, DQN) and flat and method == "hub-pathway" and not tuned
        can_hear = issubclass(algorithm, PPO | A2C) or q_learner
        return "outputs" if can_hear and all(source.actions is not None for source in self) else "features"

    def _spec(
        self,
        method: str,
        level: action_params.Level,
        tuned: bool,
        source_lr: float | None,
        options: dict[str, Any],
        also: tuple[str, ...] = (),
        precision: Precision = "float32",
    ) -> HubSpec:
        check_options(method, options, also)
        options = plain_values(method, options)
        if precision == "bfloat16" and not any(reads_images(source.space) for source in self):
            raise BadConfig("precision='bfloat16' was given and no source reads images; it is for NatureCNNs, leave it out.")
        check_top_k(options.get("top_k"), len(self))
        for source in self:
            shared.register(source)
        tunes = find(method).tunes
        if tuned and find(method).keeps_frozen:
            raise BadConfig(f"tuned=True was given for method {method!r}, whose sources stay frozen; leave it out.")
        if source_lr is None:
            source_lr = find(method).source_lr(level)
        cards = tuple(source.card for source in self)
        given = {"options": options, "tuned": tuned or tunes, "source_lr": source_lr, "precision": precision}
        try:
            return HubSpec(sources=cards, method=method, **given)
        except ValidationError as error:
            raise BadConfig(f"The hub cannot be used so: {first_problem(error)}.") from error


def reads_images(space: spaces.Space[Any]) -> bool:
    """Whether observations are images, or some of their parts are."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return any(isinstance(part, spaces.Box) and len(part.shape) == 3 for part in parts)


def _check_algorithm(algorithm: object) -> None:
    """Refuse what is no algorithm, or could not hear a hub."""
    if not (isinstance(algorithm, type) and issubclass(algorithm, BaseAlgorithm)):
        raise BadConfig(f"{algorithm!r} was given; expected an algorithm's class, as in hub.agent(PPO).")
    if "LinearPolicy" in getattr(algorithm, "policy_aliases", {}):
        raise BadConfig(f"{algorithm.__name__} has no features extractor through which it could hear a hub; choose another algorithm.")


def reads_parts(source: Source) -> bool:
    """Whether a source was adapted to a target whose observations are a Dict."""
    return any(step.op in ("key", "keys") for step in source.card.preprocessing[:1])


def policy_for(algorithm: type[BaseAlgorithm], space: spaces.Space[Any], precision: Precision) -> type[BasePolicy] | str:
    """The policy of an algorithm over an extractor of our own."""
    wants_bytes = precision == "bfloat16" and isinstance(space, spaces.Box)
    return (byte_policy(algorithm) if wants_bytes else None) or policy_name(algorithm, space)


def policy_name(algorithm: type[BaseAlgorithm], space: spaces.Space[Any]) -> str:
    """The name under which an algorithm knows its policy for such observations; recurrent ones have names of their own."""
    name = "MultiInput" if isinstance(space, spaces.Dict) else "Mlp"
    aliases = getattr(algorithm, "policy_aliases", {})
    return next((alias for alias in (f"{name}Policy", f"{name}LstmPolicy") if alias in aliases), f"{name}Policy")


def _optimizer(algorithm: type[BaseAlgorithm], scaled: bool, precision: Precision) -> dict[str, Any]:
    """The algorithm's own optimizer: with learning rates of their own for some parameters, or fused, or as SB3 makes it."""
    if issubclass(algorithm, A2C):
        return {"optimizer_class": HubRMSprop} if scaled else {}
    fused = {"fused": True} if precision == "bfloat16" else {}
    if not scaled and not fused:
        return {}
    # SB3 gives Adam this epsilon in on-policy algorithms, but only to the class itself and without other keyword arguments.
    kwargs = {**fused, **({"eps": 1e-5} if issubclass(algorithm, OnPolicyAlgorithm) else {})}
    return {**({"optimizer_class": HubAdam} if scaled else {}), **({"optimizer_kwargs": kwargs} if kwargs else {})}


def _own_options(
    kind: type[Outputs | Teaching], recommended: dict[str, Any], given: dict[str, Any], options: dict[str, Any]
) -> Outputs | Teaching:
    """Options of the outputs: those given, else those recommended, else the defaults; `options` are the method's."""
    try:
        own = kind.model_validate({**recommended, **given})
    except ValidationError as error:
        raise BadConfig(f"An option of the outputs cannot be: {first_problem(error)}.") from error
    if isinstance(own, Outputs):
        check_effect(given, own, options)
    return own
