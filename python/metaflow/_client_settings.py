"""Where the client looks and what it may see: configuration lookup, metadata provider, namespace.

The engine parses its own configuration in Rust (crates/cli/src/config.rs); this is the same lookup
for code that only reads results. Nothing here opens the store.
"""

import json
import os
from pathlib import Path
from typing import Any

LOCAL_FOLDER = ".metaflow"

_UNSET = object()
_namespace: object = _UNSET
_root: str | None = None
_task_root: str | None = None
_task_namespace: object = _UNSET
_task_store: dict[str, Any] | None = None


def configured(name: str) -> str | None:
    """Value of `METAFLOW_X`: environment, nearest `.metaflow/config.json`, the user's file."""
    value = os.environ.get(name)
    if value:
        return value
    for path in _configuration_files():
        found = _read_object(path).get(name)
        if found not in (None, ""):
            return found if isinstance(found, str) else json.dumps(found)
    return None


def _configuration_files() -> list[Path]:
    files = []
    cwd = Path.cwd()
    for folder in (cwd, *cwd.parents):
        path = folder / LOCAL_FOLDER / "config.json"
        if path.is_file():
            files.append(path)
            break
    home = Path(os.environ.get("METAFLOW_HOME") or "~/.metaflowconfig").expanduser()
    profile = os.environ.get("METAFLOW_PROFILE")
    if profile:
        path = home / f"config_{profile}.json"
        if not path.is_file():
            raise _error(f"`METAFLOW_PROFILE` is `{profile}`, but there is no file `{path}`")
        files.append(path)
    elif (home / "config.json").is_file():
        files.append(home / "config.json")
    return files


def _read_object(path: Path) -> dict[str, object]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _error(f"cannot read the configuration file `{path}`: {error}") from error
    if not isinstance(values, dict):
        raise _error(f"the configuration file `{path}` is not a JSON object")
    return values


def _error(message: str) -> Exception:
    from metaflow.exception import MetaflowException

    return MetaflowException(message)


# --- namespace ---------------------------------------------------------------------------------


def user_name() -> str:
    """The configured user, else the account this process runs as."""
    configured_name = configured("METAFLOW_USER")
    if configured_name:
        return configured_name
    for variable in ("SUDO_USER", "USERNAME", "USER"):
        if os.environ.get(variable):
            return os.environ[variable]
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise _error(
            "the user's name is not known: set `METAFLOW_USER` or `USER` to a name"
        ) from None


def identity() -> str:
    token = configured("METAFLOW_PRODUCTION_TOKEN")
    return f"production:{token}" if token else f"user:{user_name()}"


def namespace(ns: str | None) -> str | None:
    """Sets the namespace: only runs with this tag are seen; `None` is every run. Returns it."""
    global _namespace
    _namespace = ns
    return ns


def get_namespace() -> str | None:
    """The namespace in force; at first, your own (`user:<name>`)."""
    if _namespace is _UNSET:
        return default_namespace()
    assert _namespace is None or isinstance(_namespace, str)
    return _namespace


def default_namespace() -> str | None:
    """Goes back to the default namespace and returns it."""
    if _task_namespace is _UNSET:
        return namespace(identity())
    assert _task_namespace is None or isinstance(_task_namespace, str)
    return namespace(_task_namespace)


# --- metadata provider -------------------------------------------------------------------------


def local_root() -> str:
    """The folder that holds the flows' data; it may not exist yet."""
    if _root is not None:
        return _root
    if _task_root is not None:
        return _task_root
    folder = configured("METAFLOW_DATASTORE_SYSROOT_LOCAL")
    cwd = Path.cwd()
    if folder:
        return str(cwd / Path(folder).expanduser() / LOCAL_FOLDER)
    for parent in (cwd, *cwd.parents):
        if (parent / LOCAL_FOLDER).is_dir():
            return str(parent / LOCAL_FOLDER)
    return str(cwd / LOCAL_FOLDER)


def metadata(provider: str) -> str:
    """Chooses where runs are read from: `local@DIR`, or the path of a folder with `.metaflow`."""
    global _root
    kind, separator, place = provider.partition("@")
    if kind == "service" or provider.startswith(("http://", "https://")):
        raise ValueError(
            f"cannot read from `{provider}`: metadata services are not in this version; "
            "use `local@DIR`"
        )
    if not separator:
        place = provider if provider != "local" else "."
    elif kind != "local":
        raise ValueError(f"unknown metadata provider `{kind}`: use `local@DIR`")
    folder = Path(place).expanduser().resolve()
    if folder.name == LOCAL_FOLDER:
        folder = folder.parent
    if not (folder / LOCAL_FOLDER).is_dir():
        raise ValueError(f"`{folder}` holds no `.metaflow` folder, so there are no runs to read")
    _root = str(folder / LOCAL_FOLDER)
    return get_metadata()


def get_metadata() -> str:
    """The provider in force, as `local@DIR`; the run's own in a remote task: `run@STORE`."""
    root = local_root()
    return f"run@{root}" if _task_store and root == _task_root else f"local@{os.path.dirname(root)}"


def remote_store(root: str) -> dict[str, Any] | None:
    """The datastore in which a remote task asks for the metadata of `root`; none elsewhere."""
    return _task_store if root == _task_root else None


def default_metadata() -> str:
    """Goes back to the default provider (inside a task: the run's own) and returns it."""
    global _root
    _root = None
    return get_metadata()


def enter_task(root: str, task_namespace: str | None, store: dict[str, Any] | None) -> None:
    """Makes a run's own store and namespace the defaults, for user code inside its tasks. `store`
    is what a remote task, which has no metadata of its own, reaches of it."""
    global _task_root, _task_namespace, _task_store, _namespace, _root
    _task_root, _task_namespace, _task_store = root, task_namespace, store
    _namespace, _root = _UNSET, None
