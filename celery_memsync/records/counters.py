"""Counters that all processes share."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import encoding
from ..deadline import bounded
from ..keys import METRICS, check_id
from ..reading.reader import Reader
from ..settings import Settings
from ..writing.changes import SyncMetrics
from .checks import check_amounts


class Counters:
    """Sets counters, adds to them and reads them."""

    def __init__(self, settings: Settings, reader: Reader) -> None:
        self.settings = settings
        self.timeout = settings.timeout
        self.reader = reader
        self.location = reader.keys.coordination_location(METRICS)

    def set(self, values: Mapping[str, Any]) -> None:
        """Set counters by name; other counters stay."""
        fields = encoding.encode_fields(values, self.location.path, self.settings.max_value_size)
        self._put({check_id(name, "metric"): (body, 0) for name, body in fields.items()})

    def add(self, amounts: Mapping[str, float]) -> None:
        """Add to counters by name."""
        self._put({name: (None, amount) for name, amount in check_amounts(amounts).items()})

    def _put(self, steps: dict[str, tuple[bytes | None, float]]) -> None:
        self.reader.writer.put(SyncMetrics(self.location, steps, self.settings.default_ttl))

    @bounded
    def all(self) -> dict[str, Any]:
        """Return all counters by name."""
        return self.reader.metrics()
