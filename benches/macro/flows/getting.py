"""Puts and gets many objects with the `S3` client: ARGUMENTS are a prefix, small, large, MiB."""

import sys
import time

from metaflow import S3

prefix, small, large, size = sys.argv[1], *map(int, sys.argv[2:])
with S3(s3root=prefix) as s3:
    s3.put_many([(f"small/{number}", f"object {number}") for number in range(small)])
    s3.put_many([(f"large/{number}", bytes([number]) * (size << 20)) for number in range(large)])
for kind, count in (("small", small), ("large", large)):
    began = time.perf_counter()
    with S3(s3root=prefix) as s3:
        found = s3.get_many([f"{kind}/{number}" for number in range(count)])
        total = sum(each.size for each in found)
        seconds = time.perf_counter() - began
        assert len(found) == count and total
    print(kind, f"{seconds:.4f}")
