"""The public names of `hubrl`, as its modules define them; importing them imports torch."""

from hubrl.errors import (
    BadConfig,
    BadFile,
    FolderInUse,
    HubrlError,
    NotFinite,
    NotWritten,
    OutputExists,
    SourcesNotLoaded,
    SpaceMismatch,
    UnknownName,
)
from hubrl.formats.cached_space import CachedFeaturesSpace
from hubrl.formats.limits import Limits
from hubrl.hub import Hub, pathway_weights
from hubrl.nn.bf16 import BF16NatureCNN
from hubrl.nn.optimizers import HubAdam, HubRMSprop
from hubrl.policies.as_source import HubActor
from hubrl.policies.bf16 import BF16CnnPolicy, BF16DQNPolicy, ByteActorCriticPolicy, ByteDQNPolicy
from hubrl.policies.cached import CachedActorCriticPolicy, CachedDQNPolicy, CachedVecEnv
from hubrl.policies.dqn import HubDQNPolicy
from hubrl.policies.extractor import HubExtractor
from hubrl.policies.on_policy.policy import HubActorCriticPolicy
from hubrl.policies.on_policy.rollout_buffer import HubDictRolloutBuffer, HubRolloutBuffer
from hubrl.reading import read_agent as load_agent
from hubrl.sources.networks import Networks, register_network
from hubrl.sources.source import Source
from hubrl.training.callback import HubCallback

__all__ = [
    "BF16CnnPolicy",
    "BF16DQNPolicy",
    "BF16NatureCNN",
    "BadConfig",
    "BadFile",
    "ByteActorCriticPolicy",
    "ByteDQNPolicy",
    "CachedActorCriticPolicy",
    "CachedDQNPolicy",
    "CachedFeaturesSpace",
    "CachedVecEnv",
    "FolderInUse",
    "Hub",
    "HubActor",
    "HubActorCriticPolicy",
    "HubAdam",
    "HubCallback",
    "HubDQNPolicy",
    "HubDictRolloutBuffer",
    "HubExtractor",
    "HubRMSprop",
    "HubRolloutBuffer",
    "HubrlError",
    "Limits",
    "Networks",
    "NotFinite",
    "NotWritten",
    "OutputExists",
    "Source",
    "SourcesNotLoaded",
    "SpaceMismatch",
    "UnknownName",
    "load_agent",
    "pathway_weights",
    "register_network",
]
