"""nginx as an object store: a folder served as path-style S3, for HEAD and ranged GET, with a latency.

It is a child of the benchmark, listens on the loopback only, and keeps everything that it writes in a
temporary folder. Signatures are ignored, query strings too: a listing is the one of `write_listing`, whatever
part of it is asked for, and there are no writes. ETags and If-Match are nginx's own. The latency is a sleep
in nginx's event loop (its Lua module) before each answer: it holds back no other request.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MODULES = ("ndk_http_module.so", "ngx_http_lua_module.so")
INSTALL = "on Debian or Ubuntu: apt-get install nginx-light libnginx-mod-http-lua"
LISTING = "listing.xml"
START_S = 10.0

CONFIGURATION = """\
{modules}
{user}
daemon off;
worker_processes 2;
pid {scratch}/pid;
error_log {scratch}/error.log warn;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {scratch}/body;
    proxy_temp_path {scratch}/proxy;
    fastcgi_temp_path {scratch}/fastcgi;
    uwsgi_temp_path {scratch}/uwsgi;
    scgi_temp_path {scratch}/scgi;
    default_type application/octet-stream;
    sendfile on;
    tcp_nodelay on;
    keepalive_timeout 600s;
    keepalive_requests 100000000;
    open_file_cache max=1000;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        root {root};
        location / {{
            if (-d $request_filename) {{ return 404; }}
            access_by_lua_block {{ ngx.sleep({latency_s}) }}
        }}
        location ~ ^/[^/]+/?$ {{
            default_type application/xml;
            access_by_lua_block {{ ngx.sleep({latency_s}) }}
            try_files /{listing} =404;
        }}
    }}
}}
"""


class NginxMissingError(RuntimeError):
    """There is no nginx here that can do this; the text says how to install it."""


@contextlib.contextmanager
def nginx(root: Path, latency_s: float) -> Iterator[str]:
    """Serve the folders in `root` as buckets; yields the endpoint, ``http://127.0.0.1:PORT``.

    Raises
    ------
    NginxMissingError
        nginx or its Lua module is not installed.
    RuntimeError
        It did not start; the text has what it wrote.
    """
    program, modules = _installed()
    with tempfile.TemporaryDirectory(prefix="headrace-nginx-") as scratch:
        port = _free_port()
        configuration = Path(scratch) / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(
                modules="\n".join(f"load_module {module};" for module in modules),
                # Started by root its workers would be somebody who may not read the data.
                user=f"user {getpass.getuser()};" if os.geteuid() == 0 else "",
                scratch=scratch,
                port=port,
                root=root.resolve(),
                latency_s=latency_s,
                listing=LISTING,
            )
        )
        command = [program, "-p", scratch, "-e", f"{scratch}/error.log", "-c", str(configuration)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _wait_until_it_listens(process, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.communicate()


def write_listing(root: Path, bucket: str, files: Sequence[Path], folder: Path) -> None:
    """Have the answer to every listing be these files, named by their paths in `folder`."""
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    listing = ET.Element("ListBucketResult", xmlns=space)
    for name, value in {"Name": bucket, "Prefix": "", "KeyCount": len(files), "IsTruncated": "false"}.items():
        ET.SubElement(listing, name).text = str(value)
    for file in files:
        found = file.stat()
        changed = datetime.fromtimestamp(int(found.st_mtime), UTC)
        fields = {
            "Key": file.relative_to(folder).as_posix(),
            "LastModified": changed.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "ETag": f'"{int(found.st_mtime):x}-{found.st_size:x}"',  # as nginx has it
            "Size": found.st_size,
            "StorageClass": "STANDARD",
        }
        entry = ET.SubElement(listing, "Contents")
        for name, value in fields.items():
            ET.SubElement(entry, name).text = str(value)
    ET.ElementTree(listing).write(root / LISTING, "utf-8", xml_declaration=True)


def _installed() -> tuple[str, list[Path]]:
    """Return nginx's path and those of the modules it needs."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if program is None:
        msg = f"nginx is not installed; {INSTALL}"
        raise NginxMissingError(msg)
    facts = subprocess.run([program, "-V"], check=True, capture_output=True, text=True).stderr
    found = re.search(r"--modules-path=(\S+)", facts)
    folder = Path(found.group(1)) if found else Path("/usr/lib/nginx/modules")
    modules = [folder / name for name in MODULES]
    missing = [str(module) for module in modules if not module.exists()]
    if missing:
        msg = f"nginx has no Lua module (no {', '.join(missing)}); {INSTALL}"
        raise NginxMissingError(msg)
    return program, modules


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_it_listens(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.02)
    process.terminate()
    msg = f"nginx did not start: {process.communicate()[1].strip()}"
    raise RuntimeError(msg)
