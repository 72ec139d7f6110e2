"""The dialect of `ObjectServer`, as four clients understand it: http.client, s3fs, pyarrow and obstore."""

from __future__ import annotations

import http.client
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import botocore.config
import botocore.session
import obstore
import pyarrow.fs
import pytest
import s3fs
from botocore.exceptions import ClientError
from obstore.store import S3Store

from headrace.testing import ObjectServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

DATA = bytes(range(256)) * 40
ODD_KEY = "a folder/ü+%&<b>.bin"
LARGE = bytes(range(251)) * 50_000
KEYS = ["a", "b/1", "b/2", "b/c/3", "b-c", ODD_KEY, "z"]


@dataclass(frozen=True)
class Said:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def xml(self) -> ET.Element:
        return ET.fromstring(self.body)  # noqa: S314 - our own server's

    def texts(self, name: str) -> list[str]:
        return [each.text or "" for each in self.xml.iter() if each.tag.endswith(name)]


def ask(
    server: ObjectServer,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> Said:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body=body, headers=dict(headers or {}))
        response = connection.getresponse()
        return Said(response.status, response.headers, response.read())
    finally:
        connection.close()


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    with ObjectServer() as server:
        server.put("bucket", "key", DATA)
        yield server


@pytest.fixture
def listed(server: ObjectServer) -> ObjectServer:
    for key in KEYS:
        server.put("listed", key, key.encode())
    return server


def s3fs_of(server: ObjectServer) -> s3fs.S3FileSystem:
    return s3fs.S3FileSystem(**server.storage_options(), skip_instance_cache=True)


def arrow_of(server: ObjectServer) -> pyarrow.fs.S3FileSystem:
    return pyarrow.fs.S3FileSystem(
        access_key="arrow-key", secret_key="secret", endpoint_override=server.url, region="us-east-1"
    )


def obstore_of(server: ObjectServer, bucket: str) -> S3Store:
    return S3Store(
        bucket,
        endpoint=server.url,
        access_key_id="obstore-key",
        secret_access_key="secret",
        region="us-east-1",
        client_options={"allow_http": True},
    )


# One object


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-9", 0, 10),
        ("bytes=100-", 100, len(DATA)),
        ("bytes=-7", len(DATA) - 7, len(DATA)),
        ("bytes=10000-99999", 10_000, len(DATA)),
        (f"bytes={len(DATA) - 1}-{len(DATA) - 1}", len(DATA) - 1, len(DATA)),
    ],
)
def test_a_range_is_answered_with_its_bytes(server: ObjectServer, header: str, start: int, end: int):
    said = ask(server, "GET", "/bucket/key", {"Range": header})
    assert (said.status, said.body) == (206, DATA[start:end])
    assert said.headers["Content-Range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
    assert said.headers["Content-Length"] == str(end - start)


@pytest.mark.parametrize("header", ["bytes=5-4", "bytes=-", "lines=1-2", "bytes=1-2,5-6", "bytes=x-3"])
def test_a_range_that_means_nothing_is_ignored(server: ObjectServer, header: str):
    said = ask(server, "GET", "/bucket/key", {"Range": header})
    assert (said.status, said.body) == (200, DATA)


@pytest.mark.parametrize("header", [f"bytes={len(DATA)}-", "bytes=-0", "bytes=999999-9999999"])
def test_a_range_past_the_end_is_an_error(server: ObjectServer, header: str):
    said = ask(server, "GET", "/bucket/key", {"Range": header})
    assert said.status == 416
    assert said.headers["Content-Range"] == f"bytes */{len(DATA)}"
    assert said.texts("Code") == ["InvalidRange"]


def test_head_says_what_get_would_without_the_body(server: ObjectServer):
    head, got = (ask(server, method, "/bucket/key") for method in ("HEAD", "GET"))
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "ETag", "Last-Modified", "Accept-Ranges", "Content-Type"):
        assert head.headers[name] == got.headers[name]
    assert head.headers["Accept-Ranges"] == "bytes"
    assert head.headers["ETag"] == server.put("bucket", "same", DATA)


