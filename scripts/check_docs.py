"""Check what the docs claim and a machine can see: links, make targets, names of the API."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples/clients/README.md"]


def links(page: Path, text: str) -> list[str]:
    """Relative links must lead to a file, and their anchors to a heading of it."""
    bad = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists():
            bad.append(f"link to {target}: no such file")
        elif anchor and anchor not in anchors(file.read_text()):
            bad.append(f"link to {target}: no such heading")
    return bad


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def make_targets(text: str, known: set[str]) -> list[str]:
    named = set(re.findall(r"`make ([a-z-]+)[^`]*`", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
    return [f"make {name}: no such target" for name in sorted(named - known)]


def api_names(text: str, known: set[str]) -> list[str]:
    """A name like `BeginTurn` in code marks of docs/API.md must be in the protos or in roost.errors."""
    named = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`", text))
    return [f"`{name}`: neither in the protos nor in roost.errors" for name in sorted(named - known)]


def main() -> int:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    protos = "\n".join(p.read_text() for p in (ROOT / "proto").rglob("*.proto"))
    names = set(re.findall(r"\b(?:rpc|message|enum|service)\s+(\w+)", protos))
    names |= set(re.findall(r"^class (\w+)", (ROOT / "python/roost/errors.py").read_text(), re.MULTILINE))
    names |= {"ErrorInfo", "RetryInfo", "QuotaFailure"}  # of google.rpc
    complaints = []
    for page in PAGES:
        text = page.read_text()
        bad = [*links(page, text), *make_targets(text, targets)]
        if page.name == "API.md":
            bad += api_names(text, names)
        complaints += [f"{page.relative_to(ROOT)}: {b}" for b in bad]
    for complaint in complaints:
        print(f"check_docs: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
