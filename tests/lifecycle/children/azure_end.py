"""Reads from a blob by the fsspec engine, and ends; run by ``test_cloud.py``.

Argument: the connection string.  The mode comes from the environment.
"""

from __future__ import annotations

import sys

import headrace

options = {"connection_string": sys.argv[1]}
fs = headrace.HeadraceFileSystem(target_protocol="abfs", target_options=options, cloud_engine="fsspec")
assert fs.cat_file("box/data.bin", start=3, end=9) == b"345678"
