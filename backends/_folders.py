"""A folder of a store, as fsspec's ``dir`` has it, read by the backend of the store itself.

``dir`` joins paths, and reads by the other's ``_cat_file``: of that nobody sees which version it was, nor if
it was the range that was asked for. So the backend is the one of what is beneath, which looks at its answers,
and only what it is given of paths is joined first. What the filesystem says of a file, ``dir`` is asked.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from headrace.backends.abc import AsyncBackend, Backend, BulkBackend, beneath_folders

if TYPE_CHECKING:
    from collections.abc import Hashable


class InFolder(Backend):
    """Goes before the class of a store's backend, see `in_folder`.

    Parameters
    ----------
    folder
        The ``dir``, of a ``dir`` even; `target` is what is beneath.
    """

    def __init__(self, folder: Any) -> None:
        super().__init__(beneath_folders(folder))
        self.folder = folder

    def _joined(self, path: str) -> str:
        fs = self.folder
        while fs is not self.target:
            path, fs = fs._join(path), fs.fs  # noqa: SLF001
        return path

    @override
    def device(self, path: str) -> Hashable:
        return super().device(self._joined(path))  # type: ignore[safe-super]

    @override
    def open(self, path: str, **options: Any) -> Any:
        return super().open(self._joined(path), **options)  # type: ignore[safe-super]

    @override
    def open_end(self, path: str, nbytes: int) -> Any:
        return super().open_end(self._joined(path), nbytes)

    @override
    def info(self, path: str, **options: Any) -> dict[str, Any]:
        info: dict[str, Any] = self.folder.info(path, **options)
        return info


@functools.cache
def in_folder(kind: type[Backend]) -> type[Backend]:
    """Return the class of backends that read as those of `kind` do, in a folder."""
    return type(f"{kind.__name__}InFolder", (InFolder, kind), {})


def is_read_beneath(target: Any, kind: type[Backend]) -> bool:
    """Whether `target` is a folder of a store that backends of `kind` read."""
    from fsspec.implementations.dirfs import DirFileSystem  # noqa: PLC0415

    fs = target
    while isinstance(fs, DirFileSystem):
        if type(fs)._cat_file is not DirFileSystem._cat_file:  # noqa: SLF001
            return False  # what a derived class does to reads is not ours to leave out
        fs = fs.fs
    return fs is not target and issubclass(kind, (AsyncBackend, BulkBackend)) and kind.serves(fs)
