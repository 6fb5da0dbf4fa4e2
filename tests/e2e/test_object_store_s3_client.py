"""The `S3` client beyond what one flow shows: every promise of the reference, encryption, keys that
only S3 allows, roles, disks that fill up, speed."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Result, run_flow, run_python
from parts import part, put
from store_proxy import proxy

pytestmark = pytest.mark.cluster

FLOWS = Path(__file__).parent / "flows"


def script(folder: Path, env: dict[str, str], code: str) -> Result:
    root = env["METAFLOW_DATASTORE_SYSROOT_S3"]
    return run_python(folder, f"from metaflow import S3\nROOT = {root!r}\n{code}", env=env)


@pytest.fixture
def moto(s3: dict[str, str]) -> dict[str, str]:
    """S3 as moto has it: it keeps keys that SeaweedFS, whose keys are paths, cannot have."""
    endpoint, bucket = part("batch")["FERROFLOW_TEST_MOTO"], f"e2e{uuid.uuid4().hex[:12]}"
    put(f"{endpoint}/{bucket}")
    root = {"METAFLOW_DATASTORE_SYSROOT_S3": f"s3://{bucket}"}
    return {**s3, "AWS_ENDPOINT_URL_S3": endpoint, **root}


def test_every_statement_of_the_reference(folder: Path, s3: dict[str, str]) -> None:
    code = (FLOWS / "s3_statements.py").read_text()
    root = s3["METAFLOW_DATASTORE_SYSROOT_S3"]
    assert run_python(folder, code, root, env=s3).ok().stdout == "all well\n"


def test_encryption_is_asked_for(folder: Path, moto: dict[str, str]) -> None:
    """By the client's argument, by the object's own, by configuration; also for artifacts."""
    name = "x-amz-server-side-encryption"
    with proxy(moto["AWS_ENDPOINT_URL_S3"]) as door:
        env = {**moto, "AWS_ENDPOINT_URL_S3": door.url}
        code = """
from metaflow._s3 import S3PutObject
with S3(s3root=ROOT, encryption='AES256') as s3:
    s3.put('a', 'x')
with S3(s3root=ROOT) as s3:
    s3.put_many([S3PutObject('b', 'x', encryption='aws:kms'), ('c', 'x')])
"""
        script(folder, env, code).ok()
        asked = {path.rsplit("/", 1)[1]: h.get(name) for (_, path), h in passed(door)}
        assert asked == {"a": "AES256", "b": "aws:kms", "c": None}
        door.requests.clear()
        door.headers.clear()
        source = """
        class SafeFlow(FlowSpec):
            @step
            def start(self):
                self.x = list(range(50_000))
                self.next(self.end)

            @step
            def end(self):
                pass
        """
        configured = {**env, "METAFLOW_S3_SERVER_SIDE_ENCRYPTION": "AES256"}
        run_flow(folder, source, "run", env=configured).ok()
        assert {h.get(name) for (method, _), h in passed(door) if method == "PUT"} == {"AES256"}


def passed(door) -> Iterator[tuple[tuple[str, str], dict[str, str]]]:  # type: ignore[no-untyped-def]
    return zip(door.requests, door.headers, strict=True)


def test_keys_with_empty_segments(folder: Path, moto: dict[str, str]) -> None:
    """`a//b`, folder marks such as the console makes them, and a slash in front."""
    code = """
keys = ["a/b", "a//b", "a//c//d", "mark/", "ü//~ x"]
with S3(s3root=ROOT) as s3:
    for number, key in enumerate(keys):
        s3.put(key, str(number))
    for number, key in enumerate(keys):
        assert s3.get(key).text == str(number), key
        assert s3.info(key).size == 1
    assert s3.put_many([(key, "new") for key in keys], overwrite=False) == []
    found = sorted(each.key for each in s3.list_recursive())
    assert found == sorted(keys), found
    level = sorted((each.key, each.exists) for each in s3.list_paths(["a"]))
    assert level == [("", False), ("b", True)], level
    assert sorted(each.text for each in s3.get_all()) == list("01234")
    s3.put("large//part", b"x" * (40 << 20))
    assert s3.get("large//part").blob == b"x" * (40 << 20)
with S3() as s3:
    s3.put(ROOT + "//front", "f")
    assert s3.get(ROOT + "//front").text == "f"
