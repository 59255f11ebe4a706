"""Mutation testing: change one operator, constant or statement of the code, and see whether a test notices.

``make mutants ARGS="protocol session --sample 60"``. Tests are imported once. One run under coverage tells which tests
execute which lines. Each mutant is then a fork of this process, in which the functions of the changed file get new
code. It runs the tests that execute the changed statement until one fails: those of its room first, the fastest first.
An endless loop counts as killed. What no test notices is printed: it is a missing test, or code that makes no
difference. "untested" is what no test executes.

Only code within functions is changed; what runs at import alone counts as untested. Tests that start processes, need a
peer or measure (the group "serial") do not take part.
"""

from __future__ import annotations

import argparse
import ast
import copy
import gc
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("protocol", "session", "chain", "server", "attacks")
SELECT = "not exhaustive and not peer and not subprocess"
#: Bytes that a mutant may allocate, so that an endless loop does no harm.
MEMORY = 4 << 30

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


def changed(node: ast.AST) -> ast.AST | None:
    """Return what this node is replaced by, or None if it is of a kind that is left alone."""
    new = copy.deepcopy(node)
    match new:
        case ast.Compare():
            new.ops[0] = COMPARISONS[type(new.ops[0])]()
        case ast.BoolOp():
            new.op = ast.Or() if isinstance(new.op, ast.And) else ast.And()
        case ast.BinOp(op=ast.Add()):
            new.op = ast.Sub()
        case ast.BinOp(op=ast.Sub()):
            new.op = ast.Add()
        case ast.UnaryOp(op=ast.Not()):
            return new.operand
        case ast.Constant(value=bool()):
            new.value = not new.value
        case ast.Constant(value=int(number)):
            new.value = number + 1
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            if isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp | ast.Constant):
                return None  # that changes by itself
            new.test = ast.UnaryOp(ast.Not(), test)
        case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign():
            return ast.Pass()
        case ast.Break():
            return ast.Continue()
        case ast.Continue():
            return ast.Break()
        case _:
            return None
    return new


class Mutant(NamedTuple):
    """One change: the ``number``-th node, in the order of ``ast.walk``, of a file."""

    path: Path
    number: int
    #: The lines of the statement that is changed; of a compound one, its head.
    lines: range
    line: int
    change: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}  {self.change}"


def mutants(path: Path) -> Iterator[Mutant]:
    """Yield all mutants of a file."""
    tree = ast.parse(path.read_text())
    statements: dict[ast.AST, ast.stmt] = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            for statement in function.body:
                _note_statements(statement, statement, statements)
    for number, node in enumerate(ast.walk(tree)):
        if node not in statements or (new := changed(node)) is None:
            continue
        statement = statements[node]
        inner = [each.lineno for each in getattr(statement, "body", []) if isinstance(each, ast.stmt)]
        last = max(statement.lineno, (inner[0] - 1) if inner else statement.end_lineno or 0)
        was, now = (ast.unparse(each).splitlines()[0] for each in (node, new))
        yield Mutant(path, number, range(statement.lineno, last + 1), node.lineno, f"{was}  ->  {now}")  # type: ignore[attr-defined]


def _note_statements(node: ast.AST, statement: ast.stmt, found: dict[ast.AST, ast.stmt]) -> None:
    """Note the innermost statement of each node below this one."""
    found[node] = statement
    for child in ast.iter_child_nodes(node):
        _note_statements(child, child if isinstance(child, ast.stmt) else statement, found)


def code_of(mutant: Mutant) -> CodeType:
    """Compile the file with the change."""
    tree = ast.parse(mutant.path.read_text())
    target = next(node for number, node in enumerate(ast.walk(tree)) if number == mutant.number)
    for parent in ast.walk(tree):
        for name, value in ast.iter_fields(parent):
            if value is target:
                setattr(parent, name, changed(target))
            elif isinstance(value, list):
                value[:] = [changed(target) if each is target else each for each in value]
    return compile(ast.fix_missing_locations(tree), str(mutant.path), "exec")


