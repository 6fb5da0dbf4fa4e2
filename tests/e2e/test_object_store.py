"""Local runs that keep their artifacts in a bucket, and the S3 client, on real stores: SeaweedFS,
azurite and a Google Cloud Storage emulator, which `tests/clusters/cluster` starts."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from harness import REPOSITORY, Result, client, nothing_left, run_flow, run_python, write_flow
from parts import BUCKET, azure_environment, google_environment, part, s3_environment
from store_proxy import proxy

pytestmark = pytest.mark.cluster

FLOW = """
import os
from metaflow import FlowSpec, Parameter, step

class StoreFlow(FlowSpec):
    alpha = Parameter("alpha", default=3)

    @step
    def start(self):
        self.items = [1, 2, 3]
        self.large = bytes(range(256)) * 4000
        self.random = os.urandom(300_000)
        print("hello from start")
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.double = self.input * 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.double for each in inputs)
        self.merge_artifacts(inputs, include=["large", "random"])
        self.next(self.end)

    @step
    def end(self):
        if os.environ.get("FAIL"):
            raise ValueError("not yet")
        print("total", self.total, "alpha", self.alpha, len(self.large), len(self.random))
"""

SMALL = """
class SmallFlow(FlowSpec):
    @step
    def start(self):
        self.items = list(range(10))
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.x = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.x for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def forget_copies(env: dict[str, str]) -> None:
    """Like another machine: nothing that was fetched or written is here."""
    subprocess.run(["rm", "-rf", env["TMPDIR"]], check=True)
    Path(env["TMPDIR"]).mkdir()


def whole_round(folder: Path, env: dict[str, str]) -> None:
    """Runs, fails, resumes, and reads everything back as another machine would."""
    first = run_flow(folder, FLOW, "run", env={**env, "FAIL": "1"}).exited(1)
    assert first.run_id == "1"
    forget_copies(env)
    flow = folder / "flow.py"
    resumed = run_flow(folder, flow, "resume", env=env).ok()
    assert "total 12 alpha 3 1024000 300000" in resumed.stdout
    forget_copies(env)
    assert "hello from start" in run_flow(folder, flow, "logs", "2/start", env=env).ok().stdout
    dumped = run_flow(folder, flow, "dump", "2/join", env=env).ok().stdout
    assert "total [size: 2 type: <class 'int'>] = 12" in dumped
    shown = client(
        folder,
        """
        run = Run("StoreFlow/2")
        print(run.data.total, run["start"].task.stdout.strip(), len(run.data.random))
        print(run["end"].task.metadata_dict["ds-type"])
        """,
        env=env,
    )
    assert shown == ["12 hello from start 300000", env["METAFLOW_DEFAULT_DATASTORE"]]
    nothing_left(folder)


def test_a_run_on_s3(folder: Path, s3: dict[str, str]) -> None:
    whole_round(folder, s3)
    names = {each.name for each in (folder / ".metaflow").rglob("*") if each.is_file()}
    assert not any(name.endswith((".pack", ".log")) for name in names), names


def test_a_run_on_azure(folder: Path) -> None:
    whole_round(folder, azure_environment(folder))


def test_a_run_on_google_cloud(folder: Path) -> None:
    whole_round(folder, google_environment(folder))


