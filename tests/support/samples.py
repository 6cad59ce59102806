"""Samples of what takes long to go through: some cases in every run, all of them in the long one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], every: int = 3) -> list[Any]:
    """Cases to parametrize with; all but every n-th are marked `long`."""
    return [case if n % every == 0 else pytest.param(case, marks=pytest.mark.long) for n, case in enumerate(cases)]
