"""fsspec's HTTP filesystem on both engines: the same requests, never bytes of another range or version."""

from __future__ import annotations

import asyncio
import errno
import gzip
import pickle
import socket
import warnings
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import aiohttp
import numpy as np
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.http import HTTPFileSystem, HTTPStreamFile
from plain_http import Asked, PlainServer, Said, ranged
from targets import at_rest, outcome

import headrace
from headrace.backends import _answers, _http, _obstore_stores
from headrace.backends._obstore_client import InexactError
from headrace.backends._obstore_http import HttpClient
from headrace.backends.obstore import ObstoreBackend
from headrace.doctor import diagnose
from headrace.errors import NoRangesError, ObjectChangedError
from headrace.testing import Faults, ObjectServer

DATA = np.random.default_rng(21).bytes(3_000_001)
WAIT_S = 60.0


def password(secret: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from aiohttp 3.14 on
        return aiohttp.BasicAuth("user", secret)


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "data.bin", DATA)
        yield server


@pytest.fixture(params=["obstore", "fsspec"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def reader(engine: str = "obstore", **options: Any) -> Any:
    target = HTTPFileSystem(**options, skip_instance_cache=True)
    fs = headrace.HeadraceFileSystem(
        fs=target, cloud_engine=engine, max_gap_bytes=0, retries=1, skip_instance_cache=True
    )
    assert fs.backend_name == {"obstore": "obstore", "fsspec": "fsspec-async"}[engine]
    return fs


def client(**options: Any) -> HttpClient:
    return HttpClient(HTTPFileSystem(**options, skip_instance_cache=True))


# -- which engine


def test_auto_takes_it_where_it_is_exact(server: ObjectServer) -> None:
    report = diagnose(f"{server.url}/bucket/data.bin")
    check = next(check for check in report.checks if check.name == "target")
    assert "backend obstore" in check.detail
    assert "exactly" in check.detail


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"client_kwargs": {"trust_env": True}}, "trust_env"),
        ({"client_kwargs": {"connector": object()}}, "connector"),
        ({"client_kwargs": {"cookies": {"a": "b"}}}, "cookies"),
        ({"client_kwargs": {"auth": password("secret")}}, "where a redirect leads"),
        ({"auth": ("user", "secret")}, "no BasicAuth but tuple"),
        ({"auth": password("secret"), "client_kwargs": {"headers": {"Authorization": "x"}}}, "both"),
        ({"client_kwargs": {"headers": {"Cookie": "a=secret"}}}, "cookie"),
        ({"client_kwargs": {"headers": [("a", "secret")]}}, "no dictionary"),
        ({"client_kwargs": {"timeout": object()}}, "no ClientTimeout"),
        ({"headers": {"Range": "bytes=0-1"}}, "range"),
        ({"headers": {"Accept-Encoding": "gzip"}}, "decode"),
        ({"allow_redirects": False}, "allow_redirects"),
        ({"params": {"a": "b"}}, "params"),
        ({"get_client": aiohttp.ClientSession}, "get_client"),
        ({"ssl": object()}, "certificates"),
        ({"proxy": "socks5://p:1"}, "no HTTP proxy"),
    ],
)  # fmt: skip
def test_what_is_not_known_to_translate_is_refused(options: dict[str, Any], why: str) -> None:
    target = HTTPFileSystem(**options, skip_instance_cache=True)
    said = str(ObstoreBackend.refuses(target))
    assert why in said
    assert "secret" not in said
    assert not ObstoreBackend.serves(target)


def test_a_subclass_and_positional_arguments_are_refused() -> None:
    class Other(HTTPFileSystem):  # type: ignore[misc]
        pass

    assert "Other" in str(ObstoreBackend.refuses(Other(skip_instance_cache=True)))
    with pytest.raises(InexactError, match="positional"):
        HttpClient(HTTPFileSystem(False, skip_instance_cache=True))


# -- what is asked


