"""Finds every regular expression of the service, and texts on which one is slow.

    python dev/pump_patterns.py [--seconds=60] [--seed=1]

What reads text from outside must take time in proportion to its length. So each pattern
is tried on texts that are made of what it looks for: the start of a match, then a piece
of one, or characters from elsewhere, repeated. The time must grow no faster than the
text. Prints for each pattern what a million characters of its worst text take.

tests/texts/test_patterns.py does this for a few seconds, `make soak` for longer.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import random
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from size import ROOT, service_files

_parser: Any = re._parser  # type: ignore[attr-defined]
_constants: Any = re._constants  # type: ignore[attr-defined]

METHODS = {"match", "fullmatch", "search", "sub", "split", "findall", "finditer"}
# What text from outside may hold, whatever a pattern looks for.
FOREIGN = ["\n", "\r", "\r\n", " ", "\t", "'", '"', "`", "-", "#", "7", "x", "\\", "\0"]
FOREIGN += ["\u202e", "\u2028", "\U0001f600", "_", "/", "<", ">", "[", "]", "(", ")"]
LENGTHS = [64, 256, 1024, 4096, 16_384]  # each four times the one before
# For the worst of all texts of a pattern: what goes back fast shows only here.
LONG = [16_384, 65_536, 262_144]
# Four times the text may take ten times as long; what goes back takes sixteen times.
MOST_GROWTH = 2.5
# What takes less is not worth a look: some systems count CPU in steps of this.
LEAST_S = 0.05
TICK_S = 0.004
# What takes so long for the longest text does not come back at all.
MOST_S = 2
SHOWN_CHARS = 1_000_000


@dataclass(frozen=True)
class Use:
    """A pattern, and the method of `re` that it is used with."""

    name: str  # where it is used: "folding.py:93"
    pattern: re.Pattern[Any]
    method: str

    def run(self, text: Any) -> None:
        method = "finditer" if self.method == "sub" else self.method
        found = getattr(self.pattern, method)(text)
        if method == "finditer":
            for _ in found:
                pass


@dataclass(frozen=True)
class Slow:
    """A text on which a pattern takes longer than its length explains."""

    use: Use
    text: Any
    took_s: float

    def __str__(self) -> str:
        return (
            f"{self.use.name}: {self.use.method} of {self.use.pattern.pattern!r} takes"
            f" {self.took_s:.2f} s for {len(self.text):,} characters,"
            f" {self.text[:200]!r} …"
        )


# --- every pattern --------------------------------------------------------------------


def uses() -> list[Use]:
    """Every pattern of the service with each method that it is used with."""
    found: dict[tuple[Any, int, str], Use] = {}
    for path in service_files():
        source = path.read_text("utf-8")
        if "\nimport re\n" not in source:
            continue
        tree = ast.parse(source)
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for use in _uses_in(tree, importlib.import_module(name), path.name):
            key = (use.pattern.pattern, use.pattern.flags, use.method)
            found.setdefault(key, use)
    return list(found.values())


def _uses_in(tree: ast.Module, module: ModuleType, file_name: str) -> Iterator[Use]:
    """Raises LookupError for a pattern that cannot be found."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        method = node.func.attr
        owner = node.func.value
        is_of_re = isinstance(owner, ast.Name) and owner.id == "re"
        if method not in METHODS:
            continue
        place = f"{file_name}:{node.lineno}"
        if is_of_re:
            values = _values(node.args[0], tree, module)
        else:
            values = _constant(owner, module)
        patterns = _patterns(values)
        if is_of_re and not patterns:
            raise LookupError(f"{place}: {ast.unparse(node)}: what is the pattern?")
        for pattern in patterns:
            # A method of the same name may be that of a text.
            if is_of_re or isinstance(pattern, re.Pattern):
                yield Use(place, re.compile(pattern), method)


def _constant(expression: ast.expr, module: ModuleType) -> list[Any]:
    """What an expression of a module's constants is; of a table that, whole."""
    if isinstance(expression, ast.Subscript):
        return _constant(expression.value, module)
    try:
        code = compile(ast.Expression(expression), "pattern", "eval")
        return [eval(code, vars(module))]
    except (NameError, AttributeError, TypeError):
        return []


