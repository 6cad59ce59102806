"""The tools that check the deployment, from .tools, where `make lint-deploy` puts them; and what they are run on.

Without them the tests that need one are skipped, or fail where ROOST_DEPLOY_TOOLS is `required`.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/roost"
TOOLS = (ROOT / ".tools/bin", ROOT / ".tools/venv/bin")


def tool(name: str) -> str:
    """The path of a tool. Skips, or fails, the test where it is not installed."""
    for directory in TOOLS:
        if (directory / name).exists():
            return str(directory / name)
    missing = f"{name} is not in .tools: run make lint-deploy"
    if os.environ.get("ROOST_DEPLOY_TOOLS") == "required":
        pytest.fail(missing)
    pytest.skip(missing)


def run(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a tool to its end."""
    return subprocess.run(
        [tool(name), *map(str, arguments)], capture_output=True, text=True, timeout=100, check=False, cwd=ROOT
    )


def template(*arguments: str | Path, chart: Path = CHART, release: str = "roost") -> str:
    """What `helm template` prints; the test fails with what it says where it does not."""
    done = run("helm", "template", release, chart, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


class _Strict(yaml.SafeLoader):  # type: ignore[misc]
    """PyYAML takes the last of two equal keys; Kubernetes' strict decoding refuses them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key twice {node.start_mark}"
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def documents(text: str) -> list[dict[str, Any]]:
    """The documents of a rendered chart; no key twice, none without a name."""
    found = [document for document in yaml.load_all(text, _Strict) if document is not None]
    names = [(document["kind"], document["metadata"]["name"]) for document in found]
    assert len(names) == len(set(names)), names
    return found


def only(kind: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """The one document of a kind."""
    (document,) = [d for d in found if d["kind"] == kind]
    return document
