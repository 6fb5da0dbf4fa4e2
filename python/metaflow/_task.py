"""Runs one task in this process: sets the scene, runs the step, stores what came of it, reports.

Forking, streams and random numbers are prepared by `_child`; what the engine makes of the outcome
is `core::run`'s. Nothing is imported here while a task runs: `prepare` has done it before the fork.
"""

from __future__ import annotations

import os
import sys
from types import FunctionType, MethodType

from metaflow import _store_environment
from metaflow._artifacts import OutputPack
from metaflow._current import current, point_client_at_run
from metaflow._decorators import is_end_step, steps_of
from metaflow._failure import Failure, print_to_stderr
from metaflow._flow import describe_place, let_artifacts_win
from metaflow._inputs import Inputs
from metaflow._parameters import Parameter, make_read_only, parameters_of
from metaflow._state import OWN_OF_TASK, TakenTransition, TaskState
from metaflow._store_environment import AsAtStart
from metaflow._time_limit import TimeLimit
from metaflow.exception import (
    DataException,
    FailureHandledByCatch,
    InvalidNextException,
    MetaflowDataMissing,
    MetaflowException,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, Protocol

    from metaflow._flow import FlowSpec

    class Control(Protocol):
        """The task's end of its control channel."""

        def send(self, message: dict[str, Any], /) -> None: ...


# A task that ends with this code must not be retried.
NO_RETRY_EXIT_CODE = 202
_INTERRUPTED_EXIT_CODE = 130
# Given back when memory has run out, so that the failure can still be told. Made once before the
# forks and never touched, so it costs address space only.
_RESERVE_BYTES = 4 << 20
_reserve: list[bytes] = []
# Flows made ready for tasks, with the names that tasks cannot assign to.
_prepared: dict[type, frozenset[str]] = {}

# What is dropped without a word.
_NOT_ARTIFACTS = (FunctionType, MethodType, Parameter)


def prepare(flow_class: type) -> frozenset[str]:
    """Does once, before tasks are forked, what need not be done in each. Returns the names that
    tasks cannot assign to."""
    prepared = _prepared.get(flow_class)
    if prepared is not None:
        return prepared
    # What artifacts are read and written with; `_pickle` asks for `_compat_pickle` when it loads.
    import _compat_pickle  # noqa: F401
    import _pickle  # noqa: F401

    # Told of in tracebacks and needed by `self.next`: too late to import when memory is short.
    import linecache  # noqa: F401
    import tokenize  # noqa: F401

    import metaflow._next  # noqa: F401

    if not _reserve:
        _reserve.append(bytes(_RESERVE_BYTES))
    steps_of(flow_class)
    _parameter_names(flow_class)
    let_artifacts_win(flow_class)
    prepared = _prepared[flow_class] = make_read_only(flow_class)
    return prepared


def run(flow_class: type[FlowSpec], spec: dict[str, Any], control: Control) -> int:
    """Runs the task of `core::task::TaskSpec` and sends its outcome; returns the exit code."""
    return _Task(flow_class, spec, control).run()


class _Task:
    """One attempt of one task."""

    def __init__(self, flow_class: type[FlowSpec], spec: dict[str, Any], control: Control) -> None:
        self._flow_class = flow_class
        self._spec = spec
        self._control = control
        self._decorators = {each["name"]: each["attributes"] for each in spec["decorators"]}
        self._process = os.getpid()
        self._exit_code = 0
        self._outcome: dict[str, Any] = {"ok": True, "success": True, "may_retry": True}
        # Artifacts that this task adds by itself, over those of the user.
        self._own: dict[str, Any] = {}

    def run(self) -> int:
        spec = self._spec
        state = TaskState(spec, prepare(self._flow_class))
        current._enter_task(self._flow_class, spec, _parameter_names(self._flow_class))
        _set_environment(spec)
        if spec["store"]["kind"] != "local":
            _store_environment.remember()
        if "metaflow._client_settings" in sys.modules:
            # The flow imported the client; otherwise its first use does this.
            point_client_at_run()
        flow = self._flow_class.__new__(self._flow_class)
        object.__setattr__(flow, "__ferroflow__", state)
        try:
            if spec.get("gang"):
                self._enter_gang()
            flow.__init__(use_cli=False)  # type: ignore[misc] # it may be the user's own
            self._work(flow, state)
        except BaseException as error:  # noqa: BLE001 - whatever user code raises is reported
            if os.getpid() != self._process:
                _leave_forked_child(error)
            self._end_by(flow, state, error)
        self._store(flow, state)
        self._control.send({"type": "outcome", "outcome": self._outcome})
        return self._exit_code

    def _work(self, flow: FlowSpec, state: TaskState) -> None:
        """Opens the inputs, runs user code, and checks the transition it took."""
        spec = self._spec
        step = state.step
        if state.join:
            _check_inputs(spec)
            state.inputs = Inputs(flow, state)
        else:
            state.open_parent()
        function = steps_of(self._flow_class).get(step)
        if function is None:
            raise MetaflowException(f"flow `{spec['flow']}` has no step `{step}`")
        if _names_itself(function, step):
            self._count_iteration(flow, state)
        if spec["fallback"]:
            self._fall_back(flow, state)
            return
        bound = function.__get__(flow, self._flow_class)
        with TimeLimit(self._decorators.get("timeout"), step):
            if state.join:
                bound(state.inputs)
            else:
                bound()
        if os.getpid() != self._process:
            _leave_forked_child(None)
        self._check_transition(state)
        catch = self._decorators.get("catch")
        if catch is not None and catch.get("var"):
            self._own[catch["var"]] = None

    def _enter_gang(self) -> None:
        from metaflow._parallel import enter_gang

        def record(name: str, value: str) -> None:
            self._control.send({"type": "metadata", "name": name, "value": value})

        enter_gang(self._spec, self._decorators, record)

    def _count_iteration(self, flow: FlowSpec, state: TaskState) -> None:
        """A step that leads to itself notes how often it has: `[0]`, `[1]`, and so on."""
        if not self._leads_to_itself(state.step):
            return
        before, iteration = state.inherited, 0
        if before is not None and before.step == state.step and "_iteration_stack" in before:
            iteration = before.get("_iteration_stack")[0] + 1
        self._own["_iteration_stack"] = flow.__dict__["_iteration_stack"] = [iteration]

    def _leads_to_itself(self, step: str) -> bool:
        from metaflow._describe import describe

        (described,) = (s for s in describe(self._flow_class)["steps"] if s["name"] == step)
        cases = (described["transition"] or {}).get("cases", ())
        return any(case["target"] == step for case in cases)

    # --- transitions -------------------------------------------------------------------------

    def _check_transition(self, state: TaskState) -> None:
        taken = state.transition
        if taken is None:
            if is_end_step(self._flow_class, state.step):
                state.transition = TakenTransition([])
                return
            self._outcome["may_retry"] = False
            raise _NotCaught(
                InvalidNextException(
                    f"step `{state.step}` ended without calling self.next: a `return` before its "
                    "last line does that; every way through the step has to reach self.next"
                )
            )
        limit = self._spec["max_num_splits"]
        if taken.foreach is not None and taken.num_splits is not None and taken.num_splits > limit:
            self._outcome["may_retry"] = False
            raise _NotCaught(
                MetaflowException(
                    f"the foreach of step `{state.step}` yields {taken.num_splits} child steps, "
                    f"more than the maximum of {limit}: raise it with --max-num-splits"
                )
            )

    def _static_transition(self, step: str) -> TakenTransition:
        """The transition in the source, for a step whose code did not come to its end."""
        if is_end_step(self._flow_class, step):
            return TakenTransition([])
        from metaflow._describe import describe

        for each in describe(self._flow_class)["steps"]:
            transition = each["transition"] or {}
            if each["name"] == step:
                targets = transition.get("targets") or [transition.get("target")]
                return TakenTransition([target for target in targets if target])
        return TakenTransition([])

    # --- failures ----------------------------------------------------------------------------

    def _end_by(self, flow: FlowSpec, state: TaskState, error: BaseException) -> None:
        if isinstance(error, SystemExit):
            self._exit_code = _exit_code_of(error)
            if self._exit_code == 0:
                # Never a success: what follows is not known.
                error = InvalidNextException(
                    f"step `{state.step}` ended by `sys.exit` instead of reaching its end and its "
                    "self.next: let the step run to its last line"
                )
            if self._exit_code == NO_RETRY_EXIT_CODE:
                self._outcome["may_retry"] = False
        elif isinstance(error, KeyboardInterrupt):
            self._exit_code = _INTERRUPTED_EXIT_CODE
        self._fail(flow, error, can_be_caught=isinstance(error, (Exception, SystemExit)))

    def _fail(self, flow: FlowSpec, error: BaseException, can_be_caught: bool) -> None:
        _reserve.clear()
        if isinstance(error, _NotCaught):
            error, can_be_caught = error.reason, False
        failure = Failure(error)
        if can_be_caught and self._catches():
            self._catch(flow, failure)
            return
        self._report(flow, failure)

    def _report(self, flow: FlowSpec, failure: Failure) -> None:
        """The task has failed, and says so."""
        self._exit_code = self._exit_code or 1
        self._outcome.update(ok=False, success=False, exception=failure.as_json(), transition=None)
        self._own.update(_task_ok=False, _success=False, _exception=failure.wrapper())
        print_to_stderr(failure.block(_name_of(flow)))

    def _catches(self) -> bool:
        last = self._spec["attempt"] >= self._spec["max_user_code_retries"]
        return "catch" in self._decorators and last

    def _catch(self, flow: FlowSpec, failure: Failure) -> None:
        """`@catch`: the step is over, though its code is not."""
        state = flow.__ferroflow__
        assert state is not None, "the flow of a running task has a state"
        catch = self._decorators["catch"]
        if catch.get("print_exception", True):
            lines = [f"@catch caught an exception from {_name_of(flow)}"]
            lines += [f">  {line}" for line in failure.traceback.splitlines()]
            print_to_stderr("\n".join(lines) + "\n")
        self._process = os.getpid()
        self._exit_code = 0
        self._outcome.update(ok=True, success=False)
        self._own.update(_task_ok=True, _success=False)
        if catch.get("var"):
            self._own[catch["var"]] = failure.wrapper()
        state.transition = self._static_transition(state.step)

    def _fall_back(self, flow: FlowSpec, state: TaskState) -> None:
        attempts = self._spec["attempt"]
        how = self._spec.get("previous_failure")
        self._catch(
            flow,
            Failure(
                FailureHandledByCatch(
                    f"step `{state.step}` kept failing over {attempts} attempt"
                    f"{'' if attempts == 1 else 's'} without raising an exception that @catch "
                    f"could handle{f'; the last one: {how}' if how else ''}"
                )
            ),
        )

    # --- storing -----------------------------------------------------------------------------

    def _store(self, flow: FlowSpec, state: TaskState) -> None:
        """Writes the pack. What cannot be stored fails the task, unless it has failed already."""
        spec = self._spec
        place = (state.root, spec["flow"], spec["run"], spec["step"], spec["task"], spec["attempt"])
        try:
            with AsAtStart():
                pack = OutputPack(*place)
                self._write_artifacts(pack, flow, state)
                self._seal(pack, state)
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine has to hear of it
            _reserve.clear()
            # The disk is full, say: the outcome travels on the control channel alone.
            self._fail_to_store(flow, error)

    def _write_artifacts(self, pack: OutputPack, flow: FlowSpec, state: TaskState) -> None:
        values = flow.__dict__
        skipped = OWN_OF_TASK.union(self._own, ("name",))
        for name, inherited_from in state.inherited_names():
            if name not in values and name not in self._own and name != "name":
                self._keep(flow, pack.pass_on, name, inherited_from)
        for name, value in list(values.items()):
            if name[:2] == "__" or name in skipped or isinstance(value, _NOT_ARTIFACTS):
                continue
            source = state.loaded.get(name)
            if source is None and state.inputs is not None:
                source = state.inputs._source_of(name, value)
            if source is None:
                self._keep(flow, pack.set, name, value)
            else:
                self._keep(flow, pack.pass_on_if_unchanged, name, value, source)
        self._keep(flow, pack.set, "name", flow.name)
        foreach = state.transition.foreach if state.transition is not None else None
        if foreach is not None and self._outcome["ok"]:
            self._keep(flow, pack.set_foreach, foreach, getattr(flow, foreach))

    def _keep(self, flow: FlowSpec, write: Callable[..., None], *arguments: Any) -> None:
        """Writes an artifact; one that cannot be stored makes the task fail, the others stay."""
        try:
            write(*arguments)
        except DataException:
            raise
        except Exception as error:  # noqa: BLE001 - pickling runs user code
            if self._outcome["ok"]:
                _reserve.clear()
                self._report(flow, Failure(error))

    def _seal(self, pack: OutputPack, state: TaskState) -> None:
        own = {"_current_step": state.step, "_task_ok": True, "_success": True, **self._own}
        if self._spec["foreach_stack"]:
            own["_foreach_stack"] = self._spec["foreach_stack"]
        transition = state.transition if self._outcome["ok"] else None
        if transition is not None:
            own["_transition"] = transition.as_json()
            self._outcome["transition"] = transition.as_json()
        learned = sys.modules.get("metaflow._imports")
        if learned is not None:
            self._outcome["imports"] = learned.report()
        for name, value in own.items():
            pack.set(name, value)
        pack.commit(self._outcome)

    def _fail_to_store(self, flow: FlowSpec, error: Exception) -> None:
        if self._outcome["ok"]:
            self._report(flow, Failure(error))
        else:
            print_to_stderr(f"    The artifacts of this attempt could not be stored: {error}\n")


class _NotCaught(Exception):
    """Carries a failure that `@catch` does not handle: the step's code had come to its end."""

    def __init__(self, reason: MetaflowException) -> None:
        super().__init__(reason)
        self.reason = reason


def _names_itself(function: Any, step: str) -> bool:
    """Whether its code has the step's own name, so that it may lead to itself."""
    while function is not None:
        code = getattr(function, "__code__", None)
        if code is not None and step in code.co_names:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _exit_code_of(error: SystemExit) -> int:
    """The code Python would end the process with."""
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1


def _leave_forked_child(error: BaseException | None) -> NoReturn:
    """A process that user code forked has come out of the step: what the task came to is for the
    task's own process to say."""
    if isinstance(error, SystemExit):
        text = error.code if isinstance(error.code, str) else ""
        code = _exit_code_of(error)
    else:
        text, code = (Failure(error).traceback, 1) if error is not None else ("", 0)
    print_to_stderr(f"{text}\n" if text else "")
    os._exit(code)


def _name_of(flow: FlowSpec) -> str:
    try:
        return str(flow)
    except Exception:  # noqa: BLE001 - the item's `str()` raises, or the item cannot be loaded
        return describe_place(flow, with_input=False)


def _parameter_names(flow_class: type) -> list[str]:
    names: list[str] | None = flow_class.__dict__.get("__ferroflow_parameter_names__")
    if names is None:
        names = list(parameters_of(flow_class))
        flow_class.__ferroflow_parameter_names__ = names  # type: ignore[attr-defined]
    return names


def _set_environment(spec: dict[str, Any]) -> None:
    environment = os.environ
    environment["METAFLOW_RUN_ID"] = str(spec["run"])
    environment["METAFLOW_USER"] = spec["user"]
    environment.setdefault("METAFLOW_RUNTIME_ENVIRONMENT", "local")


def _check_inputs(spec: dict[str, Any]) -> None:
    expected = spec.get("expected_inputs")
    if expected is None:
        return
    found = sum(
        last - first + 1 for reference in spec["inputs"] for first, last, _ in reference["tasks"]
    )
    if found != expected:
        raise MetaflowDataMissing(
            f"step `{spec['step']}` joins {expected} tasks, but {found} are there: "
            "the run cannot go on; resume it, which runs the missing ones again"
        )
