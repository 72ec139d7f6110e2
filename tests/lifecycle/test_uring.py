"""io_uring in whole processes: a soak beside a busy kernel, and machines where it is forbidden."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from lifecycle.processes import CHILDREN, Ended, run

from headrace.backends._rings import probe

RANGES = int(os.environ.get("HEADRACE_TEST_SOAK", "20000"))
MIB = 1 << 20
FAULTS = {"refused", "in parts", "closed", "EIO", "EINTR", "EAGAIN", "none", "short", "shrunk"}
"""All that ``children/ring_soak.py`` does to reads."""
TESTS = Path(__file__).parents[1]

needs_uring = pytest.mark.skipif(probe() is not None, reason="the kernel, or a sandbox, has no io_uring")


@needs_uring
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("direct", ["0", "1"])
def test_a_soak_leaves_nothing(tmp_path: Path, scheduled_mode: str, direct: str) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(np.random.default_rng(3).bytes(20 * MIB))
    chosen = {"HEADRACE_LOCAL_BACKEND": "uring", "HEADRACE_SCHEDULER": scheduled_mode, "DIRECT": direct}
    ended = run("ring_soak.py", path, RANGES, limit_s=3000, **chosen)
    assert ended.status == 0, ended.err
    answer = json.loads(ended.out.splitlines()[-1])
    assert (answer["wrong"], answer["rest"]) == ([], [0, 0])
    assert {name for name, times in answer["faults"].items() if times} == FAULTS
    before, after = answer["before"], answer["after"]
    assert Counter(after["descriptors"]) <= Counter(before["descriptors"])
    assert after["rings"] <= before["rings"]
    assert after["held"] == 0
    # The allocator need not end where it began.
    assert after["mappings"] <= before["mappings"] + 20
    assert after["resident"] <= before["resident"] + 32 * MIB


def denied(*arguments: object) -> Ended:
    return run("denied.py", *arguments, limit_s=300)


@needs_uring
def test_where_it_is_forbidden_local_files_are_read_without(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(bytes(range(256)) * 400)
    script = tmp_path / "reads.py"
    script.write_text(f"""
import headrace
for _ in range(3):
    fs = headrace.HeadraceFileSystem(target_protocol="file", local_backend="uring", skip_instance_cache=True)
    batch = fs.read_ranges({str(tmp_path / "data.bin")!r}, list(range(100)), list(range(1, 101)))
    assert batch.to_pylist() == [bytes([k]) for k in range(100)]
print(fs.backend_name)
""")
    ended = denied(script)
    assert (ended.status, ended.out) == (0, "local\n")
    told = [line for line in ended.err.splitlines() if "io_uring" in line]
    assert told == ["backend 'uring' is not used: io_uring: [Errno 1] Operation not permitted"]


@needs_uring
@pytest.mark.parametrize("how", [[], ["--kill"]], ids=["refused", "killed"])
def test_where_it_is_forbidden_the_doctor_says_so(how: list[str]) -> None:
    ended = denied(*how, "-m", "headrace", "doctor", "--json")
    (check,) = [check for check in json.loads(ended.out)["checks"] if check["name"] == "io_uring"]
    assert check["status"] == "warn"
    assert "seccomp" in check["detail"]
    assert "io_uring_setup" in check["cure"]


@needs_uring
def test_who_chose_to_do_without_is_not_killed_for_asking(tmp_path: Path) -> None:
    (tmp_path / "data.bin").write_bytes(b"0123456789")
    script = tmp_path / "reads.py"
    script.write_text(f"""
import headrace
fs = headrace.HeadraceFileSystem(target_protocol="file", local_backend="pread")
print(fs.cat_file({str(tmp_path / "data.bin")!r}, 2, 5), fs.backend_name)
""")
    ended = denied("--kill", script)
    assert (ended.status, ended.out) == (0, "b'234' local\n"), ended.err


OF_LOCAL_FILES = [
    "conformance",
    *(f"backends/test_{name}.py" for name in ("conformance", "registry", "rings")),
    *(
        f"plugin/test_{name}.py"
        for name in ("cached", "cat", "file", "filesystem", "order", "submit", "views")
    ),
]
OTHERS = ("memory", "zip", "recording", "s3", "obstore", "async", "sync", "[off", "-off")
"""What is in the names of the tests among them that read something else, or without a backend."""


def behaviour(kind: str, *before: str) -> Ended:
    """Run the conformance and behaviour tests of local files in a child; `kind` says what it must find."""
    chosen = [
        "-k",
        " and ".join(f"not {name}" for name in OTHERS),
        *(TESTS / name for name in OF_LOCAL_FILES),
    ]
    ended = run(*before, CHILDREN / "behaviour.py", kind, *chosen, limit_s=280)
    assert ended.status == 0, ended.out
    return ended


@needs_uring
def test_the_tests_of_local_files_pass_with_io_uring_asked_for() -> None:
    ended = behaviour("here")
    assert "skipped" not in ended.out
    assert int(ended.out.splitlines()[-1].removeprefix("rings: ")) > 100


@needs_uring
def test_the_tests_of_local_files_pass_where_it_is_forbidden() -> None:
    ended = behaviour("denied", "denied.py")
    assert "skipped" in ended.out, "the tests of rings know that there are none"
    assert ended.out.splitlines()[-1] == "rings: 0"
