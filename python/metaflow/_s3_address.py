"""Where the keys of an `S3` client are: a whole `s3://` address, or a name below a prefix."""

from __future__ import annotations

from typing import Any, NamedTuple

from metaflow._client_settings import configured
from metaflow.exception import MetaflowS3URLException


class Place(NamedTuple):
    """An object or a prefix: its bucket and key, and the prefix it was asked for under."""

    bucket: str
    key: str
    prefix: str | None

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def inside(self, key: str) -> Place:
        """Something found below this place; its own address is the prefix it is named by."""
        return Place(self.bucket, key, self.url.removesuffix("/"))


class Prefix(NamedTuple):
    """What relative keys are relative to; without a bucket only whole addresses will do."""

    bucket: str | None
    key: str

    @property
    def is_set(self) -> bool:
        return self.bucket is not None

    def locate(self, key: str | None, for_listing: bool = False) -> Place:
        """The place a user's key means."""
        if key is not None and not isinstance(key, str):
            raise MetaflowS3URLException(f"a key is text, not a {type(key).__name__}: {key!r}")
        if key is not None and key.startswith("s3://"):
            if self.is_set:
                raise MetaflowS3URLException(
                    f"`{key}` is a whole address, but this client has a prefix: give the key "
                    "below the prefix, or make the client with S3()"
                )
            bucket, path = split(key)
            return Place(bucket, path, None)
        if self.bucket is None:
            raise MetaflowS3URLException(_no_prefix(key))
        name = (key or "").lstrip("/")
        base = f"s3://{self.bucket}/{self.key}".rstrip("/")
        path = "/".join(part for part in (self.key, name) if part)
        if not path and not for_listing:
            raise MetaflowS3URLException("no key is given, and the prefix is a whole bucket")
        return Place(self.bucket, path, base)


def _no_prefix(key: str | None) -> str:
    from metaflow._current import current

    if key is None:
        return "no key is given, and this client has no prefix: give a whole address (s3://…)"
    within = "S3(run=self)" if current.is_running_flow else "S3(run=Run(…))"
    return (
        f"`{key}` is not a whole address: give one that begins with s3://, or make the client with "
        f"a prefix, {within} or S3(s3root='s3://…')"
    )


def split(url: str) -> tuple[str, str]:
    """Bucket and key of an address."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    if not url.startswith("s3://") or not bucket:
        raise MetaflowS3URLException(f"`{url}` is not an address of S3: write s3://bucket/key")
    return bucket, key


def prefix_for(bucket: str | None, prefix: str | None, run: Any, s3root: str | None) -> Prefix:
    """The prefix that the client's arguments mean."""
    if run is not None:
        return _prefix_of_run(bucket, prefix, run)
    if s3root is not None:
        root_bucket, key = split(s3root)
        return Prefix(root_bucket, key.strip("/"))
    return Prefix(None, "")


def _prefix_of_run(bucket: str | None, prefix: str | None, run: Any) -> Prefix:
    flow, run_id = _flow_and_run(run)
    root = configured("METAFLOW_DATATOOLS_S3ROOT")
    if root is None:
        datastore = configured("METAFLOW_DATASTORE_SYSROOT_S3")
        root = f"{datastore.rstrip('/')}/data" if datastore else None
    if root is None and bucket is None:
        raise MetaflowS3URLException(
            "S3(run=…) needs to know where the data of runs is: set METAFLOW_DATATOOLS_S3ROOT"
        )
    root_bucket, root_key = split(root) if root is not None else (None, "")
    key = root_key if prefix is None else prefix
    parts = [key.strip("/"), flow, run_id]
    return Prefix(bucket or root_bucket, "/".join(part for part in parts if part))


def _flow_and_run(run: Any) -> tuple[str, str]:
    from metaflow._flow import FlowSpec

    if isinstance(run, FlowSpec):
        from metaflow._current import current

        if not current.is_running_flow:
            raise MetaflowS3URLException(
                "S3(run=self) works inside the steps of a running flow; "
                "elsewhere give S3(run=Run(…))"
            )
        return str(current.flow_name), str(current.run_id)
    flow, _, run_id = str(run.pathspec).partition("/")
    return flow, run_id
