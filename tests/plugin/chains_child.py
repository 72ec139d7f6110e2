"""Reads every chain in one process and prints what it got; run by ``test_chains.py``.

Arguments: a directory with ``data.zip`` and ``data.tar`` in it, an S3 endpoint, a bucket.
Prints one JSON object: for each chain the digest of what was read, or the exception.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import fsspec

import headrace

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT, ENDPOINT, BUCKET = sys.argv[1:4]
S3 = {"key": "test-key", "secret": "test-secret", "endpoint_url": ENDPOINT}
OBJECT = f"{BUCKET}/chains/data.bin"
CACHE = {"cache_storage": f"{ROOT}/cache"}

URLS: dict[str, dict[str, Any]] = {
    f"headrace::file://{ROOT}/data.bin": {},
    f"headrace::zip://data.bin::file://{ROOT}/data.zip": {},
    f"headrace::tar://data.bin::file://{ROOT}/data.tar": {},
    f"headrace::zip://data.bin::headrace::file://{ROOT}/data.zip": {},
    f"zip://data.bin::headrace::file://{ROOT}/data.zip": {},
    f"headrace::zip://data.bin::headrace::s3://{BUCKET}/chains/data.zip": {"s3": S3},
    f"headrace::simplecache::s3://{OBJECT}": {"s3": S3, "simplecache": CACHE},
    f"simplecache::headrace::s3://{OBJECT}": {"s3": S3, "simplecache": CACHE},
    f"headrace::simplecache::headrace::s3://{OBJECT}": {"s3": S3, "simplecache": CACHE},
    f"headrace::blockcache::s3://{OBJECT}": {"s3": S3, "blockcache": CACHE},
    f"headrace::s3://{OBJECT}": {"s3": S3},
    f"headrace::headrace::file://{ROOT}/data.bin": {},
    f"headrace::headrace::s3://{OBJECT}": {"s3": S3},
}


def digest(data: bytes) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()[:16]}"


def whole(url: str, storage: dict[str, Any]) -> bytes:
    with fsspec.open(url, "rb", **storage) as file:
        return bytes(file.read())


def ranges(url: str, storage: dict[str, Any]) -> bytes:
    """Read in pieces, from four threads at once.

    Under ``off`` from one: then the wrapped filesystem is used as it is, and plain archives give threads
    that share them wrong bytes.
    """
    threads = 1 if os.environ.get("HEADRACE_SCHEDULER") == "off" else 4
    fs, path = fsspec.core.url_to_fs(url, **storage)
    fs.info(path)  # a plain archive lists itself at the first question: who asks meanwhile finds nothing
    starts = list(range(0, 300_000, 30_000))
    with ThreadPoolExecutor(threads) as pool:
        pieces = pool.map(lambda start: fs.cat_file(path, start=start, end=start + 30_000), starts)
        return b"".join(pieces)


def directory() -> bytes:
    fs = headrace.HeadraceFileSystem(
        target_protocol="dir",
        target_options={"path": ROOT, "target_protocol": "file"},
    )
    return bytes(fs.cat_file("data.bin"))


def nested_instances() -> bytes:
    inner = headrace.HeadraceFileSystem(target_protocol="file")
    fs = headrace.wrap(headrace.wrap(inner))
    return b"".join(
        fs.cat_ranges([f"{ROOT}/data.bin"] * 3, [0, 100_000, 200_000], [100_000, 200_000, 300_000])
    )


def directory_over_s3() -> bytes:
    inner = fsspec.filesystem("s3", **S3)
    fs = headrace.wrap(fsspec.filesystem("dir", path=f"{BUCKET}/chains", fs=inner))
    return bytes(fs.cat_file("data.bin"))


def reference() -> bytes:
    fs = fsspec.filesystem(
        "reference",
        fo=f"{ROOT}/references.json",
        remote_protocol="headrace",
        remote_options={"target_protocol": "file"},
    )
    return bytes(headrace.wrap(fs).cat_file("data"))


WORK: dict[str, Callable[[], bytes]] = {
    "directory": directory,
    "nested instances": nested_instances,
    "directory over s3": directory_over_s3,
    "reference": reference,
}
for _url, _storage in URLS.items():
    WORK[f"whole {_url}"] = lambda url=_url, storage=_storage: whole(url, storage)
    WORK[f"ranges {_url}"] = lambda url=_url, storage=_storage: ranges(url, storage)


def main() -> None:
    answers = {}
    for name, work in WORK.items():
        sys.stderr.write(f"now: {name}\n")
        try:
            answers[name] = digest(work())
        except Exception:  # noqa: BLE001  (reported, and the other chains go on)
            answers[name] = traceback.format_exc()
    sys.stdout.write(json.dumps(answers))


main()
