"""What a container on an EC2 instance learns from the instance: which one it is, and that a Spot
instance is about to be taken back. One thread asks, for the supervisor of a remote task; elsewhere
than on EC2 there is none, and nothing waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Record = Callable[[str, str], None]

_OK, _UNAUTHORIZED = 200, 401
_ADDRESS = "http://169.254.169.254"
_ANSWER_SECONDS = 1.0
_BETWEEN_LOOKS_SECONDS = 5.0
_TOKEN_SECONDS = 21600
_METADATA = {
    "ec2-instance-id": "instanceId",
    "ec2-instance-type": "instanceType",
    "ec2-region": "region",
    "ec2-availability-zone": "availabilityZone",
}
# What of a machine says who made it, and the word for EC2.
_SIGNS = (
    ("/sys/devices/virtual/dmi/id/sys_vendor", "amazon ec2"),
    ("/sys/devices/virtual/dmi/id/bios_version", "amazon"),
    ("/sys/hypervisor/uuid", "ec2"),
)


def is_asked_for(variables: Mapping[str, str]) -> bool:
    """Whether there is an instance to ask: variables say so, or the machine does."""
    if variables.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    if "FARGATE" in variables.get("AWS_EXECUTION_ENV", ""):
        return False
    told = variables.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _fetches(variables)
    return bool(told) or _is_on_ec2()


def _fetches(variables: Mapping[str, str]) -> bool:
    value = variables.get("METAFLOW_KUBERNETES_FETCH_EC2_METADATA", "")
    return value.lower() not in ("", "0", "false", "none", "null")


def _is_on_ec2() -> bool:
    for path, word in _SIGNS:
        with contextlib.suppress(OSError), open(path) as source:
            if source.read(200).strip().lower().startswith(word):
                return True
    return False


class Instance:
    """Asks until the container ends. `notice` is when the instance ends, once that is known."""

    def __init__(
        self,
        layer: str,
        variables: Mapping[str, str],
        record: Record,
        wake: Callable[[], None],
        notice_file: str,
    ) -> None:
        self.notice: str | None = None
        self._says_which = layer == "batch" or _fetches(variables)
        self._service = _Service(variables.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or _ADDRESS)
        self._record = record
        self._wake = wake
        self._notice_file = notice_file
        self._introduced = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="ec2")
        self._thread.start()

    def settle(self) -> None:
        """The task has ended: what is being asked about the instance may still be answered."""
        self._introduced.wait(2 * _ANSWER_SECONDS)
        self._over.set()

    def _work(self) -> None:
        try:
            self._introduce()
            is_spot = self._service.get("instance-life-cycle") == "spot"
        except OSError:
            return
        finally:
            self._introduced.set()
        while is_spot and self.notice is None and not self._over.is_set():
            with contextlib.suppress(OSError):
                self.notice = self._ending()
            if self.notice is None:
                self._over.wait(_BETWEEN_LOOKS_SECONDS)
        if self.notice is not None:
            self._tell(self.notice)

    def _introduce(self) -> None:
        if not self._says_which:
            return
        text = self._service.get("../dynamic/instance-identity/document")
        try:
            document = json.loads(text or "{}")
        except ValueError:
            return
        for name, field in _METADATA.items():
            if document.get(field):
                self._record(name, str(document[field]))

    def _ending(self) -> str | None:
        """When AWS takes the instance back."""
        text = self._service.get("spot/instance-action")
        with contextlib.suppress(ValueError, AttributeError):
            if text and (time := json.loads(text).get("time")):
                return str(time)
        return self._service.get("spot/termination-time")

    def _tell(self, notice: str) -> None:
        # What only containers on EC2 need is imported by their thread.
        import datetime

        now = datetime.datetime.now(datetime.UTC).isoformat()
        self._record("spot-termination-received-at", now)
        self._record("spot-termination-time", notice)
        with contextlib.suppress(OSError), open(self._notice_file, "w") as out:
            out.write(notice)
        self._wake()


class _Service:
    """The instance metadata service, with a session's token where it gives one (IMDSv2)."""

    def __init__(self, address: str) -> None:
        self._host, _, folder = address.partition("://")[2].partition("/")
        self._folder = f"/{folder}".rstrip("/")
        self._token: str | None = None

    def get(self, name: str) -> str | None:
        """A value; `None` where there is none. `OSError` when nobody answers."""
        path = os.path.normpath(f"{self._folder}/latest/meta-data/{name}")
        for _ in range(2):
            if self._token is None:
                self._token = self._new_token()
            headers = {"X-aws-ec2-metadata-token": self._token} if self._token else {}
            status, text = self._ask("GET", path, headers)
            if status != _UNAUTHORIZED:
                return text.strip() if status == _OK else None
            self._token = None
        return None

    def _new_token(self) -> str:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_SECONDS)}
        status, text = self._ask("PUT", f"{self._folder}/latest/api/token", headers)
        return text.strip() if status == _OK else ""

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        import http.client

        connection = http.client.HTTPConnection(self._host, timeout=_ANSWER_SECONDS)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(65536).decode(errors="replace")
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()
