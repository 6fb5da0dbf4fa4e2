"""Splits, foreach and joins, task by task."""

from __future__ import annotations

import pytest

SCALEFLOW = """
    import random
    from metaflow import FlowSpec, step, resources

    class ScalableFlow(FlowSpec):
        @step
        def start(self):
            self.countries = ['US', 'CA', 'BR', 'CN']
            self.next(self.train, foreach='countries')

        @resources(cpu=2, memory=16000)
        @step
        def train(self):
            print('training model...')
            self.score = random.randint(0, 10)
            self.country = self.input
            self.next(self.join)

        @step
        def join(self, inputs):
            self.best = max(inputs, key=lambda x: x.score).country
            self.next(self.end)

        @step
        def end(self):
            print(self.best, 'produced best results')
"""


def test_the_example_of_the_documents(task_runner):
    runner = task_runner(SCALEFLOW)
    start = runner.run("start")
    assert start.outcome["transition"] == {
        "targets": ["train"],
        "num_splits": 4,
        "foreach": "countries",
    }
    trains = [
        runner.run(
            "train", inputs=[runner.input_of(start)], foreach_stack=[runner.frame(start, index)]
        )
        for index in range(4)
    ]
    assert [each.pack.get("country") for each in trains] == ["US", "CA", "BR", "CN"]
    assert trains[0].stdout == "training model...\n"
    join = runner.run("join", join=True, inputs=[runner.input_of(*trains)], expected_inputs=4)
    assert join.outcome["ok"], join.stderr
    assert set(join.pack.names()) == {
        "best",
        "name",
        "_current_step",
        "_success",
        "_task_ok",
        "_transition",
    }
    end = runner.run("end", inputs=[runner.input_of(join)])
    assert end.stdout == f"{join.pack.get('best')} produced best results\n"


def foreach_of(task_runner, expression: str, body: str = "self.item = self.input"):
    return task_runner(
        f"""
        import numpy
        from metaflow import FlowSpec, step

        class Foreach(FlowSpec):
            @step
            def start(self):
                self.items = {expression}
                self.next(self.work, foreach='items')

            @step
            def work(self):
                {body}
                self.where = (self.index, self.foreach_stack(), str(self))
                self.next(self.join)

            @step
            def join(self, inputs):
                self.outside = (self.index, self.input, self.foreach_stack())
                self.places = [(i.index, i.input, i.foreach_stack()) for i in inputs]
                self.next(self.end)

            @step
            def end(self):
                pass
        """
    )


@pytest.mark.parametrize(
    ("expression", "items"),
    [
        ("['a', 'b']", ["a", "b"]),
        ("(1, 2, 3)", [1, 2, 3]),
        ("range(3)", [0, 1, 2]),
        ("{'x': 1, 'y': 2}", ["x", "y"]),
        ("{'x': 1, 'y': 2}.items()", [("x", 1), ("y", 2)]),
        ("(i * i for i in range(3))", [0, 1, 4]),
        ("map(str, [1, 2])", ["1", "2"]),
        ("numpy.array([1.5, 2.5])", [1.5, 2.5]),
        ("'ab'", ["a", "b"]),
        ("['x' * 50000] * 3", ["x" * 50000] * 3),
    ],
)
def test_foreach_takes_any_iterable(task_runner, expression, items):
    runner = foreach_of(task_runner, expression)
    start = runner.run("start")
    assert start.outcome["ok"], start.stderr
    assert start.outcome["transition"]["num_splits"] == len(items)
    works = []
    for index, item in enumerate(items):
        frame = [runner.frame(start, index)]
        work = runner.run("work", inputs=[runner.input_of(start)], foreach_stack=frame)
        assert work.pack.get("item") == item, work.stderr
        assert work.pack.get("where")[:2] == (index, [(index, len(items), item)])
        works.append(work)
    join = runner.run("join", join=True, inputs=[runner.input_of(*works)])
    assert join.outcome["ok"], join.stderr
    assert join.pack.get("outside") == (None, None, [])
    assert join.pack.get("places") == [
        (index, item, [(index, len(items), item)]) for index, item in enumerate(items)
    ]


