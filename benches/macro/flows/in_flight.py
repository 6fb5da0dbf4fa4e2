"""Tasks for the stand-ins of `stand_ins.py`: they say what they would have printed."""

from metaflow import FlowSpec, Parameter, kubernetes, step

TOLERATIONS = [{"key": "ferroflow.test/made-up", "operator": "Exists", "effect": "NoSchedule"}]


class InFlightFlow(FlowSpec):
    width = Parameter("width", default=10)
    lines = Parameter("lines", default=3)

    @step
    def start(self):
        self.items = range(self.width)
        self.next(self.work, foreach="items")

    @kubernetes(tolerations=TOLERATIONS, node_selector={"pool": "ferroflow-bench"})
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
        print("total", self.total)


if __name__ == "__main__":
    InFlightFlow()
