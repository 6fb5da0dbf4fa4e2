"""A wide foreach whose end fails until the file `mended` is there, so that it can be resumed."""

import os

from metaflow import FlowSpec, Parameter, step


class ResumingFlow(FlowSpec):
    width = Parameter("width", default=198)

    @step
    def start(self):
        self.items = range(self.width)
        self.next(self.work, foreach="items")

    @step
    def work(self):
        self.x = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(i.x for i in inputs)
        self.next(self.end)

    @step
    def end(self):
        if not os.path.exists("mended"):
            raise RuntimeError("not mended")


if __name__ == "__main__":
    ResumingFlow()
