"""The README's client example runs as it stands, against a server started as the README says."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from roost.client import Client

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
ADDRESS = "127.0.0.1:7117"


def test_the_client_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert example.count(ADDRESS) == 1
    assert len([line for line in example.splitlines() if line]) <= 12
    assert f"roost serve --listen {ADDRESS} --data-dir" in README

    command = [sys.executable, "-m", "roost", "serve", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = server.stdout.readline()
            found = re.search(r"\d+\.\d+\.\d+\.\d+:\d+", ready)
            if found is None:
                server.kill()
                pytest.fail(f"no address in {ready!r}: {server.communicate()[1]}")
            script = tmp_path / "example.py"
            script.write_text(example.replace(ADDRESS, found[0]))
            done = subprocess.run(
                [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, timeout=60, check=False
            )
            assert (done.returncode, done.stderr) == (0, "")
            with Client(found[0]) as client:
                (record,) = client.read_history("chat-1")
                assert record.record.content == b"agent: hello, how can I help?\n"
                assert client.get_session("chat-1").receipt.turn_count == 1
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
    assert server.returncode == 0
