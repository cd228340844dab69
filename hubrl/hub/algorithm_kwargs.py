"""Arguments of SB3's algorithms from a hub: `policy`, `policy_kwargs`, and their level."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

from gymnasium import spaces
from pydantic import ValidationError
from stable_baselines3.a2c import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO

from hubrl.errors import BadConfig, HubrlWarning, UnknownName, unknown
from hubrl.formats.hub_spec import HubSpec, Precision
from hubrl.formats.schema import first_problem
from hubrl.formats.spaces import describe
from hubrl.methods import check_options, find, options_of
from hubrl.methods.hub_pathway import check_top_k
from hubrl.methods.registry import check_cached, check_level, plain_values, q_learning
from hubrl.nn.optimizers import HubAdam, HubRMSprop
from hubrl.policies.bf16 import byte_policy
from hubrl.policies.cached import cached_policy
from hubrl.policies.dqn import HubDQNPolicy, TeachingOptions
from hubrl.policies.extractor import HubExtractor
from hubrl.policies.on_policy.options import OutputOptions, check_effect
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.routing.fresh_pathway import extractor_class
from hubrl.sources import action_params, shared
from hubrl.sources.observation_batch import divides_images
from hubrl.sources.source import Source

LEVELS = get_args(action_params.Level)

RECOMMENDED = {"hold": 5.0}
"""Options that `Hub.agent` sets unless given, beside the defaults of the options themselves."""


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
        """`policy_kwargs` for any torch algorithm of SB3: the sources' features, by an extractor.

        Args:
            method: Name of a method (`hubrl methods`).
            tuned: Whether the sources are trained further; otherwise they stay the same, bit for
                bit.
            source_lr: Learning rate of tuned sources, as a factor on the algorithm's; by default
                the method's own, 0.1 for most.
            cached: Whether the environment is under CachedVecEnv, so that frozen sources are
                computed once a step.
            precision: Precision of NatureCNNs, of sources and of the fresh pathway
                (docs/guides/atari.md).
            options: Options of the method.

        Raises:
            UnknownName: If there is no such method or option.
            BadConfig: If an option's value cannot be.
        """
        check_level(method, "features")
        if cached:
            check_cached(method, tuned=tuned)
        spec = self._spec(method, "features", tuned, source_lr, options, precision=precision)
        spec = spec.model_copy(update={"cached": cached})
        kwargs: dict[str, Any] = {
            "features_extractor_class": HubExtractor,
            "features_extractor_kwargs": {"hub": spec.to_dict()},
            **self._image_scale(),
        }
        if find(method).starts_as_scratch and extractor_class(self[0].space) is NatureCNN:
            kwargs["net_arch"] = []  # as SB3 has it behind its NatureCNN
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
        policy_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """`policy` and `policy_kwargs` for an algorithm, at its best level.

        PPO and A2C use the sources' *outputs*, if every source acts in a Box or Discrete. So does
        DQN by method `hub-pathway` where observations are flat and sources frozen, and by methods
        that have no other level. Every other algorithm uses their *features*.

        Args:
            algorithm: Class that takes the arguments: `PPO(env=env, **hub.agent(PPO))`.
            method: Name of a method (`hubrl methods`).
            level: `features` or `outputs`, if not the best.
            tuned: Whether the sources are trained further.
            source_lr: Learning rate of tuned sources, as a factor on the algorithm's.
            cached: Whether the environment is under CachedVecEnv; the level is then `features`.
            precision: Precision of NatureCNNs (docs/guides/atari.md).
            policy_kwargs: SB3's own, such as `{"net_arch": [64]}`: the shape of the fresh pathway
                and the critic over outputs, of the networks on top of the features otherwise.
            options: Options of the method and, at the level of outputs, of the policy
                (`OutputOptions`, for DQN `TeachingOptions`).

        Raises:
            UnknownName: If there is no such method or option.
            BadConfig: If an option's value cannot be, or the algorithm cannot use outputs.
        """
        _check_algorithm(algorithm)
        level = self._chosen_level(algorithm, method, level, cached=cached, tuned=tuned)
        if level == "outputs":
            made = self._outputs_agent(algorithm, method, tuned, source_lr, precision, options)
        else:
            given = {"tuned": tuned, "source_lr": source_lr, "cached": cached, **options}
            made = self._features_agent(algorithm, method, {"precision": precision, **given})
        made["policy_kwargs"] = with_sb3s(made["policy_kwargs"], policy_kwargs or {})
        return made

    def _chosen_level(
        self,
        algorithm: type[BaseAlgorithm],
        method: str,
        given: str | None,
        *,
        cached: bool,
        tuned: bool,
    ) -> action_params.Level:
        if cached and given == "outputs":
            raise BadConfig(
                "cached=True was given at the level of outputs, where outputs of the sources are "
                "stored anyway; leave it out."
            )
        if given not in (None, *LEVELS):
            raise UnknownName(unknown("level", str(given), LEVELS))
        if cached or given is not None:
            return cast("action_params.Level", "features" if cached else given)
        self._tell_unmixed(algorithm, method)
        return self.level(algorithm, method, tuned=tuned)

    def _features_agent(
        self, algorithm: type[BaseAlgorithm], method: str, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        if algorithm.__name__ == "TRPO" and "explore_coef" in options_of(method):
            # It differentiates its gradient, through which a loss cannot be injected.
            given = {"explore_coef": 0.0, **given}
        kwargs = self.policy_kwargs(method, **given)
        space = spaces.Dict({}) if reads_parts(self[0]) else self[0].space
        cached, precision = given["cached"], given["precision"]
        policy = cached_policy(algorithm) if cached else policy_for(algorithm, space, precision)
        optimizer = _optimizer(algorithm, "optimizer_class" in kwargs, precision)
        return {"policy": policy, "policy_kwargs": {**kwargs, **optimizer}}

    def level(
        self, algorithm: type[BaseAlgorithm], method: str = "hub-pathway", *, tuned: bool = False
    ) -> action_params.Level:
        """The best level that algorithm, method and sources allow."""
        levels = find(method).levels
        if len(levels) == 1:
            return levels[0]
        flat = all(len(source.space.shape or ()) <= 1 for source in self)
        explores = q_learning(method, {}, tuned=tuned) == "explorers"
        can = issubclass(algorithm, PPO | A2C) or (issubclass(algorithm, DQN) and flat and explores)
        have_heads = all(source.actions is not None for source in self)
        return "outputs" if can and have_heads and not self._unmixed() else "features"

    def _unmixed(self) -> Source | None:
        """The first source with actions whose distributions are not mixed, if any."""
        mixed = spaces.Box | spaces.Discrete
        heads = (source for source in self if source.actions is not None)
        return next((source for source in heads if not isinstance(source.actions, mixed)), None)

    def _tell_unmixed(self, algorithm: type[BaseAlgorithm], method: str) -> None:
        """Warn where only the kind of the sources' actions decides for the level of features."""
        source = self._unmixed()
        both = len(find(method).levels) == 2 and issubclass(algorithm, PPO | A2C)
        if source is None or source.actions is None or not both:
            return
        warnings.warn(
            f"Source {source.name!r} acts in {describe(source.actions)}; outputs are mixed for Box "
            f"and Discrete, so {algorithm.__name__} learns from the sources' features "
            "(level='features' chooses so without this warning).",
            HubrlWarning,
            stacklevel=4,
        )

    def _outputs_agent(
        self,
        algorithm: type[BaseAlgorithm],
        method: str,
        tuned: bool,
        source_lr: float | None,
        precision: Precision,
        options: dict[str, Any],
    ) -> dict[str, Any]:
        """`policy` and `policy_kwargs` at the level of outputs."""
        if not issubclass(algorithm, PPO | A2C | DQN):
            remedy = (
                "for others use level='features'"
                if "features" in find(method).levels
                else f"method {method!r} needs them"
            )
            raise BadConfig(
                f"{algorithm.__name__} cannot use outputs; PPO, A2C and DQN can, {remedy}."
            )
        check_level(method, "outputs")
        for_dqn = issubclass(algorithm, DQN)
        kind = TeachingOptions if for_dqn else OutputOptions
        given = {name: options.pop(name) for name in list(options) if name in kind.model_fields}
        own = own_options(kind, method, given, options)
        fields = tuple(kind.model_fields)
        spec = self._spec(method, "outputs", tuned, source_lr, options, fields, precision)
        kwargs = {"hub": spec.to_dict(), **self._image_scale()}
        if for_dqn:
            optimizer = _optimizer(algorithm, spec.tuned, precision)
            kwargs = {**kwargs, "teaching": own.to_dict(), **optimizer}
            return {"policy": HubDQNPolicy, "policy_kwargs": kwargs}
        # HubAdam also without rates of their own: it steps a hub's many small parameters at once.
        optimizer = _optimizer(algorithm, scaled=True, precision=precision)
        kwargs = {**kwargs, "outputs": own.to_dict(), **optimizer}
        return {"policy": HubActorCriticPolicy, "policy_kwargs": kwargs}

    def _image_scale(self) -> dict[str, bool]:
        """`normalize_images` of the policy, by the range of the sources' images."""
        return {} if divides_images(one.card for one in self) else {"normalize_images": False}

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
        _check_no_sb3s(options)
        check_options(method, options, also)
        options = plain_values(method, options)
        if precision == "bfloat16" and not any(reads_images(source.space) for source in self):
            raise BadConfig(
                "precision='bfloat16' was given and no source reads images; it is for NatureCNNs, "
                "leave it out."
            )
        check_top_k(options.get("top_k"), len(self))
        for source in self:
            shared.register(source)
        if tuned and find(method).keeps_frozen:
            raise BadConfig(
                f"tuned=True was given for method {method!r}, whose sources stay frozen; leave it "
                "out."
            )
        try:
            return HubSpec(
                sources=tuple(source.card for source in self),
                method=method,
                options=options,
                tuned=tuned or find(method).tunes,
                source_lr=find(method).source_lr(level) if source_lr is None else source_lr,
                precision=precision,
            )
        except ValidationError as error:
            raise BadConfig(f"The hub cannot be used so: {first_problem(error)}.") from error


