"""Tasks of linear flows: artifacts, parameters, outcomes."""

from __future__ import annotations

LINEAR = """
    import os
    from metaflow import FlowSpec, step, Parameter, current

    class Linear(FlowSpec):
        alpha = Parameter("alpha", default=3)
        SIZES = [1, 2]

        @step
        def start(self):
            self.x = 1
            self.big = b"x" * 100_000
            self._hidden = "h"
            self.__mangled = "m"
            self.helper = lambda: 1
            self.doubled = self.alpha * 2
            self.SIZES.append(3)
            self.seen = list(self.SIZES)
            self.where = current.pathspec
            self.environment = os.environ["METAFLOW_RUN_ID"]
            self.next(self.middle)

        @step
        def middle(self):
            self.x += 1
            self.gone = 5
            del self.gone
            self.next(self.end)

        @step
        def end(self):
            print("x is", self.x, self.SIZES)
"""


def test_a_linear_flow_hands_on_its_artifacts(task_runner):
    runner = task_runner(LINEAR)
    start = runner.run("start")
    assert (start.exit_code, start.stdout, start.stderr) == (0, "", "")
    assert start.outcome["ok"] and start.outcome["success"]
    assert start.outcome["transition"] == {
        "targets": ["middle"],
        "num_splits": None,
        "foreach": None,
    }
    assert set(start.pack.names()) == {
        "SIZES",
        "_Linear__mangled",
        "_current_step",
        "_hidden",
        "_success",
        "_task_ok",
        "_transition",
        "alpha",
        "big",
        "doubled",
        "environment",
        "name",
        "seen",
        "where",
        "x",
    }
    values = {name: start.pack.get(name) for name in ("alpha", "doubled", "seen", "SIZES", "name")}
    assert values == {
        "alpha": 3,
        "doubled": 6,
        "seen": [1, 2, 3],
        "SIZES": [1, 2],
        "name": "Linear",
    }
    assert start.pack.get("where") == "Linear/1/start/1"
    assert start.pack.get("environment") == "1"
    middle = runner.run("middle", inputs=[runner.input_of(start)])
    assert middle.outcome["ok"], middle.stderr
    assert middle.pack.get("x") == 2
    assert middle.pack.get("_hidden") == "h"
    assert middle.pack.digest("big") == start.pack.digest("big")
    assert middle.pack.get("_current_step") == "middle"
    assert "gone" not in middle.pack
    end = runner.run("end", inputs=[runner.input_of(middle)])
    assert end.stdout == "x is 2 [1, 2]\n"
    assert end.outcome["transition"] == {"targets": [], "num_splits": None, "foreach": None}


def test_parameters_and_constants_cannot_be_assigned(task_runner):
    runner = task_runner(
        """
        from metaflow import FlowSpec, step, Parameter

        class ReadOnly(FlowSpec):
            alpha = Parameter("alpha", default=3)
            SIZE = 4

            @step
            def start(self):
                self.refused = []
                for name in ("alpha", "SIZE"):
                    try:
                        setattr(self, name, 1)
                    except AttributeError as error:
                        self.refused.append(str(error))
                self.next(self.end)

            @step
            def end(self):
                pass
        """
    )
    start = runner.run("start")
    assert start.pack.get("refused") == [
        "flow level attributes and parameters are not modifiable: `alpha` is a parameter of "
        "`ReadOnly`; assign to an attribute of another name",
        "flow level attributes and parameters are not modifiable: `SIZE` is a class attribute of "
        "`ReadOnly`; assign to an attribute of another name",
    ]


def test_inherited_artifacts_can_be_removed(task_runner):
    runner = task_runner(
        """
        from metaflow import FlowSpec, step

        class Remove(FlowSpec):
            @step
            def start(self):
                self.a = 1
                self.b = 2
                self.next(self.end)

            @step
            def end(self):
                self.b
                del self.a
                del self.b
                assert not hasattr(self, "a") and not hasattr(self, "b")
        """
    )
    start = runner.run("start")
    end = runner.run("end", inputs=[runner.input_of(start)])
    assert end.outcome["ok"], end.stderr
    assert not {"a", "b"} & set(end.pack.names())


