"""The code package that remote tasks of a run ran with, as the client shows it. How it is made is
`crates/compute/src/remote/package.rs`.
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import tarfile
    import tempfile
    from typing import Any

# Ours, beside the user's files.
_OUR_FOLDERS = (".mf_code", ".mf_meta")
_INFO = ".mf_meta/INFO"


class MetaflowCode:
    """The flow's files as they were when its tasks were sent away. Fetched when first looked at."""

    def __init__(self, location: str, described: dict[str, Any]) -> None:
        self._location = location
        self._described = described
        self._data: bytes | None = None

    def __repr__(self) -> str:
        return f"<MetaflowCode of {self.script_name} at {self.path}>"

    @property
    def path(self) -> str:
        """Where the package is in the datastore."""
        return str(self._described["location"])

    @property
    def script_name(self) -> str:
        """The flow file's name within the package."""
        return str(self._described["script"])

    @property
    def tarball(self) -> tarfile.TarFile:
        """The package itself."""
        import io
        import tarfile

        if self._data is None:
            self._data = self._fetched()
        return tarfile.open(fileobj=io.BytesIO(self._data), mode="r:gz")

    @property
    def info(self) -> dict[str, Any]:
        """What the package says of itself: user, platform, versions."""
        found: dict[str, Any] = json.loads(self._text_of(_INFO))
        return found

    @property
    def flowspec(self) -> str:
        """The text of the flow file."""
        return self._text_of(self.script_name)

    def extract(self) -> tempfile.TemporaryDirectory[str]:
        """A new folder with the user's files, which goes when the object does."""
        import tempfile

        folder = tempfile.TemporaryDirectory()
        with self.tarball as archive:
            theirs = [
                member
                for member in archive.getmembers()
                if member.name.split("/", 1)[0] not in _OUR_FOLDERS
            ]
            archive.extractall(folder.name, members=theirs, filter="data")
        return folder

    def _text_of(self, name: str) -> str:
        with self.tarball as archive:
            source = archive.extractfile(name)
            assert source is not None, "it is a file"
            return source.read().decode()

    def _fetched(self) -> bytes:
        from metaflow import _native
        from metaflow.exception import DataException, MetaflowDataMissing

        sha = self._described["sha"]
        try:
            data = _native.Objects(self._location).get(os.path.join("code", sha[:2], sha))
        except OSError as error:
            raise DataException(f"cannot read the code package `{self.path}`: {error}") from error
        if data is None:
            raise MetaflowDataMissing(f"the code package `{self.path}` is not there any more")
        return data