def reads_images(space: spaces.Space[Any]) -> bool:
    """Whether observations are images, or some of their parts are."""
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return any(isinstance(part, spaces.Box) and len(part.shape) == 3 for part in parts)


def reads_parts(source: Source) -> bool:
    """Whether a source was adapted to a target whose observations are a Dict."""
    return any(step.op in ("key", "keys") for step in source.card.preprocessing[:1])


def policy_for(
    algorithm: type[BaseAlgorithm], space: spaces.Space[Any], precision: Precision
) -> type[BasePolicy] | str:
    """Policy of an algorithm over hubrl's extractor."""
    wants_bytes = precision == "bfloat16" and isinstance(space, spaces.Box)
    return (byte_policy(algorithm) if wants_bytes else None) or policy_name(algorithm, space)


def policy_name(algorithm: type[BaseAlgorithm], space: spaces.Space[Any]) -> str:
    """An algorithm's name of its policy for a space; recurrent policies have names of their own."""
    name = "MultiInput" if isinstance(space, spaces.Dict) else "Mlp"
    aliases = getattr(algorithm, "policy_aliases", {})
    candidates = (f"{name}Policy", f"{name}LstmPolicy")
    return next((alias for alias in candidates if alias in aliases), f"{name}Policy")


SB3S = ("net_arch", "activation_fn", "ortho_init", "log_std_init", "share_features_extractor")
"""Arguments of SB3's policies that are looked for among the options of a method."""


