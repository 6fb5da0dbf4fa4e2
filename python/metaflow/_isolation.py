"""Makes a forked task draw random numbers as a fresh process would.

Every fresh process imports the flow anew: a generator the flow seeded starts where the seed says,
all others start somewhere random. A plain fork would instead hand every task the same numbers.
So generators that exist after the import are put back to their state after the import if they
were seeded, and reseeded from the operating system if not.

Seeded or not is told by a *twin*, a second interpreter that imports the flow: states that agree in
two processes were seeded. No twin is started when nothing in the user's source could seed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys

from metaflow._imports import is_installed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    Action = Callable[[], None]

# Calls and imports of whatever has `seed` in its name, and the generators' own names. A parameter
# called `seed` is none of them.
_MAY_SEED = re.compile(
    rb"seed\w*\s*\(|import\b.*seed|(?<!\bself)\.seed\b|setstate|set_state|RandomState"
    rb"|default_rng|Random\s*\(|PCG64|Philox|SFC64|MT19937|SeedSequence|Generator\s*\("
)

TWIN_VARIABLE = "FERROFLOW_TWIN_FD"
TWIN_FAILED = "a second import of the flow failed, so it is not known which generators it seeds"


def state_of_random_module() -> Any:
    """To be taken before the first fork: `random` reseeds its global generator in every fork."""
    module = sys.modules.get("random")
    return None if module is None else module.getstate()


class Generators:
    """The generators of this process, with their states as of now."""

    def __init__(self, random_module_state: Any = None) -> None:
        self._random_module_state = random_module_state
        # The items are kept, so that their ids stay theirs.
        self._found = [(item, _digest(item, random_module_state)) for item in _find_generators()]

    def only_module_globals(self) -> bool:
        return all(_is_module_global(item) for item, _ in self._found)

    def is_empty(self) -> bool:
        return not self._found

    def digests(self) -> set[str]:
        return {digest for _, digest in self._found}

    def later_ones(self) -> Generators:
        """Generators that came to be since."""
        known = {id(item) for item, _ in self._found}
        later = Generators()
        later._found = [(item, digest) for item, digest in later._found if id(item) not in known]
        return later

    def actions(self, seeded: set[str]) -> list[Action]:
        """What each task has to do, given the digests of seeded generators. Those are already as
        the import left them, except for the one that every fork reseeds."""
        actions: list[Action] = []
        for item, digest in self._found:
            if _is_global_of_random(item):
                if digest in seeded and self._random_module_state is not None:
                    actions.append(_Restore(item, self._random_module_state))
            elif digest not in seeded:
                actions.append(_Reseed(item))
        return actions


class _Restore:
    def __init__(self, generator: Any, state: Any) -> None:
        self._generator, self._state = generator, state

    def __call__(self) -> None:
        self._generator.setstate(self._state)


class _Reseed:
    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._kind = _numpy_kind(generator)

    def __call__(self) -> None:
        generator = self._generator
        if self._kind is None:
            generator.seed()
        elif self._kind == "SeedSequence":
            generator.__init__(pool_size=generator.pool_size)
        elif self._kind == "RandomState":
            # Its numbers come from its bit generator; its own is one left-over normal deviate.
            state = generator.get_state(legacy=False)
            if state.get("has_gauss"):
                generator.set_state({**state, "has_gauss": 0, "gauss": 0.0})
        else:
            fresh = type(generator)()
            if isinstance(generator.__getstate__(), tuple):
                generator.__setstate__((fresh.state, fresh.seed_seq))
            else:
                generator.state = fresh.state


def _digest(item: Any, random_module_state: Any) -> str:
    if _is_global_of_random(item) and random_module_state is not None:
        state = random_module_state
    else:
        state = _state(item)
    import hashlib

    text = f"{type(item).__module__}.{type(item).__qualname__} {_plain(state)!r}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _state(item: Any) -> Any:
    kind = _numpy_kind(item)
    if kind is None:
        return item.getstate()
    if kind == "RandomState":
        return item.get_state(legacy=False)
    # A bit generator's seed sequence counts too: `spawn` draws from it.
    return item.__getstate__() if kind == "BitGenerator" else item.state


def _is_global_of_random(item: Any) -> bool:
    random = sys.modules.get("random")
    return random is not None and item is random._inst


def _is_module_global(item: Any) -> bool:
    if _is_global_of_random(item):
        return True
    numpy_global = getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)
    if numpy_global is None:
        return False
    bit_generator = numpy_global._bit_generator
    return item is numpy_global or item is bit_generator or item is bit_generator.seed_seq


def _plain(state: Any) -> Any:
    """A state as something whose `repr` is complete and the same in every process."""
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, (tuple, list)):
        return [_plain(value) for value in state]
    if hasattr(state, "tobytes"):
        return state.tobytes()
    if _numpy_kind(state) == "SeedSequence":
        return _plain(state.state)
    if state is None or isinstance(state, (int, float, str, bytes)):
        return state
    return type(state).__qualname__


def _numpy_classes() -> dict[str, type]:
    mtrand = sys.modules.get("numpy.random.mtrand")
    bits = sys.modules.get("numpy.random.bit_generator")
    if mtrand is None or bits is None:
        return {}
    return {
        "RandomState": mtrand.RandomState,
        "BitGenerator": bits.BitGenerator,
        "SeedSequence": bits.SeedSequence,
    }


def _numpy_kind(item: Any) -> str | None:
    for kind, numpy_class in _numpy_classes().items():
        if isinstance(item, numpy_class):
            return kind
    return None


def _find_generators() -> list[Any]:
    """Found by walking all objects, so it does not matter where they are kept. numpy's `Generator`
    has no state besides its bit generator's."""
    random = sys.modules.get("random")
    wanted = tuple(_numpy_classes().values()) + (() if random is None else (random.Random,))
    if not wanted:
        return []
    kinds = _all_subclasses(wanted)
    if random is not None:
        kinds.discard(random.SystemRandom)
    ignored = _of_tempfile()
    return [item for item in gc.get_objects() if type(item) in kinds and item is not ignored]


