"""The module-wide generators, seeded by the flow at import."""

import random

import numpy

random.seed(11)
numpy.random.seed(12)
random.random()

from metaflow import FlowSpec, step  # noqa: E402


class OddGlobalSeeds(FlowSpec):
    @step
    def start(self):
        self.items = list(range(3))
        self.next(self.draw, foreach="items")

    @step
    def draw(self):
        print(f"SEEDED|random|{random.random():.12f}")
        print(f"SEEDED|numpy|{numpy.random.random_sample():.12f}")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    OddGlobalSeeds()