def _check_no_sb3s(options: Mapping[str, Any]) -> None:
    """Refuse arguments of SB3's policies among the options, and name their place."""
    for name in SB3S:
        if name in options:
            raise BadConfig(
                f"{name}={options[name]!r} was given as an option; it is SB3's: "
                f"hub.agent(..., policy_kwargs={{{name!r}: ...}})."
            )


def with_sb3s(own: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A hub's `policy_kwargs` with SB3's beside them; both may have optimizer arguments.

    Raises:
        BadConfig: If the hub sets one of the given ones itself.
    """
    own = {name: own[name] for name in own if name != "net_arch" or name not in given}
    optimizer = {**given.get("optimizer_kwargs", {}), **own.get("optimizer_kwargs", {})}
    taken = sorted({*given} & {*own} - {"optimizer_kwargs"})
    if taken:
        raise BadConfig(
            f"policy_kwargs={{{taken[0]!r}: ...}} was given, which the hub sets itself; leave it "
            "out."
        )
    return {**given, **own, **({"optimizer_kwargs": optimizer} if optimizer else {})}


def _check_algorithm(algorithm: object) -> None:
    """Refuse a class that is no algorithm, or an algorithm without a features extractor."""
    if not (isinstance(algorithm, type) and issubclass(algorithm, BaseAlgorithm)):
        raise BadConfig(
            f"{algorithm!r} was given; expected an algorithm's class, as in hub.agent(PPO)."
        )
    if "LinearPolicy" in getattr(algorithm, "policy_aliases", {}):
        raise BadConfig(
            f"{algorithm.__name__} has no features extractor by which it could use a hub; choose "
            "another algorithm."
        )


def _optimizer(
    algorithm: type[BaseAlgorithm], scaled: bool, precision: Precision
) -> dict[str, Any]:
    """Optimizer arguments: hubrl's with learning rates of some parameters, or fused, or SB3's."""
    if issubclass(algorithm, A2C):
        return {"optimizer_class": HubRMSprop} if scaled else {}
    kwargs: dict[str, Any] = {"fused": True} if precision == "bfloat16" else {}
    if not scaled and not kwargs:
        return {}
    if issubclass(algorithm, OnPolicyAlgorithm):
        # SB3 does so only for Adam itself and without other keyword arguments.
        kwargs["eps"] = 1e-5
    made: dict[str, Any] = {"optimizer_class": HubAdam} if scaled else {}
    return {**made, **({"optimizer_kwargs": kwargs} if kwargs else {})}


def own_options(
    kind: type[OutputOptions | TeachingOptions],
    method: str,
    given: dict[str, Any],
    options: dict[str, Any],
) -> OutputOptions | TeachingOptions:
    """Options of the policy: those given, else those recommended, else the defaults.

    Args:
        kind: Class of the options.
        method: Name of the method.
        given: Options of the policy as given.
        options: Options of the method as given.

    Raises:
        BadConfig: If an option cannot be, or would have no effect.
    """
    if given.get("source_std") is not None and find(method).keeps_source_std:
        raise BadConfig(
            f"source_std={given['source_std']} was given for method {method!r}, whose sources "
            "never act; leave it out."
        )
    aggregation = find(method).aggregation or given.get("aggregation", "mixture")
    recommended: dict[str, Any] = {}
    if kind is OutputOptions and aggregation == "mixture":
        # Solo episodes of one source need the outputs of all.
        judging_share = 0.0 if options.get("top_k") else find(method).judging_share
        recommended = {**RECOMMENDED, "judging_share": judging_share}
    try:
        own = kind.model_validate({**recommended, **given})
    except ValidationError as error:
        raise BadConfig(f"An option of the outputs cannot be: {first_problem(error)}.") from error
    if isinstance(own, OutputOptions):
        check_effect(given, own, options)
    return own
