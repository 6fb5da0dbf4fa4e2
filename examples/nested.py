"""A foreach inside a foreach: every learning rate is tried on every data set.

python examples/nested.py run
"""

from metaflow import FlowSpec, step


class NestedFlow(FlowSpec):
    """Search a grid with two nested loops."""

    @step
    def start(self):
        self.data_sets = ["small", "large"]
        self.next(self.prepare, foreach="data_sets")

    @step
    def prepare(self):
        self.data_set = self.input
        self.rates = [0.1, 0.5, 1.0]
        self.next(self.train, foreach="rates")

    @step
    def train(self):
        # `foreach_stack` has one (index, number of splits, value) for each loop, outermost first.
        (_, _, data_set), (_, _, rate) = self.foreach_stack()
        self.rate = rate
        self.loss = abs(rate - (0.5 if data_set == "small" else 0.1))
        self.next(self.choose)

    @step
    def choose(self, inputs):
        """Closes the inner loop: once for each data set."""
        best = min(inputs, key=lambda task: task.loss)
        self.best_rate = best.rate
        self.merge_artifacts(inputs, include=["data_set"])
        self.next(self.report)

    @step
    def report(self, inputs):
        """Closes the outer loop."""
        self.best_rates = {task.data_set: task.best_rate for task in inputs}
        self.next(self.end)

    @step
    def end(self):
        for data_set, rate in self.best_rates.items():
            print(f"{data_set}: {rate}")


if __name__ == "__main__":
    NestedFlow()
