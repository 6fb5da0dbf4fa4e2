"""What to do about steps that fail: try again, give up on time, go on without the result.

python examples/failures.py run
"""

from metaflow import FlowSpec, catch, current, retry, step, timeout


class FailuresFlow(FlowSpec):
    """Retry a shaky step, catch a failing one."""

    @retry(times=2, minutes_between_retries=0)
    @step
    def start(self):
        # The first attempt fails; `retry` runs the step again.
        if current.retry_count == 0:
            raise ConnectionError("the network is down")
        self.fetched = f"fetched at attempt {current.retry_count}"
        self.next(self.divide, self.dawdle)

    @catch(var="problem")
    @step
    def divide(self):
        # Whatever is raised here ends up in `self.problem`, and the run goes on.
        self.answer = 1 / 0
        self.next(self.join)

    @catch(var="too_slow")
    @timeout(seconds=1)
    @step
    def dawdle(self):
        import time

        time.sleep(60)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.problem = inputs.divide.problem
        self.too_slow = inputs.dawdle.too_slow
        self.merge_artifacts(inputs, include=["fetched"])
        self.next(self.end)

    @step
    def end(self):
        print(self.fetched)
        print(f"divide went wrong: {self.problem.exception}")
        print(f"dawdle was stopped: {self.too_slow is not None}")


if __name__ == "__main__":
    FailuresFlow()
