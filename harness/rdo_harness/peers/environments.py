"""The environments of the peers: built with pip from pinned requirements, whole or not there at all.

They lie in the data cache, ``RDO_CACHE/peers/NAME``. An environment counts as installed once its marker is
there, which is written last and says which requirements it was built from; anything else is built again from nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from filelock import FileLock

from rdo.errors import RdoError
from rdo_harness import data

_MARKER = "complete.json"
_SHOWN = 1500
"""Characters of pip's messages in an error."""


class PeerError(RdoError):
    """A peer is not installed, cannot be installed, or failed."""


@dataclass(frozen=True)
class Environment:
    """What is installed for one library.

    Args:
        name: of the environment and of its requirements file.
        requirements: the text of that file; its first lines, up to a blank one, are installed first. PyTorch is among
            them, since a range in what follows could bring another build.
    """

    name: str
    requirements: str

    @property
    def folder(self) -> Path:
        return data.cache_dir() / "peers" / self.name

    @property
    def python(self) -> Path:
        """The interpreter of an installed environment."""
        return self.folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.requirements.encode()).hexdigest()

    def state(self) -> str:
        """``"installed"``, ``"outdated"`` (built from other requirements, or damaged) or ``"missing"``."""
        marker = self._marker()
        if marker is None:
            return "missing"
        return "installed" if marker.get("requirements") == self.digest and self.python.exists() else "outdated"

    def versions(self) -> dict[str, str]:
        """The packages of an installed environment, as pip listed them."""
        return dict((self._marker() or {}).get("versions", {}))

    def install(self, tell: Callable[[str], None]) -> None:
        """Build the environment, unless it is installed; one process at a time.

        Raises:
            PeerError: Python's venv or pip failed; the message has pip's own last words.
        """
        folder = self.folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{self.name}.lock"):
            if self.state() == "installed":
                tell(f"{self.name} is installed in {folder}")
                return
            # the marker goes first, so that a removal that is killed leaves nothing that looks whole
            (folder / _MARKER).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            started = time.perf_counter()
            tell(f"{self.name}: making an environment in {folder}")
            self._run([sys.executable, "-m", "venv", str(folder)], "venv")
            for part in filter(None, (part.strip() for part in self.requirements.split("\n\n"))):
                wanted = [line for line in part.splitlines() if not line.startswith("#")]
                if wanted:
                    tell(f"{self.name}: installing {wanted[0]}" + (f" and {len(wanted) - 1} more" * (len(wanted) > 1)))
                    path = folder / "requirements.txt"
                    path.write_text("\n".join(wanted) + "\n")
                    self._run([*self._pip(), "install", "--requirement", str(path)], "pip")
            listed = json.loads(self._run([*self._pip(), "list", "--format", "json"], "pip"))
            versions = {package["name"]: package["version"] for package in listed}
            partial = folder / f"{_MARKER}.partial"
            partial.write_text(json.dumps({"requirements": self.digest, "versions": versions}))
            partial.replace(folder / _MARKER)
            tell(f"{self.name}: installed in {time.perf_counter() - started:.0f} s")

    def _pip(self) -> list[str]:
        return [str(self.python), "-m", "pip", "--no-input", "--disable-pip-version-check"]

    def _run(self, command: list[str], program: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=clean_environment())
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
            reason = "\n".join(lines)[-_SHOWN:] or done.stdout[-_SHOWN:] or "no message"
            raise PeerError(
                f"the environment {self.name!r} cannot be built: {program} failed (exit code {done.returncode}):\n"
                f"{reason}\nCheck the network and the free disk space, and try again: rdo peers install {self.name}"
            )
        return done.stdout

    def _marker(self) -> dict[str, Any] | None:
        try:
            marker = json.loads((self.folder / _MARKER).read_text())
        except (OSError, ValueError):
            return None
        return marker if isinstance(marker, dict) else None


def environment(name: str) -> Environment:
    """The environment whose requirements file is shipped under this name."""
    file = resources.files("rdo_harness.peers") / "requirements" / f"{name}.txt"
    return Environment(name, file.read_text(encoding="utf-8"))


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment variables for a foreign interpreter: ours, but none that would lead it to our packages."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {key: value for key, value in os.environ.items() if key not in ours} | dict(extra or {})
