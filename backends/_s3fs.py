"""Ranged reads of S3 through s3fs's client: of one version, into the result, resumed where they broke.

s3fs's own ``_cat_file`` takes no version to match, starts again when a body ends early, and sleeps after each
fault even where it does not try again. So the GET is made here, with s3fs's client, its options (requester
pays, encryption keys) and its exceptions.

* ``If-Match`` with the version seen at open, or by the first answer; the ETag of each answer is compared as
  well, for stores that ignore the header, and the range that it says it is (`headrace.backends._answers`).
  With ``local_expiry_check`` the ETag is only compared, before the body is taken.
* The body is received piece by piece into the op's place in the result. What arrived before it broke is noted
  in ``ops.state``, and the next attempt asks for the rest, of the same version. Of a store without ETags the
  rest may be of another one: there the next attempt starts again.
"""

from __future__ import annotations

import contextlib
import errno
from importlib import metadata
from typing import TYPE_CHECKING, Any

from headrace.backends._answers import part_of
from headrace.backends._faults import PRECONDITION_FAILED, status_of
from headrace.backends.abc import arguments_by_name, take_up
from headrace.errors import ObjectChangedError
from headrace.types import UNKNOWN_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.backends._answers import Part
    from headrace.backends.abc import PathSource
    from headrace.types import Ops

PIECE_BYTES = 1 << 20
"""Received at once, at most; aiohttp holds less."""

_SPARE_CONNECTIONS = 16
_PARTIAL_CONTENT = 206

_READ_PARTS = frozenset({"Body", "ContentRange", "ETag"})
"""Of the answer to a GET."""

_OTHERS_PARAMETERS = frozenset(
    {
        "CopySource", "DisableAccessPoints", "Key", "Prefix", "UseObjectLambdaEndpoint",
        "UseS3ExpressControlEndpoint",
    }
)  # fmt: skip
"""Of what an endpoint is found by: what no rule asks for, and what only requests have that read no object."""

_loaders: dict[Any, Any] = {}
"""botocore's descriptions of the services, by the folders it was told to look for them in."""


def is_s3fs(target: Any) -> bool:
    """Whether `target` is s3fs's own filesystem."""
    return type(target).__module__.partition(".")[0] == "s3fs"


def takes_conditions(target: Any) -> bool:
    """Whether ``If-Match`` is sent: s3fs can be told that its store does not know it."""
    return not getattr(target, "local_expiry_check", False)


def options_of(target: Any) -> dict[str, Any]:
    """Return what s3fs was made of, by name."""
    return {**arguments_by_name(type(target), target.storage_args), **target.storage_options}


def reader_options(target: Any, connections: int, client: Any = None) -> dict[str, Any]:
    """Return the options of the instance that reads: no retries of the client's, enough connections.

    Retries inside would hide a store's 503 from the scheduler. More ops in flight than connections would only
    queue inside the client; some more are for second requests.
    """
    identity = identity_of(target, client)
    given = identity.get("config_kwargs") or target.config_kwargs
    session = options_of(target).get("session") or _quick_session(target)
    return {
        **identity,
        "session": session,
        "config_kwargs": {
            **_user_agent(session, given),
            **given,
            "max_pool_connections": max(
                connections + _SPARE_CONNECTIONS, given.get("max_pool_connections") or 0
            ),
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        },
    }


def identity_of(target: Any, client: Any = None) -> dict[str, Any]:
    """Return the options of an instance that is who `client` is, or whom the target has connected as.

    What its options leave to the environment and to files may be something else there by now: credentials,
    region and endpoint. Credentials that are refreshed stay with their session: a copy would expire.
    """
    client = client or getattr(target, "_s3", None)
    if client is None or options_of(target).get("session") is not None:  # that keeps what it found
        return {}
    found, config = {}, dict(target.config_kwargs)
    if not target.cache_regions:  # which ends where a region or an endpoint is given
        found["region_name"] = client.meta.region_name
        endpoint = client._ruleset_resolver._builtins["SDK::Endpoint"]  # noqa: SLF001 - nowhere else
        if endpoint is None:
            config["ignore_configured_endpoint_urls"] = True
        else:
            found["endpoint_url"] = endpoint
    held = _plain_credentials(client)
    # A token alone is none to botocore, but beside its keys it would be: s3fs is given the one that is used.
    token = {"token": held["aws_session_token"]} if held else {}
    return {
        **token,
        "client_kwargs": {**found, **target.client_kwargs, **held},
        "config_kwargs": config,
    }


