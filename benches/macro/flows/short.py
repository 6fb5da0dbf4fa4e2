"""Two steps that do nothing; `chain.py` has four more."""

from metaflow import FlowSpec, step


class ShortFlow(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass


if __name__ == "__main__":
    ShortFlow()
