"""A numpy artifact of 256 MiB of random doubles; notes when the body was done with it."""

import time

from metaflow import FlowSpec, Parameter, step


class ArrayFlow(FlowSpec):
    mebibytes = Parameter("mebibytes", default=256)

    @step
    def start(self):
        import numpy

        self.array = numpy.random.default_rng(1).random(self.mebibytes << 17)
        print("body done", time.time())
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ArrayFlow()
