"""Which drivers the settings make, and every way to get them wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from roost.drivers.http import HttpDriver
from roost.drivers.process import ProcessDriver
from roost.drivers.tmux import TmuxDriver
from roost.server.config import ConfigError, Settings
from roost.server.outside import HTTP, PROCESS, TMUX, Outside, outside

SECRET = "Bearer of-nobody-else"
URL = {"http_release_url": "https://sandboxes.test/v1/{name}", "http_release_hosts": "sandboxes.test"}


def made(**settings: Any) -> Outside:
    return outside(Settings(**settings))


def test_without_settings_there_is_no_driver_and_only_hosts_release() -> None:
    found = made()
    assert (found.drivers, found.reaped, found.kinds()) == ({}, {}, [1])


def test_libraries_of_drivers_are_loaded_where_they_are_asked_for() -> None:
    program = (
        "import sys; from roost.server.config import Settings; from roost.server.outside import outside;"
        "outside(Settings()); print([name for name in ('aiohttp', 'roost.drivers.process') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


async def test_drivers_get_what_the_settings_say(tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.write_text(f"Authorization: {SECRET}\n\nX-Pool:  a b \n")
    headers.chmod(0o600)
    found = made(
        **URL,
        http_release_method="POST",
        http_release_expected="200, 202",
        http_release_headers_file=str(headers),
        process_driver=True,
        tmux_driver=True,
        tmux_socket="agents",
        release_timeout_ms="30s",
        reap="tmux, process",
    )
    assert found.kinds() == [1, HTTP, PROCESS, TMUX]
    http, process, tmux = (found.drivers[kind] for kind in (HTTP, PROCESS, TMUX))
    assert isinstance(http, HttpDriver)
    assert (http._method, http._expected, http._limit) == ("POST", {200, 202}, 30)
    assert http._headers == {"Authorization": SECRET, "X-Pool": "a b"}
    assert isinstance(process, ProcessDriver)
    assert (process._grace, process._limit) == (10, 30)
    assert isinstance(tmux, TmuxDriver)
    assert (tmux._socket, tmux._grace, tmux._limit) == (["-L", "agents"], 10, 30)
    assert found.reaped == {"tmux": tmux, "process": process}
    await found.close()


@pytest.mark.parametrize(
    ("socket", "arguments"), [("", []), ("name", ["-L", "name"]), ("/run/agents/tmux", ["-S", "/run/agents/tmux"])]
)
def test_a_socket_of_tmux_is_a_name_or_a_path(socket: str, arguments: list[str]) -> None:
    tmux = made(tmux_driver=True, tmux_socket=socket).drivers[TMUX]
    assert isinstance(tmux, TmuxDriver)
    assert tmux._socket == arguments


@pytest.mark.parametrize(("limit_ms", "grace"), [(5_000, 0), (10_000, 5), (15_000, 10), (60_000, 10)])
def test_the_grace_is_what_the_time_limit_leaves(limit_ms: int, grace: float) -> None:
    process = made(process_driver=True, release_timeout_ms=limit_ms).drivers[PROCESS]
    assert isinstance(process, ProcessDriver)
    assert process._grace == grace


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"resource_prefix": ""}, "resource_prefix: the prefix '' must have"),
        ({"resource_prefix": "Roost"}, "resource_prefix: the prefix 'Roost' must have"),
        ({"resource_prefix": "much-too-long"}, "resource_prefix: the prefix"),
        ({"process_driver": True, "release_timeout_ms": 4_999}, "release_timeout_ms: the time limit must be"),
        ({"tmux_driver": True, "release_timeout_ms": 100}, "release_timeout_ms: the time limit must be"),
        ({"tmux_socket": "agents"}, "tmux_socket: set tmux_driver as well"),
        ({"http_release_url": "https://a.test/{name}"}, "http_release_url: set http_release_hosts"),
        ({"http_release_hosts": "a.test"}, "http_release_hosts: set http_release_url as well"),
        ({"http_release_expected": "200"}, "http_release_expected: set http_release_url as well"),
        ({"http_release_headers_file": "x"}, "http_release_headers_file: set http_release_url as well"),
        ({**URL, "http_release_hosts": "b.test"}, "http_release_url: https://sandboxes.test:443 is not in the list"),
        ({**URL, "http_release_hosts": "sandboxes.test,*.test"}, "http_release_hosts: '*.test' in the list of hosts"),
        ({**URL, "http_release_hosts": "sandboxes.test,"}, "http_release_hosts: '' in the list of hosts"),
        ({**URL, "http_release_url": "https://sandboxes.test/{x}"}, "http_release_url: the URL template may hold"),
        ({**URL, "http_release_url": "https://{name}.test/"}, "http_release_url: "),
        ({**URL, "http_release_url": "https://u:p@sandboxes.test/"}, "http_release_url: a URL may not hold a user"),
        ({**URL, "http_release_expected": "200;202"}, "http_release_expected: '200;202' is not a status"),
        ({**URL, "http_release_expected": "2xx"}, "http_release_expected: '2xx' is not a status"),
        ({**URL, "http_release_expected": "099"}, "http_release_expected: an expected status is"),
        ({**URL, "http_release_headers_file": "/nowhere"}, "http_release_headers_file: cannot read the headers file"),
        ({"reap": "process"}, "reap: process is off: set process_driver as well"),
        ({"reap": "tmux", "process_driver": True}, "reap: tmux is off: set tmux_driver as well"),
        ({**URL, "reap": "http"}, "reap: 'http' is neither process nor tmux"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(**settings)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "mode", "says"),
    [
        (f"Authorization: {SECRET}\n", 0o644, "has mode 0644: other users can read it"),
        (f"Authorization: {SECRET}\n", 0o620, "has mode 0620: other users can read it"),
        (f"{SECRET}\n", 0o600, 'line 1 of {} is not "Name: value"'),
        (f"A: b\n\nNo name: {SECRET}\n", 0o600, 'line 3 of {} is not "Name: value"'),
        ("Authorization:\n", 0o600, 'line 1 of {} is not "Name: value"'),
        (f"Authorization: {SECRET}é\n", 0o600, "a header holds printable ASCII"),
        (f"A: b\na: {SECRET}\n", 0o600, "line 2 of {} gives a header again"),
        ("A: " + SECRET * 2_000, 0o600, "has more than 16384 bytes"),
    ],
)
def test_i25_a_bad_file_of_headers_is_refused_without_a_word_of_it(
    tmp_path: Path, content: str, mode: int, says: str
) -> None:
    file = tmp_path / "headers"
    file.write_text(content)
    file.chmod(mode)
    with pytest.raises(ConfigError) as error:
        made(**URL, http_release_headers_file=str(file))
    assert str(error.value).startswith("http_release_headers_file: ")
    assert says.format(file) in str(error.value)
    assert SECRET not in str(error.value)