def test_conditions_name_a_version(server: ObjectServer):
    old = ask(server, "HEAD", "/bucket/key").headers["ETag"]
    assert ask(server, "GET", "/bucket/key", {"If-Match": old}).status == 200
    assert ask(server, "GET", "/bucket/key", {"If-None-Match": old}).status == 304
    new = server.replace("bucket", "key", DATA[::-1])
    assert new != old
    for method in ("HEAD", "GET"):
        assert ask(server, method, "/bucket/key", {"If-Match": old, "Range": "bytes=0-1"}).status == 412
    assert ask(server, "GET", "/bucket/key", {"If-Match": old}).texts("Code") == ["PreconditionFailed"]
    assert ask(server, "GET", "/bucket/key", {"If-Match": new}).body == DATA[::-1]
    with pytest.raises(KeyError):
        server.replace("bucket", "none", b"")


def test_a_range_of_another_version_means_the_whole(server: ObjectServer):
    etag = server.put("bucket", "key", DATA)
    date = ask(server, "HEAD", "/bucket/key").headers["Last-Modified"]
    for condition in (etag, date):
        of_it = {"If-Range": condition, "Range": "bytes=0-1"}
        assert ask(server, "GET", "/bucket/key", of_it).body == DATA[:2]
    for condition in (f"W/{etag}", '"another"', "Thu, 01 Jan 1970 00:00:00 GMT"):
        of_another = {"If-Range": condition, "Range": "bytes=0-1"}
        said = ask(server, "GET", "/bucket/key", of_another)
        assert (said.status, said.body) == (200, DATA)


def test_another_version_is_put_only_where_there_is_one(server: ObjectServer):
    etag = server.put("bucket", "key", DATA)
    assert ask(server, "PUT", "/bucket/none", {"If-Match": etag}, b"new").texts("Code") == ["NoSuchKey"]
    assert ask(server, "PUT", "/bucket/key", {"If-Match": '"another"'}, b"new").status == 412
    assert ask(server, "PUT", "/bucket/key", {"If-Match": etag}, b"new").status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/bucket/none", 404, "NoSuchKey"),
        ("GET", "/none/key", 404, "NoSuchBucket"),
        ("GET", "/none?list-type=2", 404, "NoSuchBucket"),
        ("GET", "/bucket/key?acl", 501, "NotImplemented"),
        ("GET", "/bucket?versions", 501, "NotImplemented"),
        ("GET", "/bucket?list-type=2&max-keys=many", 400, "InvalidArgument"),
        ("GET", "/bucket?list-type=2&continuation-token=%C3%BC", 400, "InvalidArgument"),
        ("POST", "/bucket?delete", 400, "MalformedXML"),
        ("PUT", "/bucket/key?partNumber=1&uploadId=none", 404, "NoSuchUpload"),
    ],
)
def test_errors_are_in_the_dialect(server: ObjectServer, method: str, path: str, status: int, code: str):
    said = ask(server, method, path)
    assert (said.status, said.texts("Code")) == (status, [code])
    assert said.texts("RequestId") == [said.headers["x-amz-request-id"]]
    assert said.texts("Message") != [""]


def test_a_connection_is_kept(server: ObjectServer):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for path in ("/bucket/key", "/bucket/none", "/bucket/key"):
        connection.request("GET", path)
        connection.getresponse().read()
    assert (server.connections_made, server.open_connections) == (1, 1)
    assert len({each.client_port for each in server.requests}) == 1
    connection.close()


def test_a_folder_is_served_from_disk(server: ObjectServer, tmp_path: Path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "file.bin").write_bytes(DATA)
    server.put_folder("disk", tmp_path)
    said = ask(server, "GET", "/disk/deep/file.bin", {"Range": "bytes=5-99"})
    assert (said.status, said.body) == (206, DATA[5:100])
    assert s3fs_of(server).find("disk") == ["disk/deep/file.bin"]
    assert server.read("disk", "deep/file.bin") == DATA


