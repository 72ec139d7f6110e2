"""One content behind each kind of wrapped filesystem, for tests that compare headrace with them.

`make_targets` puts `CONTENT` and `OTHER` behind file, memory, zip, a synchronous and an
asynchronous recording filesystem, and S3, which both engines read (`s3`: the native one, where it is
installed).  I8 is the yardstick of the tests that use them: what the wrapped filesystem answers to a
read, bytes or type of exception, is what headrace answers in every mode; `outcome` makes the two
comparable.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import recording  # noqa: F401 - registers its two filesystems
from modes import BUCKET

import headrace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PROTOCOLS = ("file", "memory", "zip", "recording", "arecording", "s3", "s3-s3fs")
LOG = "targets"
SIZE = 300_001
CONTENT = np.random.default_rng(7).bytes(SIZE)
OTHER = np.random.default_rng(8).bytes(1_000)


@dataclass
class Target:
    """A wrapped filesystem, with `CONTENT` in `big`, `OTHER` in `small`, nothing at `missing`."""

    protocol: str
    root: str
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def plain(self) -> Any:
        return fsspec.filesystem(self.protocol, **self.options)

    def headrace(self, **options: Any) -> headrace.HeadraceFileSystem:
        return headrace.HeadraceFileSystem(
            target_protocol=self.protocol, target_options=self.options, **{**self.settings, **options}
        )

    @property
    def big(self) -> str:
        return f"{self.root}/big.bin"

    @property
    def small(self) -> str:
        return f"{self.root}/sub/small.bin"

    @property
    def missing(self) -> str:
        return f"{self.root}/nowhere.bin"


def make_targets(root: Path, s3_options: dict[str, object]) -> dict[str, Target]:
    """Return the targets by protocol; their files go under `root`."""
    disk = _on_disk(root / "disk")
    return {
        "file": Target("file", disk),
        "memory": _fill(Target("memory", "/targets")),
        "zip": Target("zip", "data", {"fo": _zipped(root)}),
        "recording": Target("recording", disk, {"log": LOG}),
        "arecording": Target("arecording", disk, {"log": LOG}),
        "s3": _fill(Target("s3", f"{BUCKET}/targets", s3_options)),
        "s3-s3fs": Target("s3", f"{BUCKET}/targets", s3_options, {"cloud_engine": "fsspec"}),
    }


def _fill(target: Target) -> Target:
    fs = fsspec.filesystem(target.protocol, **target.options)
    fs.makedirs(target.small.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(target.big, CONTENT)
    fs.pipe_file(target.small, OTHER)
    return target


def _on_disk(root: Path) -> str:
    (root / "sub").mkdir(parents=True)
    (root / "big.bin").write_bytes(CONTENT)
    (root / "sub" / "small.bin").write_bytes(OTHER)
    return str(root)


def _zipped(root: Path) -> str:
    name = root / "data.zip"
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("data/big.bin", CONTENT)
        archive.writestr("data/sub/small.bin", OTHER)
    return str(name)


def outcome(read: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return the bytes of a read, or the type of its exception."""
    try:
        return read(*args, **kwargs)
    except Exception as error:  # noqa: BLE001  (any of them is an outcome to compare)
        return type(error)


def at_rest(fs: headrace.HeadraceFileSystem) -> bool:
    """Return whether nothing is in flight and nothing reserved (I3)."""
    stats = fs.stats()
    return bool(stats.in_flight_ops == 0 and stats.reserved_bytes == 0)


def queued(fs: headrace.HeadraceFileSystem) -> int:
    """Return how many requests wait for their admission."""
    return sum(device.queued_requests for device in fs.stats().devices)
