"""`num_parallel` on AWS Batch: one multi-node job whose nodes are the ranks.

The emulator has none: a door before it starts the nodes, each told its place; `moto`, which has
them, is shown the request.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from batch_tools import (
    Answer,
    BatchApi,
    Body,
    Door,
    Gangs,
    accepted_by_moto,
    call,
    door,
    is_alive,
    own_user,
)
from harness import REPOSITORY, client, finish, nothing_left, run_flow, start, wait_until
from parts import part

pytestmark = pytest.mark.cluster

GANG = REPOSITORY / "tests/e2e/flows/gang.py"
RUN = ("run", "--with", "batch")


@pytest.fixture
def service(batch: dict[str, str]) -> Iterator[Door]:
    with door(batch["AWS_ENDPOINT_URL_BATCH"]) as opened:
        opened.behaviour = Gangs(opened.upstream)
        yield opened


@pytest.fixture
def gangs(service: Door) -> Gangs:
    behaviour = service.behaviour
    assert isinstance(behaviour, Gangs)
    return behaviour


@pytest.fixture
def user(folder: Path, batch: dict[str, str], service: Door) -> dict[str, str]:
    own = {"AWS_ENDPOINT_URL_BATCH": service.endpoint, "METAFLOW_USER": own_user(folder)}
    return {**batch, **own}


def only_ranks_there(folder: Path) -> Path:
    """The flow with nothing but its gang on AWS Batch."""
    path = folder / "flow.py"
    path.write_text(
        GANG.read_text()
        .replace("current, parallel", "batch, current, parallel")
        .replace("    @parallel\n", "    @batch\n    @parallel\n")
    )
    return path


def joined(folder: Path, run: str, environment: dict[str, str]) -> list[str]:
    return client(
        folder,
        f"""
        run = Run("GangFlow/{run}")
        join = run["join"].task.data
        print(join.places)
        print(join.heard)
        print(len(set(join.hosts)))
        train = run["train"]
        print(train.control_task.id, sorted((t.id, t.current_attempt) for t in train))
        for task in sorted(train, key=lambda task: int(task.id)):
            print(task.metadata_dict["aws-batch-job-id"].partition("#")[2])
        """,
        env=environment,
    )


def left(gangs: Gangs) -> list[Body]:
    nodes = list(gangs.nodes.values())
    jobs = call(gangs.upstream, "describejobs", {"jobs": nodes})[1]["jobs"] if nodes else []
    return [job for job in jobs if is_alive(job)]


def nothing_runs(gangs: Gangs) -> None:
    wait_until(lambda: not left(gangs), "the end of all nodes", 60)


def all_run(gangs: Gangs) -> bool:
    return [job["status"] for job in left(gangs)] == ["RUNNING"] * 3


def test_ranks_are_the_nodes_of_one_job(folder: Path, user: dict[str, str], gangs: Gangs) -> None:
    result = run_flow(folder, GANG, *RUN, env=user).ok()
    assert joined(folder, result.run_id, user) == [
        "[(0, 3, '2'), (1, 3, '2'), (2, 3, '2')]",
        "[[1, 2], 'welcome', 'welcome']",
        "3",
        "2 [('2', 0), ('3', 0), ('4', 0)]",
        *"012",
    ]
    (request,) = gangs.requests
    assert request["parameters"]["metaflow.children"] == "2.0 3.0 4.0"
    assert "containerOverrides" not in request
    nothing_runs(gangs)
    accepted_by_moto(request, nodes=3)


def test_rank_0_waits_for_the_others_to_end(
    folder: Path, user: dict[str, str], gangs: Gangs
) -> None:
    flow = only_ranks_there(folder)
    late = "time.sleep(3 * (place.node_index == 2))\n        print"
    flow.write_text(flow.read_text().replace("print", late, 1))
    result = run_flow(folder, flow, "run", env=user).ok()
    assert "Task was lost" not in result.stdout
    assert joined(folder, result.run_id, user)[3] == "2 [('2', 0), ('3', 0), ('4', 0)]"


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_rank_fails_all_start_again(
    folder: Path, user: dict[str, str], gangs: Gangs, rank: int
) -> None:
    flow = only_ranks_there(folder)
    result = run_flow(folder, flow, "run", "--fails", str(rank), env=user).ok()
    assert "this rank fails" in result.stdout
    assert "Task was lost" not in result.stdout
    assert joined(folder, result.run_id, user)[1:4] == [
        "[[1, 2], 'welcome', 'welcome']",
        "3",
        "2 [('2', 1), ('3', 1), ('4', 1)]",
    ]
    assert len(gangs.requests) == 2
    nothing_runs(gangs)


def test_a_rank_whose_instance_goes_away_costs_no_retry(
    folder: Path, user: dict[str, str], gangs: Gangs
) -> None:
    flow = only_ranks_there(folder)
    flow.write_text(flow.read_text().replace("@retry(times=1,", "@retry(times=0,"))
    flow.write_text(
        flow.read_text().replace(
            "self.heard =",
            "time.sleep(50 * (first and place.node_index == 1))\n        self.heard =",
            1,
        )
    )

    def take_away(name: str, job: Body) -> None:
        if len(gangs.requests) == 1 and name.endswith("#1") and job["status"] == "RUNNING":
            call(gangs.upstream, "terminatejob", {"jobId": job["jobId"], "reason": "gone"})
        if len(gangs.requests) == 1 and name.endswith("#1") and job["status"] == "FAILED":
            job.update(statusReason="Host EC2 (instance i-1) terminated.", container={})

    gangs.said = take_away
    result = run_flow(folder, flow, "run", env=user).ok()
    lost = "Task was lost (its instance went away: Host EC2 (instance i-1) terminated."
    assert lost in result.stdout
    assert joined(folder, result.run_id, user)[3] == "2 [('2', 1), ('3', 1), ('4', 1)]"
    nothing_runs(gangs)


@contextmanager
def refusing() -> Iterator[str]:
    """An address, as containers see it, at which everything is refused, as if it had expired."""

    class Refuses(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(403, "Request has expired")

        def log_message(self, *_arguments: object) -> None:
            return

    server = ThreadingHTTPServer(("0.0.0.0", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    host = urlsplit(part("s3")["FERROFLOW_TEST_S3_FROM_CONTAINERS"]).hostname
    yield f"http://{host}:{server.server_address[1]}/list"
    server.shutdown()
    server.server_close()


def test_a_gang_whose_addresses_expired_in_the_queue_is_submitted_again(
    folder: Path, user: dict[str, str], gangs: Gangs, service: Door
) -> None:
    with refusing() as address:

        def expire(operation: str, body: Body, forward: Callable[[], Answer]) -> Answer | None:
            if operation == "submitjob" and "nodeOverrides" in body and not gangs.requests:
                (to_all,) = body["nodeOverrides"]["nodePropertyOverrides"]
                for variable in to_all["containerOverrides"]["environment"]:
                    if variable["name"] == "FERROFLOW_CHILDREN_URL":
                        variable["value"] = address
            return gangs(operation, body, forward)

        service.behaviour = expire
        result = run_flow(folder, only_ranks_there(folder), "run", env=user).ok()
    assert "Task was lost" not in result.stdout and "Task failed" not in result.stdout
    assert joined(folder, result.run_id, user)[3] == "2 [('2', 0), ('3', 0), ('4', 0)]"
    first, second = gangs.requests
    assert first["parameters"] == second["parameters"]
    assert first["jobName"] != second["jobName"]
    nothing_runs(gangs)


SLEEPS = "time.sleep(600)\n        self.heard ="


def test_ctrl_c_leaves_no_rank(folder: Path, user: dict[str, str], gangs: Gangs) -> None:
    flow = only_ranks_there(folder)
    flow.write_text(flow.read_text().replace("self.heard =", SLEEPS, 1))
    process = start(folder, flow, "run", env=user)
    wait_until(lambda: all_run(gangs), "three ranks", 90)
    process.send_signal(signal.SIGINT)
    result = finish(process, folder).exited(130)
    assert "may still be running" not in result.stdout + result.stderr
    nothing_runs(gangs)
    nothing_left(folder, 2)


def test_a_gang_is_listed_and_killed_as_one_job(
    folder: Path, user: dict[str, str], gangs: Gangs
) -> None:
    flow = only_ranks_there(folder)
    flow.write_text(flow.read_text().replace("self.heard =", SLEEPS, 1))
    process = start(folder, flow, "run", env=user)
    wait_until(lambda: all_run(gangs), "three ranks", 90)
    command = ("batch", "kill", "--run-id", "1")
    killed = run_flow(folder, flow, *command, env=user).ok()
    assert killed.stdout.count("Killing AWS Batch job: ") == 1
    result = finish(process, folder).exited(1)
    assert "omebody ended the job: " in result.stdout + result.stderr
    assert len(gangs.requests) == 1, "it is not started again"
    nothing_runs(gangs)


def test_a_gang_that_a_dead_engine_left_behind_is_stopped_and_runs_again(
    folder: Path, user: dict[str, str], gangs: Gangs
) -> None:
    flow = only_ranks_there(folder)
    only_once = 'time.sleep(600 * (current.run_id == "1"))\n        self.heard ='
    flow.write_text(flow.read_text().replace("self.heard =", only_once, 1))
    engine = start(folder, flow, "run", env=user)
    wait_until(lambda: all_run(gangs), "three ranks", 90)
    first = set(gangs.gangs)
    engine.kill()
    engine.communicate()
    result = run_flow(folder, flow, "resume", env=user).ok()
    assert "Stopping 3 tasks that run 1 left behind" in result.stdout
    assert joined(folder, result.run_id, user)[1] == "[[1, 2], 'welcome', 'welcome']"
    assert first <= gangs.stopped
    nothing_runs(gangs)


def test_fargate_runs_no_gangs(folder: Path, batch: dict[str, str]) -> None:
    queue = f"{own_user(folder)}-fargate"[-100:]
    BatchApi(batch["AWS_ENDPOINT_URL_BATCH"]).make_queue(queue, type="FARGATE")
    flow = only_ranks_there(folder)
    user = {**batch, "METAFLOW_BATCH_JOB_QUEUE": queue}
    result = run_flow(folder, flow, "run", env=user).exited(1)
    said = (
        "step `train` is a gang (num_parallel), which AWS Batch runs on managed EC2 instances only"
    )
    assert said in result.stderr