def every_code(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object, and all within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from every_code(constant)


def replace_code(functions: Iterable[FunctionType], code: CodeType) -> None:
    """Give all functions of a module the code that they have in another version of it."""
    codes = defaultdict(list)
    for each in every_code(code):
        codes[each.co_qualname, each.co_firstlineno].append(each)
    for function in functions:
        match codes[function.__code__.co_qualname, function.__code__.co_firstlineno]:
            case [new]:
                function.__code__ = new


class Child(NamedTuple):
    """A fork: what it is for, where its output goes, and when it is killed."""

    mutant: Mutant | None
    output: Path
    deadline: float


class Mutation:
    """A pytest plugin that runs mutants instead of the tests that have been collected."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._folder = folder
        self._failed = False
        self._items: list[pytest.Item] = []
        self._functions: dict[str, list[FunctionType]] = defaultdict(list)
        #: The tests that execute a line, by their numbers; and the seconds that each test takes.
        self._covering: dict[tuple[str, int], set[int]] = defaultdict(set)
        self._seconds: list[float] = []
        self._running: dict[int, Child] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed = self._failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self._items = [
            item
            for item in session.items
            if not any("serial" in mark.args for mark in item.iter_markers("xdist_group"))
        ]
        for room in self._options.rooms:  # what is imported late would not be changed
            for path in (ROOT / "greensmtp" / room).rglob("*.py"):
                import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        gc.collect()
        for each in gc.get_objects():
            if type(each) is FunctionType:  # isinstance would ask lazy objects of libraries, which may raise
                self._functions[each.__code__.co_filename].append(each)
        gc.freeze()  # collections in children leave these objects, and their memory, alone
        try:
            self._measure()
            for room in self._options.rooms:
                self._try_room(room)
        finally:
            for pid in self._running:
                os.killpg(pid, signal.SIGKILL)
        return True

    def _measure(self) -> None:
        """Run all tests once, under coverage, in a child."""
        print(f"{len(self._items)} tests: one run under coverage", flush=True)
        pid = self._fork(None, self._run_with_coverage, 3600)
        while pid in self._running:
            self._wait()
        found = json.loads((self._folder / "measured").read_text())
        if found["failed"]:
            pytest.exit("these tests fail without any change: " + " ".join(found["failed"]), 1)
        self._seconds = found["seconds"]
        for path, lines in found["lines"].items():
            for line, numbers in lines.items():
                self._covering[path, int(line)].update(map(int, numbers))

    def _run_with_coverage(self) -> None:
        measuring = coverage.Coverage(
            data_file=None, config_file=False, include=["greensmtp/*"], concurrency=["gevent", "thread"]
        )
        measuring.start()
        failed, seconds = [], []
        for number, item in enumerate(self._items):
            measuring.switch_context(str(number))
            began = time.perf_counter()
            if not self._passes([item]):
                failed.append(item.nodeid)
            seconds.append(time.perf_counter() - began)
        measuring.stop()
        data = measuring.get_data()
        lines = {
            path: {line: [n for n in numbers if n] for line, numbers in data.contexts_by_lineno(path).items()}
            for path in data.measured_files()
        }
        found = {"failed": failed, "seconds": seconds, "lines": lines}
        (self._folder / "measured").write_text(json.dumps(found))
        os._exit(0)

    def _passes(self, items: list[pytest.Item]) -> bool:
        """Run tests until one fails."""
        self._failed = False
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                print("failed:", item.nodeid, flush=True)
                return False
        return True

    def _try_room(self, room: str) -> None:
        """Draw mutants of a room, try them, and print the score."""
        paths = sorted((ROOT / "greensmtp" / room).rglob("*.py"))
        every = [each for path in paths for each in mutants(path) if self._options.only in str(each)]
        drawn = random.Random(self._options.seed).sample(every, min(self._options.sample or len(every), len(every)))
        self._results: Counter[str] = Counter()
        for mutant in drawn:
            self._start(mutant)
        while self._running:
            self._wait()
        killed, untested = self._results["killed"], self._results["untested"]
        print(f"{room}: {killed} of {len(drawn)} killed, {untested} untested, out of {len(every)} mutants", flush=True)

    def _start(self, mutant: Mutant) -> None:
        path = str(mutant.path)
        numbers = set[int]().union(*(self._covering[path, line] for line in mutant.lines))
        if not numbers:
            return self._report("untested", mutant)
        chosen = sorted(numbers, key=lambda number: self._rank(number, mutant))[: self._options.most]
        items = [self._items[number] for number in chosen]
        while len(self._running) >= self._options.processes:
            self._wait()

        def run() -> None:
            replace_code(self._functions[path], code_of(mutant))
            os._exit(0 if self._passes(items) else 1)

        self._fork(mutant, run, 30 + 5 * sum(self._seconds[number] for number in chosen))
        return None

    def _rank(self, number: int, mutant: Mutant) -> tuple[bool, float]:
        """Return where a test comes: first those of the room, and the fastest first."""
        room = mutant.path.relative_to(ROOT).parts[1]
        return not self._items[number].nodeid.startswith(f"tests/{room}/"), self._seconds[number]

    def _fork(self, mutant: Mutant | None, run: Callable[[], None], timeout: float) -> int:
        """Run something in a child of its own process group, whose output goes to a file."""
        output = self._folder / f"output-{time.monotonic_ns()}"
        pid = os.fork()
        if pid:
            self._running[pid] = Child(mutant, output, time.monotonic() + timeout)
            return pid
        try:
            os.setpgid(0, 0)
            with output.open("wb") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            run()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(2)

    def _wait(self) -> None:
        """Wait a moment, and collect the children that have ended or have to."""
        time.sleep(0.01)
        for pid, child in list(self._running.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if not ended and time.monotonic() < child.deadline:
                continue
            if not ended:
                os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            del self._running[pid]
            if child.mutant is not None:
                self._report("SURVIVED" if ended and status == 0 else "killed", child.mutant, child.output)
            elif status:
                pytest.exit(child.output.read_text(errors="replace"), 1)
            child.output.unlink()

    def _report(self, result: str, mutant: Mutant, output: Path | None = None) -> None:
        self._results[result] += 1
        if result != "killed":
            print(f"{result:8} {mutant}", flush=True)
        elif self._options.verbose and output is not None:
            by = output.read_text(errors="replace").rpartition("failed: ")[2].split()
            print(f"{result:8} {mutant}  by {by[0] if by else 'timeout'}", flush=True)


def main() -> None:
    """Parse the command line, and let pytest collect the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="+", help="folders of greensmtp/: protocol, session, chain, server")
    parser.add_argument("--only", default="", help="only mutants whose output has this: chain.py:69")
    parser.add_argument("--sample", type=int, default=20, help="mutants a room; 0: all (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="another seed draws other mutants")
    parser.add_argument("--most", type=int, default=500, help="tests a mutant at most (default: 500)")
    parser.add_argument("--processes", type=int, default=2, help="mutants that run side by side (default: 2)")
    parser.add_argument("--tests", nargs="+", default=[f"tests/{each}" for each in TESTS], help="default: the core's")
    parser.add_argument("--verbose", action="store_true", help="print the killed ones, too, and the test that failed")
    options = parser.parse_args()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        arguments = ["-q", "-s", "-p", "no:cacheprovider", "--timeout=20"]
        arguments += ["-o", "faulthandler_timeout=0", "-m", SELECT]
        arguments += [f"--hypothesis-seed={options.seed}", *options.tests]
        sys.exit(pytest.main(arguments, plugins=[Mutation(options, Path(folder))]))


if __name__ == "__main__":
    main()
