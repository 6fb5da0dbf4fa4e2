"""A foreach of tasks that print for a while, each line with the time it was printed at."""

import time

from metaflow import FlowSpec, Parameter, step


class ChattyFlow(FlowSpec):
    width = Parameter("width", default=10)
    lines = Parameter("lines", default=10)
    pause = Parameter("pause", default=0.5)

    @step
    def start(self):
        self.items = range(self.width)
        self.next(self.work, foreach="items")

    @step
    def work(self):
        for number in range(self.lines):
            print(f"line {number} of {self.input} said at {time.time():.3f}")
            time.sleep(self.pause)
        self.x = self.input
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(i.x for i in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total)


if __name__ == "__main__":
    ChattyFlow()
