"""Write the parts of the Helm chart that the code knows better; `--check` fails where they differ.

values.schema.json: what `config` may hold, from the server's settings. files/settings.json: their ranges and units, for
the templates. README.md: the table of values, from the schema and values.yaml. files/alerts.yaml: deploy/monitoring's.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from roost.server.config import _SIZE_UNITS, _TIME_UNITS, Settings

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "deploy/helm/roost"
ALERTS = ROOT / "deploy/monitoring/alerts.yaml"
# Settings that other values of the chart decide, and those of drivers for which there is nothing in a pod.
CHARTS_OWN = frozenset(
    "listen admin_listen data_dir admin_key_file insecure drain_timeout_ms "
    "tls_cert_file tls_key_file tls_client_ca_file process_driver tmux_driver tmux_socket reap".split()
)
BEGIN, END = "<!-- values: written by `make docs` -->", "<!-- end of values -->"


def units(key: str) -> dict[str, int] | None:
    """The units that a setting takes, as people write them; none for a plain number."""
    if key.endswith("_bytes"):
        return {name.replace("IB", "iB"): factor for name, factor in _SIZE_UNITS.items()}
    return dict(_TIME_UNITS) if key.endswith("_ms") else None


def settings() -> dict[str, dict[str, Any]]:
    """The JSON schema of each setting that `config` may hold, by key; pydantic's, with units."""
    full = Settings.model_json_schema()["properties"]
    found: dict[str, dict[str, Any]] = {}
    for key, given in full.items():
        if key in CHARTS_OWN:
            continue
        schema = {k: v for k, v in given.items() if k not in {"title", "default"}}
        taken = units(key)
        if taken:
            schema["type"] = ["integer", "string"]
            schema["pattern"] = "^[0-9]+ *(" + "|".join(name for name in taken if name) + ")?$"
        found[key] = schema
    return found


def ranges() -> dict[str, dict[str, Any]]:
    """What the templates check: the least and the greatest of each number, in the unit that messages name."""
    table: dict[str, dict[str, Any]] = {}
    for key, schema in settings().items():
        table[key] = {}
        if "minimum" in schema:
            word = " bytes" if key.endswith("_bytes") else " ms" if key.endswith("_ms") else ""
            table[key] = {
                "min": schema["minimum"], "max": schema["maximum"], "in": word, "units": units(key) or {"": 1},
            }  # fmt: skip
    return table


def schema() -> str:
    """values.schema.json with today's settings."""
    whole = json.loads((CHART / "values.schema.json").read_text())
    whole["properties"]["config"] = {
        "type": "object",
        "description": "Settings of the server, by their names in docs/OPERATIONS.md; sizes and times may have units",
        "properties": settings(),
        "additionalProperties": False,
    }
    return json.dumps(whole, indent=2, ensure_ascii=False) + "\n"


def values(node: dict[str, Any], given: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Path, default and meaning of each value; an object with a meaning of its own is one value."""
    for key, below in node["properties"].items():
        here = f"{path}{key}"
        if not isinstance(given, dict) or key not in given:
            if path in {"", "image."} and key != "global":
                raise SystemExit(f"gen_chart: {here} is in values.schema.json and not in values.yaml")
            continue
        if "properties" in below and "description" not in below:
            yield from values(below, given[key], f"{here}.")
            continue
        if "description" not in below:
            raise SystemExit(f"gen_chart: {here} has no description in values.schema.json")
        shown = json.dumps(given[key], ensure_ascii=False)
        yield here, shown, below["description"]
    if isinstance(given, dict):
        for key in given.keys() - node["properties"].keys():
            raise SystemExit(f"gen_chart: {path}{key} is in values.yaml and not in values.schema.json")


def readme() -> str:
    """README.md with today's table of values."""
    text = (CHART / "README.md").read_text()
    before, found, rest = text.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if not found or not closed:
        raise SystemExit("gen_chart: the chart's README.md has no markers for the table of values")
    table = ["| value | default | meaning |", "| --- | --- | --- |"]
    given = yaml.safe_load((CHART / "values.yaml").read_text())
    for path, default, meaning in values(json.loads(schema()), given):
        meaning = meaning.replace("|", "\\|")
        table.append(f"| `{path}` | `{default}` | {meaning} |")
    return before + BEGIN + "\n" + "\n".join(table) + "\n" + END + after


def main() -> int:
    wanted = {
        CHART / "values.schema.json": schema(),
        CHART / "files/settings.json": json.dumps(ranges(), indent=1) + "\n",
        CHART / "README.md": readme(),
    }
    if ALERTS.exists():
        wanted[CHART / "files/alerts.yaml"] = ALERTS.read_text()
    status = 0
    for path, text in wanted.items():
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in sys.argv[1:]:
            print(f"gen_chart: {path.relative_to(ROOT)} is not what it is made from; run: make docs", file=sys.stderr)
            status = 1
        else:
            path.write_text(text)
    return status


if __name__ == "__main__":
    sys.exit(main())