@pytest.mark.filterwarnings("ignore:The 'auth' parameter is deprecated:DeprecationWarning")
def test_requests_are_those_of_aiohttp() -> None:
    """Headers of the session and of requests, authentication and agent, on both engines."""
    options = {
        "client_kwargs": {
            "headers": {"X-One": "session", "X-Two": "session"},
        },
        "auth": password("pass word"),
        "headers": {"x-two": "request"},
    }
    seen = []
    with PlainServer(lambda asked: ranged(asked, DATA)) as plain:
        for engine in ("obstore", "fsspec"):
            reader(engine, **options).cat_file(f"{plain.url}/x", start=5, end=10)
            seen.append(plain.gets[-1].headers)
    for headers in seen:
        headers.pop("connection", None)
    assert seen[0] == seen[1]
    assert seen[0]["x-one"] == "session"
    assert seen[0]["x-two"] == "request"
    assert seen[0]["authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    "path",
    [
        "a b/c+d.bin", "a%20b", "a%2Fb", "a%3Fb", "ü/日", "a|b^c", "[a]{b}", "~!$&'()*,;=:@", "x//y", "x/./y",
        "x/", "x?a=1&b=%20", "x#part", "%41", "a%zz", "a\\b",
    ],
)  # fmt: skip
def test_urls_are_taken_as_aiohttp_takes_them(path: str) -> None:
    with PlainServer(lambda asked: ranged(asked, asked.path.encode() * 100)) as plain:
        found = [
            reader(engine).cat_file(f"{plain.url}/{path}", start=2, end=300)
            for engine in ("obstore", "fsspec")
        ]
        assert found[0] == found[1]
        assert len({asked.path for asked in plain.gets}) == 1


def test_encoded_urls_are_sent_as_they_are() -> None:
    with PlainServer(lambda asked: ranged(asked, asked.path.encode() * 100)) as plain:
        for path in ("%41", "%61/b"):
            expected = (f"/{path}" * 100).encode()[2:300]
            assert reader(encoded=True).cat_file(f"{plain.url}/{path}", start=2, end=300) == expected


def test_variables_of_the_environment_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with PlainServer(lambda asked: ranged(asked, DATA)) as plain:
        assert reader().cat_file(f"{plain.url}/x", start=5, end=10) == DATA[5:10]
        assert reader().cat_file(f"http://localhost:{plain.port}/x", start=5, end=10) == DATA[5:10]


def test_a_proxy_is_asked() -> None:
    with PlainServer(lambda asked: ranged(asked, DATA)) as proxy:
        assert reader(proxy=proxy.url).cat_file("http://nowhere.test/x", start=5, end=10) == DATA[5:10]
        assert proxy.gets[0].path == "http://nowhere.test/x"


def test_a_proxy_of_the_session_holds_where_requests_name_none() -> None:
    said = client(client_kwargs={"proxy": "http://proxy:3"}, proxy=None).store_options("http://h")
    assert said.client["proxy_url"] == "http://proxy:3"


def test_time_outs() -> None:
    said = client(client_kwargs={"timeout": aiohttp.ClientTimeout(total=7, sock_connect=2, sock_read=0.5)})
    options = said.store_options("http://h")
    assert options.timeout_s == 7
    assert options.client["connect_timeout"] == "2000ms"
    assert options.client["read_timeout"] == "500ms"
    assert client(timeout=3).store_options("http://h").timeout_s == 3
    assert client().store_options("https://h").client["connect_timeout"] == "30000ms"


def test_certificates() -> None:
    assert client(ssl=False).store_options("https://h").client["allow_invalid_certificates"] is True
    assert "allow_invalid_certificates" not in client().store_options("https://h").client
    assert "allow_http" not in client().store_options("https://h").client


# -- what comes back


def test_ranges(server: ObjectServer, engine: str) -> None:
    starts = np.random.default_rng(1).integers(0, len(DATA) - 5000, 300)
    found = reader(engine).read_ranges(f"{server.url}/bucket/data.bin", starts, starts + 5000)
    assert found.to_pylist() == [DATA[start : start + 5000] for start in starts.tolist()]


