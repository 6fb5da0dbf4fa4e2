"""What goes wrong between a user and a store: refusals, silence, cuts, wrong bytes, certificates,
companies' proxies. Nothing is lost or half-written, and the user is told."""

from __future__ import annotations

import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from harness import Result, client, run_flow, run_python, write_flow
from parts import azure_environment, google_environment, part
from store_proxy import company_proxy, proxy

pytestmark = pytest.mark.cluster

FLOW = """
import os
from metaflow import FlowSpec, step

class BlobFlow(FlowSpec):
    @step
    def start(self):
        self.large = os.urandom(3_000_000)
        self.next(self.end)

    @step
    def end(self):
        print("length", len(self.large))
"""


def sentence(result: Result) -> str:
    return " ".join((result.stdout + result.stderr).split())


def on_another_machine(folder: Path, env: dict[str, str]) -> dict[str, str]:
    """Nothing that was written or fetched is here."""
    return {**env, "TMPDIR": tempfile.mkdtemp(dir=folder)}


def test_a_store_that_goes_on_refusing_is_told(folder: Path, s3: dict[str, str]) -> None:
    """The question before the run is asked for 15 s, not for ever; no run is left."""
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door:
        door.refuse_always = ""
        began = time.monotonic()
        result = run_flow(folder, FLOW, "run", env={**s3, "AWS_ENDPOINT_URL_S3": door.url})
        assert result.code == 1 and time.monotonic() - began < 30
        text = sentence(result)
        assert "the server answered 503 (SlowDown: Slow down); it was tried again" in text
        assert "run-id" not in text and 3 <= len(door.requests) <= 10


def test_wrong_bytes_are_noticed_and_nothing_of_them_is_kept(
    folder: Path, s3: dict[str, str]
) -> None:
    run_flow(folder, FLOW, "run", env=s3).ok()
    code = "print(len(Run('BlobFlow/1')['start'].task.data.large))"
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door:
        reading = "from metaflow import *; namespace(None); " + code
        for part_of_path in ("/data/", "1.0.pack"):
            env = on_another_machine(folder, {**s3, "AWS_ENDPOINT_URL_S3": door.url})
            door.wrong_bytes_of = part_of_path
            result = run_python(folder, reading, env=env)
            assert result.code == 1, "wrong bytes were handed on"
            text = sentence(result)
            assert "is damaged" in text and "does not match its checksum" in text, text
            assert part_of_path in text, text
            door.wrong_bytes_of = ""
            assert client(folder, code, env=env) == ["3000000"]


def test_a_run_whose_task_cannot_store_fails_and_can_be_resumed(
    folder: Path, s3: dict[str, str]
) -> None:
    """Artifacts may not be written any more after the check: told, with the artifact's name."""
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door:
        env = {**s3, "AWS_ENDPOINT_URL_S3": door.url}
        door.denied_path, door.deny_first = "/data/", 100
        text = sentence(run_flow(folder, FLOW, "run", env=env).exited(1))
        assert "artifact `large` cannot be stored: cannot write `s3://" in text, text
        assert "access denied" in text
        door.deny_first = 0
        resumed = run_flow(folder, folder / "flow.py", "resume", env=env).ok()
        assert "length 3000000" in resumed.stdout


def test_what_no_retry_mends_is_said_at_once(folder: Path, s3: dict[str, str]) -> None:
    signed = {**s3, "AWS_ENDPOINT_URL_S3": part("s3")["FERROFLOW_TEST_S3_SIGNED"]}
    reader = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader-secret"}
    root = s3["METAFLOW_DATASTORE_SYSROOT_S3"]
    cases = {
        f"S3(s3root={root!r}).put('x', 'y')": "MetaflowS3AccessDenied",
        f"S3(s3root={root!r}).put_many([('x', 'y'), ('z', 'y')])": "MetaflowS3AccessDenied",
        "S3().get('s3://no-such-bucket-at-all/x')": "MetaflowS3URLException",
        f"S3().get('{root}/nothing')": "MetaflowS3NotFound",
    }
    for action, error in cases.items():
        began = time.monotonic()
        code = f"from metaflow import S3\n{action}"
        result = run_python(folder, code, env={**signed, **reader})
        assert result.code == 1 and f"{error}: " in result.stderr, result.stderr
        assert time.monotonic() - began < 5


def test_no_bucket_is_told_truly_before_a_run(folder: Path, s3: dict[str, str]) -> None:
    """SeaweedFS says 403 of a bucket that is not there: no more is claimed than is known."""
    root = {"METAFLOW_DATASTORE_SYSROOT_S3": "s3://no-such-bucket-at-all/root"}
    result = run_flow(folder, FLOW, "run", env={**s3, **root}).exited(1)
    text = sentence(result)
    assert (
        "there is no bucket `no-such-bucket-at-all`; create it" in text
        or "check that the bucket exists, and that the credentials in use are right and allow "
        "s3:PutObject on the bucket `no-such-bucket-at-all`"
        in text
    ), text


