"""Generators of every kind, made at import, seeded and not; each task prints what they give."""

import random

from metaflow import FlowSpec, step

import numpy
from numpy.random import RandomState, default_rng

SEEDED = {
    "random.Random(1)": random.Random(1).random,
    "RandomState(2)": RandomState(2).random_sample,
    "default_rng(3)": default_rng(3).random,
    "Generator(Philox(4))": numpy.random.Generator(numpy.random.Philox(4)).random,
}
advanced = random.Random(5)
for _ in range(1000):
    advanced.random()
SEEDED["advanced"] = advanced.random
UNSEEDED = {
    "random": random.random,
    "random.Random()": random.Random().random,
    "numpy": numpy.random.random_sample,
    "RandomState()": RandomState().random_sample,
    "default_rng()": default_rng().random,
    "SystemRandom": random.SystemRandom().random,
}


class Holder:
    rng = default_rng()


UNSEEDED["class attribute"] = Holder.rng.random


class OddRandom(FlowSpec):
    @step
    def start(self):
        self.items = list(range(4))
        self.next(self.draw, foreach="items")

    @step
    def draw(self):
        for name, draw in SEEDED.items():
            print(f"SEEDED|{name}|{draw():.12f}")
        for name, draw in UNSEEDED.items():
            print(f"UNSEEDED|{name}|{draw():.12f}")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    OddRandom()