def test_hosts_are_stores_of_their_own(server: ObjectServer) -> None:
    with PlainServer(lambda asked: ranged(asked, DATA)) as plain:
        fs = reader()
        paths = [f"{plain.url}/x", f"{server.url}/bucket/data.bin"]
        assert fs.read_ranges(paths, [1, 2], [10, 20]).to_pylist() == [DATA[1:10], DATA[2:20]]
        channel = fs._reader.channel
        assert channel.scheduler(paths[0]) is not channel.scheduler(paths[1])


def test_faults_are_tried_again(server: ObjectServer, engine: str) -> None:
    server.faults = Faults(slow_down_share=0.05, methods=frozenset({"GET"}))
    # Its budget gives it an engine of its own: an earlier test's server at this port may have ended silent.
    fs = headrace.HeadraceFileSystem(
        fs=HTTPFileSystem(skip_instance_cache=True),
        cloud_engine=engine,
        max_gap_bytes=0,
        buffer_bytes=(1 << 35) + len(engine),
    )
    starts = np.arange(200) * 1000
    found = fs.read_ranges(f"{server.url}/bucket/data.bin", starts, starts + 10)
    assert found.to_pylist() == [DATA[start : start + 10] for start in starts.tolist()]


def test_errors_are_those_of_the_filesystem(server: ObjectServer, engine: str) -> None:
    fs = reader(engine)
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"{server.url}/bucket/missing", start=0, end=10)
    with pytest.raises(aiohttp.ClientResponseError, match="416"):
        fs.cat_file(f"{server.url}/bucket/data.bin", start=len(DATA) + 10, end=len(DATA) + 20)


def test_an_open_file_is_of_one_version(server: ObjectServer, engine: str) -> None:
    with reader(engine).open(f"{server.url}/bucket/data.bin") as file:
        assert file.read(10) == DATA[:10]
        server.replace("bucket", "data.bin", DATA[::-1])
        file.seek(2_000_000)
        with pytest.raises(ObjectChangedError):
            file.read(10)


def test_a_server_without_conditions_is_found_out(engine: str) -> None:
    """It takes no ``If-Match``, but its answers say another version."""
    versions = iter(["one", "two"])
    with PlainServer(lambda asked: ranged(asked, DATA, ETag=f'"{next(versions)}"')) as plain:
        file = reader(engine).open(f"{plain.url}/x", size=len(DATA))
        assert file.read(10) == DATA[:10]
        file.seek(2_000_000)
        with pytest.raises(ObjectChangedError):
            file.read(10)


def test_a_server_without_conditions_is_found_out_after_many_reads_too(engine: str) -> None:
    """When a version that is read a lot would have a store of its own, which looks at no answer."""
    now = ["one"]
    with PlainServer(lambda asked: ranged(asked, DATA, ETag=f'"{now[0]}"')) as plain:
        file = reader(engine).open(f"{plain.url}/x", cache_type="none")
        for start in range(0, 80_000, 1000):
            file.seek(start)
            assert file.read(10) == DATA[start : start + 10]
        now[0] = "two"
        file.seek(1_000_000)
        with pytest.raises(ObjectChangedError):
            file.read(10)


@pytest.fixture
def no_ranges(tmp_path: Path) -> Iterator[str]:
    """A server of Python's own, which ignores ranges."""
    (tmp_path / "x").write_bytes(DATA)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_args: Any) -> None: ...

        def copyfile(self, source: Any, output: Any) -> None:
            with suppress(ConnectionError):  # who asked has seen enough
                super().copyfile(source, output)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/x"
    server.shutdown()
    server.server_close()
    thread.join()


def in_folder(fs: Any, url: str) -> tuple[Any, str]:
    """Return who reads the same through ``dir``, and what it calls the file."""
    folder, _, name = url.rpartition("/")
    target = DirFileSystem(path=folder, fs=fs.target, skip_instance_cache=True)
    options = {**fs.own_options(), "skip_instance_cache": True}
    return headrace.HeadraceFileSystem(fs=target, **options), name


