"""A join over `--width` inputs that reads one artifact of each and says how long that took."""

import time

from metaflow import FlowSpec, Parameter, step


class JoiningFlow(FlowSpec):
    width = Parameter("width", default=100)

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
        began = time.time()
        self.total = sum(i.x for i in inputs)
        print(f"read in {time.time() - began:.4f} s")
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total)


if __name__ == "__main__":
    JoiningFlow()
