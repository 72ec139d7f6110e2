"""The exceptions of headrace are of kinds that callers already catch, and travel between processes."""

from __future__ import annotations

import pickle

from headrace.errors import ObjectChangedError


def test_a_replaced_object_names_path_and_both_versions() -> None:
    error = ObjectChangedError("bucket/key", '"1"', '"2"')
    assert isinstance(error, OSError)
    assert error.filename == "bucket/key"
    assert all(fact in str(error) for fact in ("bucket/key", '"1"', '"2"', "replaced"))


def test_it_tells_no_signature() -> None:
    url = "https://host/key?X-Amz-Signature=hunter2hunter2"
    error = ObjectChangedError(url, '"1"', '"2"')
    assert "hunter2" not in f"{error} {error!r} {error.filename}"
    assert pickle.loads(pickle.dumps(error)).path == error.path == url


def test_it_can_be_pickled() -> None:
    error = pickle.loads(pickle.dumps(ObjectChangedError("bucket/key", '"1"', '"2"')))
    assert (error.path, error.expected, error.found) == ("bucket/key", '"1"', '"2"')
    assert "replaced" in str(error)
