"""What the `S3` client returns and takes, and its errors."""

from __future__ import annotations

import json
import os
from typing import Any, NamedTuple

from metaflow import exception
from metaflow._s3_address import Place

# All of a user's metadata in one header.
ATTRIBUTES_HEADER = "metaflow-user-attributes"
_CLASSES: dict[str, type[exception.MetaflowException]] = {
    "missing": exception.MetaflowS3NotFound,
    "denied": exception.MetaflowS3AccessDenied,
    "no bucket": exception.MetaflowS3URLException,
    "invalid range": exception.MetaflowS3InvalidRange,
    "disk full": exception.MetaflowS3InsufficientDiskSpace,
}


class S3GetObject(NamedTuple):
    """Part of an object: `length` bytes from `offset`; None is all, negative the last ones."""

    key: str
    offset: int
    length: int | None


class S3PutObject(NamedTuple):
    """An upload with its content type and metadata."""

    key: str
    value: Any = None
    path: str | None = None
    content_type: str | None = None
    encryption: str | None = None
    metadata: dict[str, str] | None = None


class RangeInfo(NamedTuple):
    """The part of an object that was downloaded."""

    total_size: int
    request_offset: int
    request_length: int


class S3Object:
    """An object or prefix of S3; `path`, `blob` and `text` are there once it was downloaded."""

    def __init__(self, place: Place, **known: Any) -> None:
        self._place = place
        self._path: str | None = known.get("path")
        self._exists: bool = known.get("exists", True)
        self._size: int | None = known.get("size")
        self._modified: float | None = known.get("modified")
        self._info: bool = known.get("info", False)
        self._content_type: str | None = known.get("content_type")
        self._metadata: dict[str, str] | None = known.get("metadata")
        self._encryption: str | None = known.get("encryption")
        self._range: RangeInfo | None = known.get("range_info")

    @classmethod
    def missing(cls, place: Place) -> S3Object:
        return cls(place, exists=False)

    @classmethod
    def listed(cls, place: Place, size: int | None, modified: int | None) -> S3Object:
        seconds = modified / 1000 if modified is not None else None
        return cls(place, exists=size is not None, size=size, modified=seconds)

    @classmethod
    def known(cls, place: Place, answer: Any, **more: Any) -> S3Object:
        size, modified, content_type, metadata, _first, _length, encryption = answer
        return cls(
            place,
            size=size,
            modified=modified / 1000,
            info=True,
            content_type=content_type,
            metadata=_metadata(metadata),
            encryption=encryption,
            **more,
        )

    @classmethod
    def downloaded_to(cls, place: Place, file: str, answer: Any, with_info: bool) -> S3Object:
        size, _modified, _content_type, _metadata, first, length, _encryption = answer
        part = RangeInfo(size, first, length)
        if with_info:
            return cls.known(place, answer, path=file, range_info=part)
        return cls(place, path=file, size=size, range_info=part)

    @property
    def exists(self) -> bool:
        """Whether there is such an object; False for prefixes."""
        return self._exists

    @property
    def downloaded(self) -> bool:
        return self._path is not None

    @property
    def url(self) -> str:
        return self._place.url

    @property
    def prefix(self) -> str | None:
        """The address of the prefix the object was asked for under; None for a whole address."""
        return self._place.prefix

    @property
    def key(self) -> str:
        """The name below `prefix`, or the whole address when there is none."""
        prefix = self._place.prefix
        if prefix is None:
            return self.url
        key = self.url.removeprefix(prefix).removeprefix("/")
        return key if self._exists else key.removesuffix("/")

    @property
    def path(self) -> str | None:
        """The file it was downloaded to."""
        return self._path

    @property
    def blob(self) -> bytes | None:
        if self._path is None:
            return None
        with open(self._path, "rb") as file:
            return file.read()

    @property
    def text(self) -> str | None:
        blob = self.blob
        return None if blob is None else blob.decode("utf-8", errors="replace")

    @property
    def size(self) -> int | None:
        """Bytes of what was downloaded, else of the object."""
        return self._size if self._path is None else os.stat(self._path).st_size

    @property
    def has_info(self) -> bool:
        return self._info

    @property
    def metadata(self) -> dict[str, str] | None:
        return self._metadata

    @property
    def content_type(self) -> str | None:
        return self._content_type

    @property
    def encryption(self) -> str | None:
        """How S3 keeps it (`AES256`, `aws:kms`); None where it was not told."""
        return self._encryption

    @property
    def range_info(self) -> RangeInfo | None:
        return self._range

    @property
    def last_modified(self) -> float | None:
        """Seconds since the epoch."""
        return self._modified

    def __repr__(self) -> str:
        state = "" if self._exists else " (does not exist)"
        return f"<S3Object {self.url}{state}>"

    __str__ = __repr__


def _metadata(pairs: list[tuple[str, str]]) -> dict[str, str] | None:
    for name, value in pairs:
        if name == ATTRIBUTES_HEADER:
            found: dict[str, str] = json.loads(value)
            return found
    return None


def metadata_header(metadata: dict[str, str] | None) -> list[tuple[str, str]]:
    """A user's metadata as the headers of an upload."""
    return [(ATTRIBUTES_HEADER, json.dumps(metadata))] if metadata else []


def bytes_of(value: Any) -> bytes:
    """What is uploaded for a value: text as UTF-8, bytes, or what a binary file object has."""
    if isinstance(value, str):
        return value.encode("utf-8")
    if isinstance(value, bytes):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if hasattr(value, "read") and hasattr(value, "seek"):
        if not _can(value, "readable") or not _can(value, "seekable"):
            raise exception.MetaflowS3InvalidObject(
                "a file that is put must be readable and seekable: open it with mode 'rb'"
            )
        value.seek(0)
        content = value.read()
        if isinstance(content, bytes):
            return content
    raise exception.MetaflowS3InvalidObject(
        f"a value of type {type(value).__name__} cannot be put: give text, bytes or a file "
        "opened in binary mode"
    )


def _can(value: Any, what: str) -> bool:
    able = getattr(value, what, None)
    return able is None or bool(able())


def problem_error(url: str, problem: tuple[str, str]) -> exception.MetaflowException:
    """The exception for what the native client tells."""
    kind, text = problem
    error = _CLASSES.get(kind, exception.MetaflowS3Exception)
    return error(text if url in text else f"{text} (`{url}`)")