@pytest.mark.parametrize("is_of_a_folder", [False, True])
def test_a_server_that_ignores_ranges_is_an_error_and_no_wrong_bytes(
    no_ranges: str, engine: str, is_of_a_folder: bool
) -> None:
    fs = reader(engine)
    if is_of_a_folder:
        fs, no_ranges = in_folder(fs, no_ranges)
    assert fs.backend_name == {"obstore": "obstore", "fsspec": "fsspec-async"}[engine]
    assert fs.cat_file(no_ranges) == DATA
    assert fs.cat_file(no_ranges, start=0, end=10) == DATA[:10], "what it sends begins with it"
    found = fs.read_ranges(no_ranges, [1000, 5000], [1010, 5010]).to_pylist(on_error="return")
    assert fs.cat_file(no_ranges, end=5) == DATA[:5]
    found += [
        _error_of(fs, no_ranges, start=5),
        _error_of(fs, no_ranges, start=-5),
        _error_of(fs, no_ranges, end=-5),
    ]
    assert all("ignored the range" in str(answer) for answer in found)


@pytest.mark.parametrize("is_of_a_folder", [False, True])
def test_a_long_file_of_a_server_that_ignores_ranges_is_read_as_a_whole(
    no_ranges: str, engine: str, scheduled_mode: str, is_of_a_folder: bool, wait_until: Any
) -> None:
    """Though it takes several ops: it is what such a server sends."""
    fs = headrace.wrap(reader(engine), scheduler=scheduled_mode, max_op_bytes=1 << 20)
    if is_of_a_folder:
        fs, no_ranges = in_folder(fs, no_ranges)
    with fs.open(no_ranges) as file:
        assert file.read() == DATA
        assert (file.tell(), file.read()) == (len(DATA), b"")
        file.seek(0)
        assert file.read(len(DATA) + 10) == DATA
        file.seek(0)
        with pytest.raises(NoRangesError):
            file.read(len(DATA) - 1)
        file.seek(1)
        with pytest.raises(NoRangesError):
            file.read()
    with fs.open(no_ranges, "r", encoding="latin-1", newline="") as file:
        assert file.read() == DATA.decode("latin-1")
    wait_until(lambda: at_rest(fs))


def test_a_file_that_is_read_as_a_whole_is_of_its_version(engine: str) -> None:
    def answer(asked: Asked) -> Said:
        is_whole = asked.method == "GET" and "range" not in asked.headers
        return Said(200, {"ETag": '"new"' if is_whole else '"old"'}, DATA)

    fs = headrace.wrap(reader(engine), max_op_bytes=1 << 20)
    with PlainServer(answer) as plain, fs.open(f"{plain.url}/x") as file, pytest.raises(ObjectChangedError):
        file.read()


def test_no_more_of_a_whole_body_is_taken_than_the_range(engine: str) -> None:
    """The rest of this one never comes."""
    beginning = Said(200, {"Content-Length": str(1 << 30)}, DATA)
    with PlainServer(lambda _: beginning) as plain:
        fs = reader(engine)
        assert fs.cat_file(f"{plain.url}/x", start=0, end=10) == DATA[:10]
        assert fs.cat_file(f"{plain.url}/x", end=10) == DATA[:10]
        with fs.open(f"{plain.url}/x") as file:
            assert file.read(10) == DATA[:10]


@pytest.mark.parametrize("mode", ["r", "rb"])
def test_a_server_that_ignores_ranges_can_be_streamed(no_ranges: str, engine: str, mode: str) -> None:
    """As fsspec does it; and the error of who does not says so."""
    fs = reader(engine)
    with fs.open(no_ranges, mode, block_size=0, **({"encoding": "latin-1"} if mode == "r" else {})) as file:
        found = file.read()
    assert found == (
        DATA.decode("latin-1").replace("\r\n", "\n").replace("\r", "\n") if mode == "r" else DATA
    )
    with fs.open(no_ranges) as file:
        file.seek(5)
        with pytest.raises(OSError, match="open with block_size=0"):
            file.read(10)


