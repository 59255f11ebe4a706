"""Mutation testing, by hand: change one operator or constant, run the tests of its room, and see whether one fails.

``make mutants ARGS="protocol --sample 20"``. Each mutant gets a copy of the checkout. A mutant that no test notices
has survived: it is printed, as a hint at a missing test or at code that makes no difference.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=no"]
SELECT = ["-m", "not exhaustive and not peer and not subprocess"]

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


def mutate(node: ast.AST) -> bool:
    """Change this node, if it is of a kind that is changed."""
    if isinstance(node, ast.Compare):
        node.ops[0] = COMPARISONS[type(node.ops[0])]()
    elif isinstance(node, ast.BoolOp):
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        node.value += 1
    elif isinstance(node, ast.If | ast.While | ast.IfExp):
        node.test = ast.UnaryOp(ast.Not(), node.test)
    else:
        return False
    return True


def places(tree: ast.AST) -> Iterator[int]:
    """Yield the numbers, in the order of ``ast.walk``, of the nodes within functions that can be changed."""
    within = {
        id(each)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for statement in function.body
        for each in ast.walk(statement)
    }
    for number, node in enumerate(ast.walk(tree)):
        if id(node) in within and mutate(copy.deepcopy(node)):
            yield number


def mutant(source: str, number: int) -> tuple[int, str, str]:
    """Return the line that is changed, what stood there, and the whole text with the change."""
    tree = ast.parse(source)
    node = next(node for count, node in enumerate(ast.walk(tree)) if count == number)
    line = getattr(node, "lineno", 0)
    was = ast.unparse(node).splitlines()[0]
    mutate(node)
    return line, f"{was}  ->  {ast.unparse(node).splitlines()[0]}", ast.unparse(tree)


def survives(path: Path, text: str, tests: list[str], timeout: float) -> bool:
    """Return True if all tests pass with this text in place of the file's."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        checkout = Path(folder) / "checkout"
        shutil.copytree(
            ROOT, checkout, symlinks=True, ignore=shutil.ignore_patterns(".venv*", ".git", "*cache*", ".hypothesis")
        )
        (checkout / path).write_text(text)
        command = [*TESTS, *SELECT, *tests]
        environment = {**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            ran = subprocess.run(
                command, check=False, cwd=checkout, env=environment, capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return False
        return ran.returncode == 0


def main() -> None:
    """Draw mutants, try each, and print those that survived and the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("room", help="a folder of greensmtp/: protocol, session, chain, server")
    parser.add_argument("--sample", type=int, default=20, help="how many mutants (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="another seed draws other mutants")
    parser.add_argument("--timeout", type=float, default=600, help="seconds; a mutant that takes longer is killed")
    parser.add_argument("--tests", nargs="+", help="what to run (default: the room's tests, then tests/attacks)")
    options = parser.parse_args()
    tests = options.tests or [f"tests/{options.room}", "tests/attacks"]
    sources = {
        path.relative_to(ROOT): path.read_text() for path in sorted((ROOT / "greensmtp" / options.room).rglob("*.py"))
    }
    every = [(path, number) for path, source in sources.items() for number in places(ast.parse(source))]
    drawn = random.Random(options.seed).sample(every, min(options.sample, len(every)))
    if drawn and not survives(drawn[0][0], sources[drawn[0][0]], tests, options.timeout):
        sys.exit("the tests fail without any change: mend them first")
    survived = 0
    for path, number in drawn:
        line, change, text = mutant(sources[path], number)
        lives = survives(path, text, tests, options.timeout)
        survived += lives
        print(f"{'SURVIVED' if lives else 'killed  '} {path}:{line}  {change}", flush=True)
    print(f"{len(drawn) - survived} of {len(drawn)} mutants killed, out of {len(every)} possible ones")


if __name__ == "__main__":
    main()
