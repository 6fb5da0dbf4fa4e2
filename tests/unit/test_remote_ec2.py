"""What a container asks the EC2 instance it runs on, against a metadata service of the test's."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from metaflow import _remote_ec2

META = "/latest/meta-data"
DOCUMENT = "/latest/dynamic/instance-identity/document"


class Service(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.values: dict[str, str] = {}
        self.token = "one"
        self.asked: list[str] = []


class Handler(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_PUT(self) -> None:
        self._answer(200 if self.path == "/latest/api/token" else 404, self.server.token)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.headers.get("X-aws-ec2-metadata-token") != self.server.token:
            return self._answer(401, "")
        value = self.server.values.get(self.path)
        return self._answer(404 if value is None else 200, value or "")

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


class Asked:
    """An instance's questions and what became of them."""

    def __init__(self, service: Service, folder: Path, layer: str, **more: str) -> None:
        self.recorded: dict[str, str] = {}
        self.woken = threading.Event()
        self.file = folder / "notice"
        address = f"http://127.0.0.1:{service.server_port}"
        variables = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": address, **more}
        assert _remote_ec2.is_asked_for(variables)
        record = self.recorded.__setitem__
        self.instance = _remote_ec2.Instance(
            layer, variables, record, self.woken.set, str(self.file)
        )


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def test_a_spot_instance_that_is_taken_back_is_told(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_remote_ec2, "_BETWEEN_LOOKS_SECONDS", 0.05)
    service.values[f"{META}/instance-life-cycle"] = "spot"
    asked = Asked(service, tmp_path, "kubernetes")
    wait_for(lambda: service.asked.count(f"{META}/spot/termination-time") > 1)
    service.token = "two"  # sessions end
    assert asked.instance.notice is None and not asked.file.exists()
    service.values[f"{META}/spot/instance-action"] = '{"action": "terminate", "time": "T1"}'
    assert asked.woken.wait(30)
    assert (asked.instance.notice, asked.file.read_text()) == ("T1", "T1")
    assert sorted(asked.recorded) == ["spot-termination-received-at", "spot-termination-time"]
    assert DOCUMENT not in service.asked


@pytest.mark.parametrize(
    ("layer", "more"),
    [("batch", {}), ("kubernetes", {"METAFLOW_KUBERNETES_FETCH_EC2_METADATA": "1"})],
)
def test_which_instance_it_is(
    service: Service, tmp_path: Path, layer: str, more: dict[str, str]
) -> None:
    service.values[f"{META}/instance-life-cycle"] = "on-demand"
    service.values[DOCUMENT] = json.dumps(
        {"instanceId": "i-1", "instanceType": "m5.large", "region": "r", "availabilityZone": "ra"}
    )
    asked = Asked(service, tmp_path, layer, **more)
    asked.instance.settle()
    assert asked.recorded == {
        "ec2-instance-id": "i-1",
        "ec2-instance-type": "m5.large",
        "ec2-region": "r",
        "ec2-availability-zone": "ra",
    }
    assert not any("spot" in path for path in service.asked)


def test_nobody_is_asked_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vendor = tmp_path / "sys_vendor"
    monkeypatch.setattr(_remote_ec2, "_SIGNS", ((str(vendor), "amazon ec2"),))
    assert not _remote_ec2.is_asked_for({})
    vendor.write_text("Google\n")
    assert not _remote_ec2.is_asked_for({"METAFLOW_KUBERNETES_FETCH_EC2_METADATA": "false"})
    vendor.write_text("Amazon EC2\n")
    assert _remote_ec2.is_asked_for({})
    assert not _remote_ec2.is_asked_for({"AWS_EC2_METADATA_DISABLED": "true"})
    assert not _remote_ec2.is_asked_for({"AWS_EXECUTION_ENV": "AWS_ECS_FARGATE"})


def test_a_service_out_of_reach_holds_nothing_up(tmp_path: Path) -> None:
    gone = Service()
    gone.server_close()
    began = time.monotonic()
    asked = Asked(gone, tmp_path, "batch")
    asked.instance.settle()
    assert time.monotonic() - began < 10
    assert asked.recorded == {}
