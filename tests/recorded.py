"""A logger's output that tests read."""

from typing import Any

from stable_baselines3.common.logger import KVWriter


class RecordedScalars(KVWriter):
    """Every value that was logged, by tag."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        self.records.append(dict(key_values))

    def close(self) -> None:
        pass

    def values(self, tag: str) -> list[Any]:
        return [record[tag] for record in self.records if tag in record]
