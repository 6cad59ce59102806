"""The boot reap: what an earlier life of this server left behind on its machine is found and ended.

For each driver that the configuration names one sweep at the start, and the next a lease after the end of the last;
`roost.drivers.reap` says what an orphan is and when it is ended. Runs on the event loop; reads go to the reader thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from roost.drivers import Lister
from roost.drivers.reap import Ours, Sweeps, Swept, sweep
from roost.handlers.reload import Read, read_one
from roost.store.base import Store

if TYPE_CHECKING:
    from roost._core import Engine

_POLL_SECONDS: Final = 0.1

log = structlog.get_logger("roost.reap")


class Reaper:
    """Sweeps. `listers`: the drivers by name; `lease`: seconds that one lives now; `gauges` is told how many orphans
    the latest sweeps found ("orphans_found") and how many were ended since the start ("orphans_ended")."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        read: Read,
        listers: Mapping[str, Lister],
        ours: Ours,
        lease: Callable[[], float],
        gauges: dict[str, int],
    ) -> None:
        self._engine = engine
        self._store = store
        self._rows = partial(read_one, read)
        self._listers = listers
        self._ours = ours
        self._lease = lease
        self._gauges = gauges
        self._found = dict.fromkeys(listers, 0)
        gauges |= {"orphans_found": 0, "orphans_ended": 0}

    async def run(self) -> None:
        """Sweep until cancelled, each driver by itself: one that hangs holds up no other."""
        async with asyncio.TaskGroup() as group:
            for name, lister in self._listers.items():
                group.create_task(self._run(name, lister))

    async def _run(self, name: str, lister: Lister) -> None:
        sweeps = Sweeps()
        while True:
            try:
                swept = await sweep(lister, self._ours, self._owned, sweeps, lease=self._lease(), clock=self._now)
                sweeps = swept.sweeps
                self._tell(name, swept)
            except Exception:
                log.exception("reap_failed", driver=name)
                sweeps = sweeps.failed()  # nobody saw who owned what
            due = self._now() + self._lease()
            while self._now() < due:  # noqa: ASYNC110 - the engine's clock
                await asyncio.sleep(_POLL_SECONDS)

    def _now(self) -> float:
        """Seconds of the engine's clock, which never goes back."""
        return self._engine.service_ms() / 1_000

    async def _owned(self, names: Sequence[str]) -> Collection[str]:
        """Which of these names are owned."""
        known: set[str] = await self._rows(partial(self._store.known_resources, names))
        return known

    def _tell(self, name: str, swept: Swept) -> None:
        """Log what a sweep did, and count it."""
        if swept.error is not None:
            log.warning("reap_failed", driver=name, reason=str(swept.error))
            return
        for item in swept.ended:
            log.info("orphan_ended", driver=name, resource=item.name)
        for item, error in swept.failed:
            log.warning("orphan_not_ended", driver=name, resource=item.name, reason=str(error))
        self._found[name] = len(swept.found)
        if swept.found:
            log.info("orphans_found", driver=name, orphans=len(swept.found), ended=len(swept.ended))
        self._gauges["orphans_found"] = sum(self._found.values())
        self._gauges["orphans_ended"] += len(swept.ended)
