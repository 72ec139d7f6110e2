"""What the native engine asks of a kind of storage, and what all translations of options have in common.

A `Client` stands for the client that one fsspec filesystem would read with: it splits paths, says what the
native stores are to be told, hands out credentials, and has the filesystem itself answer what obstore cannot.
There is one class of them for each kind of storage (`_obstore_s3`, `_obstore_gcs`, `_obstore_azure`,
`_obstore_http`), chosen by the filesystem's class. Nothing in it is guessed: what is not known to translate
exactly is refused with a sentence (`InexactError`).

The native library reads variables of the environment on its own. So what they could change is given
explicitly, and where that cannot be, such a variable is a refusal (`check_environment`).

What is not here: performing anything.
"""

from __future__ import annotations

import abc
import os
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import urlsplit

from headrace.backends._answers import deliver_answer

if TYPE_CHECKING:
    import re
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet

    from headrace.types import Ops

CONNECTIONS = 10
"""Of the wrapped filesystem's instance that answers what obstore cannot."""

NO_PROXY = {"proxy_url": "http://127.0.0.1:9", "proxy_excludes": "*,0.0.0.0/0,::/0"}
"""No proxy for any host, whatever the environment says: the library would ask it if it were told nothing."""

PLAIN_OPTIONS = frozenset(
    {
        "asynchronous", "batch_size", "listings_expiry_time", "loop", "max_paths", "skip_instance_cache",
        "use_listings_cache",
    }
)  # fmt: skip
"""Options of every filesystem that change nothing in a read."""


PASSING_S = 10.0
"""So long it is not tried again to translate what was refused for now."""


class InexactError(ValueError):
    """The options have no exact translation; the text says why."""


class PassingError(InexactError):
    """They have none now: what it takes of others (credentials, above all) could not be had."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self._until_s = monotonic() + PASSING_S

    @property
    def is_over(self) -> bool:
        """Whether it may be tried again."""
        return monotonic() >= self._until_s


def is_over(found: object) -> bool:
    """Whether what was kept of an earlier try is a refusal whose time is over."""
    return isinstance(found, PassingError) and found.is_over


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How to make the native store of one bucket."""

    bucket: str
    config: dict[str, Any] = field(repr=False)  # keys
    client: dict[str, Any] = field(repr=False)  # a proxy's password
    headers: dict[str, str] = field(repr=False)  # encryption keys, authorization
    is_signed: bool
    """Whether requests carry what `Client.credentials` hands out."""
    timeout_s: float | None = None
    """Seconds that the filesystem itself gives one request, where it says so."""


UNLIMITED_S = 7 * 86400.0
"""Stands for no time-out: where none is given obstore has its own, of 30 s."""


class Client(abc.ABC):
    """The client that a filesystem would read with; it does not keep that filesystem alive.

    Parameters
    ----------
    target
        The wrapped filesystem.

    Raises
    ------
    InexactError
        It reads in a way that has no exact translation.
    """

    filesystems: ClassVar[str]
    """Package or module of the filesystem's class."""
    store: ClassVar[str]
    """Name of obstore's class."""
    asks_for_versions: ClassVar[bool] = False
    """Whether `ask` has its answers be of the source's version."""
    takes_conditions: bool = True
    """Whether its requests may carry ``If-Match``."""
    decodes: ClassVar[bool] = True
    """Whether the filesystem decodes the body of an answer that has a ``Content-Encoding``."""
    has_provider: ClassVar[bool] = False
    """Whether it is given `credentials` where nobody signs too: it would look for its own otherwise."""

    @abc.abstractmethod
    def __init__(self, target: Any) -> None: ...

    @abc.abstractmethod
    def split(self, path: str) -> tuple[str, str] | None:
        """Return bucket and key; None where obstore would not read the very object that `path` names."""

    @abc.abstractmethod
    def store_options(self, bucket: str) -> StoreOptions:
        """Translate for one bucket.

        Raises
        ------
        InexactError
            Reads of this bucket have no exact translation.
        """

    def credentials(self) -> dict[str, Any]:
        """Return fresh credentials, as the native store asks for them."""
        raise NotImplementedError

    def make(self, options: StoreOptions, **how: Any) -> Any:
        """Make a native store; `how` is what does not depend on the kind of storage."""
        from obstore import store  # noqa: PLC0415

        return getattr(store, self.store)(
            options.bucket,
            config=options.config,
            credential_provider=self.credentials if options.is_signed or self.has_provider else None,
            **how,
        )

    def version_of(self, info: Mapping[str, Any]) -> str | None:
        """Return the ETag that ``info`` of a file tells, as answers to its reads say it."""
        return info.get("ETag") or None

    def asker(self, target: Any, **changed: Any) -> Any:
        """Make an instance of the filesystem, with connections of its own, that any thread may call."""
        options = {**target.storage_options, **changed, "asynchronous": False, "loop": None}
        return type(target)(**{**options, "skip_instance_cache": True})

    async def ask(self, asker: Any, ops: Ops, row: int) -> None:
        """Have the filesystem itself perform op `row`."""
        source = ops.sources[int(ops.file[row])]
        start, end = source.limits(int(ops.start[row]), int(ops.length[row]))
        answer = await asker._cat_file(source.path, start=start, end=end, **source.options)  # noqa: SLF001
        deliver_answer(ops, row, answer, (start, end))


def check_class(target: Any, *names: str) -> None:
    """Refuse classes that may read differently, and what was given by position."""
    kind = f"{type(target).__module__}.{type(target).__qualname__}"
    if kind not in names:
        raise InexactError(f"{kind} may read differently than {' and '.join(names)}")
    if target.storage_args:
        raise InexactError("the filesystem was given positional arguments")


def check_known(options: Mapping[str, Any], known: AbstractSet[str], what: str = "options") -> None:
    """Refuse options of any other name."""
    unknown = sorted(map(str, set(options) - known))
    if unknown:
        raise InexactError(f"{what} {unknown} are not known to translate")


def check_environment(names: re.Pattern[str]) -> None:
    """Refuse variables that the native library would take and no argument switches off."""
    found = sorted(name for name in os.environ if names.fullmatch(name))
    if found:
        raise InexactError(f"the native library would take {', '.join(found)} from the environment")


def check_proxy(url: str) -> str:
    """Refuse proxies of another kind than HTTP's."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or parts.path not in {"", "/"}:  # http://socks5://, completed
        raise InexactError("the proxy is no HTTP proxy")
    return url


def is_plain(key: str) -> bool:
    """Whether obstore would read the same object: it normalises some keys, silently."""
    parts = key.split("/")
    return "" not in parts and "." not in parts and ".." not in parts


def milliseconds(seconds: float) -> str:
    """Return a duration as the native library takes it."""
    return f"{max(1, round(float(seconds) * 1000))}ms"
