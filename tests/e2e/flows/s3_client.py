"""What the S3 client promises, tried below the address given as argument; prints `all well`."""

import os
import sys

from metaflow import S3, exception
from metaflow._s3 import S3GetObject, S3PutObject

ROOT = sys.argv[1] + "/client"


def raises(kind, action):
    try:
        action()
    except kind as error:
        assert type(error) is kind, error
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


with S3(s3root=ROOT) as s3:
    assert s3.put("a", "hällo", metadata={"x": "y"}, content_type="text/plain") == f"{ROOT}/a"
    found = s3.get("a")
    assert (found.text, found.size, found.metadata) == ("hällo", 6, {"x": "y"})
    assert (found.content_type, found.key, found.prefix) == ("text/plain", "a", ROOT)
    assert s3.put_many([("b/1", b"1"), S3PutObject("b/2", "22"), ("c", b"ccc")]) == [
        (key, f"{ROOT}/{key}") for key in ("b/1", "b/2", "c")
    ]
    assert s3.put_many([("b/1", b"new"), ("d", b"d")], overwrite=False) == [("d", f"{ROOT}/d")]
    assert s3.put("b/1", "new", overwrite=False) == f"{ROOT}/b/1"
    assert [each.blob for each in s3.get_many(["c", "/b/1", "c"])] == [b"ccc", b"1", b"ccc"]
    assert s3.get_many([]) == s3.put_many([]) == s3.list_paths([]) == s3.info_many([]) == []

    level = sorted((each.key, each.exists, each.size) for each in s3.list_paths())
    assert level == [("a", True, 6), ("b", False, None), ("c", True, 3), ("d", True, 1)], level
    assert sorted(each.key for each in s3.list_recursive()) == ["a", "b/1", "b/2", "c", "d"]
    assert sorted(each.blob for each in s3.get_recursive(["b"])) == [b"1", b"22"]
    assert len(s3.get_all()) == 5
    assert s3.get_recursive(["nothing"]) == []

    assert "there is no such object" in raises(exception.MetaflowS3NotFound, lambda: s3.get("no"))
    present, absent = s3.get_many(["c", "no"], return_missing=True)
    assert present.exists and not absent.exists and absent.blob is absent.path is None
    assert s3.info("c").size == 3 and not s3.info("c").downloaded

    s3.put("r", bytes(range(100)))
    assert s3.get(S3GetObject("r", 90, None)).blob == bytes(range(90, 100))
    assert s3.get(S3GetObject("r", 7, -5)).blob == bytes(range(95, 100))
    part = s3.get(S3GetObject("r", 10, 5))
    assert part.blob == bytes(range(10, 15)) and tuple(part.range_info) == (100, 10, 5)
    raises(exception.MetaflowS3InvalidRange, lambda: s3.get(S3GetObject("r", 500, 5)))
    raises(exception.MetaflowS3URLException, lambda: s3.get("s3://x/y"))
    raises(exception.MetaflowS3InvalidObject, lambda: s3.put("q", 12))

    for key, value in {"empty": b"", "sp ace/ü%20#[x]~": b"odd"}.items():
        s3.put(key, value)
        assert s3.get(key).blob == value
    assert [each.key for each in s3.list_recursive(["sp ace"])] == ["ü%20#[x]~"]

    large = os.urandom(40 << 20)
    with open("large", "wb") as file:
        file.write(large)
    assert s3.put_files([("large", "large")]) == [("large", f"{ROOT}/large")]
    assert s3.get("large").blob == large
    raises(exception.MetaflowS3NotFound, lambda: s3.put_files([("x", "no such file")]))
    path = s3.get("a").path
    many = s3.put_many([(f"many/{i}", str(i)) for i in range(200)])
    assert [each.text for each in s3.get_many([key for key, _ in many])] == [
        str(i) for i in range(200)
    ]

assert not os.path.exists(path)
with S3() as s3:
    raises(exception.MetaflowS3URLException, lambda: s3.get("relative"))
    raises(exception.MetaflowS3URLException, s3.get_all)
    raises(exception.MetaflowS3URLException, lambda: s3.get("s3://no-such-bucket-at-all/x"))
    assert s3.get(f"{ROOT}/c").key == f"{ROOT}/c"
print("all well")
