"""What an `ObjectServer` stores: buckets of objects in memory or in files, and uploads under way.

Threading: tests put and replace while the server's thread reads. Each call changes or reads a dict in one
step, and a stored object never changes: replacing it stores another one.
"""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of an object.

    Parameters
    ----------
    data
        The bytes, or the file that has them.
    size_bytes
        Length of the object.
    etag
        Name of this version, in quotes as the protocol has it.
    modified
        When it was stored.
    """

    data: bytes | Path = field(repr=False)
    size_bytes: int
    etag: str
    modified: datetime

    @classmethod
    def of_bytes(cls, data: bytes, etag: str | None = None) -> Stored:
        """Make a version named by the MD5 of its bytes, as S3 does, unless `etag` is given."""
        etag = etag or f'"{_md5(data)}"'
        return cls(data, len(data), etag, datetime.now(UTC))

    @classmethod
    def of_file(cls, path: Path) -> Stored:
        """Make a version named by the file's time and size, so that nothing of it is read."""
        found = path.stat()
        etag = f'"{found.st_mtime_ns:x}-{found.st_size:x}"'
        return cls(path, found.st_size, etag, datetime.fromtimestamp(found.st_mtime, UTC))

    def read(self, start: int, end: int) -> bytes:
        """Return the bytes of ``[start, end)``; waits for the disk if they are in a file."""
        if isinstance(self.data, bytes):
            return self.data[start:end]
        with self.data.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


class Buckets:
    """All that one server stores."""

    def __init__(self) -> None:
        self.by_name: dict[str, dict[str, Stored]] = {}
        self.uploads: dict[str, dict[int, Stored]] = {}
        self._upload_numbers = itertools.count(1)

    def create(self, bucket: str) -> None:
        """Make a bucket, unless it is there."""
        self.by_name.setdefault(bucket, {})

    def put(self, bucket: str, key: str, stored: Stored) -> Stored:
        """Store an object, in a bucket that is made if need be."""
        self.by_name.setdefault(bucket, {})[key] = stored
        return stored

    def begin_upload(self) -> str:
        """Return the name of a new multipart upload."""
        name = f"upload-{next(self._upload_numbers)}"
        self.uploads[name] = {}
        return name


def join_parts(parts: list[Stored]) -> Stored:
    """Make an object of the parts of an upload, with an ETag like S3's own: MD5 of MD5s, count of parts."""
    digests = b"".join(bytes.fromhex(part.etag.strip('"')) for part in parts)
    data = b"".join(part.read(0, part.size_bytes) for part in parts)
    return Stored.of_bytes(data, f'"{_md5(digests)}-{len(parts)}"')


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