def _all_subclasses(classes: Iterable[type]) -> set[type]:
    found: set[type] = set()
    pending = list(classes)
    while pending:
        one = pending.pop()
        if one not in found:
            found.add(one)
            pending.extend(type.__subclasses__(one))
    return found


def _of_tempfile() -> Any:
    """tempfile's generator looks at the process id by itself."""
    names = getattr(sys.modules.get("tempfile"), "_name_sequence", None)
    return getattr(names, "_rng", None)


def user_source_may_seed(flow_class: type) -> bool:
    """Whether a module that is not installed contains words that seeding needs. Bodies of steps
    do not count: they never run during an import."""
    steps = _step_lines(flow_class)
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or is_installed(file) or _is_ours(file):
            continue
        try:
            with open(file, "rb") as source:
                text = _without(source.read(), steps.get(file, []))
                if _MAY_SEED.search(text):
                    return True
        except OSError:
            return True
    return False


def _is_ours(file: str) -> bool:
    return os.path.dirname(file) == os.path.dirname(__file__)


def _step_lines(flow_class: type) -> dict[str, list[tuple[int, int]]]:
    """First and last line of each step's code, by file."""
    from metaflow._decorators import steps_of

    found: dict[str, list[tuple[int, int]]] = {}
    for function in steps_of(flow_class).values():
        code = getattr(function, "__code__", None)
        if code is not None:
            lines = (code.co_firstlineno, _last_line(code))
            found.setdefault(code.co_filename, []).append(lines)
    return found


def _last_line(code: Any) -> int:
    last: int = max((line for _, _, line in code.co_lines() if line), default=code.co_firstlineno)
    nested = (each for each in code.co_consts if hasattr(each, "co_lines"))
    return max([last, *map(_last_line, nested)])


def _without(text: bytes, ranges: list[tuple[int, int]]) -> bytes:
    if not ranges:
        return text
    lines = text.splitlines(keepends=True)
    for first, last in ranges:
        lines[first - 1 : last] = [b"\n"] * len(lines[first - 1 : last])
    return b"".join(lines)


def needs_twin(generators: Generators, flow_class: type) -> bool:
    if generators.is_empty():
        return False
    return not generators.only_module_globals() or user_source_may_seed(flow_class)


def write_digests(descriptor: int) -> None:
    """The twin's part: say what states its generators are in."""
    import json

    generators = Generators(state_of_random_module())
    with open(descriptor, "w", encoding="ascii") as channel:
        json.dump(sorted(generators.digests()), channel)


class Twin:
    """A second interpreter that imports the flow, running from construction on."""

    def __init__(self) -> None:
        from metaflow import _interpreter

        self._read_end, write_end = os.pipe2(os.O_CLOEXEC)
        self._pid = _interpreter.start_silently({TWIN_VARIABLE: write_end})
        os.close(write_end)

    def seeded(self) -> set[str] | None:
        """Digests of the states it found; `None` when it did not get that far."""
        import json

        with open(self._read_end, encoding="ascii") as channel:
            text = channel.read()
        # The server's loop may have reaped it.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        return set(json.loads(text)) if text else None


def actions_now(random_module_state: Any, flow_class: type) -> list[Action] | None:
    """What each forked task has to do first; `None` if the twin failed."""
    generators = Generators(random_module_state)
    seeded = Twin().seeded() if needs_twin(generators, flow_class) else set()
    return None if seeded is None else generators.actions(seeded)
