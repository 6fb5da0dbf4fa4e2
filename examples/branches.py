"""Two models are fitted at the same time, then compared; `merge_artifacts` keeps the rest.

python examples/branches.py run
"""

from metaflow import FlowSpec, step


class BranchesFlow(FlowSpec):
    """Fit two models in branches and keep the better one."""

    @step
    def start(self):
        self.data = [(x, 2 * x + 1) for x in range(10)]
        self.next(self.fit_line, self.fit_mean)

    @step
    def fit_line(self):
        (x0, y0), (x1, y1) = self.data[0], self.data[-1]
        slope = (y1 - y0) / (x1 - x0)
        self.model = ("line", slope, y0 - slope * x0)
        self.error = sum((y - (slope * x + self.model[2])) ** 2 for x, y in self.data)
        self.next(self.compare)

    @step
    def fit_mean(self):
        mean = sum(y for _, y in self.data) / len(self.data)
        self.model = ("mean", mean)
        self.error = sum((y - mean) ** 2 for _, y in self.data)
        self.next(self.compare)

    @step
    def compare(self, inputs):
        # `model` and `error` differ between the branches, so we say which ones we want ...
        better = min(inputs, key=lambda branch: branch.error)
        self.model, self.error = better.model, better.error
        self.errors = {"line": inputs.fit_line.error, "mean": inputs.fit_mean.error}
        # ... and everything that is the same in both (here: `data`) is passed on.
        self.merge_artifacts(inputs)
        self.next(self.end)

    @step
    def end(self):
        print(f"{len(self.data)} points, best model: {self.model[0]}, error {self.error:.1f}")


if __name__ == "__main__":
    BranchesFlow()