# Writes


def test_put_stores_what_was_sent(server: ObjectServer):
    said = ask(server, "PUT", "/bucket/new%20key", body=b"12345")
    assert (said.status, said.headers["ETag"]) == (200, server.put("bucket", "same", b"12345"))
    assert server.read("bucket", "new key") == b"12345"
    assert ask(server, "PUT", "/none/key", body=b"1").status == 404
    only_new = {"If-None-Match": "*"}
    assert ask(server, "PUT", "/bucket/new%20key", only_new, b"other").status == 412
    assert server.read("bucket", "new key") == b"12345"


def test_put_takes_a_body_signed_in_pieces(server: ObjectServer):
    framed = b"5;chunk-signature=ab\r\nhello\r\n6\r\n world\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n"
    headers = {
        "x-amz-content-sha256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
        "Content-Encoding": "aws-chunked",
    }
    assert ask(server, "PUT", "/bucket/key", headers, framed).status == 200
    assert server.read("bucket", "key") == b"hello world"


def test_a_copy_is_refused_rather_than_taken_for_an_empty_object(server: ObjectServer):
    assert ask(server, "PUT", "/bucket/copy", {"x-amz-copy-source": "/bucket/key"}).status == 501
    with pytest.raises(KeyError):
        server.read("bucket", "copy")


def test_delete_removes(server: ObjectServer):
    assert ask(server, "DELETE", "/bucket/key").status == 204
    assert ask(server, "GET", "/bucket/key").status == 404
    assert ask(server, "DELETE", "/bucket/key").status == 204


# Lists


def test_a_list_comes_in_pages_without_gaps_or_repeats(listed: ObjectServer):
    for delimiter, expected in (("", sorted(KEYS)), ("/", ["a", "a folder/", "b-c", "b/", "z"])):
        found, token = [], ""
        while True:
            query = f"list-type=2&max-keys=2&delimiter={delimiter}{token}"
            said = ask(listed, "GET", f"/listed?{query}")
            page = [each for each in said.xml if each.tag.endswith(("Contents", "CommonPrefixes"))]
            found += [each[0].text for each in page]
            assert said.texts("KeyCount") == [str(len(page))]
            if said.texts("IsTruncated") == ["false"]:
                break
            assert len(page) == 2
            token = "&continuation-token=" + said.texts("NextContinuationToken")[0]
        assert sorted(found) == sorted(expected)
        assert len(found) == len(set(found))


def test_a_list_starts_after_a_key_and_under_a_prefix(listed: ObjectServer):
    assert ask(listed, "GET", "/listed?list-type=2&start-after=b/1&prefix=b/").texts("Key") == [
        "b/2",
        "b/c/3",
    ]
    said = ask(listed, "GET", "/listed?list-type=2&prefix=b/&delimiter=/&start-after=b/c/0")
    assert said.texts("Prefix") == ["b/", "b/c/"]
    assert said.texts("Key") == []
    assert ask(listed, "GET", "/listed?list-type=2&max-keys=0").texts("IsTruncated") == ["false"]


def test_a_list_is_encoded_if_asked(listed: ObjectServer):
    plain = ask(listed, "GET", "/listed?list-type=2&prefix=a%20")
    encoded = ask(listed, "GET", "/listed?list-type=2&prefix=a%20&encoding-type=url")
    assert plain.texts("Key") == [ODD_KEY]
    assert encoded.texts("Key") == ["a%20folder/%C3%BC%2B%25%26%3Cb%3E.bin"]


# Other clients


