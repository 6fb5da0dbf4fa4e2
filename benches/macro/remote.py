"""Rows on real parts: Kubernetes, AWS Batch, S3, as `tests/clusters` starts them.

A part that cannot be started here is said and its rows are left out. What a part is, is that
folder's business; stand-in pods for more tasks than this machine could run are `stand_ins.py`'s.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from screen import Screen, watch
from sides import FLOWS, PEER_HOME, REPOSITORY, Side, flow, run, scratch
from table import Row, Skipped

CLUSTER = REPOSITORY / "tests/clusters/cluster"
sys.path[:0] = [str(REPOSITORY / "tests/e2e"), str(CLUSTER.parent)]

BUCKET = "ferroflow-bench"
PEER_IMAGE = "localhost/ferroflow-bench-peer:1"
NAMESPACE = "ferroflow-bench"


@cache
def part(name: str) -> dict[str, str]:
    """A part's variables; it is started unless it runs."""
    import parts

    try:
        return parts.part(name)
    except (OSError, subprocess.SubprocessError) as error:
        raise Skipped(f"`{CLUSTER} up {name}` did not succeed ({error})") from None


def on_s3() -> dict[str, str]:
    """A datastore and a user of its own in this machine's S3."""
    import parts

    variables = {k: v for k, v in part("s3").items() if k.startswith("AWS_")}
    parts.put(f"{variables['AWS_ENDPOINT_URL_S3']}/{BUCKET}")
    root = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    return {
        **variables,
        "METAFLOW_DEFAULT_DATASTORE": "s3",
        "METAFLOW_DATASTORE_SYSROOT_S3": root,
        "METAFLOW_DATATOOLS_S3ROOT": f"{root}/data",
        "METAFLOW_DEFAULT_METADATA": "local",
    }


@cache
def peer_image() -> str:
    """The peer's pods and containers need boto3 and requests, and would run pip to get them."""
    packages = [str(PEER_HOME / "bin/python"), "-m", "pip", "install", "--quiet"]
    # The newest ones ask for another `dateutil` than boto3.
    subprocess.run([*packages, "boto3", "requests", "kubernetes<34"], check=True)
    folder = PEER_HOME / "image"
    if not (folder / "complete").exists():
        subprocess.run([*packages, "--target", str(folder), "boto3", "requests"], check=True)
        (folder / "complete").touch()
    command = [str(CLUSTER), "image", PEER_IMAGE, "python", str(folder)]
    skip = "METAFLOW_SKIP_INSTALL_DEPENDENCIES=1"
    subprocess.run([*command, skip], check=True, stdout=subprocess.DEVNULL)
    return PEER_IMAGE


