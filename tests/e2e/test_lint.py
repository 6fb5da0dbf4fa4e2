"""Every rule of the graph checker, once: exit code 1, the headline, the file, the line, the names.

The line is that of the comment `# here` in the flow.
"""

from pathlib import Path

import pytest
from harness import PREAMBLE, run_flow

HEADLINE = "Validity checker found an issue"


def flow(*steps: str, extra: str = "") -> str:
    """A flow from steps written as `name(arguments): body`, with `# here` kept where it stands."""
    lines = ["class LintFlow(FlowSpec):"]
    for text in steps:
        decorators, _, rest = text.rpartition("| ")
        head, _, body = rest.partition(": ")
        here = "  # here" if head.endswith("!") else ""
        name, _, arguments = head.rstrip("!").partition("(")
        lines += [f"    {decorator}" for decorator in decorators.split() or ["@step"]]
        lines += [f"    def {name}({arguments or 'self)'}:{here}", f"        {body}", ""]
    return "\n".join(lines) + extra


START = "start: self.next(self.end)"
END = "end: pass"

RULES = {
    "L-1 reserved name": (
        flow("start: self.next(self.input)", "input!: self.next(self.end)", END),
        ["`input`"],
    ),
    "L-2 no start": (flow("begin: self.next(self.end)", END), ["start"]),
    "L-2 no end": (flow("start: self.next(self.last)", "last: pass"), ["end"]),
    "L-2 two starts": (
        flow(
            "@step(start=True)| one: self.next(self.end)",
            "@step(start=True)| two: self.next(self.end)",
            END,
        ),
        ["`one`", "`two`"],
    ),
    "L-3 annotated and named start": (
        flow("@step(start=True)| one: self.next(self.start)", START, END),
        ["`one`", "`start`"],
    ),
    "L-4 edge into start": (
        flow("start: self.next(self.a)", "a: self.next(self.start)  # here", END),
        ["`start`"],
    ),
    "L-5 end goes on": (flow(START, "end: self.next(self.start)  # here"), ["`end`"]),
    "L-5 end joins": (
        flow(
            "start: self.next(self.a, self.b)",
            "a: self.next(self.end)",
            "b: self.next(self.end)",
            "end(self, inputs)!: pass",
        ),
        ["`end`"],
    ),
    "L-6 capital letter": (
        flow("start: self.next(self.Middle)", "Middle!: self.next(self.end)", END),
        ["`Middle`"],
    ),
    "L-7 three arguments": (
        flow("start: self.next(self.a)", "a(self, inputs, more)!: self.next(self.end)", END),
        ["`a`"],
    ),
    "L-7 join that splits": (
        flow(
            "start: self.next(self.a, self.b)",
            "a: self.next(self.c)",
            "b: self.next(self.c)",
            "c(self, inputs)!: self.next(self.d, self.e)",
            "d: self.next(self.f)",
            "e: self.next(self.f)",
            "f(self, inputs): self.next(self.end)",
            END,
        ),
        ["`c`"],
    ),
    "L-8 no next": (flow("start: self.x = 1  # here", END), ["`start`", "self.next"]),
    "L-9 unknown form": (
        flow("start: self.next(*[self.end])  # here", END),
        ["`start`"],
    ),
    "L-10 unknown target": (
        flow("start: self.next(self.midle)  # here", "middle: self.next(self.end)", END),
        ["`midle`", "`middle`"],
    ),
    "L-11 cycle": (
        flow(
            "start: self.next(self.a)",
            "a: self.next(self.b)",
            "b: self.next(self.a)",
            END,
        ),
        ["a->b->a"],
    ),
    "L-12 unreachable": (flow(START, "lonely!: self.next(self.end)", END), ["`lonely`"]),
    "L-13 open split": (
        flow(
            "start: self.next(self.a, self.b)",
            "a: self.next(self.end)",
            "b: self.next(self.end)",
            END.replace("end", "end!"),
        ),
        ["`a`", "`b`", "`end`", "join"],
    ),
    "L-13 open foreach": (
        flow("start: self.next(self.a, foreach='xs')", "a: self.next(self.end)", END),
        ["`start`", "join"],
    ),
    "L-13 join without split": (
        flow("start: self.next(self.a)", "a(self, inputs): self.next(self.end)", END),
        ["`a`"],
    ),
    "L-13 branch missing in join": (
        flow(
            "start: self.next(self.a, self.b, self.c)",
            "a: self.next(self.j)",
            "b: self.next(self.j)",
            "c: self.next(self.k)",
            "j(self, inputs): self.next(self.k)",
            "k(self, inputs): self.next(self.end)",
            END,
        ),
        ["`j`"],
    ),
    "L-14 switch without condition": (
        flow(
            "start: self.next({1: self.a, 2: self.b})",
            "a: self.next(self.end)",
            "b: self.next(self.end)",
            END,
        ),
        ["`start`", "condition"],
    ),
    "L-14 switch of one case": (
        flow("start: self.next({1: self.a}, condition='x')", "a: self.next(self.end)", END),
        ["`start`"],
    ),
    "L-15 foreach to a join": (
        flow("start: self.next(self.a, foreach='xs')", "a(self, inputs): self.next(self.end)", END),
        ["`start`", "`a`"],
    ),
    "L-16 num_parallel without @parallel": (
        flow(
            "start: self.next(self.a, num_parallel=2)",
            "a: self.next(self.j)",
            "j(self, inputs): self.next(self.end)",
            END,
        ),
        ["`a`", "@parallel"],
    ),
    "L-20 switch to a join": (
        flow(
            "start: self.next(self.a, self.b)",
            "a: self.next({1: self.j, 2: self.c}, condition='x')",
            "b: self.next(self.j)",
            "c: self.next(self.j)",
            "j(self, inputs): self.next(self.end)",
            END,
        ),
        ["`a`", "`j`"],
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.replace(" ", "-"))
def test_rule(folder: Path, rule: str) -> None:
    source, words = RULES[rule]
    result = run_flow(folder, source, "check").exited(1)
    assert f"{HEADLINE} in file DIR/flow.py" in result.err
    message = result.err.split(HEADLINE, 1)[1]
    for word in words:
        assert word in message
    if "# here" in source:
        text = PREAMBLE + source
        line = 1 + text[: text.index("# here")].count("\n")
        assert f"on line {line}:" in message
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_nothing_runs_when_the_graph_is_wrong(folder: Path) -> None:
    source = flow("start: self.x = 1", END)
    result = run_flow(folder, source, "run").exited(1)
    assert HEADLINE in result.err
    assert "Workflow starting" not in result.stdout


def test_a_good_graph_passes(folder: Path) -> None:
    result = run_flow(folder, flow(START, END), "check").ok()
    assert "The graph looks good!" in result.stderr


def test_nested_foreach_of_any_depth_passes(folder: Path) -> None:
    source = flow(
        "start: self.next(self.a, foreach='xs')",
        "a: self.next(self.b, foreach='xs')",
        "b: self.next(self.c, foreach='xs')",
        "c: self.next(self.j1)",
        "j1(self, inputs): self.next(self.j2)",
        "j2(self, inputs): self.next(self.j3)",
        "j3(self, inputs): self.next(self.end)",
        END,
    )
    run_flow(folder, source, "check").ok()
