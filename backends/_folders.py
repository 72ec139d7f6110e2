"""A folder of a store, as fsspec's ``dir`` has it, read by the backend of the store itself.

``dir`` joins paths, and reads by the other's ``_cat_file``: of that nobody sees which version it was, nor if
it was the range that was asked for. So the backend is the one of what is beneath, which looks at its answers,
and only what it is given of paths is joined first. What the filesystem says of a file, ``dir`` is asked.

The folders of one store share its backend, and so its connections (`headrace.runtime`).
"""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from headrace.backends.abc import AsyncBackend, Backend, BulkBackend

if TYPE_CHECKING:
    from collections.abc import Hashable


class InFolder(Backend):
    """Joins paths, see `in_folder`.

    Parameters
    ----------
    folder
        The ``dir``, of a ``dir`` even; `target` is what is beneath.
    beneath
        The backend of that.
    """

    def __init__(self, folder: Any, beneath: Backend) -> None:
        super().__init__(beneath.target)
        self.folder = folder
        self.beneath = beneath

    def _joined(self, path: str) -> str:
        fs = self.folder
        while fs is not self.target:
            path, fs = fs._join(path), fs.fs  # noqa: SLF001
        return path

    @override
    def device(self, path: str) -> Hashable:
        return self.beneath.device(self._joined(path))

    @override
    def open(self, path: str, **options: Any) -> Any:
        return self.beneath.open(self._joined(path), **options)

    @override
    def open_end(self, path: str, nbytes: int) -> Any:
        return self.beneath.open_end(self._joined(path), nbytes)

    @override
    def info(self, path: str, **options: Any) -> dict[str, Any]:
        info: dict[str, Any] = self.folder.info(path, **options)
        return info


def _of_kind(kind: Any) -> Any:
    """Return the class of such as hand on whatever else a backend of `kind` is asked."""
    asked = {name for name in (*dir(kind), *Backend.__annotations__) if not name.startswith("_")}
    handed_on = {name: property(attrgetter(f"beneath.{name}")) for name in asked - vars(InFolder).keys()}
    return type(f"{kind.__name__}InFolder", (InFolder, kind), handed_on)


AsyncInFolder = _of_kind(AsyncBackend)
BulkInFolder = _of_kind(BulkBackend)


def in_folder(folder: Any, beneath: Backend) -> InFolder | None:
    """Return a backend that reads as `beneath` does, in a folder; None where that is of no store."""
    for kind, of_kind in ((AsyncBackend, AsyncInFolder), (BulkBackend, BulkInFolder)):
        if isinstance(beneath, kind):
            found: InFolder = of_kind(folder, beneath)
            return found
    return None


def beneath_plain_folders(target: Any) -> Any:
    """Return what `target` is a folder of, or itself where it does more to reads than to join paths."""
    from fsspec.implementations.dirfs import DirFileSystem  # noqa: PLC0415

    fs = target
    while isinstance(fs, DirFileSystem):
        if type(fs)._cat_file is not DirFileSystem._cat_file:  # noqa: SLF001
            return target
        fs = fs.fs
    return fs
