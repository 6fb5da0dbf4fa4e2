"""The `S3` client's promises one by one (names of the reference: S-1 to S-9), below the address given
as argument; prints `all well`."""

import io
import os
import sys
import tempfile

from metaflow import S3, exception
from metaflow._s3 import S3GetObject, S3PutObject

ROOT = sys.argv[1] + "/statements"
URL_ERROR = exception.MetaflowS3URLException


def raises(kind, action):
    try:
        action()
    except kind as error:
        assert type(error) is kind, error
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def s_1_modes():
    for name in ("METAFLOW_DATATOOLS_S3ROOT", "METAFLOW_DATASTORE_SYSROOT_S3"):
        os.environ.pop(name, None)

    class SomeRun:
        pathspec = "SomeFlow/7"

    assert "METAFLOW_DATATOOLS_S3ROOT" in raises(URL_ERROR, lambda: S3(run=SomeRun()))
    os.environ["METAFLOW_DATATOOLS_S3ROOT"] = ROOT
    with S3(run=SomeRun()) as s3:
        assert s3.put("x", "1") == f"{ROOT}/SomeFlow/7/x"
    with S3(run=SomeRun(), bucket="other", prefix="a/b") as s3:
        assert s3._prefix.locate("x").url == "s3://other/a/b/SomeFlow/7/x"
    raises(URL_ERROR, lambda: S3(s3root="/tmp/x"))
    raises(URL_ERROR, lambda: S3(s3root="s3://"))
    with S3(s3root=ROOT) as s3:
        assert "has a prefix" in raises(URL_ERROR, lambda: s3.get(f"{ROOT}/x"))
    with S3() as s3:
        assert "S3(run=Run(…))" in raises(URL_ERROR, lambda: s3.get("relative"))
        raises(URL_ERROR, s3.get_all)
        raises(URL_ERROR, s3.get)
        raises(URL_ERROR, lambda: s3.put("relative", "x"))
    from metaflow import FlowSpec, step

    class Idle(FlowSpec):
        @step
        def start(self):
            self.next(self.end)

        @step
        def end(self):
            pass

    assert "running flow" in raises(URL_ERROR, lambda: S3(run=Idle(use_cli=False)))


def s_2_folder():
    with tempfile.TemporaryDirectory() as folder:
        s3 = S3(tmproot=folder, s3root=ROOT)
        assert [name[:12] for name in os.listdir(folder)] == ["metaflow.s3."], "made at once"
        s3.put("x", "text")
        path = s3.get("x").path
        assert path.startswith(folder) and os.path.exists(path)
        s3.close()
        assert os.listdir(folder) == []
        s3.close()
        raises(URL_ERROR, lambda: s3.get("x"))
        try:
            with S3(tmproot=folder, s3root=ROOT) as s3:
                s3.get("x")
                raise KeyError
        except KeyError:
            assert os.listdir(folder) == []


def s_3_methods():
    with S3(s3root=ROOT + "/methods") as s3:
        s3.put_many([("a/1", "1"), ("a/2", "22"), ("ab", "3")])
        raises(exception.MetaflowS3NotFound, lambda: s3.get_many(["a/1", "no"]))
        raises(exception.MetaflowS3NotFound, lambda: s3.info("no"))
        raises(exception.MetaflowS3NotFound, lambda: s3.info_many(["a/1", "no"]))
        there, gone = s3.info_many(["a/2", "no"], return_missing=True)
        assert (there.exists, there.size, there.downloaded, gone.exists) == (True, 2, False, False)
        assert there.blob is there.text is there.path is None and there.has_info
        assert [each.key for each in s3.get_recursive(["a"])] == ["1", "2"]
        assert [each.key for each in s3.list_recursive(["a"])] == ["1", "2"], "not ab"
        assert s3.get_recursive(["no"]) == [] and s3.list_paths(["no"]) == []
        names = {each.key: each.exists for each in s3.list_paths()}
        assert names == {"a": False, "ab": True}, names
        assert len(s3.get_all(return_info=True)) == 3
        with open("file", "w") as file:
            file.write("from a file")
        assert s3.put_files([("f", "file")]) == [("f", f"{ROOT}/methods/f")]
        text = raises(exception.MetaflowS3NotFound, lambda: s3.put_files([("g", "no file")]))
        assert "no file" in text
    with S3(s3root=ROOT + "/methods/ab") as s3:
        assert s3.get().text == "3", "without a key: what the prefix names"


