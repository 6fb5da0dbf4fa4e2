"""Reads steps from their source: the transition on the last line, arguments, imports.

Each file is parsed once. Only what is written is reported; whether it makes a valid graph is for
the engine's lint.
"""

from __future__ import annotations

import ast
import linecache
import os
import sys

from metaflow.exception import MetaflowException

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


class StepSource:
    """What the source says about one step."""

    __slots__ = ("arguments", "file", "has_imports", "line", "tail_line", "transition")

    def __init__(self, file: str, node: FunctionNode) -> None:
        arguments = [*node.args.posonlyargs, *node.args.args]
        last = node.body[-1]
        self.file = file
        self.line = node.lineno
        self.arguments = len(arguments)
        self.tail_line = last.lineno
        self.transition = transition_of(last, arguments[0].arg) if arguments else None
        self.has_imports = _has_imports(node)


class _File:
    """A parsed file: its functions by the line of their first decorator, its classes by name."""

    __slots__ = ("classes", "functions", "path")

    def __init__(self, path: str, tree: ast.Module) -> None:
        self.path = path
        self.functions: dict[int, FunctionNode] = {}
        self.classes: dict[str, list[ast.ClassDef]] = {}
        self._index(tree.body, "")

    def _index(self, nodes: list[Any], prefix: str) -> None:
        for node in nodes:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.decorator_list[0] if node.decorator_list else node
                self.functions[first.lineno] = node
                self._index(node.body, f"{prefix}{node.name}.<locals>.")
            elif isinstance(node, ast.ClassDef):
                self.classes.setdefault(prefix + node.name, []).append(node)
                self._index(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.stmt):
                # Definitions under an `if`, `with`, `try` and the like.
                for block in ("body", "orelse", "finalbody", "handlers", "cases"):
                    self._index(getattr(node, block, []), prefix)
            elif isinstance(node, (ast.ExceptHandler, ast.match_case)):
                self._index(node.body, prefix)


_files: dict[str, _File] = {}


def forget_files() -> None:
    """Lets go of the syntax trees, which every task would otherwise inherit."""
    _files.clear()


def _parsed(path: str) -> _File:
    file = _files.get(path)
    if file is None:
        file = _files[path] = _File(path, _tree(path))
    return file


def _tree(path: str) -> ast.Module:
    try:
        with open(path, "rb") as source:
            text: bytes | str = source.read()
    except OSError as error:
        # Notebooks and the like keep what they ran where Python looks for lines.
        text = "".join(linecache.getlines(path))
        if not text:
            raise MetaflowException(
                f"the source of the flow cannot be read: `{path}`: {error.strerror or error}; "
                "its steps' last lines are read from it, so keep the flow in a file"
            ) from error
    try:
        return ast.parse(text, path)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None)
        raise MetaflowException(
            f"the source of the flow has changed since it was imported and cannot be parsed: "
            f"{error}; run it again",
            line,
            path,
        ) from error


def file_of_class(flow_class: type) -> str:
    """Absolute path of the file that defines a flow."""
    module = sys.modules.get(flow_class.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        for value in flow_class.__dict__.values():
            code = getattr(_innermost(value), "__code__", None)
            if code is not None:
                return _path(code.co_filename)
        raise MetaflowException(
            f"the flow `{flow_class.__name__}` has no source file: "
            "keep it in a file and run that with `python <file> run`"
        )
    return _path(file)


def _path(file: str) -> str:
    # `<stdin>` and the like stay what they are.
    return file if file.startswith("<") else os.path.abspath(file)


def class_line(flow_class: type) -> int:
    """Line of the `class` statement, 0 where it is not found."""
    nodes = _parsed(file_of_class(flow_class)).classes.get(flow_class.__qualname__, [])
    return nodes[-1].lineno if nodes else 0


def source_of_step(flow_class: type, name: str, function: Any) -> StepSource:
    """Finds a step by the line of its code; a step behind a wrapper that hides the function it
    wraps, by its name in the class."""
    code = getattr(_innermost(function), "__code__", None)
    if code is not None:
        file = _parsed(_path(code.co_filename))
        node = file.functions.get(code.co_firstlineno)
        if node is not None and node.name == name:
            return StepSource(file.path, node)
        found = _by_name(flow_class, name)
        if found is not None:
            return found
        if node is not None and node.name == code.co_name:
            return StepSource(file.path, node)
    raise MetaflowException(
        f"the source of step `{name}` is not found: define it with `def {name}(self)` in the class",
        None,
        file_of_class(flow_class),
    )


def _by_name(flow_class: type, name: str) -> StepSource | None:
    for ancestor in flow_class.__mro__:
        if name not in ancestor.__dict__:
            continue
        file = _parsed(file_of_class(ancestor))
        for node in reversed(file.classes.get(ancestor.__qualname__, [])):
            for statement in reversed(node.body):
                if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                    statement.name == name
                ):
                    return StepSource(file.path, statement)
        return None
    return None


