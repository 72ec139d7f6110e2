"""The suite fails the backends that it must fail: each of these has one fault."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from headrace.backends.abc import ThreadedBackend
from headrace.backends.memory import MemoryBackend
from headrace.testing import BackendTests
from headrace.testing.backend_tests import DATA, SIZE
from headrace.testing.perform import Performer
from headrace.types import Int64Array, Ops, Verdict


class Suite(BackendTests):
    backend_class = MemoryBackend

    def make_target(self, tmp_path: Path) -> Any:
        return MemoryFileSystem()

    def put(self, target: Any, tmp_path: Path, name: str, data: bytes) -> str:
        target.pipe_file(f"{tmp_path}/{name}", data)
        return f"{tmp_path}/{name}"


class WritesPastItsOp(MemoryBackend):
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        rows = super().start(ops, lo, hi)
        ops.buffer[int(ops.dest[lo]) + int(ops.length[lo])] = 0
        return rows


class IgnoresTheSlice(MemoryBackend):
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        return super().start(ops, 0, len(ops))


class ReadsOneByteLate(MemoryBackend):
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        ops.start = ops.start + 1
        return super().start(ops, lo, hi)


class FailsTheWholeSlice(MemoryBackend):
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        rows = super().start(ops, lo, hi)
        if ops.errors:
            for row in range(lo, hi):
                ops.fail(row, OSError("one of them failed"))
        return rows


class ForgetsTheLastRow(MemoryBackend):
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        return super().start(ops, lo, max(lo, hi - 1))


class NamesARowOfAnother(MemoryBackend):
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        super().start(ops, lo, hi)
        return np.array([hi])


class RefusesWhatIsPastTheEnd(MemoryBackend):
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        rows = super().start(ops, lo, hi)
        for row in (lo + np.flatnonzero(ops.start[lo:hi] >= SIZE)).tolist():
            ops.fail(row, OSError("past the end"))
        return rows


class KnowsNoSize(MemoryBackend):
    def size(self, source: Any) -> None:
        return None


class HasANewDeviceEachTime(MemoryBackend):
    def device(self, path: str) -> Any:
        return object()


class OpensWhatIsNotThere(MemoryBackend):
    def open(self, path: str, **_options: Any) -> Any:
        try:
            return super().open(path)
        except FileNotFoundError:
            self.target.pipe_file("/stand-in", DATA)
            return super().open("/stand-in")


class ServesEverything(MemoryBackend):
    @classmethod
    def serves(cls, target: Any) -> bool:
        return True


class IsOfTwoKinds(MemoryBackend, ThreadedBackend):
    def read(self, ops: Ops, row: int) -> None:
        self.start(ops, row, row + 1)


class DeliversNoMoreThanSoMuch(MemoryBackend):
    def start(self, ops: Ops, lo: int, hi: int) -> Int64Array:
        rows = super().start(ops, lo, hi)
        ops.got[lo:hi] = np.minimum(ops.got[lo:hi], 512 << 10)
        return rows


class KeepsWhatItOpened(MemoryBackend):
    def __init__(self, target: Any) -> None:
        super().__init__(target)
        self.kept: dict[str, Any] = {}

    def open(self, path: str, **_options: Any) -> Any:
        if path not in self.kept:
            self.kept[path] = super().open(path)
        return self.kept[path]


class TriesAgainWhatIsNotThere(MemoryBackend):
    def verdict(self, error: BaseException) -> Verdict:
        return Verdict(is_retryable=isinstance(error, OSError))


@pytest.mark.parametrize(
    ("faulty", "test", "case"),
    [
        (WritesPastItsOp, "test_ops_of_one_file", "exact"),
        (IgnoresTheSlice, "test_a_slice_leaves_the_other_rows_alone", None),
        (ReadsOneByteLate, "test_ops_of_one_file", "exact"),
        (FailsTheWholeSlice, "test_a_failing_row_fails_alone", None),
        (ForgetsTheLastRow, "test_many_small_ops", None),
        (NamesARowOfAnother, "test_ops_of_several_files", None),
        (RefusesWhatIsPastTheEnd, "test_ops_of_one_file", "past the end"),
        (OpensWhatIsNotThere, "test_a_missing_file", None),
        (KnowsNoSize, "test_a_size_is_right_or_unknown", None),
        (HasANewDeviceEachTime, "test_a_device_is_hashable_and_stable", None),
        (ServesEverything, "test_it_serves_its_target_and_not_everything", None),
        (IsOfTwoKinds, "test_it_is_of_one_kind", None),
        (DeliversNoMoreThanSoMuch, "test_a_long_op", None),
        (KeepsWhatItOpened, "test_a_file_that_was_replaced", None),
        (TriesAgainWhatIsNotThere, "test_a_verdict_of_any_error", None),
    ],
)
def test_a_fault_is_found(faulty: type[MemoryBackend], test: str, case: str | None, tmp_path: Path) -> None:
    _run(MemoryBackend, test, case, tmp_path)
    with pytest.raises(AssertionError):
        _run(faulty, test, case, tmp_path)


def _run(kind: type[MemoryBackend], test: str, case: str | None, tmp_path: Path) -> None:
    """Call one test of the suite with what its fixtures would make."""
    suite = type("SuiteOfOne", (_Failing,), {"backend_class": kind})()
    target = suite.make_target(tmp_path)
    path = suite.put(target, tmp_path, "data.bin", DATA)
    performer = Performer(kind(target))
    given = {
        "target": target,
        "path": path,
        "other": suite.put(target, tmp_path, "other.bin", _other()),
        "missing": f"{path}.is-not-there",
        "performer": performer,
        "backend": performer.backend,
        "case": case,
        "tmp_path": tmp_path,
    }
    method = getattr(suite, test)
    code = method.__func__.__code__
    method(**{name: given[name] for name in code.co_varnames[1 : code.co_argcount]})


class _Failing(Suite):
    def failing_source(self, backend: Any, path: str, missing: str) -> Any:
        class Broken:
            def getbuffer(self) -> memoryview:
                raise OSError("broken")

        return Broken()


def _other() -> bytes:
    from headrace.testing.backend_tests import OTHER

    return OTHER