print("all well")
"""
    with proxy(moto["AWS_ENDPOINT_URL_S3"]) as door:
        env = {**moto, "AWS_ENDPOINT_URL_S3": door.url}
        assert script(folder, env, code).ok().stdout == "all well\n"
        assert door.count("PUT", "/a//c//d") == 1, "the key is what it is for others, too"


def test_encryption_of_an_object_is_known(folder: Path, moto: dict[str, str]) -> None:
    code = """
with S3(s3root=ROOT, encryption='aws:kms') as s3:
    s3.put('x', 'y', metadata={"own": "1"})
    print(s3.info('x').encryption, s3.get('x').encryption, s3.info('x').metadata)
"""
    assert script(folder, moto, code).ok().stdout == "aws:kms aws:kms {'own': '1'}\n"


def test_a_disk_that_fills_up_is_told(folder: Path, s3: dict[str, str]) -> None:
    place = folder / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        code = f"""
from metaflow.exception import MetaflowS3InsufficientDiskSpace
with S3(s3root=ROOT, tmproot={str(place)!r}) as s3:
    for size in (8, 48):
        s3.put('x', b'x' * (size << 20))
        try:
            s3.get('x')
        except MetaflowS3InsufficientDiskSpace as error:
            assert 'the disk is full' in str(error), error
        else:
            raise AssertionError('it fits?')
    s3.put('y', 'small')
    assert s3.get('y').text == 'small', 'what did not fit is gone'
print("all well")
"""
        assert script(folder, s3, code).ok().stdout == "all well\n"
        assert list(place.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_many_faults_on_many_objects(folder: Path, s3: dict[str, str]) -> None:
    """Each object is refused once and each download cut once; only those are asked for again."""
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door:
        door.refuse_first = door.cut_first = 1
        code = """
with S3(s3root=ROOT) as s3:
    s3.put_many([(f"m/{n}", bytes([n]) * 2000) for n in range(100)])
    found = s3.get_many([f"m/{n}" for n in range(100)])
    assert [each.blob for each in found] == [bytes([n]) * 2000 for n in range(100)]
print("all well")
"""
        env = {**s3, "AWS_ENDPOINT_URL_S3": door.url}
        assert script(folder, env, code).ok().stdout == "all well\n"
        assert door.count("PUT", "/m/") == 200, "once refused, once taken"
        assert door.count("GET", "/m/") == 300, "once refused, once cut, once whole"


def test_an_object_written_anew_while_it_is_read_comes_from_one_writing(
    folder: Path, s3: dict[str, str]
) -> None:
    """Large objects come in parts: none of them is of another version than the first."""
    size = 40 << 20
    root = s3["METAFLOW_DATASTORE_SYSROOT_S3"].removeprefix("s3://")
    versions = []

    def write_anew(method: str, headers: dict[str, str]) -> None:
        later = method == "GET" and headers.get("range", "").startswith(f"bytes={32 << 20}-")
        if later and not versions:
            versions.append("new")
            put(f"{s3['AWS_ENDPOINT_URL_S3']}/{root}/x", data=b"b" * size)

    code = f"""
with S3(s3root=ROOT) as s3:
    s3.put('x', b'a' * {size})
    found = s3.get('x')
    assert found.blob == b'b' * {size}, (len(found.blob), set(found.blob))
    assert s3.get(S3GetObject('x', 1, {size} - 2)).blob == b'b' * ({size} - 2)
print("all well")
"""
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door:
        door.meanwhile = write_anew
        env = {**s3, "AWS_ENDPOINT_URL_S3": door.url}
        code = "from metaflow._s3 import S3GetObject\n" + code
        assert script(folder, env, code).ok().stdout == "all well\n"
        assert versions == ["new"]


def test_an_object_of_nothing(folder: Path, s3: dict[str, str]) -> None:
    code = """
with S3(s3root=ROOT) as s3:
    s3.put('nothing', b'')
    found = s3.get('nothing')
    assert (found.blob, found.size, found.exists) == (b'', 0, True)
    assert [each.size for each in s3.get_many(['nothing', 'nothing'])] == [0, 0]
print("all well")
"""
    assert script(folder, s3, code).ok().stdout == "all well\n"