@pytest.mark.parametrize("mode", ["r", "rb"])
@pytest.mark.parametrize("who", ["server", "filesystem", "neither"])
def test_files_are_streams_where_they_are_without_headrace(engine: str, who: str, mode: str) -> None:
    """Where the server says that it has no ranges, and of a filesystem made with blocks of no size.

    In a folder, too.
    """
    text = b"headrace\n" * (2 << 17)

    def answer(asked: Asked) -> Said:
        return Said(200, {"Accept-Ranges": "none"}, text) if who == "server" else ranged(asked, text)

    fs = reader(engine, **({"block_size": 0} if who == "filesystem" else {}))
    with PlainServer(answer) as plain:
        for there, path in ((fs, f"{plain.url}/x"), in_folder(fs, f"{plain.url}/x")):
            plain.log.clear()
            with there.open(path, mode, headers={"A": "b"}) as file:
                assert file.read() == (text if mode == "rb" else text.decode())
                streams = [type(one) for one in (file, getattr(file, "buffer", None))]
                assert (HTTPStreamFile in streams) == (who != "neither")
            assert all(asked.headers["a"] == "b" for asked in plain.log)
            assert len(plain.gets) == 1 or who == "neither"


def test_blocks_that_are_asked_for_have_ranges_of_a_filesystem_without(engine: str) -> None:
    fs = reader(engine, block_size=0)
    with (
        PlainServer(lambda asked: ranged(asked, DATA)) as plain,
        fs.open(f"{plain.url}/x", block_size=1 << 16) as file,
    ):
        file.seek(2_000_000)
        assert file.read(10) == DATA[2_000_000:2_000_010]


@pytest.mark.parametrize("who", ["caller", "filesystem"])
def test_a_stream_in_a_folder_is_one(who: str) -> None:
    target = HTTPFileSystem(skip_instance_cache=True, **({"block_size": 0} if who == "filesystem" else {}))
    with PlainServer(lambda _: Said(200, {}, DATA)) as plain:
        fs = headrace.HeadraceFileSystem(fs=DirFileSystem(plain.url, target), skip_instance_cache=True)
        with fs.open("x", **({"block_size": 0} if who == "caller" else {})) as file:
            assert isinstance(file, HTTPStreamFile)
            assert file.read() == DATA


def _error_of(fs: Any, path: str, **bounds: int) -> BaseException:
    with pytest.raises(OSError, match="range") as raised:
        fs.cat_file(path, **bounds)
    return raised.value


@pytest.mark.filterwarnings("ignore:The 'auth' parameter is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "said",
    [
        {"headers": {"Authorization": "Bearer secret"}},
        {"client_kwargs": {"headers": {"Authorization": "Bearer secret"}}},
        {"auth": password("secret")},
    ],
)
def test_redirects_are_followed(engine: str, said: dict[str, Any]) -> None:
    """To another host too, and a password is left behind."""

    def answer(asked: Asked) -> Said:
        if asked.path == "/here":
            return Said(302, {"Location": f"http://localhost:{plain.port}/there"})
        return ranged(asked, DATA)

    with PlainServer(answer) as plain:
        fs = reader(engine, **said)
        assert fs.cat_file(f"{plain.url}/here", start=5, end=10) == DATA[5:10]
        assert [(asked.path, "authorization" in asked.headers) for asked in plain.gets] == [
            ("/here", True),
            ("/there", False),
        ]


@pytest.mark.parametrize("bounds", [{}, {"start": 0, "end": 80}, {"start": 20, "end": 80}, {"start": -80}])
def test_an_encoded_body_is_decoded_as_the_filesystem_does(engine: str, bounds: dict[str, int]) -> None:
    """Or is its error, in the middle of the object."""
    encoded = gzip.compress(DATA[:5000])
    with PlainServer(lambda asked: ranged(asked, encoded, **{"Content-Encoding": "gzip"})) as plain:
        fs, url = reader(engine), f"{plain.url}/x"
        expected = outcome(fs.target.cat_file, url, **bounds)
        for _ in range(2):
            assert outcome(fs.cat_file, url, **bounds) == expected