@pytest.mark.parametrize("kind", ["s3", "azure", "gs"])
def test_every_kind_passes_the_suite(folder: Path, kind: str) -> None:
    """The same suite as folders and memory pass; see crates/store/src/conformance.rs."""
    environments = {"s3": s3_environment, "azure": azure_environment, "gs": google_environment}
    env = environments[kind](folder)
    # azurite refuses signed links to names with a space.
    name = "suite" if kind == "azure" else "a suite"
    root = env[f"METAFLOW_DATASTORE_SYSROOT_{kind.upper()}"] + f"/{name}"
    location = json.dumps({"kind": kind, "root": root})
    # With the options of `make test-rust`, which has built it then.
    command = "cargo test --release --workspace --exclude ferroflow-python --test every_store"
    done = subprocess.run(
        [*command.split(), "the_named_store"],
        cwd=REPOSITORY,
        env={**os.environ, **env, "FERROFLOW_TEST_STORE": location},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed; 0 failed" in done.stdout, done.stdout + done.stderr


# --- requests and faults ------------------------------------------------------------------------


def test_a_small_task_takes_at_most_three_requests(folder: Path, s3: dict[str, str]) -> None:
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door:
        env = {**s3, "AWS_ENDPOINT_URL_S3": door.url}
        run_flow(folder, SMALL, "run", env=env).ok()
        # 13 tasks and the parameters write a pack each; what they read was written here.
        assert door.count("PUT", ".pack") == 14, door.requests
        assert len(door.requests) == 15, "and one question before the run starts"
        door.requests.clear()
        forget_copies(env)
        code = "from metaflow import Run, namespace\nnamespace(None)\n"
        code += "assert Run('SmallFlow/1')['join'].task.data.total == 45"
        run_python(folder, code, env=env).ok()
        assert len(door.requests) == 1, door.requests


@pytest.mark.parametrize("fault", ["refuse_first", "cut_first"])
def test_what_passes_is_tried_again(folder: Path, s3: dict[str, str], fault: str) -> None:
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door:
        setattr(door, fault, 2)
        whole_round(folder, {**s3, "AWS_ENDPOINT_URL_S3": door.url})


def test_a_slow_store_only_takes_longer(folder: Path, s3: dict[str, str]) -> None:
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door:
        door.delay = 0.3
        whole_round(folder, {**s3, "AWS_ENDPOINT_URL_S3": door.url})


def said(result: Result) -> str:
    """The error of a command that failed before a run began."""
    result.exited(1)
    assert "run-id" not in result.stdout
    return " ".join(result.stderr.split("Data store error:")[1].split())


def test_what_is_wrong_is_said_before_a_run_begins(folder: Path, s3: dict[str, str]) -> None:
    flow = write_flow(folder, SMALL)
    signed = {**s3, "AWS_ENDPOINT_URL_S3": part("s3")["FERROFLOW_TEST_S3_SIGNED"]}
    reader = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "reader-secret"}
    text = said(run_flow(folder, flow, "run", env={**signed, **reader}))
    assert "access denied (AccessDenied: Access Denied)" in text
    assert f"allow s3:PutObject on the bucket `{BUCKET}`" in text
    wrong = {**reader, "AWS_SECRET_ACCESS_KEY": "wrong"}
    assert "SignatureDoesNotMatch" in said(run_flow(folder, flow, "run", env={**signed, **wrong}))
    nobody = {k: v for k, v in s3.items() if k != "AWS_ACCESS_KEY_ID"}
    nobody["AWS_EC2_METADATA_DISABLED"] = "true"
    assert said(run_flow(folder, flow, "run", env=nobody)).startswith(
        "no AWS credentials were found: not in the environment (AWS_ACCESS_KEY_ID)"
    )
    nowhere = {k: v for k, v in s3.items() if k != "METAFLOW_DATASTORE_SYSROOT_S3"}
    assert said(run_flow(folder, flow, "run", env=nowhere)) == (
        "could not find the location of the datastore: set METAFLOW_DATASTORE_SYSROOT_S3, or give "
        "--datastore-root"
    )
    assert "write it as `s3://bucket/path`" in said(
        run_flow(folder, flow, "--datastore-root", "/tmp/x", "run", env=s3)
    )
    assert not list((folder / ".metaflow").glob("SmallFlow/latest_run"))


