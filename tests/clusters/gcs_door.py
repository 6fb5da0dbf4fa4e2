"""The XML side of Google Cloud Storage's API, in front of fake-gcs-server, which lacks most of it.

The `object_store` crate speaks XML alone. fake-gcs-server refuses its PUTs and ignores
preconditions and pages of lists; those are done here on its JSON side. Reads, deletes and all of
the JSON API are handed on as they are.
"""

from __future__ import annotations

import argparse
import email.utils
import http.client
import json
import threading
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

CONDITION = "x-goog-if-generation-match"
METADATA = "x-goog-meta-"
KEPT_HEADERS = (
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-type",
)
PAGE = 1000
HOP_BY_HOP = {"host", "connection", "transfer-encoding", "keep-alive", "date", "server"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""


class Refused(Exception):
    """The request ends with this answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        text = f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        self.answer = Answer(status, {"Content-Type": "application/xml"}, text.encode())


class Backend:
    """fake-gcs-server's JSON side."""

    def __init__(self, port: int) -> None:
        self._port = port

    def request(
        self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return Answer(
                response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
            )
        finally:
            connection.close()

    def generation(self, bucket: str, key: str) -> int:
        """0: there is no such object."""
        found = self.request("GET", object_path(bucket, key))
        return int(json.loads(found.body)["generation"]) if found.status == 200 else 0

    def store(self, bucket: str, resource: dict[str, Any], content: bytes) -> dict[str, Any]:
        boundary = uuid.uuid4().hex
        kind = resource.get("contentType", "application/octet-stream")
        description = json.dumps(resource)
        parts = [
            f"--{boundary}\r\nContent-Type: application/json\r\n\r\n{description}\r\n".encode(),
            f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode(),
            content,
            f"\r\n--{boundary}--".encode(),
        ]
        query = urlencode({"uploadType": "multipart", "name": resource["name"]})
        headers = {"Content-Type": f"multipart/related; boundary={boundary}"}
        path = f"/upload/storage/v1/b/{quote(bucket)}/o?{query}"
        return expect_json(self.request("POST", path, headers, b"".join(parts)))

    def copy(self, source: tuple[str, str], target: tuple[str, str]) -> dict[str, Any]:
        path = f"{object_path(*source)}/rewriteTo{object_path(*target).removeprefix('/storage/v1')}"
        resource: dict[str, Any] = expect_json(self.request("POST", path))["resource"]
        return resource

    def list(self, bucket: str, **query: str) -> dict[str, Any]:
        return expect_json(
            self.request("GET", f"/storage/v1/b/{quote(bucket)}/o?{urlencode(query)}")
        )


def object_path(bucket: str, key: str) -> str:
    return f"/storage/v1/b/{quote(bucket)}/o/{quote(key, safe='')}"


def expect_json(answer: Answer) -> dict[str, Any]:
    if answer.status == 404:
        raise Refused(404, "NoSuchKey", "the bucket or the object does not exist")
    if answer.status >= 400:
        raise Refused(answer.status, "InvalidRequest", answer.body.decode(errors="replace"))
    found: dict[str, Any] = json.loads(answer.body)
    return found


class Door:
    """What an XML request means; one lock makes a condition and the write after it one step."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._writing = threading.Lock()
        self._uploads: dict[str, tuple[dict[str, Any], dict[int, bytes]]] = {}

    def put(self, bucket: str, key: str, headers: dict[str, str], content: bytes) -> Answer:
        with self._writing:
            self._check_condition(bucket, key, headers)
            if source := headers.get("x-goog-copy-source"):
                from_bucket, from_key = unquote(source).lstrip("/").split("/", 1)
                stored = self._backend.copy((from_bucket, from_key), (bucket, key))
            else:
                stored = self._backend.store(bucket, resource_of(key, headers), content)
        return Answer(200, written_headers(stored))

    def _check_condition(self, bucket: str, key: str, headers: dict[str, str]) -> None:
        wanted = headers.get(CONDITION)
        if wanted is not None and int(wanted) != self._backend.generation(bucket, key):
            raise Refused(412, "PreconditionFailed", "the object's generation is another one")

    def begin_upload(self, bucket: str, key: str, headers: dict[str, str]) -> Answer:
        upload = uuid.uuid4().hex
        self._uploads[upload] = (resource_of(key, headers), {})
        return xml(
            f"<InitiateMultipartUploadResult><Bucket>{escape(bucket)}</Bucket><Key>{escape(key)}</Key>"
            f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        )

    def put_part(self, upload: str, number: int, content: bytes) -> Answer:
        self._parts(upload)[number] = content
        return Answer(200, {"ETag": f'"{upload}-{number}"'})

    def finish_upload(self, upload: str, bucket: str, key: str, body: bytes) -> Answer:
        parts = self._parts(upload)
        numbers = [
            int(e.text or 0)
            for e in ElementTree.fromstring(body).iter()
            if e.tag.endswith("PartNumber")
        ]
        if not set(numbers) <= set(parts):
            raise Refused(400, "InvalidPart", "a part that is named was never uploaded")
        content = b"".join(parts[number] for number in numbers)
        with self._writing:
            stored = self._backend.store(bucket, self._uploads[upload][0], content)
        del self._uploads[upload]
        tag = escape(f'"{stored["etag"]}"')
        answer = xml(
            f"<CompleteMultipartUploadResult><ETag>{tag}</ETag></CompleteMultipartUploadResult>"
        )
        answer.headers["x-goog-generation"] = stored["generation"]
        return answer

    def abort_upload(self, upload: str) -> Answer:
        self._parts(upload)
        del self._uploads[upload]
        return Answer(204, {})

    def _parts(self, upload: str) -> dict[int, bytes]:
        if upload not in self._uploads:
            raise Refused(404, "NoSuchUpload", "there is no such upload")
        return self._uploads[upload][1]

    def list(self, bucket: str, query: dict[str, str]) -> Answer:
        """A page; the token is the last name of the page before."""
        wanted = {k: query[k] for k in ("prefix", "delimiter") if query.get(k)}
        found = self._backend.list(bucket, **wanted)
        after = max(query.get("start-after", ""), query.get("continuation-token", ""))
        entries = [(item["name"], item) for item in found.get("items", [])]
        entries += [(prefix, None) for prefix in found.get("prefixes", [])]
        # A prefix goes on while names below it may still come after `after`.
        rest = sorted((e for e in entries if e[0] > after), key=lambda entry: entry[0])
        size = int(query.get("max-keys") or PAGE)
        return list_answer(bucket, rest[:size], more=len(rest) > size)


def resource_of(key: str, headers: dict[str, str]) -> dict[str, Any]:
    resource: dict[str, Any] = {"name": key}
    for header in KEPT_HEADERS:
        if header in headers:
            first, *others = header.split("-")
            resource[first + "".join(word.title() for word in others)] = headers[header]
    metadata = {k.removeprefix(METADATA): v for k, v in headers.items() if k.startswith(METADATA)}
    return resource | ({"metadata": metadata} if metadata else {})


def written_headers(stored: dict[str, Any]) -> dict[str, str]:
    return {"ETag": f'"{stored["etag"]}"', "x-goog-generation": str(stored["generation"])}


def xml(text: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode()
    return Answer(200, {"Content-Type": "application/xml"}, body)


def list_answer(
    bucket: str, entries: list[tuple[str, dict[str, Any] | None]], *, more: bool
) -> Answer:
    parts = [f"<ListBucketResult><Name>{escape(bucket)}</Name><KeyCount>{len(entries)}</KeyCount>"]
    if more:
        parts.append(f"<NextContinuationToken>{escape(entries[-1][0])}</NextContinuationToken>")
    parts.append(f"<IsTruncated>{str(more).lower()}</IsTruncated>")
    for name, item in entries:
        if item is None:
            parts.append(f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>")
            continue
        tag = escape(f'"{item["etag"]}"')
        parts.append(
            f"<Contents><Key>{escape(name)}</Key><Generation>{item['generation']}</Generation>"
            f"<LastModified>{item['updated']}</LastModified><ETag>{tag}</ETag><Size>{item['size']}</Size></Contents>"
        )
    return xml("".join(parts) + "</ListBucketResult>")


def unless_conditions_forbid(answer: Answer, asked: dict[str, str]) -> Answer:
    """A read's answer, or 304 or 412, which fake-gcs-server never says."""
    if answer.status >= 300:
        return answer
    tag, modified = answer.headers.get("etag", ""), answer.headers.get("last-modified", "")
    if "if-match" in asked and not tag_matches(asked["if-match"], tag):
        raise Refused(412, "PreconditionFailed", "the object's ETag is another one")
    if "if-unmodified-since" in asked and seconds(modified) > seconds(asked["if-unmodified-since"]):
        raise Refused(412, "PreconditionFailed", "the object was changed later")
    if "if-none-match" in asked:
        return Answer(304, {"ETag": tag}) if tag_matches(asked["if-none-match"], tag) else answer
    if "if-modified-since" in asked and seconds(modified) <= seconds(asked["if-modified-since"]):
        return Answer(304, {"ETag": tag})
    return answer


def tag_matches(wanted: str, tag: str) -> bool:
    return wanted.strip() == "*" or tag.strip('"') in {
        w.strip().strip('"') for w in wanted.split(",")
    }


def seconds(date: str) -> float:
    return email.utils.parsedate_to_datetime(date).timestamp()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    backend: Backend
    door: Door

    def handle_any(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = {k.lower(): v for k, v in self.headers.items()}
        try:
            answer = self.answer(asked, content)
        except Refused as refused:
            answer = refused.answer
        self.reply(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = handle_any

    def answer(self, asked: dict[str, str], content: bytes) -> Answer:
        address = urlsplit(self.path)
        query = {k: v[-1] for k, v in parse_qs(address.query, keep_blank_values=True).items()}
        first, _, rest = address.path.lstrip("/").partition("/")
        if first in ("storage", "upload", "download", "batch", "_internal", "b") or not first:
            return self.hand_on(asked, content)
        bucket, key = unquote(first), unquote(rest)
        if not key and self.command == "GET":
            return self.door.list(bucket, query)
        if key and self.command in ("PUT", "POST", "DELETE"):
            return self.write(bucket, key, query, asked, content)
        return unless_conditions_forbid(self.hand_on(asked, content), asked)

    def write(
        self, bucket: str, key: str, query: dict[str, str], asked: dict[str, str], content: bytes
    ) -> Answer:
        upload = query.get("uploadId")
        match (self.command, upload):
            case ("PUT", None):
                return self.door.put(bucket, key, asked, content)
            case ("PUT", str(upload)):
                return self.door.put_part(upload, int(query["partNumber"]), content)
            case ("POST", str(upload)):
                return self.door.finish_upload(upload, bucket, key, content)
            case ("DELETE", str(upload)):
                return self.door.abort_upload(upload)
        if self.command == "POST" and "uploads" in query:
            return self.door.begin_upload(bucket, key, asked)
        return self.hand_on(asked, content)

    def hand_on(self, asked: dict[str, str], content: bytes) -> Answer:
        headers = {
            k: v for k, v in asked.items() if k not in HOP_BY_HOP and not k.startswith("if-")
        }
        return self.backend.request(self.command, self.path, headers, content)

    def reply(self, answer: Answer) -> None:
        self.send_response(answer.status)
        length = str(len(answer.body))
        for name, value in answer.headers.items():
            if name.lower() == "content-length":
                length = value  # of a HEAD: the object's
            elif name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        if answer.status not in (204, 304):
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Silent: a line per request would fill the disk."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--backend-port", type=int, required=True)
    options = parser.parse_args()
    Handler.backend = Backend(options.backend_port)
    Handler.door = Door(Handler.backend)
    server = ThreadingHTTPServer(("0.0.0.0", options.port), Handler)
    server.daemon_threads = True
    server.serve_forever()


if __name__ == "__main__":
    main()
