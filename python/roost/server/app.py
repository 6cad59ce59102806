"""The life of a server process: open the store, load what runs, serve, drain, flush, close.

Exit codes are those of `roost --help`. A failure whose outcome is unknown ends the process at once (70): what was
acknowledged is on disk, what was not has never been promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import structlog
import uvloop

from roost._core import VERSION, Engine
from roost.drivers.reap import Ours
from roost.handlers.cleanup import Cleaner
from roost.handlers.dump.errors import DumpError
from roost.handlers.dump.target import Target, open_target
from roost.handlers.dumping import Dumper
from roost.handlers.inventory import Reconciler
from roost.handlers.journal import JournalWriter
from roost.handlers.measures import Measures
from roost.handlers.reaping import Reaper
from roost.handlers.releasing import Releaser
from roost.handlers.reload import StoreReader
from roost.handlers.restore import Restorer
from roost.handlers.stats import About
from roost.server import address, logs, tracing
from roost.server.admin_http import DRAINING, FAILING, READY, AdminPort
from roost.server.config import ConfigError, Configuration, Settings
from roost.server.door import Door
from roost.server.lag import LoopDelay
from roost.server.metrics import Metrics
from roost.server.narrator import Narrator
from roost.server.outside import Outside, outside
from roost.server.overload import Overload
from roost.server.tls import Certificates, certificates
from roost.server.transport import Transport
from roost.store.base import Store

EXIT_STORE_FAILED: Final = 70
EXIT_UNUSABLE: Final = 69
_SWITCH_SECONDS: Final = 0.0005
_FLUSH_POLL: Final = 0.01  # seconds between two looks at whether everything is on disk
_LOG_SECONDS: Final = 1.0  # how long an ending process waits for whoever reads its log
_HEALTH_SECONDS: Final = 0.2  # how long a failing process waits for the loop to say NOT_SERVING

log = structlog.get_logger("roost.server")


def _dump_target(settings: Settings) -> Target | None:
    """The dump target, if there is one; ConfigError for one that cannot be. It is asked when the first session ends."""
    if not settings.dump_target:
        return None
    try:
        return open_target(settings.dump_target, operation_seconds=settings.dump_timeout_ms / 1_000)
    except DumpError as error:
        raise ConfigError(f"dump_target: {error}") from error


def _admin_address(settings: Settings, taken: address.Address) -> address.Address | None:
    """Where the admin port listens, if it does. Other machines may reach it: it tells counts, and takes nothing."""
    if not settings.admin_listen:
        return None
    where = address.parse(settings.admin_listen, True, "admin_listen")
    if where.target == taken.target and (where.path or where.port):
        raise ConfigError(
            f"admin_listen = {settings.admin_listen!r} is what listen is: gRPC needs an address of its own"
        )
    address.prepare(where)
    return where


def run(config: Configuration, open_store: Callable[[Path], Store]) -> int:
    """Serve until a signal ends it; the exit code. Raises ConfigError, StoreError and AddressError before it
    serves."""
    os.umask(0o077)  # what this process makes is its owner's alone, the socket file included
    logs.configure(config.settings.log_format, config.settings.log_level)
    certs = certificates(config.settings)
    where = address.parse(config.settings.listen, config.settings.insecure or certs is not None)
    address.prepare(where)  # before the store is claimed: the cheaper mistake first
    admin = _admin_address(config.settings, where)
    dumps = _dump_target(config.settings)
    drivers = outside(config.settings)
    store = open_store(Path(config.settings.data_dir))
    # The writer gives the GIL up at each step of a transaction and must win it back from the event loop: at the default
    # of 5 ms a busy loop makes a transaction several times as long.
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        return uvloop.run(Process(config, where, store, dumps, drivers, admin, certs).serve())
    finally:
        logs.flush(_LOG_SECONDS)


class Process:
    """One running server."""

    def __init__(
        self,
        config: Configuration,
        where: address.Address,
        store: Store,
        dumps: Target | None,
        drivers: Outside,
        admin: address.Address | None = None,
        certs: Certificates | None = None,
    ) -> None:
        settings = config.settings
        self._settings = settings
        self._where = where
        self._certs = certs
        self._store = store
        limits = config.limits()
        self._has_admin_key = config.admin_key is not None
        self._engine = Engine(
            limits,
            store.last_seq,
            store.service_ms,
            store.secret,
            config.admin_key,
            store.api_keys(),
            sources={name: config.sources[name] for name in limits},
            most={"max_turn_bytes": settings.max_request_bytes},
            set_limits=store.limits(),
        )
        for name in self._engine.limits_left_aside:
            log.warning("limit_left_aside", limit=name, reason="it was set before, and this server cannot keep to it")
        self._dumps = dumps
        self._engine.set_dumps(dumps is not None)
        self._drivers = drivers
        self._ours = Ours(settings.resource_prefix, store.store_id, store.epoch)
        self._engine.set_resources(
            settings.resource_prefix, store.store_id, store.epoch, drivers.kinds(), store.resources()
        )
        self._about = About(time.monotonic())
        reconcile = Reconciler(self._ours, self._lease)
        self._overload = Overload(settings.overload_delay_ms / 1_000, self._engine.refuse, self._about.gauges)
        self._measures = Measures()
        self._traces = tracing.start(os.environ)
        if self._traces is not None:
            self._measures.spans = self._traces
        self._transport = Transport(
            self._engine,
            store,
            settings.max_request_bytes,
            self._about,
            reconcile,
            self._fail,
            self._measures.spans,
        )
        self._admin = None if admin is None else AdminPort(admin, self._metrics().render)
        info = settings.log_level in ("debug", "info")
        self._engine.set_logging(info and settings.turn_log)
        heartbeat = settings.heartbeat_ms if info else 0
        self._narrator = Narrator(self._engine, settings.log_format, lambda: self._transport.requests, heartbeat)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._door: Door | None = None
        self._stop = asyncio.Event()
        self._signals = 0
        self._restoring: set[bytes] = set()  # uid of the session that is being restored

    async def serve(self) -> int:
        """Serve until SIGTERM or SIGINT."""
        loop = self._loop = asyncio.get_running_loop()
        loop.set_exception_handler(_unhandled)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, number)
        loop.add_signal_handler(signal.SIGUSR1, self._stop.set)  # `roost drain`: however often, it never ends at once
        told = None if self._admin is None else await self._admin.start()
        roots = await self._load_running()
        introspection = self._settings.introspection == "on" or (
            self._settings.introspection == "auto" and self._where.local
        )
        door = self._door = Door(self._settings, introspection)
        parts = self._engine, self._store
        writer = JournalWriter(*parts, self._wake, self._fail, self._measures)
        drain = self._transport.drain
        reader = StoreReader(*parts, loop.call_soon_threadsafe, drain, self._fail, self._measures)
        cleaner = self._cleaner(reader)
        settle, undo = self._transport.settle, cleaner.undo_restore
        restorer = Restorer(*parts, self._dumps, reader.read, settle, undo, self._restoring)
        self._transport.register(door.server, reader, restorer, self._overload)
        self._overload.listen(door.server, Path(self._settings.data_dir))
        try:
            port = door.listen(self._where.target, None if self._certs is None else self._certs.credentials())
        except RuntimeError as error:
            message = f"cannot listen on {self._where.target}: it cannot be bound"
            raise address.AddressError(message, EXIT_UNUSABLE) from error
        writer.start()
        reader.start()
        self._narrator.start()
        self._transport.start_ticking()
        await door.set_health(live=True, ready=True)
        await door.server.start()
        address.bound(self._where)
        listening = self._where.named(port)
        self._warn(listening)
        working = [asyncio.create_task(handler.run()) for handler in (cleaner, *self._handlers(reader))]
        self._set_state(READY)
        about = {"keys": self._engine.keys_required(), "admin": told, "traces": self._traces is not None}
        about["tls"] = None if self._certs is None else "mutual" if self._certs.of_clients else "server"
        log.info("ready", listen=listening, version=VERSION, epoch=self._store.epoch, running_trees=roots, **about)
        print(f"roost is ready on {listening}", flush=True)  # noqa: T201 - for people and scripts; logs go to stderr

        await self._stop.wait()
        self._set_state(DRAINING)
        await door.set_health(live=True, ready=False)  # before anything that may take its time
        for task in working:
            task.cancel()
        for ended in await asyncio.gather(*working, return_exceptions=True):
            if isinstance(ended, Exception):
                log.error("handler_failed", error=type(ended).__name__)
        await self._drivers.close()
        await self._drain(door)
        self._overload.close()
        reader.stop()
        writer.stop()
        self._transport.stop_ticking()
        self._narrator.stop()
        if self._traces is not None:
            await self._traces.stop()
        if self._admin is not None:
            await self._admin.stop()  # it reads the store's sizes
        self._store.close()
        address.released(self._where)
        log.info("stopped")
        return 0

    def _warn(self, listening: str) -> None:
        """What an operator should know of who may call."""
        required = self._engine.keys_required()
        if required and not self._has_admin_key:
            log.warning("no_admin_key", reason="the store holds active keys of tenants, and no admin key is configured")
        if not self._where.local and (self._certs is None or not (required or self._certs.of_clients)):
            what = (
                "calls, and the keys in them, are in plaintext" if required else "whoever reaches it may do everything"
            )
            log.warning("insecure", listen=listening, reason=f"other machines can reach this address: {what}")

    def _cleaner(self, reader: StoreReader) -> Cleaner:
        """What works on sessions that have ended."""
        return Cleaner(
            self._engine,
            self._store,
            reader.read,
            self._transport.cleanup_step,
            self._transport.oldest_stream,
            None if self._dumps is None else Dumper(self._store, self._dumps, reader.read),
            lambda: self._engine.limit("purge_without_dump") > 0,
            self._about.gauges,
            self._restoring,
            self._measures,
        )

    def _handlers(self, reader: StoreReader) -> list[Releaser | Reaper | LoopDelay | Overload | Certificates]:
        """What works on resources that are to end, and on those that nobody owns; what measures; and what looks after
        certificates."""
        settings, drivers = self._settings, self._drivers
        releaser = Releaser(
            self._engine,
            self._store,
            reader.read,
            self._transport.resource_step,
            drivers.drivers,
            settings.release_timeout_ms / 1_000,
            measures=self._measures,
        )
        reaper = Reaper(
            self._engine,
            self._store,
            reader.read,
            drivers.reaped,
            self._ours,
            self._lease,
            self._about.gauges,
        )
        delay = LoopDelay(self._about.gauges, self._measures.loop_delay)
        return [releaser, reaper, delay, self._overload, *([] if self._certs is None else [self._certs])]

    def _lease(self) -> float:
        """Seconds that a lease lives where none is asked for."""
        return self._engine.limit("default_lease_ms") / 1_000

    def _metrics(self) -> Metrics:
        """What the admin port tells of this server."""
        return Metrics(
            self._engine,
            self._store,
            self._about,
            self._transport.calls,
            self._measures,
            lambda: self._admin is not None and self._admin.ready,
        )

    def _set_state(self, state: str) -> None:
        """Have the admin port say in what state the server is."""
        if self._admin is not None:
            self._admin.state = state

    async def _load_running(self) -> int:
        """Charge the running grants of every tree that has any, before the first call; the number of trees."""
        roots = self._store.running_roots()
        for root in roots:
            tenant, rows = self._store.load_header(root)
            self._engine.header_loaded(0, tenant, rows)
            await asyncio.sleep(0)  # there may be many, and the admin port says meanwhile that the server lives
        return len(roots)

    async def _drain(self, door: Door) -> None:
        """No new turns, then what runs, then the journal. That calls are no longer taken has been said before."""
        seconds = self._settings.drain_timeout_ms / 1_000
        log.info("draining", in_flight=self._transport.in_flight(), seconds=seconds)
        self._engine.begin_drain()
        self._transport.drain()
        self._transport.stop_following()
        deadline = time.monotonic() + seconds
        stopping = asyncio.ensure_future(door.server.stop(grace=seconds))
        # Streams that never end by themselves (health watches) must not hold the stop up: only Roost's calls count.
        while not stopping.done() and self._transport.in_flight() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_FLUSH_POLL)
        await asyncio.sleep(_FLUSH_POLL)  # the last replies leave
        await door.server.stop(grace=None)
        with contextlib.suppress(asyncio.CancelledError):
            await stopping
        while not self._engine.flushed():
            self._transport.drain()
            await asyncio.sleep(_FLUSH_POLL)

    def _signalled(self, number: signal.Signals) -> None:
        """The first signal drains; the second ends the process as the signal itself would."""
        self._signals += 1
        if self._signals == 1:
            self._stop.set()
            return
        log.warning("killed", signal=number.name)
        _exit(128 + number)

    def _wake(self) -> None:
        """Called by the writer thread: finished tickets wait for the loop."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._transport.drain)

    def _fail(self, message: str) -> NoReturn:
        """Fail-stop, from any thread: say NOT_SERVING if the loop still listens, log, and end the process."""
        log.error("fail_stop", reason=message)
        done = threading.Event()
        if (
            self._loop is not None
            and self._door is not None
            and threading.current_thread() is not threading.main_thread()
        ):
            door = self._door

            async def say() -> None:
                self._set_state(FAILING)
                await door.set_health(live=False, ready=False)
                done.set()

            with contextlib.suppress(RuntimeError):  # the loop is closed
                asyncio.run_coroutine_threadsafe(say(), self._loop)
                done.wait(_HEALTH_SECONDS)
        logs.write(f"roost: {message}\n".encode(errors="backslashreplace"))  # one sentence for a person
        _exit(EXIT_STORE_FAILED)


def _exit(code: int) -> NoReturn:
    """End at once: no clean-up runs, because none may be trusted."""
    logs.flush(_LOG_SECONDS)
    os._exit(code)


def _unhandled(_loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    """An exception nobody awaited: logged by type, because its text could quote a request."""
    error = context.get("exception")
    log.error("unhandled", error=type(error).__name__ if error else "unknown")
