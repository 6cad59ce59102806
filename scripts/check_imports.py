"""Check who imports whom: server -> handlers -> store, client, drivers beside; none reaches into another's insides."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

PYTHON = Path(__file__).resolve().parent.parent / "python"
# What each part may import of the rest of Roost, besides itself. `store.v1` is generated code.
MAY: dict[str, set[str]] = {
    "errors": set(),
    "v1": set(),
    "store.v1": set(),
    "client": {"errors", "v1"},
    "store": {"store.v1", "v1"},
    "drivers": set(),
    "handlers": {"_core", "drivers", "errors", "store", "store.v1", "v1"},
    "server": {"_core", "drivers", "errors", "handlers", "store", "v1"},
    "workload": {"client", "errors", "v1"},
    "load": {"client", "errors", "v1", "workload"},
    "cli": {"_core", "client", "drivers", "errors", "handlers", "load", "server", "store", "v1", "workload"},
    "__main__": {"cli"},
    "__init__": set(),
}
# Tools that write code from the engine's tables; nothing imports them.
GENERATORS = {"roost.client._generate": {"_core"}}


def part(module: str) -> str:
    """`roost.store.v1.store_pb2` -> `store.v1`, `roost.client._aio` -> `client`, `roost` -> `__init__`."""
    names = module.split(".")[1:] or ["__init__"]
    return "store.v1" if names[:2] == ["store", "v1"] else names[0]


def imports(tree: ast.AST, module: str, is_package: bool) -> list[tuple[int, str]]:
    """Line and dotted name of each import of Roost; `from a import b` gives `a.b`."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
                base = ".".join([*above, *([base] if base else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == "roost"]


def main() -> int:
    bad = []
    for file in sorted((PYTHON / "roost").rglob("*.py")):
        names = file.relative_to(PYTHON).with_suffix("").parts
        is_package = names[-1] == "__init__"
        module = ".".join(names[:-1] if is_package else names)
        here = part(module)
        where = file.relative_to(PYTHON.parent)
        if here not in MAY:
            bad.append(f"{where}: scripts/check_imports.py does not say what {here} may import")
            continue
        for line, target in imports(ast.parse(file.read_text()), module, is_package):
            there = part(target)
            if there == here or there in MAY[here] | GENERATORS.get(module, set()):
                inside = [n for n in target.split(".")[1:] if n.startswith("_") and not n.startswith("__")]
                if there != here and inside and inside[0] != "_core":
                    bad.append(f"{where}:{line}: {target} is private to {there}")
                continue
            bad.append(f"{where}:{line}: {here} may not import {target}")
    for complaint in bad:
        print(complaint, file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
