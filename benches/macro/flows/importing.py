"""A foreach whose tasks import numpy in their body, as users write it."""

from metaflow import FlowSpec, Parameter, step


class ImportingFlow(FlowSpec):
    width = Parameter("width", default=100)

    @step
    def start(self):
        self.items = range(self.width)
        self.next(self.work, foreach="items")

    @step
    def work(self):
        import numpy

        self.x = int(numpy.int64(self.input))
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(i.x for i in inputs)
        self.next(self.end)

    @step
    def end(self):
        print("total", self.total)


if __name__ == "__main__":
    ImportingFlow()
