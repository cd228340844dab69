"""Limits on the memory and time that reading a file may take."""

from dataclasses import dataclass, fields

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of reading one agent: more is refused in a sentence that names the field to widen.

    The defaults hold every agent of the RL Zoo a hundred times over. They keep the memory that a
    file takes below its own size plus about 1 GiB, and the time below some seconds.
    """

    file_bytes: int = 4096 * MIB
    """Size of one file."""
    inflation: int = 20
    """Bytes of a zip's members for each of the zip's own bytes; 64 MiB in all are never too
    many."""
    zip_members: int = 4096
    """Members of a zip, and of the weights inside it."""
    json_bytes: int = 16 * MIB
    """Size of a zip's JSON, and of the header of a `.safetensors` file."""
    yaml_bytes: int = 4 * MIB
    """Size of a card or of a hub's YAML."""
    yaml_nodes: int = 100_000
    """Keys and values of a card or of a hub's YAML."""
    yaml_aliases: int = 0
    """Aliases (`*name`) of a YAML file: through them a small file stands for a huge one."""
    pickle_bytes: int = 64 * MIB
    """Size of VecNormalize's pickle."""
    pickle_steps: int = 100_000
    """Opcodes of VecNormalize's pickle, and of the pickle that lists tensors in a torch file."""
    depth: int = 64
    """Depth of nested JSON and YAML."""
    space_numbers: int = 8 * MIB
    """Numbers in a space, of all parts of a Dict together; choices count as numbers."""
    space_parts: int = 1024
    """Parts of a Dict space, and entries of a MultiDiscrete space."""
    tensors: int = 20_000
    """Tensors in one file of weights."""
    sources: int = 256
    """Sources of a hub."""


DEFAULT_LIMITS = Limits()

OWN_YAML = Limits(yaml_aliases=1000)
"""Limits of YAML that users write themselves, where aliases save repetition."""

UNLIMITED = Limits(**{limit.name: 2**62 for limit in fields(Limits)})
"""No limits: for models in memory, and for spaces that were checked when they were read."""