def test_values_changed_in_place_are_stored_anew(task_runner):
    runner = task_runner(
        """
        import numpy
        from metaflow import FlowSpec, step

        class InPlace(FlowSpec):
            @step
            def start(self):
                self.array = numpy.zeros(100_000)
                self.read = numpy.ones(100_000)
                self.items = [1]
                self.next(self.end)

            @step
            def end(self):
                self.array[5] = 7
                self.read.sum()
                self.items.append(2)
        """
    )
    start = runner.run("start")
    end = runner.run("end", inputs=[runner.input_of(start)])
    assert end.outcome["ok"], end.stderr
    assert end.pack.get("array")[5] == 7 and start.pack.get("array")[5] == 0
    assert end.pack.get("items") == [1, 2]
    assert end.pack.digest("read") == start.pack.digest("read")


def test_current_knows_the_task(task_runner):
    runner = task_runner(
        """
        from metaflow import FlowSpec, step, current, Parameter

        class Where(FlowSpec):
            beta = Parameter("b-e-t-a", default="x")

            @step
            def start(self):
                fields = "flow_name run_id step_name task_id pathspec retry_count origin_run_id"
                fields += " namespace username is_running_flow parameter_names"
                self.fields = {field: getattr(current, field) for field in fields.split()}
                self.known = ["origin_run_id" in current, "run_id" in current, "card" in current]
                self.default = current.get("origin_run_id", "none"), current.get("card")
                self.graph = current.graph["steps"]["start"]["next"]
                self.text = str(self)
                self.next(self.end)

            @step
            def end(self):
                pass
        """
    )
    start = runner.run("start", attempt=2)
    assert start.outcome["ok"], start.stderr
    assert start.pack.get("fields") == {
        "flow_name": "Where",
        "run_id": "1",
        "step_name": "start",
        "task_id": "1",
        "pathspec": "Where/1/start/1",
        "retry_count": 2,
        "origin_run_id": None,
        "namespace": "user:tester",
        "username": "tester",
        "is_running_flow": True,
        "parameter_names": ["beta"],
    }
    assert start.pack.get("known") == [False, True, False]
    assert start.pack.get("default") == ("none", None)
    assert start.pack.get("graph") == ["end"]
    assert start.pack.get("text") == "<flow Where step start>"


def test_a_name_set_by_the_user_stays(task_runner):
    runner = task_runner(
        """
        from metaflow import FlowSpec, step

        class Named(FlowSpec):
            @step
            def start(self):
                assert self.name == "Named"
                self.name = "mine"
                self.next(self.end)

            @step
            def end(self):
                assert self.name == "mine"
        """
    )
    start = runner.run("start")
    end = runner.run("end", inputs=[runner.input_of(start)])
    assert end.outcome["ok"], end.stderr
    assert end.pack.get("name") == "mine"


def test_private_class_attributes_give_way_to_artifacts(task_runner):
    runner = task_runner(
        """
        from metaflow import FlowSpec, step

        class Base(FlowSpec):
            _seen = None
            __mine = 0

            def count(self):
                self.__mine += 1
                return self.__mine

        class Private(Base):
            _other = 1
            _seen = 0

            @step
            def start(self):
                assert (self._seen, self.count()) == (0, 1)
                self._seen = 5
                self.next(self.end)

            @step
            def end(self):
                assert (self._seen, self._other, self.count()) == (5, 1, 2)
                assert Private._seen == 0
        """
    )
    start = runner.run("start")
    end = runner.run("end", inputs=[runner.input_of(start)])
    assert end.outcome["ok"], end.stderr


def test_a_parameter_that_the_run_does_not_have(load_flow, task_runner, tmp_path):
    source = """
        from metaflow import FlowSpec, Parameter, step

        class Added(FlowSpec):
            FIELD

            @step
            def start(self):
                assert not hasattr(self, "missing")
                self.alpha
    """
    runner = task_runner(source.replace("FIELD", "other = 1"))
    runner.flow_class = load_flow(source.replace("FIELD", "alpha = Parameter('alpha')"))
    start = runner.run("start")
    assert start.stderr.splitlines()[-1] == (
        "AttributeError: `alpha` has no value in this run: it was added to the flow after the "
        "run's parameters were stored; start a new run"
    )
