"""Write the tables of docs/ that the code knows better; `--check` fails where they differ.

docs/API.md: the error reasons, from the engine; lines of buf curl and grpcurl, from the protos. docs/OPERATIONS.md: the
settings, from the server's configuration, and the metrics, from its table of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import curl_lines
import grpc

from roost._core import LIMIT_CHANGES, REASONS
from roost.server.config import Settings
from roost.server.metrics import FAMILIES

DOCS = Path(__file__).resolve().parent.parent / "docs"
CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def rows(header: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    head = list(header)
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def reasons() -> str:
    body = [(f"`{reason}`", CODES[code], meaning, advice) for reason, code, meaning, advice in REASONS]
    return rows(("reason", "code", "meaning", "what to do"), body)


def amount(key: str, value: object) -> str:
    """A default as a person would write it in the configuration file."""
    units: tuple[tuple[str, int], ...] = ()
    if key.endswith("_bytes"):
        units = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
    elif key.endswith("_ms"):
        units = (("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, int):
        return str(value)
    for unit, size in units:
        if value and value % size == 0:
            return f"{value // size}{unit}"
    return f"{value:,}"


# What may be done with a limit while the server runs; other settings are no limits.
CHANGES = {"free": "yes", "laid out": "down", "fixed": "no", "": ""}


def metrics() -> str:
    body = [(f"`{f.exported}`", f.kind, ", ".join(f"`{name}`" for name in f.labels), f.meaning) for f in FAMILIES]
    return rows(("metric", "kind", "labels", "meaning"), body)


def settings() -> str:
    body = [
        (f"`{k}`", amount(k, f.default), CHANGES[LIMIT_CHANGES.get(k, "")], f.description or "")
        for k, f in Settings.model_fields.items()
    ]
    return rows(("key", "default", "running", "meaning"), body)


TABLES: tuple[tuple[str, str, Callable[[], str]], ...] = (
    ("API.md", "reasons", reasons),
    ("API.md", "curl lines", curl_lines.lines),
    ("OPERATIONS.md", "settings", settings),
    ("OPERATIONS.md", "metrics", metrics),
)


def main() -> int:
    status = 0
    for name, what, table in TABLES:
        text = (DOCS / name).read_text()
        begin, end = f"<!-- {what}: written by `make docs` -->", f"<!-- end of {what} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            print(f"gen_docs: docs/{name} has no markers for the table of {what}", file=sys.stderr)
            return 1
        wanted = f"{before}{begin}\n{table()}\n{end}{after}"
        if wanted == text:
            continue
        if "--check" in sys.argv[1:]:
            print(
                f"gen_docs: the table of {what} in docs/{name} is not what the code says; run: make docs",
                file=sys.stderr,
            )
            status = 1
        else:
            (DOCS / name).write_text(wanted)
    return status


if __name__ == "__main__":
    sys.exit(main())