def test_the_other_clouds_say_what_is_wrong(folder: Path) -> None:
    azure, google = azure_environment(folder), google_environment(folder)
    wrong_key = "AAAA" + azure["AZURE_STORAGE_ACCOUNT_KEY"][4:]
    cases = [
        (
            {**azure, "METAFLOW_DATASTORE_SYSROOT_AZURE": "nothere/x"},
            "there is no container `nothere`; create it, or correct the datastore's root",
        ),
        (
            {**azure, "AZURE_STORAGE_ACCOUNT_KEY": wrong_key},
            "right and allow Storage Blob Data Contributor on the container `",
        ),
        (
            {**google, "METAFLOW_DATASTORE_SYSROOT_GS": "gs://nothere/x"},
            "there is no bucket `nothere`; create it, or correct the datastore's root",
        ),
        (
            {**google, "GOOGLE_SERVICE_ACCOUNT": "/no/file.json"},
            "the file of credentials for Google Cloud cannot be read: GOOGLE_SERVICE_ACCOUNT names "
            "`/no/file.json`: No such file or directory",
        ),
    ]
    for env, told in cases:
        result = run_flow(folder, FLOW, "run", env=env).exited(1)
        text = sentence(result)
        assert told in text and "run-id" not in text, text
        assert result.seconds < 10


def test_nothing_half_written_is_left_by_killed_writers(folder: Path, s3: dict[str, str]) -> None:
    """A task killed while it uploads: no object under a final name, and the retry is whole."""
    source = """
    import os, signal, threading
    from metaflow import FlowSpec, retry, step

    class KilledFlow(FlowSpec):
        @retry(times=1, minutes_between_retries=0)
        @step
        def start(self):
            from metaflow import current
            self.large = os.urandom(24 << 20)
            if current.retry_count == 0:
                def kill():
                    import time
                    root = os.environ["TMPDIR"]
                    def began():
                        return any(f.startswith(".new-") or len(f) == 64
                                   for _, _, files in os.walk(root) for f in files)
                    while not began():
                        time.sleep(0.001)
                    os.kill(os.getpid(), signal.SIGKILL)
                threading.Thread(target=kill, daemon=True).start()
            self.next(self.end)

        @step
        def end(self):
            print("length", len(self.large))
    """
    result = run_flow(folder, source, "run", env=s3).ok()
    assert f"length {24 << 20}" in result.stdout
    code = "print(len(Run('KilledFlow/1')['start'].task.data.large))"
    assert client(folder, code, env=on_another_machine(folder, s3)) == [str(24 << 20)]


# --- certificates and proxies -------------------------------------------------------------------


@pytest.fixture
def certificate(folder: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that only those trust who are told to, and its key."""
    files = (str(folder / "certificate.pem"), str(folder / "key.pem"))
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=test -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=CA:FALSE "
        f"-out {files[0]} -keyout {files[1]}",
        shell=True,
        check=True,
        capture_output=True,
    )
    return files


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_of_one_s_own(
    folder: Path, s3: dict[str, str], certificate: tuple[str, str], variable: str
) -> None:
    with proxy(s3["AWS_ENDPOINT_URL_S3"], tls=certificate) as door:
        env = {**s3, "AWS_ENDPOINT_URL_S3": door.url}
        env.pop("AWS_CA_BUNDLE", None)
        untrusted = run_flow(folder, FLOW, "run", env=env).exited(1)
        assert "certificate" in sentence(untrusted) and not door.requests
        trusted = run_flow(folder, FLOW, "run", env={**env, variable: certificate[0]}).ok()
        assert "length 3000000" in trusted.stdout and door.count("PUT", ".pack") == 3


def test_a_bundle_that_is_none_is_told(folder: Path, s3: dict[str, str]) -> None:
    env = {**s3, "AWS_ENDPOINT_URL_S3": "https://127.0.0.1:1", "AWS_CA_BUNDLE": "/no/such.pem"}
    text = sentence(run_flow(folder, FLOW, "run", env=env).exited(1))
    assert "cannot use the certificates in `/no/such.pem` (AWS_CA_BUNDLE): No such file" in text


def test_proxies_are_used_unless_told_not_to(
    folder: Path, s3: dict[str, str], certificate: tuple[str, str]
) -> None:
    flow = write_flow(folder, FLOW)
    with company_proxy() as (address, asked):
        run_flow(folder, flow, "run", env={**s3, "HTTP_PROXY": address}).ok()
        assert sum(".pack" in each and each.startswith("PUT http://") for each in asked) == 3
        asked.clear()
        spared = {"HTTP_PROXY": address, "NO_PROXY": "localhost,127.0.0.1"}
        run_flow(folder, flow, "run", env={**s3, **spared}).ok()
        assert not asked
        with proxy(s3["AWS_ENDPOINT_URL_S3"], tls=certificate) as door:
            env = {**s3, "AWS_ENDPOINT_URL_S3": door.url, "AWS_CA_BUNDLE": certificate[0]}
            run_flow(folder, flow, "run", env={**env, "HTTPS_PROXY": address}).ok()
            assert asked and set(asked) == {f"CONNECT 127.0.0.1:{door.port}"}
            assert door.count("PUT", ".pack") == 3


def test_a_proxy_that_is_gone_is_told(folder: Path, s3: dict[str, str]) -> None:
    env = {**s3, "HTTP_PROXY": "http://127.0.0.1:9"}
    text = sentence(run_flow(folder, FLOW, "run", env=env).exited(1))
    assert "check the network, the proxy and the endpoint's address" in text