def s_4_keys_and_values():
    with S3(s3root=ROOT + "/values") as s3:
        s3.put("/lead", "ü")
        assert s3.get("lead").text == "ü"
        for value in (b"bytes", io.BytesIO(b"bytes")):
            s3.put("v", value)
            assert s3.get("v").blob == b"bytes"
        advanced = io.BytesIO(b"whole")
        advanced.read(2)
        s3.put("v", advanced)
        assert s3.get("v").blob == b"whole"
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as pipe, os.fdopen(writing, "wb"):
            for bad in (12, None, ["x"], io.StringIO("text"), pipe):
                raises(exception.MetaflowS3InvalidObject, lambda bad=bad: s3.put("bad", bad))
        assert not s3.info("bad", return_missing=True).exists
        s3.put("r", bytes(range(50)))
        parts = [(10, 5), (45, None), (0, None), (3, -7), (45, 100), (0, 1)]
        wanted = [(10, 15), (45, 50), (0, 50), (43, 50), (45, 50), (0, 1)]
        found = s3.get_many([S3GetObject("r", *part) for part in parts])
        assert [each.blob for each in found] == [bytes(range(*each)) for each in wanted]
        assert found[0].range_info.total_size == 50 and found[0].size == 5
        raises(exception.MetaflowS3InvalidRange, lambda: s3.get(S3GetObject("r", 50, 1)))


def s_5_overwrite():
    with S3(s3root=ROOT + "/over") as s3:
        s3.put("x", "old")
        assert s3.put("x", "new", overwrite=False) == f"{ROOT}/over/x"
        assert s3.put_many([("x", "new"), ("y", "1")], overwrite=False) == [
            ("y", f"{ROOT}/over/y")
        ]
        assert s3.put_files([("x", "file")], overwrite=False) == []
        assert s3.get("x").text == "old"
        s3.put("x", "new")
        assert s3.get("x").text == "new"


def s_6_metadata():
    with S3(s3root=ROOT + "/meta") as s3:
        given = {"kind": "ünïcode", "n": "1"}
        s3.put("m", "x", metadata=given, content_type="text/csv")
        for found in (s3.get("m"), s3.info("m")):
            assert (found.metadata, found.content_type) == (given, "text/csv")
        s3.put_many([S3PutObject("p", "x", content_type="a/b", metadata=given)])
        assert (s3.info("p").metadata, s3.info("p").content_type) == (given, "a/b")
        plain = s3.get("m", return_info=False)
        assert plain.text == "x" and not plain.has_info and plain.metadata is None


def s_7_objects():
    with S3(s3root=ROOT + "/objects") as s3:
        s3.put("deep/x", b"\xff")
        found = s3.get("deep/x")
        assert (found.key, found.prefix) == ("deep/x", ROOT + "/objects")
        assert found.url == f"{ROOT}/objects/deep/x" and found.text == "\ufffd"
        assert 1.6e9 < found.last_modified < 4e9 and found.encryption is None
    with S3() as s3:
        listed = s3.list_recursive([ROOT + "/objects"])
        assert [(each.key, each.prefix) for each in listed] == [("deep/x", ROOT + "/objects")]
        assert s3.get(ROOT + "/objects/deep/x").prefix is None


def s_9_empty_and_twice():
    with S3(s3root=ROOT + "/twice") as s3:
        for method in ("get_many", "info_many", "list_paths", "list_recursive", "get_recursive"):
            assert getattr(s3, method)([]) == []
        assert s3.put_many([]) == s3.put_files([]) == []
        s3.put("x", "1")
        assert [each.text for each in s3.get_many(["x", "x", "x"])] == ["1"] * 3
        assert len({each.path for each in s3.get_many(["x", "x"])}) == 2


for name, statement in list(globals().items()):
    if name.startswith("s_"):
        statement()
print("all well")