def _plain_credentials(client: Any) -> dict[str, Any]:
    held = client._request_signer._credentials  # noqa: SLF001 - explicit ones are nowhere else
    if held is None or hasattr(held, "refresh_needed"):
        return {}
    return {
        "aws_access_key_id": held.access_key,
        "aws_secret_access_key": held.secret_key,
        "aws_session_token": held.token,
    }


def _quick_session(target: Any) -> Any:
    """Make a session like the target's, but for what its clients look for in the answer to a GET."""
    import aiobotocore.session  # noqa: PLC0415
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    session = share_descriptions(aiobotocore.session.AioSession(**target.kwargs))
    with contextlib.suppress(BotoCoreError):  # of the profile: the client's maker says it
        session.register_component("data_loader", _Loader(session.get_component("data_loader")))
    return session


class _Loader:
    """botocore's loader, without what is looked for at each request and never found where objects are read.

    The answer to a GET may have 46 parts, dates and the object's own metadata among them, and an endpoint is
    found by 17 parameters. To look for all takes an eighth of the calls of Python's that a request takes.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self._loader, name)

    def load_service_model(self, service_name: str, *args: Any, **options: Any) -> Any:
        """Return what describes a service."""
        # With the arguments as they came: what was read for others is found again by them.
        found = self._loader.load_service_model(service_name, *args, **options)
        return _of_reads(found) if service_name == "s3" else found


def _of_reads(description: dict[str, Any]) -> dict[str, Any]:
    """Return what describes S3's requests, or where its endpoints are, as far as reads need it."""
    shapes = description.get("shapes", {})
    if answer := shapes.get("GetObjectOutput"):
        members = {name: part for name, part in answer["members"].items() if name in _READ_PARTS}
        return {**description, "shapes": {**shapes, "GetObjectOutput": {**answer, "members": members}}}
    if parameters := description.get("parameters"):
        kept = {name: one for name, one in parameters.items() if name not in _OTHERS_PARAMETERS}
        return {**description, "parameters": kept}
    return description


def share_descriptions(session: Any) -> Any:
    """Have a session of botocore's read what is known of the services where others of ours do; returns it.

    Each would parse it for itself: three quarters of the time that a client takes, and 12 MiB. Nothing of a
    user's is in it, and where botocore completes it, it does so always in the same way.
    """
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    with contextlib.suppress(BotoCoreError):  # of the profile: the client's maker says it
        where = session.get_config_variable("data_path")
        loader = _loaders.setdefault(where, session.get_component("data_loader"))
        session.register_component("data_loader", loader)
    return session


def _user_agent(session: Any, given: Mapping[str, Any]) -> dict[str, str]:
    """Say who asks in botocore's older words: its newer ones are put together anew for every request.

    That is a tenth of what a request costs. Where an application has a name, only the newer words tell it.
    """
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    try:
        who = f"headrace/{metadata.version('headrace')} {session.user_agent()}"
        has_name = given.get("user_agent_appid") or session.get_config_variable("user_agent_appid")
    except (BotoCoreError, AttributeError):
        # Of the profile, which s3fs says when it connects; a given session may only know how to make clients.
        return {}
    return {} if has_name else {"user_agent": who}


def can_read(source: PathSource, length: int) -> bool:
    """Whether an op is read here: ``_cat_file`` has to understand odd bounds and options."""
    if not source.options.keys() <= {"version_id"}:
        return False
    if length != UNKNOWN_LENGTH:
        return length > 0
    start, end = source.bounds
    return (start or 0) >= 0 and (end is None or end > (start or 0))


async def read_op(fs: Any, ops: Ops, row: int) -> None:
    """Read op `row`, or what is left of it."""
    source = ops.sources[ops.file[row]]
    if ops.state is None:
        ops.state = {}
    length = int(ops.length[row])
    if length == UNKNOWN_LENGTH:
        start, end = source.bounds
        whole = take_up(ops, row) or ops.state.setdefault(row, bytearray())
        await _receive(fs, source, (start or 0, end), len(whole), whole.extend)
        ops.deliver(row, whole)
        return
    start, dest = int(ops.start[row]), int(ops.dest[row])
    place = memoryview(ops.buffer)[dest : dest + length]  # type: ignore[arg-type]
    done = take_up(ops, row) or 0

    def put(piece: bytes) -> None:
        nonlocal done
        place[done : done + len(piece)] = piece
        done += len(piece)
        ops.state[row] = done

    await _receive(fs, source, (start, start + length), done, put)
    ops.got[row] = done


