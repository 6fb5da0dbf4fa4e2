"""The version of this package, asked for only when somebody wants to know."""

from __future__ import annotations


def _version() -> str:
    try:
        from metaflow import _native
    except ImportError:
        # A source tree whose extension is not built: the distribution's own record.
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ferroflow")
        except PackageNotFoundError:
            return "unknown"
    return str(_native.version())


__version__ = _version()
