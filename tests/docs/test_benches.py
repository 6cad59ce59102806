"""`make bench BENCH_ARGS=--quick` hands its argument to every benchmark; and how rpc_echo.py computes its ratio."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = sorted((Path(__file__).resolve().parents[2] / "bench").glob("[a-z]*.py"))


@pytest.mark.parametrize("script", BENCHES, ids=lambda path: path.name)
def test_every_benchmark_has_a_short_run(script: Path) -> None:
    shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "--quick" in shown.stdout
    assert "--json" in shown.stdout


def test_rounds_are_compared_with_their_neighbours() -> None:
    """A machine that is half as fast for some rounds does not change the ratio."""
    (script,) = (path for path in BENCHES if path.name == "rpc_echo.py")
    spec = importlib.util.spec_from_file_location("rpc_echo_bench", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    assert module.by_round([80.0, 40.0, 80.0], [100.0, 50.0, 100.0]) == [0.8, 0.8, 0.8]
    assert module.by_round([1.0], [0.0]) == []
    assert (module.ROUNDS % 2, module.QUICK_ROUNDS % 2) == (0, 0)  # each order as often as the other