def test_s3fs_lists_reads_and_writes(listed: ObjectServer):
    fs = s3fs_of(listed)
    assert fs.find("listed") == [f"listed/{key}" for key in sorted(KEYS)]
    assert sorted(fs.ls("listed", detail=False)) == [
        f"listed/{name}" for name in ("a", "a folder", "b", "b-c", "z")
    ]
    assert sorted(fs.ls("")) == ["bucket", "listed"]
    assert fs.info(f"listed/{ODD_KEY}")["size"] == len(ODD_KEY.encode())
    assert fs.cat_file("bucket/key", start=5, end=50) == DATA[5:50]
    fs.pipe_file("listed/new", b"new")
    with fs.open("listed/large", "wb", block_size=5 << 20) as file:
        file.write(LARGE)
    assert (listed.read("listed", "new"), listed.read("listed", "large")) == (b"new", LARGE)
    fs.rm("listed/b", recursive=True)
    assert fs.find("listed/b") == []
    fs.mkdir("made")
    assert fs.exists("made")


def test_s3fs_lists_more_than_a_page(server: ObjectServer):
    keys = [f"part={n % 7}/{n:05}" for n in range(2_300)]
    for key in keys:
        server.put("many", key, b"")
    fs = s3fs_of(server)
    assert fs.find("many") == sorted(f"many/{key}" for key in keys)
    assert len(fs.ls("many")) == 7


def test_pyarrow_lists_reads_and_writes(listed: ObjectServer):
    fs = arrow_of(listed)
    found = fs.get_file_info(pyarrow.fs.FileSelector("listed", recursive=True))
    assert sorted(each.path for each in found if each.is_file) == [f"listed/{key}" for key in sorted(KEYS)]
    assert fs.get_file_info("listed/b").type == pyarrow.fs.FileType.Directory
    assert fs.get_file_info("listed/none").type == pyarrow.fs.FileType.NotFound
    with fs.open_input_file("bucket/key") as file:
        assert file.read_at(45, 5) == DATA[5:50]
    with fs.open_output_stream("listed/large") as stream:
        stream.write(LARGE)
    assert listed.read("listed", "large") == LARGE


def test_obstore_lists_reads_and_writes(listed: ObjectServer):
    store = obstore_of(listed, "listed")
    assert sorted(meta["path"] for page in obstore.list(store) for meta in page) == sorted(KEYS)
    assert sorted(obstore.list_with_delimiter(store)["common_prefixes"]) == ["a folder", "b"]
    assert bytes(obstore.get_range(store, ODD_KEY, start=2, end=8)) == ODD_KEY.encode()[2:8]
    obstore.put(store, "large", LARGE, use_multipart=True, chunk_size=5 << 20)
    assert listed.read("listed", "large") == LARGE
    parts = obstore.get_ranges(store, "large", starts=[0, 1_000_000], ends=[10, 1_000_010], coalesce=0)
    assert [bytes(part) for part in parts] == [LARGE[:10], LARGE[1_000_000:1_000_010]]
    old = obstore.head(store, "a")["e_tag"]
    listed.replace("listed", "a", b"other")
    with pytest.raises(obstore.exceptions.PreconditionError):
        obstore.get(store, "a", options={"if_match": old})


def test_an_upload_that_is_given_up_leaves_nothing(server: ObjectServer):
    begun = ask(server, "POST", "/bucket/up?uploads").texts("UploadId")[0]
    assert ask(server, "PUT", f"/bucket/up?partNumber=1&uploadId={begun}", body=b"1").status == 200
    missing = b"<CompleteMultipartUpload><Part><PartNumber>2</PartNumber></Part></CompleteMultipartUpload>"
    refused = ask(server, "POST", f"/bucket/up?uploadId={begun}", body=missing)
    assert (refused.status, refused.texts("Code")) == (400, ["InvalidPart"])
    assert ask(server, "DELETE", f"/bucket/up?uploadId={begun}").status == 204
    assert ask(server, "DELETE", f"/bucket/up?uploadId={begun}").status == 404
    assert ask(server, "GET", "/bucket/up").status == 404


# Who asks


