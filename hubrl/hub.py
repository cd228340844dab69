"""A hub: an ordered, immutable set of sources, and what it hands to SB3's algorithms."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field, ValidationError
from stable_baselines3.a2c import A2C
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.dqn import DQN
from stable_baselines3.ppo import PPO

from hubrl.cached import cached_policy
from hubrl.errors import BadConfig, BadFile, OutputExists, UnknownName, check_format, unknown
from hubrl.extractor import HubExtractor, parts_in
from hubrl.formats.files import is_there, new_folder
from hubrl.formats.hub_spec import HubSpec, Precision
from hubrl.formats.limits import DEFAULT_LIMITS, Limits
from hubrl.formats.schema import Schema, first_problem, read_yaml, write_yaml
from hubrl.methods import check_options, find
from hubrl.methods.base import Method, check_cached, check_level, plain_values
from hubrl.methods.hub_pathway import check_top_k
from hubrl.nn.optimizers import HubAdam, HubRMSprop
from hubrl.outputs import Outputs, check_effect
from hubrl.pathways import FRESH
from hubrl.policies import HubActorCriticPolicy
from hubrl.precision import byte_policy
from hubrl.q_policies import HubDQNPolicy, Teaching
from hubrl.reading import read_agent, read_live, read_live_policy
from hubrl.selection.arm_selection import TOGETHER_ARM as TOGETHER
from hubrl.sources import action_params, shared
from hubrl.sources.observation_batch import divides_images
from hubrl.sources.source import Source

HUB_FORMAT = 1
HUB_FILE = "hub.yaml"

RECOMMENDED = {"hold": 5.0}
"""Beside the options' own defaults, which must go on meaning what they meant in models saved before there were these."""

TAKEN = {FRESH, TOGETHER, Path(HUB_FILE).stem}
"""Names that no source may have: those of the fresh pathway, of all together, and of the hub's own file."""

Agent = str | Path | Source | BaseAlgorithm | BasePolicy | tuple[str | Path, str | Path]
"""A file or folder, one with its statistics or its card, a model or a policy in memory, or a source."""


class HubCard(Schema):
    """What a hub's folder says of itself; its sources' cards lie beside."""

    format: int = HUB_FORMAT
    sources: tuple[str, ...] = Field(min_length=1)
    """The sources' names, in order."""


class Hub(Sequence[Source]):
    """Pretrained agents to learn from, in the order given.

    Args:
        sources: The sources; their names must differ.

    Raises:
        BadConfig: If there is none, two have one name, or one has a name that is taken.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self._sources = tuple(sources)
        if not self._sources:
            raise BadConfig("A hub of no sources was given; expected at least one.")
        names = [source.name for source in self._sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadConfig(f"Two sources are called {twice[0]!r}; give one of them another name.")
        taken = sorted({*names} & TAKEN)
        if taken:
            raise BadConfig(f"A source is called {taken[0]!r}, which has a meaning of its own here; give it another name.")

    @classmethod
    def from_agents(cls, agents: Iterable[Agent], names: Sequence[str] | None = None, *, limits: Limits = DEFAULT_LIMITS) -> "Hub":
        """A hub of agents in whatever form they come; nothing in their files is executed.

        Args:
            agents: SB3 zips, RL Zoo folders, cards, weights with a card, sources, or models in memory; a pair is a zip
                with its VecNormalize file, or weights with their card.
            names: Names of the sources; by default those of their files.
            limits: Limits on their files; wider ones for agents that are trusted.

        Raises:
            BadFile: If a file is missing, damaged or hostile.
            BadConfig: If there is no agent, or two have one name.
        """
        if isinstance(agents, str | Path):
            raise BadConfig(f"{str(agents)!r} was given; expected a list of agents: [{str(agents)!r}].")
        listed = list(agents)
        called: Sequence[str | None] = names if names is not None else [None] * len(listed)
        if len(called) != len(listed):
            raise BadConfig(f"{len(called)} names were given for {len(listed)} agents.")
        named = enumerate(zip(listed, called, strict=True))
        return cls(_source(agent, name, index, limits) for index, (agent, name) in named)

    @classmethod
    def load(cls, folder: str | Path, *, limits: Limits = DEFAULT_LIMITS) -> "Hub":
        """The hub that `save` wrote; every weight file's sha256 is checked.

        Args:
            folder: The hub's folder.
            limits: Limits on its files; wider ones for a hub that is trusted.

        Raises:
            BadFile: If it is no hub, a file is missing or changed, or it is of a newer format.
        """
        folder = Path(folder)
        if not is_there(folder / HUB_FILE):
            raise BadFile(f"{folder} is no hub: it has no {HUB_FILE}; make one with `hubrl hub build`.")
        plain = read_yaml(folder / HUB_FILE, limits)
        check_format(plain, HUB_FORMAT, f"{folder} is a hub")
        try:
            card = HubCard.model_validate(plain)
        except ValidationError as error:
            raise BadFile(f"{folder / HUB_FILE} is not a hub's card: {first_problem(error)}.") from error
        if len(card.sources) > limits.sources:
            raise BadFile(f"{folder} has {len(card.sources)} sources, {limits.sources} are allowed; widen hubrl.Limits if it is trusted.")
        return cls(read_agent(_inside(folder, name), limits=limits) for name in card.sources)

    def save(self, folder: str | Path, *, overwrite: bool = False, half: bool = False) -> None:
        """Write the hub as a folder: `hub.yaml`, and a card and a `.safetensors` file for each source.

        Args:
            folder: Where; it appears whole or not at all.
            overwrite: Whether it may replace a hub that is there. Files in its folder that are not the hub's stay.
            half: Whether weights are rounded to float16, for half the size.

        Raises:
            OutputExists: If the folder exists and may not be replaced, or is no hub.
            SourcesNotLoaded: If a source's weights never arrived.
        """
        folder = Path(folder).resolve()
        foreign = _foreign(folder) if overwrite and folder.exists() else []
        with new_folder(folder, overwrite=overwrite) as making:
            for source in self._sources:
                raw = source.to_bytes(half=half)
                # A source that was trained meanwhile is no longer the one its card was made for.
                card = source.card.model_copy(update={"sha256": hashlib.sha256(raw).hexdigest()})
                (making / f"{source.name}.safetensors").write_bytes(raw)
                (making / f"{source.name}.yaml").write_text(write_yaml(card.to_dict()), encoding="utf-8")
            (making / HUB_FILE).write_text(write_yaml(HubCard(sources=tuple(self.names)).to_dict()), encoding="utf-8")
            for path in foreign:
                if path.is_dir():
                    shutil.copytree(path, making / path.name, symlinks=True)
                elif not (making / path.name).exists():
                    shutil.copy2(path, making / path.name)

    def add(self, agent: Agent, name: str | None = None) -> "Hub":
        """A new hub with one more source at the end."""
        return Hub([*self._sources, *Hub.from_agents([agent], None if name is None else [name])])

    @property
    def names(self) -> list[str]:
        """The sources' names, in order."""
        return [source.name for source in self._sources]

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
        for source in self._sources:
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

    @overload
    def __getitem__(self, which: int | str) -> Source: ...
    @overload
    def __getitem__(self, which: slice) -> "Hub": ...
    def __getitem__(self, which: int | str | slice) -> "Source | Hub":
        """A source by name or position, or a hub of some of them."""
        if isinstance(which, slice):
            return Hub(self._sources[which])
        if isinstance(which, int):
            return self._sources[which]
        if which not in self.names:
            raise UnknownName(unknown("source", which, self.names))
        return self._sources[self.names.index(which)]

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[Source]:
        return iter(self._sources)

    def __repr__(self) -> str:
        return f"Hub({', '.join(self.names)})"


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


