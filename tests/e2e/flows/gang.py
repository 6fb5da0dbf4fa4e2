"""A gang whose ranks talk to rank 0; options make one of them fail once."""

import os
import socket
import time

from metaflow import FlowSpec, Parameter, current, parallel, retry, step

PATIENCE = 60.0


class GangFlow(FlowSpec):
    ranks = Parameter("ranks", default=3)
    fails = Parameter("fails", default=-1, help="This rank fails in its first attempt")
    killed = Parameter("killed", default=-1, help="This rank kills itself in its first attempt")

    @step
    def start(self):
        # Free here; ranks on machines of their own have all ports to themselves.
        with socket.create_server(("", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.next(self.train, num_parallel=self.ranks)

    @retry(times=1, minutes_between_retries=0)
    @parallel
    @step
    def train(self):
        place = current.parallel
        self.place = (place.node_index, place.num_nodes, place.control_task_id)
        self.where = (self.index, self.input, self.foreach_stack(), current.is_parallel)
        self.host = socket.gethostname()
        first = current.retry_count == 0
        if first and place.node_index == self.fails:
            raise ValueError("this rank fails")
        if first and place.node_index == self.killed:
            os.kill(os.getpid(), 9)
        self.heard = serve(self.port, place) if place.node_index == 0 else call(self.port, place)
        print("rank", place.node_index, "heard", self.heard)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.places = [i.place for i in inputs]
        self.heard = [i.heard for i in inputs]
        self.wheres = [i.where for i in inputs]
        self.hosts = [i.host for i in inputs]
        self.outside = (self.index, self.input, self.foreach_stack(), "parallel" in current)
        self.next(self.end)

    @step
    def end(self):
        pass


def serve(port, place):
    """Rank 0 hears of every other rank and tells each its own number."""
    callers = []
    with socket.create_server(("", port)) as server:
        server.settimeout(PATIENCE)
        while len(callers) < place.num_nodes - 1:
            caller, _ = server.accept()
            with caller:
                callers.append(int(caller.recv(100)))
                caller.sendall(b"welcome")
    return sorted(callers)


def call(port, place):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with socket.create_connection((os.environ["MF_MASTER_ADDR"], port), 5) as connection:
                connection.sendall(str(place.node_index).encode())
                return connection.recv(100).decode()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


if __name__ == "__main__":
    GangFlow()