def _innermost(function: Any) -> Any:
    seen = set()
    while hasattr(function, "__wrapped__") and id(function) not in seen:
        seen.add(id(function))
        function = function.__wrapped__
    return function


def _has_imports(node: FunctionNode) -> bool:
    pending: list[ast.AST] = [node]
    while pending:
        each = pending.pop()
        if isinstance(each, (ast.Import, ast.ImportFrom)):
            return True
        # Imports are statements: expressions need not be walked.
        pending.extend(
            child
            for child in ast.iter_child_nodes(each)
            if isinstance(child, (ast.stmt, ast.ExceptHandler, ast.match_case))
        )
    return False


# --- transitions -------------------------------------------------------------------------------


class _Unsupported(Exception):
    """A form of `self.next` that no transition can be read from; the text says why."""


def transition_of(statement: ast.stmt, self_name: str) -> dict[str, Any] | None:
    """The `ir::Transition` of a step's last statement, None when it is no call of `self.next`."""
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return None
    call = statement.value
    if _attribute_of_self(call.func, self_name) != "next":
        return None
    try:
        transition = _read(call, self_name)
    except _Unsupported as problem:
        transition = {"kind": "unsupported", "problem": str(problem)}
    transition["line"] = call.lineno
    return transition


def _read(call: ast.Call, self_name: str) -> dict[str, Any]:
    options = _options(call)
    if not call.args:
        raise _Unsupported("it names no step")
    if "condition" in options or any(isinstance(each, ast.Dict) for each in call.args):
        return _read_switch(call, options, self_name)
    targets = [_target(each, self_name) for each in call.args]
    if not options:
        if len(targets) == 1:
            return {"kind": "linear", "target": targets[0]}
        return {"kind": "split", "targets": targets}
    if len(options) > 1:
        raise _Unsupported(f"`{'` and `'.join(options)}` cannot be combined")
    option = next(iter(options))
    if len(targets) > 1:
        raise _Unsupported(f"`{option}` leads to exactly one step")
    if option == "num_parallel":
        return {"kind": "parallel", "target": targets[0]}
    variable = _text(options["foreach"])
    if variable is None:
        raise _Unsupported("`foreach` must be the name of an attribute in quotes")
    return {"kind": "foreach", "target": targets[0], "variable": variable}


def _options(call: ast.Call) -> dict[str, ast.expr]:
    options = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise _Unsupported("its arguments must be written out, without `**`")
        if keyword.arg not in ("condition", "foreach", "num_parallel"):
            raise _Unsupported(f"it has no argument `{keyword.arg}`")
        options[keyword.arg] = keyword.value
    return options


def _target(node: ast.expr, self_name: str) -> str:
    name = _attribute_of_self(node, self_name)
    if name is None:
        shown = ast.unparse(node)
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        raise _Unsupported(f"`{shown}` is not a step written as `{self_name}.name`")
    return name


def _attribute_of_self(node: ast.expr, self_name: str) -> str | None:
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == self_name
    ):
        return node.attr
    return None


def _text(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    return None


def _read_switch(call: ast.Call, options: dict[str, ast.expr], self_name: str) -> dict[str, Any]:
    extra = [name for name in options if name != "condition"]
    if extra:
        raise _Unsupported(f"`condition` and `{extra[0]}` cannot be combined")
    if len(call.args) != 1 or not isinstance(call.args[0], ast.Dict):
        raise _Unsupported("`condition` needs one dictionary of cases written out")
    condition = None
    if "condition" in options:
        condition = _text(options["condition"])
        if condition is None:
            raise _Unsupported("`condition` must be the name of an attribute in quotes")
    table = call.args[0]
    cases = [
        {"key": _case_key(key), "target": _target(value, self_name)}
        for key, value in zip(table.keys, table.values, strict=True)
    ]
    return {"kind": "switch", "condition": condition, "cases": cases}


def _case_key(node: ast.expr | None) -> Any:
    if node is None:
        raise _Unsupported("its cases must be written out, without `**`")
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        node, sign = node.operand, -1
    if isinstance(node, ast.Constant):
        key = node.value
        if sign == 1 and isinstance(key, (str, bool)):
            return key
        if isinstance(key, (int, float)) and not isinstance(key, bool) and key - key == 0:
            return sign * key
    raise _Unsupported(f"the case `{ast.unparse(node)}` must be text, a number, True or False")
