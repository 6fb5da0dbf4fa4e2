"""The seven-task foreach of examples/hello.py, quiet; runs on Ferroflow and on stock Metaflow."""

import random

from metaflow import FlowSpec, step


class HelloFlow(FlowSpec):
    """Score some countries in parallel and choose the best."""

    @step
    def start(self):
        """What is assigned to `self` is an artifact: later steps, and later days, can read it."""
        self.countries = ["US", "CA", "BR", "CN"]
        # One `score` task for each country, as many at a time as the machine has processors.
        self.next(self.score, foreach="countries")

    @step
    def score(self):
        """Each task gets one item as `self.input`."""
        self.country = self.input
        self.result = random.randint(0, 10)
        print(f"scored {self.country}: {self.result}")
        self.next(self.join)

    @step
    def join(self, inputs):
        """A step that takes `inputs` waits for all of them."""
        self.best = max(inputs, key=lambda task: task.result).country
        self.next(self.end)

    @step
    def end(self):
        print(f"{self.best} scored best")


if __name__ == "__main__":
    HelloFlow()