def on_kubernetes(side: Side) -> dict[str, str]:
    import parts

    kubernetes, s3 = part("kubernetes"), part("s3")
    mine = side.name == "Ferroflow"
    inside = s3["FERROFLOW_TEST_S3_FROM_PODS"]
    with parts.KubernetesApi(kubernetes["KUBECONFIG"]) as api:
        api.apply_new("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
    parts.make_secret(kubernetes["KUBECONFIG"], NAMESPACE, s3)
    # The peer has one address for both sides; the pods' leads to the store from here, too.
    address = "METAFLOW_KUBERNETES_S3_ENDPOINT_URL" if mine else "METAFLOW_S3_ENDPOINT_URL"
    return {
        **on_s3(),
        "KUBECONFIG": kubernetes["KUBECONFIG"],
        address: inside,
        "METAFLOW_KUBERNETES_NAMESPACE": NAMESPACE,
        "METAFLOW_KUBERNETES_CONTAINER_IMAGE": parts.PYTHON_IMAGE if mine else peer_image(),
        "METAFLOW_KUBERNETES_SECRETS": parts.SECRET,
        "METAFLOW_KUBERNETES_CPU": "0.1",
        "METAFLOW_KUBERNETES_MEMORY": "256",
    }


def on_batch(side: Side) -> dict[str, str]:
    import parts

    batch, s3 = part("batch"), part("s3")
    mine = side.name == "Ferroflow"
    address = "METAFLOW_BATCH_S3_ENDPOINT_URL" if mine else "METAFLOW_S3_ENDPOINT_URL"
    given = {k: v for k, v in batch.items() if k.startswith(("AWS_", "METAFLOW_"))}
    return {
        **on_s3(),
        **given,
        address: s3["FERROFLOW_TEST_S3_FROM_CONTAINERS"],
        "METAFLOW_BATCH_CONTAINER_IMAGE": parts.PYTHON_IMAGE if mine else peer_image(),
        "METAFLOW_ECS_S3_ACCESS_IAM_ROLE": "arn:aws:iam::123456789012:role/bench",
    }


def seven(bench: Any, layer: str, user: Callable[[Side], dict[str, str]], target: str) -> list[Row]:
    seconds: dict[str, list[float]] = {}
    for _ in range(bench.times(2)):
        for side in (bench.peer, bench.mine):
            with scratch() as folder:
                measured = flow(side, folder, "seven.py", "run", "--with", layer, extra=user(side))
            seconds.setdefault(side.name, []).append(measured.ok().seconds)
    pair = [statistics.median(seconds[side.name]) for side in (bench.peer, bench.mine)]
    return [Row(f"the seven-task foreach example, {target}", *pair, "s", "5 times faster")]


def seven_on_kubernetes(bench: Any) -> list[Row]:
    return seven(bench, "kubernetes", on_kubernetes, "Kubernetes")


def seven_on_batch(bench: Any) -> list[Row]:
    return seven(bench, "batch", on_batch, "AWS Batch")


def latency(bench: Any) -> list[Row]:
    """What one more task in a row costs on each layer."""
    users = {"Kubernetes": ("kubernetes", on_kubernetes), "AWS Batch": ("batch", on_batch)}
    rows = []
    for name, chosen in [("this machine", None), *users.items()]:
        extra: dict[str, str] = {}
        options = ["run"]
        if chosen:
            layer, user = chosen
            options += ["--with", layer]
            extra = user(bench.mine)
        long, short = (
            bench.median(bench.mine, 3, flow_file, *options, extra=extra)
            for flow_file in ("chain.py", "short.py")
        )
        work = f"one more task of a chain: {name}"
        rows.append(Row(work, None, (long - short) / 4, "s"))
    return rows


def join_on_s3(bench: Any) -> list[Row]:
    """The time from the join's start to its last input's artifact."""
    widths = (50,) if bench.quick else (200, 1000)
    rows = []
    for width in widths:
        # The peer takes a quarter of an hour until its join of 1,000 begins.
        both = width < 1000 or bench.full
        sides = [bench.peer, bench.mine] if both else [bench.mine]
        pair: list[float | None] = [None] * (2 - len(sides))
        for side in sides:
            with scratch() as folder:
                wide = ["run", "--max-num-splits", "1000", "--width", str(width)]
                done = flow(side, folder, "joining.py", *wide, extra=on_s3()).ok()
            line = next(line for line in done.output.splitlines() if "read in" in line)
            pair.append(float(line.rsplit(" ", 2)[1]))
        work = f"a join reads an artifact of each of {width:,} inputs on S3"
        rows.append(Row(work, pair[0], pair[1] or 0.0, "s", "10 times faster"))
    return rows


def get_many(bench: Any) -> list[Row]:
    sizes = ("100", "3", "8", "2") if bench.quick else ("1000", "10", "64", "16")
    found: dict[str, list[float]] = {}
    for side in (bench.peer, bench.mine):
        with scratch() as folder:
            variables = on_s3()
            if side is bench.peer:
                variables["METAFLOW_S3_ENDPOINT_URL"] = variables["AWS_ENDPOINT_URL_S3"]
            prefix = f"{variables['METAFLOW_DATASTORE_SYSROOT_S3']}/many"
            script = str(FLOWS / "getting.py")
            done = run(side, folder, script, prefix, *sizes, extra=variables).ok()
        for line in done.output.splitlines():
            kind, _, seconds = line.partition(" ")
            if kind.isalnum() and seconds:
                found.setdefault(kind, []).append(float(seconds))
    small, large, *large_sizes = sizes
    target = "5 times faster"
    rows = [Row(f"`S3.get_many` of {int(small):,} small objects", *found["small"], "s", target)]
    for size in large_sizes:
        text = f"`S3.get_many` of {large} objects of {size} MiB"
        rows.append(Row(text, *found[f"large{size}"], "s", target))
    return rows


def real_pods(bench: Any) -> list[Row]:
    """200 pods, 100 at once, all of which print; what was shown and recorded is compared. They
    print for so long that a hundred are up before the first is done."""
    width, at_once, lines = (20, 10, 20) if bench.quick else (200, 100, 120)
    with scratch() as folder:
        variables = on_kubernetes(bench.mine)
        # So that a hundred of them fit on a node with two processors.
        for what, little in (("CPU", "0.01"), ("MEMORY", "100"), ("DISK", "100")):
            variables[f"METAFLOW_KUBERNETES_{what}"] = little
        options = ["run", "--with", "kubernetes", "--width", str(width)]
        options += ["--lines", str(lines)]
        options += ["--max-num-splits", str(width), "--max-workers", str(at_once)]
        with watches_opened(variables["KUBECONFIG"]) as watches:
            seen = watch(bench.mine, folder, "chatty.py", *options, extra=variables)
        seen.check(bench.mine, folder, width, lines, variables)
    return pods_rows(
        f"{width} real pods, {at_once} at once", seen, max(watches, default=0), "≤ 2 s"
    )


OPEN_WATCHES = re.compile(
    r'apiserver_longrunning_gauge.*,resource="pods",scope="namespace",.*"WATCH",.* (\d+)\n'
)


def open_watches(kubeconfig: str) -> int:
    """Watches of a namespace's pods that the API server has open, whosever they are."""
    command = ["kubectl", "--kubeconfig", kubeconfig, "get", "--raw", "/metrics"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sum(int(number) for number in OPEN_WATCHES.findall(text))


@contextmanager
def watches_opened(kubeconfig: str) -> Iterator[list[int]]:
    """How many more there are than at the beginning, every two seconds."""
    before = open_watches(kubeconfig)
    seen: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(2):
            seen.append(open_watches(kubeconfig) - before)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield seen
    finally:
        over.set()
        looking.join()


def pods_rows(what: str, seen: Screen, watches: int, promised: str) -> list[Row]:
    rows = [Row(f"{what}: the run", None, seen.seconds, "s", "all results and logs recorded")]
    together = seen.printing_together()
    rows.append(Row(f"{what}: of them printing at once, at most", None, together, ""))
    late = seen.percentile(95)
    rows.append(Row(f"{what}: p95 from print to screen", None, late, "s", promised))
    memory = seen.peak_memory / (1 << 20)
    return [
        *rows,
        Row(f"{what}: the engine's memory", None, memory, "MiB", "≤ 200 MiB"),
        Row(f"{what}: its open connections, at most", None, seen.connections, "", "≤ 20"),
        Row(f"{what}: its watches, at most", None, watches, "", "1"),
    ]


def thousand_in_flight(bench: Any) -> list[Row]:
    """On nodes that exist in the API server only; stand-ins act as the pods would."""
    from stand_ins import standing_in

    width = 100 if bench.quick else 1000
    with scratch() as folder:
        variables = on_kubernetes(bench.mine)
        # The stand-ins are on this machine.
        del variables["METAFLOW_KUBERNETES_S3_ENDPOINT_URL"]
        options = ["run", "--width", str(width), "--lines", "3", "--max-num-splits", str(width)]
        options += ["--max-workers", str(width)]
        log = folder / "stand-ins.txt"
        with standing_in(FLOWS / "in_flight.py", NAMESPACE, width, variables, log) as stand_ins:
            with watches_opened(variables["KUBECONFIG"]) as watches:
                seen = watch(bench.mine, folder, "in_flight.py", *options, extra=variables)
            most = stand_ins.most_in_flight()
        if most < width:
            raise SystemExit(f"only {most} tasks of {width} were in flight:\n{log.read_text()}")
        seen.check(bench.mine, folder, width, 3, variables)
    return pods_rows(f"{width:,} tasks in flight on Kubernetes", seen, max(watches, default=0), "")


ROWS: dict[str, Callable[[Any], list[Row]]] = {
    "kubernetes": seven_on_kubernetes,
    "batch": seven_on_batch,
    "latency": latency,
    "s3-join": join_on_s3,
    "s3-many": get_many,
    "pods": real_pods,
    "in-flight": thousand_in_flight,
}