def test_every_item_of_a_set_is_met_once(task_runner):
    runner = foreach_of(task_runner, "{'a', 'b', 'c', 'd', 'e'}")
    start = runner.run("start")
    frames = [[runner.frame(start, index)] for index in range(5)]
    inputs = [runner.input_of(start)]
    works = [runner.run("work", inputs=inputs, foreach_stack=frame) for frame in frames]
    assert sorted(work.pack.get("item") for work in works) == ["a", "b", "c", "d", "e"]


def test_a_generator_becomes_a_list(task_runner):
    start = foreach_of(task_runner, "(i for i in 'abc')").run("start")
    assert start.pack.get("items") == ["a", "b", "c"]


def test_the_text_of_a_flow_shows_the_item(task_runner):
    runner = foreach_of(task_runner, "['x' * 30]")
    start = runner.run("start")
    frame = runner.frame(start, 0)
    work = runner.run("work", inputs=[runner.input_of(start)], foreach_stack=[frame])
    assert work.pack.get("where")[2] == (f"<flow Foreach step work[0] (input: {'x' * 20}...)>")


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("[]", "in step `start`, foreach='items' has zero items, so no task would follow"),
        ("(i for i in ())", "in step `start`, foreach='items' has zero items"),
        ("5", "in step `start`, foreach='items' cannot be iterated over: self.items is a int"),
    ],
)
def test_foreach_over_nothing_is_refused(task_runner, expression, problem):
    start = foreach_of(task_runner, expression).run("start")
    assert start.exit_code == 1
    assert "    Invalid self.next() transition detected on line 9:\n" in start.stderr
    assert problem in start.stderr


def test_too_many_splits_fail_their_parent(task_runner):
    start = foreach_of(task_runner, "range(101)").run("start")
    assert start.exit_code == 1
    assert start.stderr.splitlines()[-1] == (
        "    the foreach of step `start` yields 101 child steps, more than the maximum of 100: "
        "raise it with --max-num-splits"
    )
    assert start.outcome["may_retry"] is False


def test_an_item_changed_in_place_is_this_tasks_own(task_runner):
    body = "self.input.append(1); self.item = self.input"
    runner = foreach_of(task_runner, "[[], []]", body)
    start = runner.run("start")
    for index in range(2):
        frame = [runner.frame(start, index)]
        work = runner.run("work", inputs=[runner.input_of(start)], foreach_stack=frame)
        assert work.pack.get("item") == [1]


def test_an_inner_join_has_the_outer_index_but_no_item(task_runner):
    runner = task_runner(
        """
        from metaflow import FlowSpec, step

        class Nested(FlowSpec):
            @step
            def start(self):
                self.outer = ['a', 'b']
                self.next(self.middle, foreach='outer')

            @step
            def middle(self):
                self.inner = [self.input + '1', self.input + '2']
                self.next(self.work, foreach='inner')

            @step
            def work(self):
                self.stack = self.foreach_stack()
                self.next(self.join)

            @step
            def join(self, inputs):
                self.before = (self.index, self.input, self.foreach_stack())
                self.merge_artifacts(inputs, include=['outer'])
                self.after = (self.index, self.input)
                self.next(self.join2)

            @step
            def join2(self, inputs):
                self.next(self.end)

            @step
            def end(self):
                pass
        """
    )
    start = runner.run("start")
    outer = runner.frame(start, 1)
    middle = runner.run("middle", inputs=[runner.input_of(start)], foreach_stack=[outer])
    works = [
        runner.run(
            "work",
            inputs=[runner.input_of(middle)],
            foreach_stack=[outer, runner.frame(middle, index)],
        )
        for index in range(2)
    ]
    assert works[1].pack.get("stack") == [(1, 2, "b"), (1, 2, "b2")]
    join = runner.run("join", join=True, inputs=[runner.input_of(*works)], foreach_stack=[outer])
    assert join.outcome["ok"], join.stderr
    assert join.pack.get("before") == (1, None, [(1, 2, None)])
    assert join.pack.get("after") == (1, "b")


BRANCHES = """
    from metaflow import FlowSpec, step, Parameter

    class Branches(FlowSpec):
        alpha = Parameter("alpha", default=7)

        @step
        def start(self):
            self.common = [1, 2]
            self.next(self.b, self.a)

        @step
        def a(self):
            self.x = 'a'
            self.only_a = 1
            self.same = {'k': 1}
            self.next(self.join)

        @step
        def b(self):
            self.x = 'b'
            self.same = {'k': 1}
            self.next(self.join)

        def double(self):
            return self.x * 2

        @step
        def join(self, inputs):
            BODY
            self.next(self.end)

        @step
        def end(self):
            pass
"""


