"""Write the table of error reasons in docs/API.md from the engine's own table; `--check` fails if they differ."""

from __future__ import annotations

import sys
from pathlib import Path

import grpc

from roost._core import REASONS

DOC = Path(__file__).resolve().parent.parent / "docs/API.md"
BEGIN = "<!-- reasons: written by `make docs` from roost._core.REASONS -->"
END = "<!-- end of reasons -->"
CODES = {code.value[0]: code.name for code in grpc.StatusCode}


def table() -> str:
    lines = ["| reason | code | meaning | what to do |", "| --- | --- | --- | --- |"]
    for reason, code, meaning, advice in REASONS:
        cells = [f"`{reason}`", CODES[code], meaning, advice]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def main() -> int:
    text = DOC.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        print(f"gen_reasons: {DOC.name} has no markers for the table", file=sys.stderr)
        return 1
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if wanted == text:
        return 0
    if "--check" in sys.argv[1:]:
        print("gen_reasons: the table of reasons in docs/API.md is not the engine's; run: make docs", file=sys.stderr)
        return 1
    DOC.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
