"""`roost` whose start is held up until a test lets it go on: the file that HOLD names is there.

Run in place of `-m roost`.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from roost.cli.main import main
from roost.server import app


class Held(app.Process):
    """A server that waits before it loads what runs."""

    async def _load_running(self) -> int:
        while not Path(os.environ["HOLD"]).exists():
            await asyncio.sleep(0.01)
        return await super()._load_running()


if __name__ == "__main__":
    app.Process = Held  # type: ignore[misc]
    main()
