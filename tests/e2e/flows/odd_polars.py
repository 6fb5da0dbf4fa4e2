"""polars at the top leaves native threads behind, so its tasks cannot be forked."""

import polars
from metaflow import FlowSpec, step

FRAME = polars.DataFrame({"a": list(range(1000))})
TOTAL = FRAME.lazy().select(polars.col("a").sum()).collect().item()


class OddPolars(FlowSpec):
    @step
    def start(self):
        print("total", FRAME.lazy().select(polars.col("a").sum()).collect().item(), TOTAL)
        self.next(self.end)

    @step
    def end(self):
        print("again", polars.DataFrame({"a": [1, 2]}).sum().item())


if __name__ == "__main__":
    OddPolars()
