"""What has been measured so far, in a file, so that a run that was ended goes on from there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Entry:
    """A part that was begun.

    Attributes:
        rows: As dicts of :class:`device.timing.Row`.
        done: Whether it came to its end, by itself or by an error.
        error: What went wrong, or nothing.
        seconds: Time it took.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False
    error: str = ""
    seconds: float = 0.0


class Journal:
    """Entries by part. A file of another commit, device, size or other versions is begun anew."""

    def __init__(self, path: Path, about: Mapping[str, str]) -> None:
        self.path, self.about = path, dict(about)
        self.entries: dict[str, Entry] = {}
        if path.exists():
            kept = json.loads(path.read_text())
            if kept["about"] == self.about:
                self.entries = {name: Entry(**entry) for name, entry in kept["entries"].items()}

    def missing(self, names: list[str]) -> list[str]:
        """Return the parts that have not come to their end."""
        return [name for name in names if not self.entries.get(name, Entry()).done]

    def save(self) -> None:
        """Write the file, the old one being there until the new one is."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = {name: asdict(entry) for name, entry in self.entries.items()}
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps({"about": self.about, "entries": entries}, indent=1))
        fresh.replace(self.path)