@pytest.mark.parametrize("is_encoded", [False, True])
def test_bulk_reads_of_an_object_look_at_one_answer(
    is_encoded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is one of those that were asked for; where it is encoded the others are put to the filesystem."""
    if not is_encoded:
        monkeypatch.delattr(ObstoreBackend, "_one_by_one")
    said = {"Content-Encoding": "gzip"} if is_encoded else {}
    with PlainServer(lambda asked: ranged(asked, DATA, **said)) as plain:
        fs, url = reader(), f"{plain.url}/x"
        starts = [10_000 * k for k in range(30)]
        for _ in range(2):
            found = fs.read_ranges(url, starts, [start + 10 for start in starts]).to_pylist("return")
            if is_encoded:
                assert {type(one) for one in found} == {aiohttp.ClientPayloadError}
            else:
                assert found == [DATA[start : start + 10] for start in starts]
        if not is_encoded:
            assert len(plain.gets) == 60


def test_of_calls_side_by_side_one_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    looked, everybody = list[int](), Event()
    read, begin_look = ObstoreBackend.read, _obstore_stores.BucketStore.begin_look
    calls = list[str]()

    async def noting(self: ObstoreBackend, ops: Any, row: int) -> None:
        assert await asyncio.to_thread(everybody.wait, WAIT_S)
        looked.append(row)
        await read(self, ops, row)

    def begin(self: _obstore_stores.BucketStore, key: str) -> Event | None:
        found = begin_look(self, key)
        calls.append(key)
        if len(calls) == 3:
            everybody.set()
        return found

    monkeypatch.setattr(ObstoreBackend, "read", noting)
    monkeypatch.setattr(_obstore_stores.BucketStore, "begin_look", begin)
    starts = [10_000 * k for k in range(30)]
    with PlainServer(lambda asked: ranged(asked, DATA)) as plain:
        found = reader().read_ranges(f"{plain.url}/x", starts, [start + 10 for start in starts])
        assert found.to_pylist() == [DATA[start : start + 10] for start in starts]
        assert (len(looked), len(plain.gets)) == (1, 30)


def test_a_fault_of_the_answer_that_is_looked_at_costs_no_other() -> None:
    """One more is looked at in its place; what the bulk call found is kept."""
    starts = [10_000 * k for k in range(10)]  # one call
    failed = list[Asked]()

    def answer(asked: Asked) -> Said:
        if asked.span(len(DATA)) == (0, 10) and not failed:
            failed.append(asked)
            return Said(500)
        return ranged(asked, DATA)

    with PlainServer(answer) as plain:
        found = reader().read_ranges(f"{plain.url}/x", starts, [start + 10 for start in starts])
        assert found.to_pylist() == [DATA[start : start + 10] for start in starts]
        assert len(plain.gets) == 10 + 2, "the one that failed again, and the one looked at in its place"


def test_a_connection_is_kept_where_a_body_of_unknown_length_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is the range's end, too, and what says that it is over comes after its last byte."""
    is_read, see_end = Event(), _http._see_end

    async def see(answer: Any) -> None:
        is_read.set()
        await see_end(answer)

    def end() -> bytes:
        assert is_read.wait(WAIT_S)
        is_read.clear()
        return b"0\r\n\r\n"

    monkeypatch.setattr(_http, "_see_end", see)
    monkeypatch.setattr(_http, "_ENDS_WITHIN_S", WAIT_S)
    chunked = Said(200, {"Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n", end)
    with PlainServer(lambda _: chunked) as plain:
        fs = reader("fsspec")
        for _ in range(3):
            assert fs.cat_file(f"{plain.url}/x", 0, 5) == b"hello"
        assert len({asked.port for asked in plain.gets}) == 1


def test_a_body_of_unknown_length_that_goes_on_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = Event()

    def end() -> bytes:
        assert is_over.wait(WAIT_S)
        return b"0\r\n\r\n"

    monkeypatch.setattr(_http, "_ENDS_WITHIN_S", 0)
    chunked = Said(200, {"Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n", end)
    with PlainServer(lambda _: chunked) as plain:
        assert reader("fsspec").cat_file(f"{plain.url}/x", 0, 5) == b"hello"
        is_over.set()


def test_a_body_of_unknown_length_is_read(engine: str) -> None:
    chunked = Said(200, {"Transfer-Encoding": "chunked"}, b"5\r\nhello\r\n0\r\n\r\n")
    with PlainServer(lambda _: chunked) as plain:
        fs, path = reader(engine), f"{plain.url}/x"
        assert fs.cat_file(path) == fs.read_block(path, 0, None) == b"hello"
        with fs.open(path) as file:
            assert (file.fs, file.path, file.name, file.mode, file.size) == (fs, path, path, "rb", 5)
            assert file.read(2) == b"he"
            assert pickle.loads(pickle.dumps(file)).read() == b"llo"


OF_REQUESTS: list[dict[str, Any]] = [
    {"headers": {"X-Of": "one"}},
    {"params": {"of": "one"}, "headers": {"X-Of": "two"}},
    {"cookies": {"of": "one"}},
    {"auth": password("one")},
]


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("length", [{}, {"Transfer-Encoding": "chunked"}], ids=["ranged", "unknown length"])
@pytest.mark.parametrize("by", ["obstore", "fsspec", "folder"])
@pytest.mark.parametrize("options", OF_REQUESTS)
def test_a_file_is_of_the_requests_that_its_options_make(
    by: str, options: dict[str, Any], length: dict[str, str]
) -> None:
    """As by path: what those are answered with is the server's to say."""

    def answer(asked: Asked) -> Said:
        told = [asked.path.partition("?")[2], *map(asked.headers.get, ("x-of", "cookie", "authorization"))]
        data = repr(told).encode()
        return (
            Said(200, length, b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)) if length else ranged(asked, data)
        )

    with PlainServer(answer) as plain:
        fs, path = reader("fsspec" if by == "folder" else by), f"{plain.url}/x"
        if by == "folder":
            fs, path = headrace.wrap(DirFileSystem(path=plain.url, fs=fs.target)), "x"
        usual, expected = fs.cat_file(path), fs.cat_file(path, **options)
        with fs.open(path, **options) as file:
            assert file.read() == expected != usual
            if not length:
                assert pickle.loads(pickle.dumps(file)).size == len(expected)
        with fs.open(path) as file:
            assert file.read() == usual


def test_two_identities_share_nothing() -> None:
    def answer(asked: Asked) -> Said:
        return ranged(asked, asked.headers["authorization"].encode() * 100)

    with PlainServer(answer) as plain:
        readers = [reader(headers={"Authorization": name}) for name in ("one", "two")]
        found = [fs.cat_file(f"{plain.url}/x", start=0, end=3) for fs in readers]
        assert found == [b"one", b"two"]
        channels = [fs._reader.channel for fs in readers]
        assert channels[0] is not channels[1]
        assert len({channel.scheduler(f"{plain.url}/x") for channel in channels}) == 2
        assert "Authorization" not in repr(readers[0].stats())


@pytest.mark.parametrize("status", [400, 403, 501])
def test_a_server_that_will_not_be_asked_for_no_version_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Its answers are looked at from then on."""
    monkeypatch.setattr(_obstore_stores, "WORTH_OPS", 2)

    def answer(asked: Asked) -> Said:
        asked_for = asked.headers.get("if-match", '"one"')
        return ranged(asked, DATA, ETag='"one"') if asked_for == '"one"' else Said(status)

    with PlainServer(answer) as plain, reader().open(f"{plain.url}/x", cache_type="none") as file:
        for k in range(6):
            file.seek(300_000 * k)
            assert file.read(10) == DATA[300_000 * k :][:10]
        odd = [asked for asked in plain.gets if asked.headers.get("if-match") not in {None, '"one"'}]
    assert len(odd) == 1


@pytest.mark.parametrize("name", ["TimedOut.bin", "it timed out.bin", "status: 503.bin", "status code: 503"])
def test_what_a_file_is_called_is_no_fault(name: str) -> None:
    """The library's errors tell it: of a server without ranges, which is asked once by each client."""
    with PlainServer(lambda _: Said(200, {}, DATA)) as plain:
        fs, url = reader(), f"{plain.url}/{name}"
        assert fs.cat_file(url, start=0, end=10) == DATA[:10]
        assert fs.channel.scheduler(url).retries.granted == 0
        assert len(plain.gets) == 2


@pytest.mark.parametrize("status", [401, 403, 416])
def test_one_object_that_does_not_tell_says_nothing_of_the_others(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Each is asked once, and none any more where many did not tell."""
    monkeypatch.setattr(_obstore_stores, "WORTH_OPS", 2)
    monkeypatch.setattr(_obstore_stores, "UNCLEAR", 3)
    odd = list[str]()

    def answer(asked: Asked) -> Said:
        if asked.headers.get("if-match", '"one"') == '"one"':
            return ranged(asked, DATA, ETag='"one"')
        odd.append(asked.path)
        return Said(412 if "heeding" in asked.path else status)

    def read(fs: headrace.HeadraceFileSystem, name: str) -> bool | None:
        with fs.open(f"{plain.url}/{name}", cache_type="none") as file:
            for k in range(6):
                file.seek(300_000 * k)
                assert file.read(10) == DATA[300_000 * k :][:10]
        bucket = fs.channel.backend._stores.bucket(plain.url)  # type: ignore[union-attr]
        heeds: bool | None = bucket.heeds_conditions
        return heeds

    with PlainServer(answer) as plain:
        fs = reader()
        assert [read(fs, name) for name in ("a", "b", "heeding", "c")] == [None, None, True, True]
        assert odd == ["/a", "/b", "/heeding"]
        odd.clear()
        fs = reader()
        assert [read(fs, name) for name in ("a", "b", "c", "d")] == [None, None, False, False]
        assert odd == ["/a", "/b", "/c"]


@pytest.mark.parametrize("forgets", ["asked to", "replaced"])
def test_whether_an_object_is_encoded_is_forgotten_with_it(forgets: str) -> None:
    """It may be another one by then."""
    said = dict[str, str](ETag='"one"')
    body = DATA

    def answer(asked: Asked) -> Said:
        is_another = asked.headers.get("if-match", said["ETag"]) != said["ETag"]
        return Said(412) if is_another else ranged(asked, body, **said)

    with PlainServer(answer) as plain:
        fs, url = reader(), f"{plain.url}/x"
        file = fs.open(url, cache_type="none")
        assert file.read(10) == fs.cat_file(url, 0, 10) == DATA[:10]
        said.update({"ETag": '"two"', "Content-Encoding": "gzip"})
        body = gzip.compress(DATA[:5000])
        if forgets == "replaced":
            with pytest.raises(ObjectChangedError):
                file.read(10)
        else:
            fs.invalidate_cache()
        assert fs.cat_file(url, 0, len(body)) == DATA[:5000][: len(body)]


def test_a_server_that_is_not_there_is_named_with_the_systems_words() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else has the port meanwhile
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/data.bin"
        with pytest.raises(ConnectionError, match="Connection refused") as caught:
            reader().cat_file(url, start=0, end=10)
    assert (caught.value.errno, caught.value.filename) == (errno.ECONNREFUSED, url)


def test_a_url_is_masked_only_for_the_words_of_an_error(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long one takes longer to mask than to read from, on the loop's thread."""
    masked: list[str] = []
    for module in (_http, _answers):
        monkeypatch.setattr(module, "redact_url", masked.append)
    url = f"{server.url}/bucket/data.bin?X-Amz-Signature=sig"  # with a query it is fsspec's engine that reads
    assert reader("fsspec").cat_ranges([url] * 3, [0, 5, 9], [3, 8, 12]) == [
        DATA[i : i + 3] for i in (0, 5, 9)
    ]
    assert masked == []
