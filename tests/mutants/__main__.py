"""Mutate the modules whose faults would lose something, and count the mutants that no test notices.

    make mutants                              a sample of 60 mutants of each module (hours)
    make mutants MODULE=worker SAMPLE=200     more of one
    make mutants MODULE=limits ALL=1          all of one
    make mutants MODULE=limits SURVIVORS=1    those that survived the last run once more

Cosmic Ray makes the mutants, in a copy of the checkout in a temporary folder: an interruption leaves nothing
behind, and child processes import the copy as well. A mutant that hangs counts as killed. Figures, the
survivors' diffs, and which test killed how many, are kept in build/mutants/.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cosmic_ray.work_db import use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkResult

from tests.mutants.modules import MODULES, Module

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "mutants"
#: Identity and equality are the same for None, enum members, True and False, and small numbers.
EQUIVALENT = ("_Eq_Is", "_Is_Eq", "_NotEq_IsNot", "_IsNot_NotEq")

Key = tuple[str, str, int, str]


def main() -> int:
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("--module", choices=MODULES, action="append", help="all modules without it")
    parser.add_argument("--sample", type=int, default=60, help="mutants per module; 0 is all of them")
    parser.add_argument("--seed", type=int, default=1, help="of the sample")
    parser.add_argument("--survivors", action="store_true", help="run those that survived the last run")
    arguments = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in arguments.module or MODULES:
        with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
            _Run(name, Path(folder)).run(arguments.sample, arguments.seed, arguments.survivors)
    _print_table()
    return 0


class _Run:
    """One module's mutants, in a copy of the checkout."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._module: Module = MODULES[name]
        self._copy = folder / "checkout"
        self._session = folder / "session.sqlite"
        self._config = folder / "config.toml"
        paths = os.pathsep.join([str(self._copy), str(self._copy / "integrations")])
        self._environ = os.environ | {"PYTHONPATH": paths}

    def run(self, sample: int, seed: int, survivors: bool) -> None:
        _copy_checkout(self._copy)
        # Compiled files are validated by content, as mutants of equal size follow each other within a second.
        self._call("-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "transport_kit")
        began = time.monotonic()
        self._call(*self._test_command(timeout=900)[1:])
        took = time.monotonic() - began
        # Generous, as a test that is slow on a loaded machine would count as a mutant killed.
        limit = 60 + 5 * took
        self._write_config(limit, timeout=60 + round(took))
        self._call("-m", "cosmic_ray.cli", "init", str(self._config), str(self._session))
        last = _result(self._name) if survivors else None
        possible, chosen = self._choose(sample, seed, last)
        print(f"{self._name}: {chosen} of {possible} mutants, at most {limit:.0f} s each", flush=True)
        try:
            self._call("-m", "cosmic_ray.cli", "exec", str(self._config), str(self._session))
        finally:
            self._record(possible, last)

    def _call(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self._copy,
            env=self._environ,
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            sys.exit(f"{self._name}: {shlex.join(arguments)} failed without any mutant:\n{done.stdout}")

    def _test_command(self, timeout: int) -> list[str]:
        """Return the command that runs the module's tests, each for up to `timeout` seconds."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not chaos", "--timeout", str(timeout)]
        # The profile does not shrink examples; the seed makes them the same for each mutant.
        command += ["--hypothesis-profile", "mutants", "--hypothesis-seed", "0"]
        if self._module.deselect:
            command += ["-k", " and ".join(f"not {name}" for name in self._module.deselect)]
        return [*command, *self._module.tests]

    def _write_config(self, limit: float, timeout: int) -> None:
        # Any string of JSON is a valid string of TOML.
        lines = (
            "[cosmic-ray]",
            f"module-path = {json.dumps(self._module.source)}",
            f"timeout = {limit:.1f}",
            "excluded-modules = []",
            f"test-command = {json.dumps(shlex.join(self._test_command(timeout)))}",
            "[cosmic-ray.distributor]",
            'name = "local"',
        )
        self._config.write_text("\n".join(lines), encoding="utf-8")

    def _choose(self, sample: int, seed: int, last: dict[str, Any] | None) -> tuple[int, int]:
        """Mark all other mutants as skipped; return the numbers of possible and of chosen ones."""
        with use_db(self._session) as database:
            items = {_key(item.mutations[0]): item for item in database.work_items}
            unseen = _Unseen(self._copy, self._module)
            possible = sorted(key for key, item in items.items() if item.mutations[0] not in unseen)
            if last is not None:
                wanted = {tuple(key) for key in last["survivors"]}
                chosen = [key for key in possible if key in wanted]
            else:
                places = [(items[key].mutations[0], key) for key in possible]
                chosen = list(_spread(places, random.Random(seed)))[: sample or None]
            rest = [items[key].job_id for key in items.keys() - set(chosen)]
            database.set_multiple_results(rest, WorkResult(WorkerOutcome.SKIPPED))
        return len(possible), len(chosen)

    def _record(self, possible: int, last: dict[str, Any] | None) -> None:
        """Write the figures, the survivors as diffs, and the tests that killed the others."""
        survivors: list[Key] = []
        diffs: list[str] = []
        killers: Counter[str] = Counter(last["killers"] if last is not None else {})
        done: set[Key] = set()
        hung = 0
        with use_db(self._session) as database:
            for item, result in database.completed_work_items:
                if result.worker_outcome is WorkerOutcome.SKIPPED:
                    continue
                done.add(_key(item.mutations[0]))
                hung += result.output == "timeout"
                if result.test_outcome is TestOutcome.SURVIVED:
                    survivors.append(_key(item.mutations[0]))
                    diffs.append(f"# {item.mutations[0].operator_name}\n{result.diff}\n")
                else:
                    killers[_killer(result.output or "")] += 1
        if last is not None:  # an interrupted run has no results for the others
            survivors += [key for key in map(tuple, last["survivors"]) if key not in done]
        figures = {"possible": possible, "made": len(done), "hung": hung, "survivors": sorted(survivors)}
        figures["killers"] = killers
        if last is not None:
            figures |= {"made": last["made"], "hung": last["hung"] + hung}
        (BUILD / f"{self._name}.json").write_text(json.dumps(figures), encoding="utf-8")
        (BUILD / f"{self._name}.diff").write_text("\n".join(sorted(diffs)), encoding="utf-8")
        lines = [f"{count:5} {test}" for test, count in killers.most_common()]
        (BUILD / f"{self._name}.killers").write_text("\n".join(lines), encoding="utf-8")


def _killer(output: str) -> str:
    """Return the first test that failed, or the last line of a pytest that ended in another way."""
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    return failed[1] if failed else output.strip().rpartition("\n")[2][:100] or "no output"


def _copy_checkout(target: Path) -> None:
    """Copy the files that git tracks or would add, with their uncommitted changes."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for name in filter(None, listing.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def _key(mutation: MutationSpec) -> Key:
    """Return a key for a mutant that is the same in each run over the same source."""
    arguments = json.dumps(mutation.operator_args, sort_keys=True)
    return str(mutation.module_path), mutation.operator_name, mutation.occurrence, arguments


def _spread(places: list[tuple[MutationSpec, Key]], draw: random.Random) -> Iterator[Key]:
    """Yield all keys in a random order in which every place comes before any comes a second time."""
    by_place: dict[tuple[str, tuple[int, int]], list[Key]] = {}
    for mutation, key in places:
        by_place.setdefault((str(mutation.module_path), mutation.start_pos), []).append(key)
    queues = list(by_place.values())
    for queue in queues:
        draw.shuffle(queue)
    while queues:
        draw.shuffle(queues)
        yield from [queue.pop() for queue in queues]
        queues = [queue for queue in queues if queue]


class _Unseen:
    """The mutants that no test can see, or that no test should fix.

    They change annotations, which are never evaluated; decorators of a protocol's functions; arguments of log
    calls; `__repr__`; arguments of `@dataclass`; or identity into equality and back.
    """

    def __init__(self, copy: Path, module: Module) -> None:
        source = copy / module.source
        files = source.rglob("*.py") if source.is_dir() else [source]
        self._ranges = {
            str(path.relative_to(copy)): list(_unseen_ranges(ast.parse(path.read_bytes()))) for path in files
        }

    def __contains__(self, mutation: MutationSpec) -> bool:
        if mutation.operator_name.endswith(EQUIVALENT):
            return True
        ranges = self._ranges[str(mutation.module_path)]
        return any(begin <= mutation.start_pos < end for begin, end in ranges)


def _unseen_ranges(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for node in ast.walk(tree):
        for part in _unseen_parts(node):
            end = part.end_lineno or part.lineno, part.end_col_offset or part.col_offset
            yield (part.lineno, part.col_offset), end


def _unseen_parts(node: ast.AST) -> Iterable[ast.expr | ast.stmt]:
    match node:
        case ast.FunctionDef(name="__repr__"):
            yield node
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            arguments = node.args
            all_arguments = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            all_arguments += [variadic for variadic in (arguments.vararg, arguments.kwarg) if variadic]
            yield from filter(None, [node.returns, *(argument.annotation for argument in all_arguments)])
            if _is_stub(node):
                yield from node.decorator_list
        case ast.AnnAssign():
            yield node.annotation
        case ast.ClassDef():
            yield from node.decorator_list
        case ast.Call(func=ast.Attribute(value=ast.Name(id="log"))):
            yield node


def _is_stub(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return True for a function of a protocol, whose body is `...`."""
    match function.body[-1]:
        case ast.Expr(value=ast.Constant(value=value)):
            return value is ...
    return False


def _result(name: str) -> dict[str, Any] | None:
    path = BUILD / f"{name}.json"
    result: dict[str, Any] | None = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return result


def _print_table() -> None:
    print(f"{'module':10} {'possible':>8} {'made':>6} {'killed':>6} {'(hung)':>6} {'left':>5} {'%':>5}")
    for name in MODULES:
        figures = _result(name)
        if figures is not None and figures["made"]:
            made, left = figures["made"], len(figures["survivors"])
            print(
                f"{name:10} {figures['possible']:8} {made:6} {made - left:6} {figures['hung']:6} {left:5}"
                f" {100 * (made - left) / made:5.1f}"
            )
    print(f"The survivors' diffs are in {BUILD.relative_to(ROOT)}/")


if __name__ == "__main__":
    sys.exit(main())
