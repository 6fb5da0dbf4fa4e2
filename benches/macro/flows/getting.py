"""Puts and gets many objects with the `S3` client. ARGUMENTS: a prefix, how many small ones, how
many large ones, sizes of these in MiB."""

import sys
import time

from metaflow import S3

prefix, small, large = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sizes = [int(text) for text in sys.argv[4:]]
kinds = [("small", small)] + [(f"large{size}", large) for size in sizes]
with S3(s3root=prefix) as s3:
    s3.put_many([(f"small/{number}", f"object {number}") for number in range(small)])
    for size in sizes:
        content = b"0123456789abcdef" * (size << 16)
        s3.put_many([(f"large{size}/{number}", content) for number in range(large)])
for kind, count in kinds:
    began = time.perf_counter()
    with S3(s3root=prefix) as s3:
        found = s3.get_many([f"{kind}/{number}" for number in range(count)])
        total = sum(each.size for each in found)
        seconds = time.perf_counter() - began
        assert len(found) == count and total
    print(kind, f"{seconds:.4f}")
