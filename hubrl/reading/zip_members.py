"""Members of a zip, read one by one with limits on their inflated size."""

import io
import zipfile

from hubrl.errors import BadFile
from hubrl.formats.limits import DEFAULT_LIMITS, MIB, Limits

FREE_BYTES = 64 * MIB
"""Bytes that the members of any zip may have together, whatever its size."""

METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Compression methods that inflate step by step; bzip2 and lzma can only be limited afterwards."""


class ZipMembers:
    """A zip in memory.

    Args:
        raw: Its bytes.
        where: Its name, for messages.
        limits: Limits on its members.

    Raises:
        BadFile: If it has too many members.
        zipfile.BadZipFile: If it is no zip.
    """

    def __init__(self, raw: bytes, where: str, limits: Limits = DEFAULT_LIMITS) -> None:
        self._zip = zipfile.ZipFile(io.BytesIO(raw))
        self._where = where
        self._left = max(FREE_BYTES, limits.inflation * len(raw))
        infos = self._zip.infolist()
        if len(infos) > limits.zip_members:
            raise BadFile(
                f"{where} has {len(infos)} members, {limits.zip_members} are allowed; widen "
                "hubrl.Limits if it is trusted."
            )
        self.names = [info.filename for info in infos]

    def read(self, name: str) -> bytes:
        """The content of one member.

        Raises:
            BadFile: If it is compressed in a way that cannot be limited, or inflates to more than
                the limits.
            zipfile.BadZipFile: If it is damaged.
        """
        info = self._zip.getinfo(name)
        if info.compress_type not in METHODS:
            raise BadFile(
                f"{self._where} is damaged or not an SB3 zip (its {name!r} is neither stored "
                "nor deflated)."
            )
        if info.file_size > self._left:
            self._refuse()
        with self._zip.open(info) as member:
            content = member.read(info.file_size + 1)
        self._left -= len(content)
        if self._left < 0:
            self._refuse()
        return content

    def _refuse(self) -> None:
        raise BadFile(
            f"{self._where} inflates to far more than its own size; agents do not. Widen "
            "hubrl.Limits(inflation=...) if it is trusted."
        )