def _values(
    expression: ast.expr,
    tree: ast.Module,
    module: ModuleType,
    known: Iterable[str] = (),
) -> list[Any]:
    """What an expression may be: a constant, or what a variable is given anywhere."""
    found = _constant(expression, module)
    while isinstance(expression, ast.Subscript):
        expression = expression.value
    if found or not isinstance(expression, ast.Name) or expression.id in known:
        return found
    for given in _given_to(expression.id, tree):
        found += _values(given, tree, module, {*known, expression.id})
    return found


def _given_to(name: str, tree: ast.Module) -> Iterator[ast.expr]:
    """What a variable of this name is assigned, loops over, or is passed."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and name in _names(*node.targets):
            yield node.value
        if isinstance(node, ast.For) and name in _names(node.target):
            yield node.iter
        if isinstance(node, ast.FunctionDef):
            parameters = [parameter.arg for parameter in node.args.args]
            if name in parameters:
                place = parameters.index(name)
                yield from _arguments(node.name, place, tree)


def _arguments(function: str, place: int, tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == function:
            yield from node.args[place : place + 1]


def _names(*expressions: ast.expr) -> set[str]:
    return {
        node.id
        for expression in expressions
        for node in ast.walk(expression)
        if isinstance(node, ast.Name)
    }


def _patterns(value: Any) -> list[Any]:
    """The patterns and texts that a value is or holds."""
    if isinstance(value, (str, bytes, re.Pattern)):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [pattern for each in value for pattern in _patterns(each)]
    return []


def has_nested_repetition(pattern: re.Pattern[Any]) -> bool:
    """Whether what is repeated without end has in it what is repeated without end."""

    def depth(tree: Any) -> int:
        deepest = 0
        for operation, argument in tree:
            below = max((depth(each) for each in _subtrees(argument)), default=0)
            is_repeat = operation in _REPEATS and argument[1] is _constants.MAXREPEAT
            deepest = max(deepest, below + is_repeat)
        return deepest

    return depth(_parser.parse(pattern.pattern, pattern.flags)) > 1


_REPEATS = {_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT}


def _subtrees(argument: Any) -> list[Any]:
    if isinstance(argument, _parser.SubPattern):
        return [argument]
    if isinstance(argument, (list, tuple)):
        return [tree for each in argument for tree in _subtrees(each)]
    return []


# --- texts for a pattern --------------------------------------------------------------


class Sampler:
    """Makes texts that a pattern matches, and parts of such texts."""

    def __init__(self, pattern: re.Pattern[Any], source: random.Random) -> None:
        self._random = source
        self._tree = _parser.parse(pattern.pattern, pattern.flags)
        self._parts = [self._tree, *self._all_below(self._tree)]
        self._is_bytes = isinstance(pattern.pattern, bytes)

    def _all_below(self, tree: Any) -> list[Any]:
        below = []
        for _, argument in tree:
            for each in _subtrees(argument):
                below += [each, *self._all_below(each)]
        return below

    def text_maker(self) -> Callable[[int], Any]:
        """Makes one text in any length: a start, a piece again and again, an end."""
        start = self._cut(self._sample(self._tree))
        piece = "".join(self._piece() for _ in range(self._random.randint(1, 3)))
        end = "".join(self._piece() for _ in range(self._random.randint(0, 2)))
        piece = piece or "\n"

        def text(length: int) -> Any:
            whole = start + piece * (length // len(piece) + 1) + end
            return whole.encode("utf-8", "replace") if self._is_bytes else whole

        return text

    def _piece(self) -> str:
        if self._random.random() < 0.4:
            return self._random.choice(FOREIGN)
        part = self._random.choice(self._parts)
        sample = self._sample(part)
        return sample if self._random.random() < 0.7 else self._cut(sample)

    def _cut(self, text: str) -> str:
        return text[: self._random.randint(0, min(len(text), 200))]

    def _sample(self, tree: Any) -> str:
        return "".join(self._sample_of(*node) for node in tree)

    def _sample_of(self, operation: Any, argument: Any) -> str:
        if operation in (_constants.LITERAL, _constants.NOT_LITERAL):
            return chr(argument)
        if operation is _constants.IN:
            return self._one_of_set(argument)
        if operation is _constants.ANY:
            return self._random.choice(FOREIGN)[:1]
        if operation is _constants.BRANCH:
            return self._sample(self._random.choice(argument[1]))
        if operation in _REPEATS:
            least, most, body = argument
            count = min(most, least + self._random.randint(0, 2))
            return "".join(self._sample(body) for _ in range(count))
        # Groups and what is looked for ahead; a reference repeats nothing here.
        return "".join(self._sample(tree) for tree in _subtrees(argument)[:1])

    def _one_of_set(self, members: list[Any]) -> str:
        operation, argument = self._random.choice(members)
        if operation is _constants.LITERAL:
            return chr(argument)
        if operation is _constants.RANGE:
            return chr(self._random.choice(argument))
        return self._random.choice(["7", "a", "_", " ", "\n", "-", "/"])


# --- time -----------------------------------------------------------------------------


class _TooLong(Exception):
    pass


@contextmanager
def _cut_off_after(limit_s: float) -> Iterator[None]:
    """Raise _TooLong when that much CPU was used: `re` looks at signals as it goes."""

    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def seconds(use: Use, text: Any) -> float:
    """Seconds of CPU that it takes; MOST_S for all that takes longer."""
    started = time.process_time()
    try:
        with _cut_off_after(MOST_S):
            use.run(text)
    except _TooLong:
        return MOST_S
    return time.process_time() - started


def slow_text(
    use: Use, make: Callable[[int], Any], lengths: list[int] = LENGTHS
) -> Slow | None:
    """The first of these lengths for which the time grows faster than the text."""
    before = make(lengths[0])
    before_s = seconds(use, before)
    for length in lengths[1:]:
        if before_s >= MOST_S:
            return Slow(use, before, before_s)
        text = make(length)
        took_s = seconds(use, text)
        if LEAST_S < took_s < MOST_S:
            # The least of three: what else the machine did counts in the others.
            took_s = min(seconds(use, text) for _ in range(3))
            before_s = min(seconds(use, before) for _ in range(3))
        growth = len(text) / len(before) * MOST_GROWTH
        if took_s > max(LEAST_S, growth * max(before_s, TICK_S)):
            return Slow(use, text, took_s)
        before = text
        before_s = took_s
    return None


def pump(use: Use, source: random.Random, for_s: float) -> tuple[Slow | None, Any]:
    """Try texts for so long. Returns the first slow one, and what makes the worst."""
    sampler = Sampler(use.pattern, source)
    worst_s = -1.0
    worst: Any = None
    end_at = time.process_time() + for_s
    while time.process_time() < end_at or worst is None:
        make = sampler.text_maker()
        slow = slow_text(use, make)
        if slow:
            return slow, make
        took_s = seconds(use, make(LENGTHS[-1]))
        if took_s > worst_s:
            worst_s = took_s
            worst = make
    return slow_text(use, worst, LONG), worst


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("--seconds", type=float, default=60, help="for all of them")
    arguments.add_argument("--seed", type=int, default=random.randrange(10**6))
    given = arguments.parse_args()
    print(f"--seed={given.seed}")
    source = random.Random(given.seed)
    patterns = uses()
    is_any_slow = False
    print(f"{'used in':28} {'s of 1 M':>8}  pattern")
    for use in patterns:
        slow, make = pump(use, source, given.seconds / len(patterns))
        took_s = seconds(use, make(SHOWN_CHARS))
        shown = str(use.pattern.pattern)[:60]
        print(f"{use.name:28} {took_s:8.3f}  {use.method} {shown!r}", flush=True)
        if slow:
            is_any_slow = True
            print(f"  SLOW: {slow}")
    return int(is_any_slow)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    sys.exit(main())