async def check_there(fs: Any, source: PathSource) -> None:
    """Raise what s3fs raises for an object that is not there, or not to be read."""
    bucket, key, _ = fs.split_path(source.path)
    await _call(fs, "head_object", Bucket=bucket, Key=key)


async def read_end(fs: Any, ops: Ops, row: int) -> None:
    """Read the last bytes of an object, and have its source know how many there are and of which version."""
    source = ops.sources[ops.file[row]]
    answer = await _get(fs, source, f"bytes={source.bounds[0]}")
    body = answer["Body"]
    try:
        part = _check_answer(source, answer, is_part=True)
        data = bytearray()
        while piece := await body.read(PIECE_BYTES):
            data += piece
    finally:
        body.close()
    if part is None or part.total is None:
        raise OSError(errno.EIO, "the store did not say how long the object is", source.path)
    part.check_end(part.start + len(data), None, source.path)
    source.size = part.total
    ops.deliver(row, data)


async def _receive(
    fs: Any,
    source: PathSource,
    bounds: tuple[int, int | None],
    done: int,
    put: Callable[[bytes], object],
) -> None:
    """Give `put` what is between the bounds, without the first `done` bytes."""
    first, end = bounds[0] + done, bounds[1]
    if first == end:
        return
    # An empty object has no range.
    is_whole = not first and end is None
    asked = None if is_whole else f"bytes={first}-{'' if end is None else end - 1}"
    answer = await _get(fs, source, asked)
    body = answer["Body"]
    try:
        part = _check_answer(source, answer, is_part=first > 0)
        if part is not None:
            part.check_start(first, source.path)
        while end is None or first < end:
            piece = await body.read(PIECE_BYTES if end is None else min(PIECE_BYTES, end - first))
            if not piece:
                break
            first += len(piece)
            put(piece)
        if part is not None:
            part.check_end(first, end, source.path)
    finally:
        body.close()


async def _get(fs: Any, source: PathSource, asked: str | None) -> dict[str, Any]:
    """Ask for a range, or for all; of the version that is read."""
    bucket, key, version = fs.split_path(source.path)
    version = source.options.get("version_id") or version
    conditions = {} if version is None else {"VersionId": version}
    if asked is not None:
        conditions["Range"] = asked
    if source.condition:
        conditions["IfMatch"] = source.condition
    try:
        return await _call(fs, "get_object", Bucket=bucket, Key=key, **conditions)
    except (FileNotFoundError, PermissionError) as error:
        if error.errno is not None:
            raise
        # The store's words do not name the object (I10).
        code = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EACCES
        raise type(error)(code, str(error), source.path) from error.__cause__
    except OSError as error:
        if source.etag and status_of(error) == PRECONDITION_FAILED:
            found = await _version_now(fs, bucket, key)
            raise ObjectChangedError(source.path, source.etag, found) from error
        raise


async def _call(fs: Any, name: str, **arguments: Any) -> dict[str, Any]:
    """Call the client with s3fs's options and errors, and without its pause after each error."""
    await fs.set_session()
    client = await fs.get_s3(arguments["Bucket"])
    arguments = fs._get_s3_method_kwargs(getattr(client, name), **arguments)  # noqa: SLF001
    try:
        answer: dict[str, Any] = await getattr(client, name)(**arguments)
    except Exception as error:
        from s3fs.errors import translate_boto_error  # noqa: PLC0415

        translated = translate_boto_error(error)
        if translated is error:
            raise
        try:
            raise translated from error
        finally:
            del translated  # its traceback has this frame: together they would wait for a collection
    return answer


async def _version_now(fs: Any, bucket: str, key: str) -> str:
    try:
        answer = await _call(fs, "head_object", Bucket=bucket, Key=key)
    except Exception as error:  # noqa: BLE001 - only for the message
        return f"unknown ({type(error).__name__})"
    return str(answer.get("ETag", "unknown"))


def _check_answer(source: PathSource, answer: dict[str, Any], *, is_part: bool) -> Part | None:
    """Check that the answer is of the version that is read, and of a part where one was asked for.

    Returns which part it says it is.
    """
    source.meet(answer.get("ETag"))
    if is_part and answer["ResponseMetadata"]["HTTPStatusCode"] != _PARTIAL_CONTENT:
        raise OSError(errno.EIO, "the store ignored the range and sent the whole object", source.path)
    return part_of(answer.get("ContentRange"))
