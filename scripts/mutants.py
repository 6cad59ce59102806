"""Breaks the engine on purpose, in a copy, and sees that the turn state machine finds each break.

Every `tests/mutants/NAME.patch` says in prose what it breaks, and breaks it. The copy is built and
tests/e2e/test_turn_machine.py is run against it: unchanged it must pass, with any patch it must
fail by a difference. `make mutants` runs all; name some to run those alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
MUTANTS = PROJECT / "tests" / "mutants"
HARNESS = "tests/e2e/test_turn_machine.py"
COPIED = ("Cargo.toml", "Cargo.lock", "pyproject.toml", "rust", "python", "tests")
# Optimised, but quick to build: what is looked for are wrong answers.
BUILD = {
    "CARGO_PROFILE_RELEASE_LTO": "off",
    "CARGO_PROFILE_RELEASE_OPT_LEVEL": "1",
    "CARGO_PROFILE_RELEASE_CODEGEN_UNITS": "16",
    "CARGO_INCREMENTAL": "1",
}
DIFFERENCE = re.compile(r"^E +(\S.*)$", re.MULTILINE)
TESTS_FAILED = 1  # pytest's exit status when tests ran and some failed


class Failed(Exception):
    """A mutant was not found, or something stood in the way of looking."""


class Tree:
    """The copy that is broken and mended again."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._target = root / "target"
        for name in COPIED:
            source, copy = PROJECT / name, root / name
            if source.is_dir():
                shutil.rmtree(copy, ignore_errors=True)
                # With the time of now: to cargo a file of the last mutant would be newer than the mended one.
                ignored = shutil.ignore_patterns("__pycache__", "*.so")
                shutil.copytree(source, copy, ignore=ignored, copy_function=shutil.copy)
            else:
                root.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, copy)

    def apply(self, patch: Path, *, reverse: bool = False) -> None:
        # `git apply` inside a repository resolves paths against its root; here the copy is the root.
        env = {**os.environ, "GIT_CEILING_DIRECTORIES": str(self._root.parent), "GIT_DIR": str(self._root / ".no-git")}
        command = ["git", "apply", *(["--reverse"] if reverse else []), str(patch)]
        done = subprocess.run(command, cwd=self._root, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"does not apply: {done.stderr.strip()}; bring the patch up to date with the code")

    def build(self) -> None:
        command = ["cargo", "build", "--quiet", "--locked", "--release", "-p", "roost-python"]
        env = {**os.environ, **BUILD, "CARGO_TARGET_DIR": str(self._target)}
        done = subprocess.run(command, cwd=self._root, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"does not build:\n{done.stderr}")
        built = next(p for p in (self._target / "release").glob("lib_core.*") if p.suffix in (".so", ".dylib"))
        shutil.copy(built, self._root / "python" / "roost" / "_core.abi3.so")

    def difference(self) -> str:
        """The first difference that the harness finds; empty if it finds none."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not long", HARNESS]
        # The first difference is enough: it is not made smaller.
        command += ["--hypothesis-profile", "first-difference"]
        env = {**os.environ, "PYTHONPATH": str(self._root / "python")}
        done = subprocess.run(command, cwd=self._root, env=env, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return ""
        found = DIFFERENCE.search(done.stdout)
        if done.returncode != TESTS_FAILED or found is None or " error" in done.stdout.splitlines()[-1]:
            raise Failed(f"the harness did not run:\n{done.stdout}\n{done.stderr}")
        return found[1]


def look(tree: Tree, patch: Path) -> str:
    """What the harness says of this mutant."""
    tree.apply(patch)
    try:
        tree.build()
        difference = tree.difference()
    finally:
        tree.apply(patch, reverse=True)
    if not difference:
        raise Failed("NOT FOUND: the harness passes")
    return difference


def main() -> int:
    """Look for the mutants that are named, or for all."""
    known = {patch.stem: patch for patch in sorted(MUTANTS.glob("*.patch"))}
    parser = argparse.ArgumentParser(description="Break the engine on purpose and see that each break is found.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(known)}")
    names = parser.parse_args().names or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no such mutant: {', '.join(unknown)}; there are {', '.join(known)}")
    tree = Tree(Path(os.environ.get("CARGO_TARGET_DIR", PROJECT / "target")) / "mutants")
    try:
        tree.build()
        if difference := tree.difference():
            raise Failed(f"the harness fails without a mutant: {difference}")
    except Failed as why:
        print(f"unchanged: {why}", file=sys.stderr)
        return 1
    print("unchanged: passes", flush=True)
    status = 0
    for name in names:
        try:
            print(f"{name}: found: {look(tree, known[name])}", flush=True)
        except Failed as why:
            status = 1
            print(f"{name}: {why}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