def test_only_known_keys_that_have_not_expired_may_ask():
    with ObjectServer(access_key_ids=["known"]) as server:
        server.put("bucket", "key", DATA)
        assert code_of(server, "known") is None
        assert code_of(server, "other") == (403, "InvalidAccessKeyId")
        server.expire("known")
        assert code_of(server, "known") == (400, "ExpiredToken")
        server.expire("known", status=403)
        assert code_of(server, "known") == (403, "ExpiredToken")
        server.renew("known")
        assert code_of(server, "known") is None
        unsigned = ask(server, "GET", "/bucket/key")
        assert (unsigned.status, unsigned.texts("Code")) == (403, ["AccessDenied"])
        asked_by = [each.access_key_id for each in server.requests]
    assert asked_by == ["known", "other", "known", "known", "known", None]


def code_of(server: ObjectServer, access_key_id: str) -> tuple[int, str] | None:
    """Return what botocore makes of the answer to a GET; None if it is the object."""
    client = botocore.session.Session().create_client(
        "s3",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id=access_key_id,
        aws_secret_access_key="secret",
        config=botocore.config.Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )
    try:
        assert client.get_object(Bucket="bucket", Key="key")["Body"].read() == DATA
    except ClientError as error:
        response = error.response
        return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]
    else:
        return None
    finally:
        client.close()


def test_each_client_is_known_by_its_key(server: ObjectServer):
    s3fs_of(server).cat_file("bucket/key")
    arrow_of(server).get_file_info("bucket/key")
    obstore.head(obstore_of(server, "bucket"), "key")
    ask(server, "GET", "/bucket/key?X-Amz-Credential=signed-url-key/20240101/us-east-1/s3/aws4_request")
    found = {each.access_key_id for each in server.requests}
    assert found == {"test-key", "arrow-key", "obstore-key", "signed-url-key"}
    assert "Signature" not in repr(server.requests)
    assert "Signature" in server.requests[0].headers["Authorization"]


def test_conditions_on_a_date(server: ObjectServer):
    modified = parsedate_to_datetime(ask(server, "HEAD", "/bucket/key").headers["Last-Modified"])
    before, same = (format_datetime(modified - timedelta(seconds=s), usegmt=True) for s in (1, 0))

    def status(**headers: str) -> int:
        return ask(server, "GET", "/bucket/key", {k.replace("_", "-"): v for k, v in headers.items()}).status

    assert status(If_Modified_Since=before) == status(If_Unmodified_Since=same) == 200
    assert status(If_Modified_Since=same) == 304
    assert status(If_Unmodified_Since=before) == 412
    assert status(If_Modified_Since="yesterday") == 200, "no date is no condition"
    assert status(If_Match="*", If_Unmodified_Since=before) == 200, "a version goes before a date"


def test_parts_are_those_that_were_uploaded(server: ObjectServer):
    begun = ask(server, "POST", "/bucket/parts?uploads")
    (upload,) = begun.texts("UploadId")
    put = ask(server, "PUT", f"/bucket/parts?uploadId={upload}&partNumber=1", body=b"data")
    form = "<CompleteMultipartUpload>{}</CompleteMultipartUpload>"
    part = "<Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part>"
    for body, code in ((form.format(""), "MalformedXML"), (form.format(part.format("wrong")), "InvalidPart")):
        answer = ask(server, "POST", f"/bucket/parts?uploadId={upload}", body=body.encode())
        assert (answer.status, answer.texts("Code")) == (400, [code])
    right = form.format(part.format(put.headers["ETag"].replace('"', "&quot;")))
    assert ask(server, "POST", f"/bucket/parts?uploadId={upload}", body=right.encode()).status == 200
    assert ask(server, "GET", "/bucket/parts").body == b"data"
    assert ask(server, "GET", "/bucket/parts?partNumber=1").status == 501


def test_a_folder_that_is_not_there_is_an_error(server: ObjectServer, tmp_path: Path):
    with pytest.raises(NotADirectoryError, match="missing"):
        server.put_folder("bucket", tmp_path / "missing")