def _source(agent: Agent, name: str | None, index: int, limits: Limits) -> Source:
    if isinstance(agent, Source):
        return agent if name in (None, agent.name) else agent.adapted(name)
    if isinstance(agent, BaseAlgorithm):
        return read_live(agent, name or f"{type(agent).__name__.lower()}-{index}")
    if isinstance(agent, BasePolicy):
        return read_live_policy(agent, name or f"policy-{index}")
    path, companion = agent if isinstance(agent, tuple) and len(agent) == 2 else (agent, None)
    if not all(isinstance(part, str | Path) for part in (path, companion or "")):
        raise BadConfig(
            f"{agent!r} was given; expected an agent: a file or folder, a file with its statistics or card, a hubrl.Source, or a model."
        )
    return read_agent(path, companion, name=name, limits=limits)


def _foreign(folder: Path) -> list[Path]:
    """What lies in a hub's folder and is not the hub's.

    Raises:
        OutputExists: If it is no hub's folder.
    """
    if not (folder / HUB_FILE).is_file():
        raise OutputExists(f"{folder} exists and is no hub, so it is not replaced; choose another name, or remove it.")
    plain = read_yaml(folder / HUB_FILE)
    listed = plain.get("sources", []) if isinstance(plain, dict) else []
    own = {HUB_FILE, *(f"{name}{suffix}" for name in listed for suffix in (".yaml", ".safetensors"))}
    return [path for path in sorted(folder.iterdir()) if path.name not in own]


def _inside(folder: Path, name: str) -> Path:
    """The card of a name in a hub's folder; a name that leads out of it is refused."""
    if Path(name).name != name:
        raise BadFile(f"{folder / HUB_FILE} names a source {name!r}, which is not a name.")
    return folder / f"{name}.yaml"


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


@torch.no_grad()
def pathway_weights(model: BaseAlgorithm, observation: np.ndarray | dict[str, np.ndarray]) -> dict[str, float | np.ndarray]:
    """Who speaks here: every pathway's weight by name, without the router's noise.

    Args:
        model: A model that learns through a hub.
        observation: One observation, or a batch, as the model's `predict` takes it.

    Returns:
        One number a pathway for one observation, an array `(batch,)` for a batch; they sum to one.

    Raises:
        BadConfig: If the model learns through no hub.
    """
    policy = model.policy
    if isinstance(policy, HubDQNPolicy):
        seen, batched = policy.obs_to_tensor(observation)
        rows = len(next(iter(seen.values())) if isinstance(seen, dict) else seen) if batched else None
        acts = {name: float(index == policy.selection.evaluation_arm) for index, name in enumerate(policy.pathways.names)}
        return {name: one if rows is None else np.full(rows, one) for name, one in acts.items()}
    hears = next((part for part in policy.modules() if isinstance(part, HubActorCriticPolicy | HubExtractor)), None)
    if hears is None:
        raise BadConfig(f"The {type(model).__name__} given learns through no hub; make one with Hub.agent or Hub.policy_kwargs.")
    policy.set_training_mode(False)
    tensor, batched = policy.obs_to_tensor(observation)
    preprocessed: Any = preprocess_obs(tensor, policy.observation_space, normalize_images=policy.normalize_images)
    method = parts_in(hears, Method)[0]  # type: ignore[type-abstract]
    routed = hears.route(preprocessed).weights
    if routed is None:
        raise BadConfig(f"Method {hears.spec.method!r} has no pathway weights.")
    weights = routed.cpu().numpy()
    if batched:
        return {name: weights[:, index] for index, name in enumerate(method.pathways.names)}
    return {name: float(weights[0, index]) for index, name in enumerate(method.pathways.names)}
