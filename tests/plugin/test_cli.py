"""The command line: what it prints where, its exit codes, and what it keeps to itself."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import _registry as fsspec_protocols

import headrace
from headrace import cli
from headrace._scan import ScanReport, ScanRequest, _open_filesystem, scan
from headrace.cli import main
from headrace.filesystem import wrap_url
from headrace.testing import ObjectServer

ROWS = 1_000


def table() -> pa.Table:
    return pa.table({"id": range(ROWS), "mode": ["AIR", "RAIL"] * (ROWS // 2), "price": [0.5] * ROWS})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two Parquet files of 500 rows, and two that a scan leaves out."""
    folder = tmp_path / "table"
    folder.mkdir()
    for index in range(2):
        part = table().slice(index * 500, 500)
        pq.write_table(part, folder / f"part-{index}.parquet", row_group_size=100)
    (folder / "_SUCCESS").touch()
    (folder / ".part.parquet.crc").write_bytes(b"not a table")
    return folder


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, object]:
    assert main(["scan", "--json", *map(str, arguments)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def run_error(
    capsys: pytest.CaptureFixture[str], *arguments: object, command: str = "scan"
) -> tuple[int, str]:
    """Return the exit code and the one line on stderr."""
    code = main([command, *map(str, arguments)])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("headrace: ")
    assert captured.err.count("\n") == 1
    return code, captured.err


def test_scan_prints_a_table(folder, capsys):
    assert main(["scan", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "1,000" in printed.out
    assert "2 parquet" in printed.out
    assert "ops" in printed.out
    assert printed.err == ""  # no bar: stderr is no terminal


def test_scan_json_is_one_object(folder, capsys, mode):
    found = run_json(capsys, folder, "--mode", mode)
    files_bytes = sum(path.stat().st_size for path in folder.glob("part-*"))
    assert found["rows"] == ROWS
    assert found["files"] == 2
    assert found["file_format"] == "parquet"
    assert found["file_bytes"] == files_bytes
    assert found["mode"] == mode
    assert found["seconds"] > 0
    # In mode off the reads go to the wrapped filesystem, past the counters.
    assert (found["ops"] > 0) == (mode != "off")
    assert (found["bytes_delivered"] > 0) == (mode != "off")


def test_off_stands_above_the_option_and_says_so(folder):
    done = run_child("-m", "headrace", "scan", str(folder), "--mode", "lite", HEADRACE_SCHEDULER="off")
    assert done.returncode == 0
    lines = dict(line.strip("│ ").split("│") for line in done.stdout.splitlines() if line.count("│") == 3)
    found = {name.strip(): value.strip() for name, value in lines.items()}
    assert (found["mode"], found["ops"], found["bytes read"]) == ("off", "-", "-")
    assert found["bytes read a second"] == "-"
    assert float(found["rows a second"].replace(",", "")) > 0


def test_the_rate_is_of_what_was_read(capsys):
    """And not of files of which one column was."""
    counts = {"files": 1, "file_bytes": 10**9, "rows": 300, "batches": 1, "ops": 1, "requests": 1}
    report = ScanReport("lite", "parquet", **counts, bytes_read=5000, bytes_delivered=5000, seconds=2.0)
    cli._print_scan(argparse.Namespace(url="folder", json=False), report)
    words = capsys.readouterr().out.split()
    assert "kB/s" in words
    assert {"2.5", "150"} < set(words)


def test_warnings_and_logs_are_plain_lines(folder):
    done = run_child("-m", "headrace", "scan", str(folder), HEADRACE_SHEDULER="lite")
    assert done.returncode == 0
    assert done.stderr == (
        "headrace: HEADRACE_SHEDULER is no setting of headrace and is ignored; "
        "the nearest known name is HEADRACE_SCHEDULER\n"
    )


def test_a_picture_without_matplotlib_is_refused_before_the_scan(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("headrace.cli.find_spec", lambda _name: None)
    with pytest.raises(SystemExit) as left:
        main(["scan", str(folder), "--trace", str(tmp_path / "timeline.png")])
    assert left.value.code == 2
    assert "pip install 'headrace[plot]'" in capsys.readouterr().err


def test_a_trace_that_may_not_be_written_is_refused_before_the_scan(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("headrace.cli.os.access", lambda *_asked: False)  # the superuser may write anywhere
    with pytest.raises(SystemExit) as left:
        main(["scan", str(folder), "--trace", str(tmp_path / "timeline.json")])
    assert left.value.code == 2
    assert "may not be written" in capsys.readouterr().err


def test_a_trace_that_is_a_folder_is_refused_before_the_scan(folder, tmp_path, capsys):
    (tmp_path / "timeline.json").mkdir()
    with pytest.raises(SystemExit) as left:
        main(["scan", str(folder), "--trace", str(tmp_path / "timeline.json")])
    assert left.value.code == 2
    assert "is a folder" in capsys.readouterr().err


def test_the_largest_batches_and_limits(folder, capsys):
    assert run_json(capsys, folder, "--batch-size", 2**31 - 1, "--limit", 2**63 - 1)["rows"] == ROWS


def test_columns_filter_and_limit(folder, capsys):
    found = run_json(capsys, folder, "--columns", "id, price", "--filter", "mode == 'AIR'")
    assert found["rows"] == ROWS / 2
    assert run_json(capsys, folder, "--filter", "id >= 990 and mode == 'AIR'")["rows"] == 5
    assert run_json(capsys, folder, "--limit", 7)["rows"] == 7
    assert run_json(capsys, folder, "--batch-size", 10)["batches"] == 100


def test_fewer_columns_are_fewer_bytes(folder, capsys):
    every = run_json(capsys, folder, "--mode", "lite")
    one = run_json(capsys, folder, "--mode", "lite", "--columns", "mode")
    assert one["bytes_delivered"] < every["bytes_delivered"]


@pytest.mark.parametrize("spelling", ["{}", "file://{}", "headrace::file://{}"])
def test_spellings_of_a_url(folder, capsys, spelling):
    assert run_json(capsys, spelling.format(folder))["rows"] == ROWS
    assert run_json(capsys, spelling.format(folder / "part-0.parquet"))["rows"] == 500
    assert run_json(capsys, spelling.format(folder / "part-*.parquet"))["rows"] == ROWS


@pytest.mark.parametrize("form", ["{}", "file://{}", "headrace::{}", "headrace::file://{}", "headrace://{}"])
def test_options_of_ours_are_obeyed_in_any_spelling(folder, capsys, form):
    url = form.format(folder)
    options = ["-o", "scheduler=standard", "-o", "target_protocol=file"]
    assert run_json(capsys, url, *options)["mode"] == "standard"
    assert run_json(capsys, url, *options, "--mode", "lite")["mode"] == "lite"
    assert main(["doctor", "--json", url, *options]) == 0
    assert json.loads(capsys.readouterr().out)["target"]["mode"] == "standard"
    of_the_link = ["-o", 'headrace:={"scheduler": "standard"}', "-o", "target_protocol=file"]
    assert run_json(capsys, url, *of_the_link)["mode"] == "standard"
    assert run_json(capsys, url, *of_the_link, "--mode", "lite")["mode"] == "lite"
    code, error = run_error(capsys, url, "-o", "target_protocol=file", "-o", "scheduler=bogus")
    assert code == 2
    assert "bogus" in error


def test_what_the_headrace_link_takes_is_a_dict(folder, capsys):
    code, error = run_error(capsys, folder, "-o", "headrace=secret")
    assert code == 2
    assert "a dict of options" in error
    assert "secret" not in error


def test_options_of_another_link_of_ours_are_its_own(folder):
    fs, _ = wrap_url(f"simplecache::headrace::file://{folder}/x", {"headrace": {"scheduler": "standard"}})
    assert fs.target.fs.channel.mode == "standard"


def test_options_of_ours_are_not_given_to_what_is_wrapped(monkeypatch):
    """To s3fs they would be its session's."""
    request = ScanRequest("mine://x", storage_options={"retries": 3, "more": 1, "retires": 2})
    given = {}

    class Mine(LocalFileSystem):
        protocol = "mine"
        cachable = False

        def __init__(self, **options: object) -> None:
            given.update(options)
            super().__init__()

    monkeypatch.setitem(fsspec_protocols, "mine", Mine)  # fsspec has no way to take one back
    with pytest.warns(headrace.HeadraceWarning, match="retries"):
        fs, _ = _open_filesystem(request)
    assert (given, fs.settings.retries) == ({"more": 1, "retires": 2}, 3)


@pytest.mark.parametrize(("given", "in_force"), [(None, "lite"), ("standard", "standard")])
def test_a_url_of_ours_is_wrapped_once(folder, given, in_force):
    options = {"target_protocol": "file", "scheduler": "lite", "retries": 3}
    request = ScanRequest(f"headrace://{folder}", mode=given, storage_options=options)
    fs, _ = _open_filesystem(request)
    assert (type(fs.target).__name__, fs.mode, fs.settings.retries) == ("LocalFileSystem", in_force, 3)
    assert scan(request).rows == ROWS


def test_relative_path(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert run_json(capsys, "table")["rows"] == ROWS


def test_memory_url(capsys):
    memory = fsspec.filesystem("memory")
    with memory.open("/cli/part.parquet", "wb") as file:
        pq.write_table(table(), file)
    try:
        assert run_json(capsys, "memory://cli/part.parquet")["rows"] == ROWS
    finally:
        memory.rm("/cli", recursive=True)


def test_s3_url(s3_lineitem, s3_server, capsys):
    options = [part for k, v in s3_server.items() for part in ("-o", f"{k}={v}")]
    options += ["--format", "parquet", "--columns", "l_quantity"]
    found = run_json(capsys, f"s3://{s3_lineitem.root}", *options)
    assert found["rows"] > 10_000
    assert found["ops"] > 0
    code, error = run_error(capsys, "s3://no-such-bucket/table", *options)
    assert code == 1
    assert "no-such-bucket" in error


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".arrow", ".feather", ".orc", ".pq"])
def test_formats_by_suffix(tmp_path, capsys, suffix):
    path = tmp_path / f"table{suffix}"
    write_as(suffix, path)
    assert run_json(capsys, path)["rows"] == ROWS


@pytest.mark.parametrize(
    "name", ["table.CSV.GZ", "table.csv.zst", "table.csv.br", "table.gz?X-Amz-Signature=hunter2hunter2"]
)
def test_compressed_csv_that_arrow_would_take_for_text_is_refused(tmp_path, capsys, name):
    """Its lines would be counted, and be some number."""
    write_as(".csv.gz", tmp_path / name.partition("?")[0])
    with contextlib.ExitStack() as stack:
        url = str(tmp_path / name)
        if "?" in name:
            server = stack.enter_context(ObjectServer())
            server.put_folder("bucket", tmp_path)
            url = f"{server.url}/bucket/{name}"
        code, error = run_error(capsys, url, "--format", "csv")
    assert code == 2
    assert "is compressed" in error
    assert "hunter2" not in error


def test_the_query_of_a_url_is_no_part_of_a_name(tmp_path, capsys):
    pq.write_table(table(), tmp_path / "table.parquet")
    with ObjectServer() as server:
        server.put_folder("bucket", tmp_path)
        url = f"{server.url}/bucket/table.parquet?X-Amz-Credential=key/2024/s3"
        assert run_json(capsys, url)["rows"] == ROWS


def test_folder_markers_of_object_stores_are_no_files(capsys):
    data = io.BytesIO()
    pq.write_table(table(), data)
    with ObjectServer() as server:
        options = [
            part for k, v in server.storage_options().items() for part in ("-o", f"{k}:={json.dumps(v)}")
        ]
        for key in ("t/", "t/y=1/"):
            server.put("bucket", key, b"")
        server.put("bucket", "t/y=1/a.parquet", data.getvalue())
        for url in ("s3://bucket/t", "s3://bucket/t/*", "s3://bucket/t/*/*"):
            found = run_json(capsys, url, "--filter", "y == 1", *options)
            assert (found["files"], found["rows"]) == (1, ROWS), url


def test_of_folders_that_a_glob_matches_all_files_are_read(tmp_path, capsys):
    for folder in ("y=1/m=1", "y=1/m=2", "y=2/m=1", "y=3/_temporary"):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(table(), tmp_path / folder / "x.parquet")
    pq.write_table(table(), tmp_path / "y=0.parquet")
    rows = {"y=[12]": 3, "y=1/*": 2, "y=*": 4, "**": 4, "y=1/**": 2}
    found = {glob: run_json(capsys, tmp_path / glob)["rows"] // ROWS for glob in rows}
    assert found == rows


def write_as(suffix: str, path: Path) -> None:
    if suffix.startswith(".csv"):
        with pa.output_stream(path, "gzip" if suffix.endswith(".gz") else None) as stream:
            pa.csv.write_csv(table(), stream)
    elif suffix == ".orc":
        pyarrow.orc.write_table(table(), path)
    elif suffix == ".pq":
        pq.write_table(table(), path)
    else:
        pyarrow.feather.write_feather(table(), path, compression="uncompressed")


def test_format_by_option(tmp_path, capsys):
    pq.write_table(table(), tmp_path / "table.data")
    assert run_json(capsys, tmp_path, "--format", "parquet")["rows"] == ROWS
    code, error = run_error(capsys, tmp_path)
    assert code == 2
    assert "--format" in error


def test_mixed_formats_need_a_choice(folder, capsys):
    write_as(".csv", folder / "more.csv")
    code, error = run_error(capsys, folder)
    assert code == 2
    assert "csv, parquet" in error
    (folder / "notes.txt").touch()
    code, error = run_error(capsys, folder)
    assert code == 2
    assert f"{folder}/notes.txt" in error
    assert ".parquet, .parq" in error
    assert run_json(capsys, folder, "--format", "parquet")["rows"] == ROWS
    assert run_json(capsys, folder, "--format", "csv")["rows"] == ROWS


def test_hive_partitions_are_columns(tmp_path, capsys):
    ds.write_dataset(
        table(),
        tmp_path,
        format="parquet",
        partitioning=ds.partitioning(pa.schema([("mode", pa.string())]), flavor="hive"),
    )
    assert run_json(capsys, tmp_path, "--filter", "mode == 'RAIL'")["rows"] == ROWS / 2


@pytest.mark.parametrize("type_", [pa.string_view(), pa.binary_view()], ids=str)
@pytest.mark.parametrize("values", [["a", "b"], ["a", "a"], ["a", "b", None], [None, None]], ids=str)
def test_views_can_be_filtered(type_, values, tmp_path, capsys):
    (tmp_path / "k=1").mkdir()
    pq.write_table(pa.table({"x": pa.array(values, type_)}), tmp_path / "k=1" / "x.parquet")
    expected = {
        "x == 'a' and k == 1": values.count("a"),
        "not x < 'b'": values.count("b"),
        "x in ['b']": values.count("b"),
        "x is None": values.count(None),
    }
    found = {text: run_json(capsys, tmp_path, "--filter", text)["rows"] for text in expected}
    assert found == expected
    assert run_json(capsys, tmp_path)["rows"] == len(values)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (pa.struct({"m": pa.string_view()}), {"m": "a"}),
        (pa.list_(pa.struct({"m": pa.string_view()})), [{"m": "a"}]),
        (pa.list_(pa.string_view(), 1), ["a"]),
        (pa.large_list(pa.string_view()), ["a"]),
        (pa.map_(pa.string_view(), pa.list_(pa.string_view())), [("a", ["b"])]),
    ],
    ids=str,
)
def test_views_within_others_can_be_beside_a_filter(type_, value, tmp_path, capsys):
    rows = pa.table({"x": pa.array([value, None, value], type_), "k": [1, 1, 2]})
    pa.feather.write_feather(rows, tmp_path / "x.arrow")  # to Parquet not all of these can be written
    text = "x.m == 'a' and k == 1" if pa.types.is_struct(type_) else "x is not None and k == 1"
    assert run_json(capsys, tmp_path, "--filter", text)["rows"] == 1


def test_only_what_is_asked_for_must_be_of_a_type_that_can_be_filtered(tmp_path, capsys):
    union = pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])])
    path = tmp_path / "x.arrow"
    pa.feather.write_feather(pa.table({"k": [1, 2], "u": union}), path)
    assert run_json(capsys, path, "--columns", "k", "--filter", "k == 1")["rows"] == 1


