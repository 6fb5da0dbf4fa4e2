"""Adds up a large random matrix on all processors with `parallel_map`. Needs numpy.

python examples/big_sum.py run --rows 4000
"""

from metaflow import FlowSpec, Parameter, parallel_map, resources, step


class BigSumFlow(FlowSpec):
    """Sum a square matrix of random numbers."""

    rows = Parameter("rows", default=1000, help="Rows and columns of the matrix")

    @resources(cpu=2, memory=4000)
    @step
    def start(self):
        import time

        import numpy

        matrix = numpy.random.random((self.rows, self.rows))
        began = time.perf_counter()
        # The function runs in forked processes: it sees `matrix` without a copy, lambda or not.
        chunks = numpy.array_split(numpy.arange(self.rows), 8)
        self.parts = parallel_map(lambda rows: float(matrix[rows].sum()), chunks)
        self.sum = sum(self.parts)
        self.seconds = time.perf_counter() - began
        self.next(self.end)

    @step
    def end(self):
        print(f"The sum is {self.sum:.1f}")
        print(f"Computing it took {self.seconds * 1000:.0f} ms")


if __name__ == "__main__":
    BigSumFlow()
