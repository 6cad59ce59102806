"""Fail if a crate of Cargo.lock or an installed Python package has a license that is not permissive.

The list of accepted licenses is that of deny.toml; what an expression offers with OR is enough once, AND needs all.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Packages whose metadata names no SPDX expression, with the license that their distribution holds.
KNOWN = {
    "pytest-timeout": "MIT",
    "promql-parser": "MIT",  # the text is in its distribution
    "apsw": "Zlib",  # "any-OSI" in its metadata, the text is the zlib license
}
# What older metadata says in words instead of SPDX.
WORDS = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "3-clause bsd license": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "python software foundation license": "PSF-2.0",
}
# Fine for Python packages; no crate has them.
PYTHON_ONLY = {"PSF-2.0"}
# Tools that lint and tests run and nothing of ours contains.
TOOLS_ONLY = {"certifi": "MPL-2.0", "hypothesis": "MPL-2.0", "pathspec": "MPL-2.0"}


def accepted(expression: str, allowed: set[str]) -> bool:
    """Evaluate an SPDX expression; also the old `MIT/Apache-2.0` form that means OR."""
    text = re.sub(r"\s*/\s*", " OR ", expression)
    tokens = re.findall(r"\(|\)|[^\s()]+(?: WITH [^\s()]+)?", text)
    position = 0

    def either() -> bool:
        nonlocal position
        value = both()
        while position < len(tokens) and tokens[position] == "OR":
            position += 1
            value = both() or value
        return value

    def both() -> bool:
        nonlocal position
        value = one()
        while position < len(tokens) and tokens[position] == "AND":
            position += 1
            value = one() and value
        return value

    def one() -> bool:
        nonlocal position
        token = tokens[position]
        position += 1
        if token == "(":
            value = either()
            position += 1
            return value
        return token in allowed

    return bool(tokens) and either()


def crates() -> list[tuple[str, str]]:
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--all-features"]
    found = json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout)
    return [
        (f"crate {p['name']} {p['version']}", p.get("license") or "")
        for p in found["packages"]
        if p["source"] is not None
    ]


def distributions() -> list[tuple[str, str]]:
    result = []
    for dist in metadata.distributions():
        name = dist.name.lower().replace("_", "-")
        if name in {"roost", "pip"}:
            continue
        info = dist.metadata
        said = [info.get("License-Expression") or ""]
        said += [c.rpartition(" :: ")[2] for c in info.get_all("Classifier") or [] if c.startswith("License ::")]
        said.append((info.get("License") or "").partition("\n")[0])
        words = [WORDS.get(s.strip().lower(), s.strip()) for s in said]
        words = [w for w in words if w and w not in {"OSI Approved", "DFSG approved"}]
        result.append((f"package {name} {dist.version}", TOOLS_ONLY.get(name) or KNOWN.get(name) or (words or [""])[0]))
    return sorted(result)


def main() -> int:
    with (ROOT / "deny.toml").open("rb") as file:
        allowed = set(tomllib.load(file)["licenses"]["allow"])
    everything = [(n, e, accepted(e, allowed)) for n, e in crates()]
    for name, expression in distributions():
        tool = name.split()[1] in TOOLS_ONLY
        everything.append((name, expression, tool or accepted(expression, allowed | PYTHON_ONLY)))
    bad = [(n, e) for n, e, good in everything if not good]
    for name, expression in bad:
        print(f"check_licenses: {name}: {expression or 'no license named'} is not in deny.toml's list", file=sys.stderr)
    if not bad:
        print(f"licenses: {len(everything)} dependencies, all permissive")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