@pytest.mark.parametrize(("has_statistics", "expected"), [(True, 2), (False, 0)])
def test_types_whose_statistics_arrow_cannot_compare(tmp_path, capsys, has_statistics, expected):
    """It does so whatever is asked of the column."""
    ids = pa.array([bytes(16), None], pa.uuid())
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"u": ids, "k": [1, 2]}), path, write_statistics=has_statistics)
    assert main(["scan", "--json", str(path), "--filter", "u is not None"]) == expected
    assert ("cannot filter by a column of this type" in capsys.readouterr().err) is has_statistics
    assert run_json(capsys, path, "--filter", "k == 1")["rows"] == 1


@pytest.mark.parametrize("suffix", [".png", ".json"])
def test_trace_is_written(folder, tmp_path, capsys, suffix):
    path = tmp_path / f"timeline{suffix}"
    run_json(capsys, folder, "--mode", "lite", "--trace", path)
    content = path.read_bytes()
    assert content[:4] == b"\x89PNG" if suffix == ".png" else json.loads(content)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--filter", "id >"], "invalid syntax"),
        (["--filter", "open('x')"], "is not one of"),
        (["--filter", "mode == '\udcff'"], "surrogates not allowed"),
        (["--filter", "id == 'x'"], "filter"),
        (["--filter", "nothing > 1"], "no column 'nothing'; there are id, mode, price"),
        (["--filter", "id > price"], "the filter does not fit the data: 'id' is int64 and 'price' double"),
        (["--filter", "id"], "filter"),
        (["--filter", "id + 1"], "filter"),
        (["--filter", "id > timestamp('2020-01-01')"], "filter"),
        (["--columns", "id,nothing"], "no column 'nothing'; there are id, mode, price"),
        (["-o", "anon"], "KEY=VALUE"),
        (["-o", "=x"], "KEY=VALUE"),
        (["-o", "size:=1x"], "size"),
        (["-o", 'client={"a"'], "client"),
    ],
)
def test_what_makes_no_sense_is_2(folder, capsys, arguments, complaint):
    code, error = run_error(capsys, folder, *arguments)
    assert code == 2
    assert complaint in error


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nothing"],
        ["scan"],
        ["scan", "x", "--mode", "fast"],
        ["scan", "x", "--format", "xml"],
        ["scan", "x", "--limit", "0"],
        ["scan", "x", "--limit", "-1"],
        ["scan", "x", "--limit", str(2**63)],
        ["scan", "x", "--batch-size", "many"],
        ["scan", "x", "--batch-size", str(2**31)],
        ["scan", "x", "--columns", "a,,b"],
        ["scan", "x", "--trace", "timeline.gif"],
        ["scan", "x", "--trace", "/no/such/folder/timeline.png"],
        ["demo", "--rows", "0"],
    ],
    ids=" ".join,
)
def test_usage_errors_are_2(capsys, arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: headrace" in capsys.readouterr().err


def test_failures_are_1(folder, tmp_path, capsys):
    code, error = run_error(capsys, tmp_path / "nowhere")
    assert code == 1
    assert "nowhere" in error
    assert run_error(capsys, tmp_path / "none-*.parquet")[0] == 1
    (tmp_path / "empty").mkdir()
    assert run_error(capsys, tmp_path / "empty")[0] == 1
    (folder / "part-1.parquet").write_bytes(b"PAR1 but no more")
    code, error = run_error(capsys, folder)
    assert code == 1
    assert "part-1.parquet" in error
    assert run_error(capsys, "nosuchprotocol://x/y")[0] == 1


def test_a_bad_setting_is_2_and_named(folder):
    done = run_child("-m", "headrace", "scan", str(folder), HEADRACE_SCHEDULER="fast")
    assert done.returncode == 2
    assert "HEADRACE_SCHEDULER" in done.stderr
    assert "fast" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run_child("-m", "headrace", "demo", HEADRACE_SCHEDULER="fast")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_no_secret_is_printed(capsys):
    secret = "hunter2-and-more"
    options = ["-o", f"password={secret}", "-o", f'more:={{"token": "{secret}"}}']
    for url in ("nosuchprotocol://x/y", f"nosuchprotocol://user:{secret}@x/y"):
        code, error = run_error(capsys, url, *options)
        assert code == 1
        assert secret not in error
    for option in (f"password:={secret}", f"password:{secret}"):
        code, error = run_error(capsys, "x", "-o", option)
        assert code == 2
        assert secret not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scan", "x", "-o", "key=AK", "secret=hunter2"], "unrecognized arguments: secret=***"),
        (["scan", "x", "-o", "secret", "hunter2" * 100], "unrecognized arguments: ***"),
        (["scan", "x", "--secret=hunter2", "--more"], "unrecognized arguments: --secret=*** --more"),
        (["scan", "x", "s3://u:hunter2@b/k", __file__], f"unrecognized arguments: s3://u:***@b/k {__file__}"),
        (["scan", "x", "--limit", "s3://u:hunter2@b/k"], "'s3://u:***@b/k' is not a whole number"),
        (["scan", "x", "-o", "account_key", "hunter2w=="], "unrecognized arguments: ***\n"),
        (["scan", "x", "-phunter2", "-p"], "unrecognized arguments: -p*** -p\n"),
        (["-o", "secret=hunter2", "scan", "x"], "invalid choice: 'secret=***'"),
        (["scan", "x", "--format", "hunter2w=="], "invalid choice: '***'"),
        (["scan", "x", "--format=secret=hunter2"], "invalid choice: 'secret=***'"),
        (["scan", "x", "--limit", "secret=\"hunter2 and\" 'more'"], "'secret=***' is not a whole number"),
        (["scan", "x", "--f=hunter2"], "ambiguous option: --f=*** could match"),
        (["scan", "x", "--json=hunter2"], "ignored explicit argument ***"),
        (["scan", "x", "--mode", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_no_secret_of_a_misspelt_line_is_printed(capsys, arguments, said):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert "hunter2" not in printed


def test_letters_that_the_output_has_not_are_escaped(tmp_path):
    pq.write_table(table(), tmp_path / "é.parquet")
    for command, said in (("scan", "1,000"), ("doctor", "No check failed")):
        done = run_child("-m", "headrace", command, str(tmp_path / "é.parquet"), PYTHONIOENCODING="ascii")
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout
        assert "\\xe9.parquet" in done.stdout.replace("\n", "").replace("|", "").replace(" ", "")


def test_storage_options_reach_the_target(folder, capsys):
    # dir:// without a path to sit in is an error; with it, the files are found.
    options = ["-o", f"path={folder}", "-o", "target_protocol=file", "-o", "auto_mkdir=false"]
    assert run_error(capsys, "dir://part-0.parquet")[0] == 1
    assert run_json(capsys, "dir://part-0.parquet", *options[:4])["rows"] == 500


def test_storage_options_reach_the_doctors_target(folder, capsys):
    options = ["-o", f"path={folder}", "-o", "target_protocol=file"]
    assert main(["doctor", "--json", "dir://part-0.parquet", *options]) == 0
    assert json.loads(capsys.readouterr().out)["target"]["type"] == "file"
    code, error = run_error(capsys, *options, command="doctor")
    assert code == 2
    assert "--storage-option" in error


def test_what_lies_behind_the_end_was_not_read(tmp_path, capsys):
    write_as(".csv.gz", tmp_path / "table.csv.gz")
    found = run_json(capsys, tmp_path / "table.csv.gz", "--mode", "lite")
    assert 0 < found["bytes_read"] <= 2 * (tmp_path / "table.csv.gz").stat().st_size


def test_help_is_quick_and_complete(capsys):
    code = textwrap.dedent("""
        import contextlib, sys
        from headrace.cli import main
        for command in ([], ["scan"], ["doctor"], ["demo"]):
            with contextlib.suppress(SystemExit):
                main([*command, "--help"])
        heavy = {"pandas", "dask", "rich", "s3fs", "matplotlib"} & set(sys.modules)
        assert not heavy, heavy
    """)
    done = run_child("-c", code)
    assert done.returncode == 0, done.stderr
    for text in ("--filter", "--trace", "--json", "--directory", "doctor", "exit codes"):
        assert text in done.stdout.lower()


def run_child(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_version_and_module():
    done = run_child("-m", "headrace", "--version")
    assert done.returncode == 0
    assert done.stdout == f"headrace {headrace.__version__}\n"
    assert headrace.__version__ == importlib.metadata.version("headrace")


def test_a_folder_on_the_path_is_enough_for_the_command_line(monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", missing)
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["versions"]["headrace"] is None


def test_ctrl_c_is_130(tmp_path):
    pq.write_table(table(), tmp_path / "table.parquet")
    code = textwrap.dedent("""
        import fsspec, signal, sys, time
        from fsspec.implementations.local import LocalFileSystem
        from headrace.cli import main

        class Slow(LocalFileSystem):
            protocol = "slow"

            def _open(self, *args, **kwargs):
                print("reading", flush=True)
                time.sleep(3)
                return super()._open(*args, **kwargs)

        fsspec.register_implementation("slow", Slow)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.exit(main(sys.argv[1:]))
    """)
    url = f"slow://{tmp_path}/table.parquet"
    command = [sys.executable, "-c", code, "scan", url, "--mode", "standard"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "reading\n"
        child.send_signal(signal.SIGINT)
        _, error = child.communicate(timeout=60)
    assert child.returncode == 130
    assert error == "headrace: interrupted\n"


def test_the_bar_is_drawn_on_a_terminal(folder):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "headrace", "scan", str(folder), "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    ) as child:
        os.close(theirs)
        drawn = read_terminal(ours)
        printed = child.stdout.read()
    os.close(ours)
    assert child.returncode == 0
    assert json.loads(printed)["rows"] == ROWS
    assert b"1,000 rows" in drawn


def read_terminal(descriptor: int) -> bytes:
    """Return all that is written to a terminal until its other end is closed."""
    parts = []
    with contextlib.suppress(OSError):  # EIO: nobody has the other end open any more
        while part := os.read(descriptor, 65536):
            parts.append(part)
    return b"".join(parts)


def test_doctor_runs(capsys):
    assert main(["doctor"]) == 0
    assert "headrace" in capsys.readouterr().out.lower()
    assert main(["doctor", "--json"]) == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_demo_runs_every_reader_in_every_mode(tmp_path, capsys):
    assert main(["demo", "--rows", "2000", "--directory", str(tmp_path), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert {(run["reader"], run["mode"]) for run in runs} == {
        (reader, mode)
        for reader in ("pyarrow.dataset", "dask.dataframe")
        for mode in ("off", "lite", "standard")
    }
    assert {run["rows"] for run in runs} == {2000}
    assert list(tmp_path.iterdir()) == []
    assert main(["demo", "--rows", "10", "--directory", str(tmp_path)]) == 0
    assert "all answers equal" in capsys.readouterr().out
    assert main(["demo", "--directory", str(tmp_path / "nowhere")]) == 2


def test_demo_notices_a_wrong_answer(monkeypatch, capsys):
    from headrace import demo

    wrong = demo.Answer(rows=1, quantity=1, by_status=())
    monkeypatch.setitem(demo._READERS, "pyarrow.dataset", lambda *_: wrong)
    assert main(["demo", "--rows", "10"]) == 1
    assert "DemoError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "redirection", "code", "said"),
    [
        *((command, "| true", 1, "") for command in ("scan --json", "doctor --json")),
        *((command, ">&-", 0, "") for command in ("scan --json", "doctor --json", "--version")),
        *(
            (command, "> /dev/full", 1, "No space left on device")
            for command in ("scan --json", "doctor --json", "--version", "scan --help")
        ),
    ],
)
def test_output_that_nobody_takes(command, redirection, code, said, folder):
    words = f"{command} {shlex.quote(str(folder))} {redirection}"
    shell = f"set -o pipefail; {shlex.quote(sys.executable)} -m headrace {words}"
    ended = subprocess.run(
        ["/bin/bash", "-c", shell], capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == code
    assert said in ended.stderr
    assert ended.stderr.count("\n") <= 1, "and no more than a line"


@pytest.mark.parametrize(("more", "code"), [("", 0), ("--columns nope", 2)], ids=["bar", "complaint"])
def test_a_closed_stderr_changes_no_exit_code(more, code, folder):
    words = f"scan --json {shlex.quote(str(folder))} {more}"
    shell = f"{shlex.quote(sys.executable)} -m headrace {words} 2>&-"
    ended = subprocess.run(["/bin/bash", "-c", shell], capture_output=True, check=False, timeout=60)
    assert ended.returncode == code
    assert bool(ended.stdout) is (code == 0)


def test_a_link_to_nowhere_is_no_file(tmp_path):
    """Editors leave such locks behind, hidden ones."""
    pq.write_table(table(), tmp_path / "table.parquet")
    (tmp_path / ".#table.parquet").symlink_to("somebody@somewhere.1234")
    (tmp_path / "gone.parquet").symlink_to(tmp_path / "not-there.parquet")
    assert main(["scan", str(tmp_path)]) == 0


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize(
    ("form", "code"),
    [("", 0), ("y=1", 2), ("y=1/0.parquet", 0), ("y=1/*.parquet", 0), ("*/*.parquet", 0)],
)
def test_partition_columns_do_not_depend_on_how_many_files_there_are(files, form, code, tmp_path, capsys):
    """As to Arrow, a folder is a table of its own, and files have the columns of all their folders."""
    folder = tmp_path / "y=1"
    folder.mkdir()
    for number in range(files):
        pq.write_table(table(), folder / f"{number}.parquet")
    assert main(["scan", str(tmp_path / form), "--filter", "y == 1"]) == code
    assert ("no column 'y'" in capsys.readouterr().err) is (code == 2)
