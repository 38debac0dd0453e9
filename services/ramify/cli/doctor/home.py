"""What the folder of a local system tells of it."""

import json
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Home:
    """A folder as `ramify up` uses it."""

    folder: Path

    @property
    def store_url(self) -> str:
        """Of its SQLite."""
        return f"sqlite+aiosqlite:///{self.folder.absolute() / 'state.db'}"

    @property
    def gateway(self) -> str:
        """Address of the gateway that runs for it; empty: none does."""
        return self._address("gateway")

    @property
    def verifier(self) -> str:
        """Address of the verifier that runs for it; empty: none does."""
        return self._address("verifier")

    @property
    def runs(self) -> bool:
        """Whether a system runs on it, as far as its services' processes tell."""
        return bool(self.gateway or self.verifier)

    def _address(self, service: str) -> str:
        try:
            ready = json.loads((self.folder / f"{service}.ready").read_text())
            arguments = psutil.Process(int(ready["pid"])).cmdline()
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            return ""
        # Another process may have the number by now.
        return str(ready["address"]) if f"ramify.{service}" in arguments else ""