def join_of(task_runner, *lines: str):
    body = "\n            ".join(lines)
    runner = task_runner(BRANCHES.replace("BODY", body))
    start = runner.run("start")
    assert start.outcome["transition"]["targets"] == ["b", "a"]
    b, a = (runner.run(name, inputs=[runner.input_of(start)]) for name in ("b", "a"))
    inputs = [runner.input_of(b), runner.input_of(a)]
    return runner.run("join", join=True, inputs=inputs, expected_inputs=2)


def test_inputs_by_position_name_and_in_order(task_runner):
    join = join_of(
        task_runner,
        "self.order = [i.x for i in inputs]",
        "self.named = (inputs.a.x, inputs.b.x, inputs[0].x, inputs[-1].x)",
        "self.alphas = (self.alpha, inputs.a.alpha)",
        "self.helper = inputs.a.double()",
        "self.length = len(inputs)",
        "self.only = (inputs.a.only_a, hasattr(inputs.b, 'only_a'), hasattr(self, 'common'))",
        "inputs.a.same['k'] = 2",
        "self.kept = inputs[1].same",
    )
    assert join.outcome["ok"], join.stderr
    get = join.pack.get
    assert get("order") == ["b", "a"]
    assert get("named") == ("a", "b", "b", "a")
    assert get("alphas") == (7, 7)
    assert get("helper") == "aa"
    assert get("length") == 2
    assert get("only") == (1, False, False)
    assert get("kept") == {"k": 2}
    assert get("alpha") == 7


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("inputs.c", "no step `c` leads into this join: `inputs` has `b`, `a`"),
        ("inputs.b.only_a", "step `b` has no artifact `only_a`: set self.only_a there"),
        ("inputs[2]", "IndexError"),
        ("self.keep = inputs", "`inputs` cannot be stored: keep the artifacts you need"),
        ("self.keep = inputs.a", "an input of a join cannot be stored"),
        ("self.common", "flow `Branches` has no attribute `common`"),
        ("self.merge_artifacts(inputs)", "the inputs of step `join` differ in `x`: set them"),
        ("self.merge_artifacts(inputs, include=['nope'])", "no input has `nope`: correct"),
        (
            "self.merge_artifacts(inputs, include=['a'], exclude=['b'])",
            "merge_artifacts takes `exclude` or `include`, not both",
        ),
        ("self.merge_artifacts(inputs, exclude='x')", "write exclude=['x']"),
    ],
)
def test_mistakes_in_a_join(task_runner, line, problem):
    join = join_of(task_runner, line)
    assert join.exit_code == 1
    assert problem in join.stderr


def test_merge_artifacts_passes_on_what_agrees(task_runner):
    join = join_of(task_runner, "self.x = 'merged'", "self.merge_artifacts(inputs)")
    assert join.outcome["ok"], join.stderr
    assert {name for name in join.pack.names() if not name.startswith("_")} == {
        "alpha",
        "common",
        "name",
        "only_a",
        "same",
        "x",
    }
    assert join.pack.get("x") == "merged" and join.pack.get("common") == [1, 2]


def test_merge_artifacts_leaves_out(task_runner):
    join = join_of(
        task_runner,
        "from metaflow.exception import UnhandledInMergeArtifactsException",
        "try:",
        "    self.merge_artifacts(inputs)",
        "except UnhandledInMergeArtifactsException as error:",
        "    self.names = error.artifact_names",
        "assert not hasattr(self, 'common')",
        "self.merge_artifacts(inputs, exclude=['x', 'same'])",
        "self.common.append(3)",
        "self.merge_artifacts([inputs.a], include=['x', 'only_a'])",
        "del self.only_a",
    )
    assert join.outcome["ok"], join.stderr
    assert join.pack.get("names") == ["x"]
    assert join.pack.get("common") == [1, 2, 3]
    assert join.pack.get("x") == "a"
    assert not {"same", "only_a"} & set(join.pack.names())


