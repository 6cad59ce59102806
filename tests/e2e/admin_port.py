"""What end-to-end tests ask the admin port of a running server."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from roost_server import DEADLINE, Server, until

Labels = tuple[tuple[str, str], ...]
OPENMETRICS = "application/openmetrics-text;version=1.0.0"


def address_of(server: Server) -> tuple[str, int]:
    """Where the admin port of a server listens, from its log."""
    until(lambda: '"event": "ready"' in server.logged)
    ready = next(entry for line in server.logged.splitlines() if (entry := json.loads(line))["event"] == "ready")
    host, _, port = ready["admin"].rpartition(":")
    return host.strip("[]"), int(port)


def get(where: tuple[str, int], path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    """One GET: status, headers, text."""
    connection = http.client.HTTPConnection(*where, timeout=DEADLINE)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    finally:
        connection.close()


class Scrape:
    """The metrics of one moment."""

    def __init__(self, where: tuple[str, int], openmetrics: bool = False) -> None:
        status, headers, self.text = get(where, "/metrics", Accept=OPENMETRICS if openmetrics else "text/plain")
        assert status == 200, self.text
        assert headers["content-type"].startswith("application/openmetrics-text" if openmetrics else "text/plain")
        parse: Any = parse_openmetrics if openmetrics else parse_text
        self.families = {family.name: family for family in parse(self.text)}
        samples = [sample for family in self.families.values() for sample in family.samples]
        self.samples: dict[tuple[str, Labels], float] = {
            (s.name, tuple(sorted(s.labels.items()))): s.value for s in samples
        }
        assert len(self.samples) == len(samples), "two samples of one series"

    def __call__(self, name: str, **labels: str) -> float:
        """The value of a series; 0 of one that is not there, as PromQL's `or vector(0)`."""
        return self.samples.get((f"roost_{name}", tuple(sorted(labels.items()))), 0.0)

    def all(self, name: str) -> dict[str, float]:
        """The series of a metric with one label, by its value."""
        return {labels[0][1]: value for (of, labels), value in self.samples.items() if of == f"roost_{name}"}


def say(where: tuple[str, int], data: bytes) -> socket.socket:
    """A connection on which this was said."""
    made = socket.create_connection(where, timeout=DEADLINE)
    made.sendall(data)
    return made
