"""The `S3` client: many objects of S3 at once, as local files.

Transfers are `metaflow._native.S3`'s; which addresses and values a user may give, and what is
returned for them, is decided here (`_s3_address`, `_s3_object`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from typing import Any

from metaflow import _native
from metaflow._client_settings import configured
from metaflow._s3_access import options_for
from metaflow._s3_address import Prefix, prefix_for
from metaflow._s3_object import (
    ATTRIBUTES_HEADER,
    S3GetObject,
    S3Object,
    S3PutObject,
    bytes_of,
    metadata_header,
    problem_error,
)
from metaflow._uncaught import hide_our_frames
from metaflow.exception import MetaflowS3URLException

hide_our_frames()


class S3:
    """Reads and writes objects of S3; a context manager that removes the files it downloaded.

    Args:
        tmproot: Folder for downloads, by default `METAFLOW_TEMPDIR` or the current one.
        bucket: With `run`: this bucket instead of the configured one.
        prefix: With `run`: this prefix instead of the configured one.
        run: A flow (`self`) or a `Run`: keys are below its own prefix.
        s3root: `s3://bucket/prefix`, below which keys are.
        encryption: Server-side encryption of what is put: `AES256` or `aws:kms`.
        role: ARN of a role to assume for all that this client does.
        session_vars: Of boto3's session: profile_name, region_name, keys.
        client_params: Of boto3's client: endpoint_url, region_name, verify, keys.
    """

    def __init__(
        self,
        tmproot: str | None = None,
        bucket: str | None = None,
        prefix: str | None = None,
        run: Any = None,
        s3root: str | None = None,
        encryption: str | None = None,
        **kwargs: Any,
    ) -> None:
        self._prefix: Prefix = prefix_for(bucket, prefix, run, s3root)
        self.encryption = encryption or configured("METAFLOW_S3_SERVER_SIDE_ENCRYPTION")
        options = options_for(kwargs, self.encryption)
        root = tmproot or configured("METAFLOW_TEMPDIR") or "."
        self._folder: str | None = tempfile.mkdtemp(dir=root, prefix="metaflow.s3.")
        self._native = _native.S3(options)
        self._count = 0

    def __enter__(self) -> S3:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes everything that was downloaded."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    # --- reading -----------------------------------------------------------------------------

    def get(
        self,
        key: str | S3GetObject | None = None,
        return_missing: bool = False,
        return_info: bool = True,
    ) -> S3Object:
        """Downloads one object; without a key, the one the prefix itself names."""
        return self._download([key], return_missing, return_info)[0]

    def get_many(
        self,
        keys: Iterable[str | S3GetObject],
        return_missing: bool = False,
        return_info: bool = True,
    ) -> list[S3Object]:
        """Downloads objects at once, in the order asked for."""
        return self._download(_several(keys), return_missing, return_info)

    def get_recursive(self, keys: Iterable[str], return_info: bool = False) -> list[S3Object]:
        """Downloads everything below the keys."""
        found = self.list_recursive(keys)
        return self._download_listed(found, return_info)

    def get_all(self, return_info: bool = False) -> list[S3Object]:
        """Downloads everything below the prefix."""
        if not self._prefix.is_set:
            raise MetaflowS3URLException(
                "get_all needs a prefix: make the client with S3(s3root=…) or S3(run=…)"
            )
        return self.get_recursive([""], return_info)

    def info(self, key: str | None = None, return_missing: bool = False) -> S3Object:
        """What is known of one object, without its content."""
        return self._ask([key], return_missing)[0]

    def info_many(self, keys: Iterable[str], return_missing: bool = False) -> list[S3Object]:
        """What is known of objects, without their content."""
        return self._ask(_several(keys), return_missing)

    def list_paths(self, keys: Iterable[str] | None = None) -> list[S3Object]:
        """The next level below the keys; of prefixes `exists` is False."""
        return self._list(keys, False)

    def list_recursive(self, keys: Iterable[str] | None = None) -> list[S3Object]:
        """All objects below the keys."""
        return self._list(keys, True)

    def _download(self, keys: list[Any], return_missing: bool, return_info: bool) -> list[S3Object]:
        if not keys:
            return []
        wanted = [_key_and_part(key) for key in keys]
        places = [self._prefix.locate(key) for key, _ in wanted]
        files = [self._new_file() for _ in places]
        answers = self._native.get(
            [
                (place.bucket, place.key, file, part)
                for place, file, (_, part) in zip(places, files, wanted, strict=True)
            ]
        )
        results = []
        for place, file, (answer, problem) in zip(places, files, answers, strict=True):
            if problem is not None:
                results.append(self._missing_or_raise(place, problem, return_missing))
            else:
                results.append(S3Object.downloaded_to(place, file, answer, return_info))
        return results

    def _download_listed(self, found: list[S3Object], return_info: bool) -> list[S3Object]:
        places = [each._place for each in found]
        files = [self._new_file() for _ in places]
        wanted = [(p.bucket, p.key, f, None) for p, f in zip(places, files, strict=True)]
        results = []
        for place, file, (answer, problem) in zip(
            places, files, self._native.get(wanted) if wanted else [], strict=True
        ):
            if problem is not None:
                raise problem_error(place.url, problem)
            results.append(S3Object.downloaded_to(place, file, answer, return_info))
        return results

    def _ask(self, keys: list[Any], return_missing: bool) -> list[S3Object]:
        if not keys:
            return []
        places = [self._prefix.locate(_key_and_part(key)[0]) for key in keys]
        answers = self._native.info([(place.bucket, place.key) for place in places])
        results = []
        for place, (answer, problem) in zip(places, answers, strict=True):
            if problem is not None:
                results.append(self._missing_or_raise(place, problem, return_missing))
            else:
                results.append(S3Object.known(place, answer))
        return results

    @staticmethod
    def _missing_or_raise(place: Any, problem: tuple[str, str], return_missing: bool) -> S3Object:
        if problem[0] == "missing" and return_missing:
            return S3Object.missing(place)
        raise problem_error(place.url, problem)

    def _list(self, keys: Iterable[str] | None, recursive: bool) -> list[S3Object]:
        asked = [None] if keys is None else _several(keys)
        if not asked:
            return []
        places = [self._prefix.locate(key, for_listing=True) for key in asked]
        answers = self._native.list([(place.bucket, place.key) for place in places], recursive)
        results = []
        for place, (answer, problem) in zip(places, answers, strict=True):
            if problem is not None:
                raise problem_error(place.url, problem)
            for key, size, modified in answer:
                results.append(S3Object.listed(place.inside(key), size, modified))
        return results

    def _new_file(self) -> str:
        if self._folder is None:
            raise MetaflowS3URLException("this S3 client is closed: make a new one")
        self._count += 1
        return os.path.join(self._folder, f"{self._count:06}")

    # --- writing -----------------------------------------------------------------------------

    def put(
        self,
        key: str | S3PutObject,
        obj: Any,
        overwrite: bool = True,
        content_type: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> str:
        """Uploads text, bytes or a binary file object; returns its address."""
        name, encryption = (
            (key.key, key.encryption) if isinstance(key, S3PutObject) else (key, None)
        )
        place = self._prefix.locate(name)
        source = (bytes_of(obj), None)
        self._upload([(place, source, content_type, metadata, encryption)], overwrite)
        return place.url

    def put_many(
        self, key_objs: Iterable[tuple[str, Any] | S3PutObject], overwrite: bool = True
    ) -> list[tuple[str, str]]:
        """Uploads at once; returns key and address of what was uploaded."""
        given = [_as_put(each) for each in key_objs]
        return self._put_all([(each, (bytes_of(each.value), None)) for each in given], overwrite)

    def put_files(
        self, key_paths: Iterable[tuple[str, str] | S3PutObject], overwrite: bool = True
    ) -> list[tuple[str, str]]:
        """Uploads files at once; returns key and address of what was uploaded."""
        given = [_as_put(each, "path") for each in key_paths]
        files = [(each, (None, os.fspath(each.path or each.value))) for each in given]
        return self._put_all(files, overwrite)

    def _put_all(self, given: list[tuple[S3PutObject, Any]], overwrite: bool) -> list[Any]:
        if not given:
            return []
        places = [self._prefix.locate(each.key) for each, _ in given]
        uploads = [
            (place, source, each.content_type, each.metadata, each.encryption)
            for place, (each, source) in zip(places, given, strict=True)
        ]
        uploaded = self._upload(uploads, overwrite)
        return [
            (each.key, place.url)
            for (each, _), place, done in zip(given, places, uploaded, strict=True)
            if done
        ]

    def _upload(self, uploads: list[tuple[Any, ...]], overwrite: bool) -> list[bool]:
        answers = self._native.put(
            [
                (place.bucket, place.key, source, kind, metadata_header(metadata), encryption)
                for place, source, kind, metadata, encryption in uploads
            ],
            overwrite,
        )
        results = []
        for (place, *_), (answer, problem) in zip(uploads, answers, strict=True):
            if problem is not None:
                raise problem_error(place.url, problem)
            results.append(bool(answer))
        return results


def _several(keys: Any) -> list[Any]:
    if isinstance(keys, (str, bytes, S3GetObject)):
        raise MetaflowS3URLException(f"a list of keys is needed here: write [{keys!r}]")
    return list(keys)


def _key_and_part(key: Any) -> tuple[str | None, tuple[int, int | None] | None]:
    if not isinstance(key, S3GetObject):
        return key, None
    if key.length is not None and key.length < 0:
        return key.key, (0, key.length)
    offset = key.offset or 0
    return key.key, None if offset == 0 and key.length is None else (offset, key.length)


def _as_put(given: Any, field: str = "value") -> S3PutObject:
    if isinstance(given, S3PutObject):
        return given
    key, value = given
    return S3PutObject(key, **{field: value})


__all__ = ["ATTRIBUTES_HEADER", "S3", "S3GetObject", "S3Object", "S3PutObject"]