def test_merge_artifacts_needs_a_join(task_runner):
    runner = task_runner(
        """
        from metaflow import FlowSpec, step

        class Single(FlowSpec):
            @step
            def start(self):
                self.merge_artifacts([])
        """
    )
    assert "merge_artifacts can only be called in a join" in runner.run("start").stderr


def test_missing_inputs_are_told(task_runner):
    runner = task_runner(SCALEFLOW)
    join = runner.run(
        "join", join=True, inputs=[runner.reference("train", 5, 6)], expected_inputs=4
    )
    assert join.exit_code == 1
    assert "    Data missing:\n    step `join` joins 4 tasks, but 2 are there" in join.stderr


def test_a_join_of_many_inputs_is_lazy(task_runner):
    runner = task_runner(SCALEFLOW.replace("max(inputs, key=lambda x: x.score).country", "1"))
    inputs = [{"run": "1", "step": "train", "tasks": [[5, 100_004, 0]]}]
    join = runner.run("join", join=True, inputs=inputs, expected_inputs=100_000)
    assert join.outcome["ok"], join.stderr


SWITCH = """
    from metaflow import FlowSpec, step

    class Switch(FlowSpec):
        @step
        def start(self):
            self.choice = CHOICE
            self.next({1: self.one, 'b': self.other, True: self.one}, condition='choice')

        @step
        def one(self):
            self.next(self.end)

        @step
        def other(self):
            self.next(self.end)

        @step
        def end(self):
            pass
"""


@pytest.mark.parametrize(("choice", "target"), [("1", "one"), ("'b'", "other"), ("True", "one")])
def test_a_switch_takes_its_case(task_runner, choice, target):
    start = task_runner(SWITCH.replace("CHOICE", choice)).run("start")
    assert start.outcome["transition"]["targets"] == [target]


@pytest.mark.parametrize("choice", ["'1'", "[1]", "None"])
def test_a_switch_without_a_case(task_runner, choice):
    start = task_runner(SWITCH.replace("CHOICE", choice)).run("start")
    assert start.outcome["exception"]["type"] == "RuntimeError"
    value = repr(eval(choice))
    assert start.outcome["exception"]["message"] == (
        f"step `start` branches on self.choice, whose value is {value}, but self.next has no such "
        "case; its cases are 1, 'b'"
    )


def test_a_value_taken_from_an_input_is_passed_on(task_runner):
    runner = task_runner(
        """
        import numpy
        from metaflow import FlowSpec, step

        class Take(FlowSpec):
            @step
            def start(self):
                self.array = numpy.arange(100_000)
                self.data = b"x" * 100_000
                self.next(self.end)

            @step
            def end(self, inputs):
                self.array = inputs[0].array
                self.data = inputs[1].data
                self.other = inputs[0].array
                self.other[0] = 5
        """
    )
    starts = [runner.run("start"), runner.run("start")]
    end = runner.run("end", join=True, inputs=[runner.input_of(*starts)])
    assert end.outcome["ok"], end.stderr
    assert end.pack.get("array")[0] == 5
    assert end.pack.digest("data") == starts[1].pack.digest("data")


FOREACH_OF_PARAMETER = """
    from metaflow import FlowSpec, JSONType, Parameter, step

    class OfParameter(FlowSpec):
        things = Parameter("things", type=JSONType, default='["a", "b"]')
        LATER = ("c", "d")

        @step
        def start(self):
            self.mine = [1, 2, 3]
            self.next(self.work, foreach="things")

        @step
        def work(self):
            self.item = self.input
            self.next(self.again, foreach="mine")

        @step
        def again(self):
            self.items = self.foreach_stack()
            self.next(self.third, foreach="LATER")

        @step
        def third(self):
            pass
"""


def test_foreach_over_parameters_constants_and_inherited_artifacts(task_runner):
    runner = task_runner(FOREACH_OF_PARAMETER)
    start = runner.run("start")
    frames = [runner.frame(start, 1)]
    work = runner.run("work", inputs=[runner.input_of(start)], foreach_stack=frames)
    assert work.pack.get("item") == "b"
    frames.append(runner.frame(work, 2))
    again = runner.run("again", inputs=[runner.input_of(work)], foreach_stack=frames)
    assert again.pack.get("items") == [(1, 2, "b"), (2, 3, 3)]
    assert again.outcome["transition"]["num_splits"] == 2
