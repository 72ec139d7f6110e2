"""Reads of an object store that are made again after a refusal, as the driver makes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from headrace.testing.perform import Placed, Row, make_ops
from headrace.types import NOT_YET

if TYPE_CHECKING:
    from collections.abc import Sequence


class Refusing(Protocol):
    """A store whose answers have the status that it is told."""

    status: int


def read_refused(backend: Any, source: Any, rows: Sequence[Row], refused: int, store: Refusing) -> Placed:
    """Lay out reads of a source, and have the store refuse so many of them, which may be tried again."""
    placed = make_ops([source], rows)
    store.status = 503
    backend.perform(placed.ops, np.arange(refused))
    assert len(placed.ops.errors) == refused
    placed.ops.errors.clear()
    placed.ops.got[:] = NOT_YET
    store.status = 200
    return placed
