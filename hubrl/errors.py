"""Every mistake hubrl reports on purpose.

    HubrlError
    ├── UnknownName        a name that is not registered, with the nearest one that is
    ├── BadConfig          a config or an option that cannot be what the user meant
    ├── BadFile            a file that is missing, damaged, hostile, or of a newer format
    ├── SpaceMismatch      observation or action spaces that do not fit
    ├── SourcesNotLoaded   sources whose weights never arrived
    ├── NotFinite          NaN or infinity in observations, rewards, actions or weights
    ├── OutputExists       something is there already, and nothing was overwritten
    ├── FolderInUse        another process works on a folder
    └── NotWritten         a file that could not be written; what was there before is unchanged

Each message is one sentence or two: what was given, what was expected, what to do. `HubrlWarning`
is the category of what is no mistake yet, and seen at `verbose=0`.
"""

import difflib
from collections.abc import Iterable

LONGEST_NAME, MOST_NAMES = 100, 100
"""Letters of a name, and names, that a message repeats."""


class HubrlError(Exception):
    """The root of hubrl's errors; catch it to catch them all."""


class HubrlWarning(UserWarning):
    """Something that works, and probably not as it was meant."""


class UnknownName(HubrlError):
    """A name that is not registered."""


class BadConfig(HubrlError):
    """A config or an option that cannot be what the user meant."""


class BadFile(HubrlError):
    """A file that is missing, damaged, hostile, or of a newer format."""


class SpaceMismatch(HubrlError):
    """Observation or action spaces that do not fit."""


class SourcesNotLoaded(HubrlError):
    """Sources whose weights never arrived; running them would be running random networks."""


class NotFinite(HubrlError):
    """NaN or infinity where training or acting needs numbers."""


class OutputExists(HubrlError):
    """Something is there already, and nothing was overwritten."""


class FolderInUse(HubrlError):
    """Another process works on a folder, and two would spoil it."""


class NotWritten(HubrlError):
    """A file that the system did not let hubrl write; what was there before is unchanged."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """A sentence about a name that is not known: the name, the nearest one, and all of them.

    Args:
        kind: What was named, as a noun ("method", "option of method 'single'").
        name: What the user wrote.
        known: The names that would have been right.
    """
    names = sorted(shortened(one) for one in known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    listed = ", ".join(names[:MOST_NAMES]) or "none"
    return f"Unknown {shortened(kind)} {shortened(name)!r}.{hint} Known: {listed}{more}."


def shortened(text: str) -> str:
    """A name of a file's choice, as far as it fits into a sentence."""
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 3]}..."


def check_format(plain: object, known: int, what: str) -> None:
    """Refuse data of a newer format than this hubrl reads.

    Args:
        plain: The data; its `format` counts, if it has one.
        known: The newest format that can be read.
        what: What the data is, as the subject of a sentence.

    Raises:
        BadFile: Saying both formats.
    """
    if isinstance(plain, dict) and isinstance(plain.get("format"), int) and plain["format"] > known:
        raise BadFile(
            f"{what} of format {plain['format']}, this hubrl reads up to {known}; update hubrl."
        )