def test_credentials_of_a_profile(folder: Path, s3: dict[str, str]) -> None:
    """The signed door refuses whatever is not signed with the keys in the profile."""
    env = {k: v for k, v in s3.items() if k not in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    made(folder / ".aws")
    (folder / ".aws/config").write_text(
        "[profile work]\nregion = us-east-1\nsource_profile = keys\n"
        "credential_process = echo "
        '\'{"Version": 1, "AccessKeyId": "writer", "SecretAccessKey": "writer-secret"}\'\n'
    )
    (folder / ".aws/credentials").write_text(
        "[keys]\naws_access_key_id = writer\naws_secret_access_key = writer-secret\n"
    )
    env["AWS_ENDPOINT_URL_S3"] = part("s3")["FERROFLOW_TEST_S3_SIGNED"]
    for profile in ("keys", "work"):
        run_flow(folder, SMALL, "run", env={**env, "AWS_PROFILE": profile}).ok()
    missing = run_flow(folder, folder / "flow.py", "run", env={**env, "AWS_PROFILE": "none"})
    assert "there is no AWS profile `none` (AWS_PROFILE)" in said(missing)


def test_a_split_elsewhere_reads_its_own_item_only(folder: Path, s3: dict[str, str]) -> None:
    source = """
    import os
    from metaflow import FlowSpec, step

    class WideFlow(FlowSpec):
        @step
        def start(self):
            self.items = [os.urandom(200_000) for _ in range(20)]
            self.next(self.work, foreach="items")

        @step
        def work(self):
            self.length = len(self.input)
            self.next(self.join)

        @step
        def join(self, inputs):
            self.total = sum(each.length for each in inputs)
            self.next(self.end)

        @step
        def end(self):
            print("total", self.total)
    """
    assert "total 4000000" in run_flow(folder, source, "run", env=s3).ok().stdout
    scope = (folder / ".metaflow/store_scope").read_text()
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door:
        root = s3["METAFLOW_DATASTORE_SYSROOT_S3"]
        options = {"scope": scope, "cache": str(folder / "elsewhere")}
        location = json.dumps({"kind": "s3", "root": root, "options": options})
        code = f"""
from metaflow._artifacts import InputPack, foreach_item
pack = InputPack({location!r}, "WideFlow", "1", "start", 1, 0)
print(*(len(foreach_item(pack, "items", index)) for index in (0, 7, 19)))
"""
        env = {**s3, "AWS_ENDPOINT_URL_S3": door.url}
        assert run_python(folder, code, env=env).ok().stdout == "200000 200000 200000\n"
        asked = [
            h["range"]
            for (_, path), h in zip(door.requests, door.headers, strict=True)
            if "/data/" in path
        ]
        lengths = [
            int(end) - int(begin) + 1
            for begin, end in (each.removeprefix("bytes=").split("-") for each in asked)
        ]
        assert len(lengths) == 6 and lengths[::2] == [48] * 3 and max(lengths) < 201_000, lengths
        assert not list((folder / "elsewhere").rglob("data/*/*"))


def test_two_folders_share_a_bucket(folder: Path, s3: dict[str, str]) -> None:
    """Both have a run 1; neither sees the other's data."""
    for name in ("one", "two"):
        source = SMALL.replace("range(10)", "range(3)" if name == "one" else "range(4)")
        run_flow(made(folder / name), source, "run", env=s3).ok()
    code = "print(Run('SmallFlow/1')['join'].task.data.total)"
    for name, total in (("one", "3"), ("two", "6")):
        assert client(folder / name, code, env={**s3, "HOME": str(folder)}) == [total]


@pytest.mark.parametrize(("before", "after"), [("s3", "local"), ("local", "s3")])
def test_a_run_is_resumed_in_another_datastore(
    folder: Path, s3: dict[str, str], before: str, after: str
) -> None:
    """What was done is copied with its logs; after that the origin's data is not needed."""
    run_flow(folder, FLOW, "--datastore", before, "run", env={**s3, "FAIL": "1"}).exited(1)
    forget_copies(s3)
    flow = folder / "flow.py"
    resumed = run_flow(folder, flow, "--datastore", after, "resume", env=s3).ok()
    assert "total 12 alpha 3 1024000 300000" in resumed.stdout
    assert "StoreFlow/1 cloned!" in resumed.stdout
    roots = {"s3": s3["METAFLOW_DATASTORE_SYSROOT_S3"], "local": str(folder / ".metaflow")}
    assert (
        f"Run 1 keeps its data in `{roots[before]}`: what its 6 finished tasks stored is copied to "
        f"`{roots[after]}`."
    ) in resumed.stderr
    forget_copies(s3)
    if before == "s3":
        # Nothing listens there: what is read is here.
        s3 = {**s3, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    else:
        for pack in (folder / ".metaflow/StoreFlow").rglob("*.pack"):
            pack.unlink()
    shown = client(
        folder,
        """
        run = Run("StoreFlow/2")
        print(run.data.total, run["start"].task.stdout.strip(), len(run["join"].task.data.random))
        print(run["end"].task.metadata_dict["ds-type"], run["start"].task.data.items)
        """,
        env=s3,
    )
    assert shown == ["12 hello from start 300000", f"{after} [1, 2, 3]"]


# --- the S3 client ------------------------------------------------------------------------------


def test_the_s3_client(folder: Path, s3: dict[str, str]) -> None:
    script = (Path(__file__).parent / "flows/s3_client.py").read_text()
    root = s3["METAFLOW_DATASTORE_SYSROOT_S3"]
    assert run_python(folder, script, root, env=s3).ok().stdout == "all well\n"
    assert not list(folder.glob("metaflow.s3.*")), "downloads go with the client"


def test_the_s3_client_survives_faults(folder: Path, s3: dict[str, str]) -> None:
    script = (Path(__file__).parent / "flows/s3_client.py").read_text()
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door:
        door.refuse_first = door.cut_first = 1
        env = {**s3, "AWS_ENDPOINT_URL_S3": door.url}
        root = s3["METAFLOW_DATASTORE_SYSROOT_S3"]
        assert run_python(folder, script, root, env=env).ok().stdout == "all well\n"


def test_s3_of_a_run(folder: Path, s3: dict[str, str]) -> None:
    source = """
    class OwnFlow(FlowSpec):
        @step
        def start(self):
            with S3(run=self) as s3:
                self.url = s3.put("x", "hello")
            self.next(self.end)

        @step
        def end(self):
            with S3(run=self) as s3:
                print("got", s3.get("x").text)
    """
    result = run_flow(folder, source, "run", env=s3).ok()
    assert "got hello" in result.stdout
    url = client(folder, "print(Run('OwnFlow/1').data.url)", env=s3)
    assert url == [f"{s3['METAFLOW_DATASTORE_SYSROOT_S3']}/data/OwnFlow/1/x"]


ELSEWHERE = """
import os
from metaflow import FlowSpec, step

class ElsewhereFlow(FlowSpec):
    @step
    def start(self):
        self.large = os.urandom(300_000)
        self.next(self.turn)

    @step
    def turn(self):
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ["AWS_ENDPOINT_URL_S3"] = "http://127.0.0.1:9"
        os.environ["HOME"] = "/nowhere"
        self.more = self.large[:200_000] + b"more"
        print("endpoint", os.environ["AWS_ENDPOINT_URL_S3"], "AWS_ACCESS_KEY_ID" in os.environ)
        self.next(self.end)

    @step
    def end(self):
        print("kept", len(self.more))
"""


def test_a_step_that_turns_to_another_account_keeps_its_own_store(
    folder: Path, s3: dict[str, str]
) -> None:
    result = run_flow(folder, ELSEWHERE, "run", env=s3).ok()
    assert "endpoint http://127.0.0.1:9 False" in result.stdout
    assert "kept 200004" in result.stdout
