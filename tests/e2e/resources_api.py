"""What the tests of resources share: the stubs, agents that are real processes, and a service that keeps sandboxes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from roost_server import DEADLINE, Api, Server

from roost.drivers.process import VARIABLE, identify
from roost.v1 import resource_service_pb2 as pb
from roost.v1 import resource_service_pb2_grpc as grpc_pb
from roost.v1 import turn_service_pb2 as turns

CLIENT, HTTP = pb.RESOURCE_KIND_CLIENT, pb.RESOURCE_KIND_HTTP
PROCESS, TMUX = pb.RESOURCE_KIND_PROCESS, pb.RESOURCE_KIND_TMUX
PLANNED, LIVE, RELEASING = pb.RESOURCE_STATE_PLANNED, pb.RESOURCE_STATE_LIVE, pb.RESOURCE_STATE_RELEASING
PROCESSES: Final = ("--set", "process_driver=true")
OWNER: Final = "host"


class Resources:
    """Calls of ResourceService and WatchOwner."""

    def __init__(self, api: Api) -> None:
        self._stub: Any = grpc_pb.ResourceServiceStub(api.channel)  # type: ignore[no-untyped-call]
        self._turns = api.turns

    def attach(self, session_id: str, kind: int = CLIENT, wait: float | None = None, **fields: Any) -> Any:
        """Name a resource; by default without waiting for a place."""
        fields = {"owner": OWNER} | fields
        request = pb.AttachResourceRequest(session_id=session_id, kind=kind, **fields)
        request.wait.FromMilliseconds(int((wait or 0) * 1_000))
        return self._stub.AttachResource(request, timeout=DEADLINE)

    def confirm(self, session_id: str, name: str, handle: str = "") -> Any:
        request = pb.AttachResourceRequest(session_id=session_id, name=name, handle=handle)
        return self._stub.AttachResource(request, timeout=DEADLINE)

    def detach(self, session_id: str, name: str) -> bool:
        request = pb.DetachResourceRequest(session_id=session_id, name=name)
        return bool(self._stub.DetachResource(request, timeout=DEADLINE).released)

    def page(self, **fields: Any) -> Any:
        return self._stub.ListResources(pb.ListResourcesRequest(**fields), timeout=DEADLINE)

    def list(self, **fields: Any) -> list[Any]:
        """All pages."""
        found: list[Any] = []
        token = ""
        while True:
            page = self.page(page_token=token, **fields)
            found += page.resources
            token = page.next_page_token
            if not token:
                return found

    def reconcile(self, node: str, items: dict[str, str], **fields: Any) -> dict[str, bool]:
        """The orphans among these (instance by name), and whether each is to end."""
        request = pb.ReconcileInventoryRequest(node=node, **fields)
        for name, instance in items.items():
            request.items.add(name=name, instance=instance)
        answer = self._stub.ReconcileInventory(request, timeout=DEADLINE)
        return {orphan.item.name: orphan.end for orphan in answer.orphans}

    def watch(self, owner: str = OWNER) -> Any:
        """A stream of what this owner is to release."""
        return self._turns.WatchOwner(turns.WatchOwnerRequest(owner=owner), timeout=DEADLINE)


@contextlib.contextmanager
def connected(server: Server) -> Iterator[tuple[Api, Resources]]:
    with server.api() as api:
        yield api, Resources(api)


class Agents:
    """Agent processes, each named after its resource."""

    def __init__(self) -> None:
        self.made: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> str:
        """Start one; its handle."""
        env = {"PATH": os.environ["PATH"], VARIABLE: name}
        self.made[name] = subprocess.Popen(["sleep", "1000"], env=env, start_new_session=True)
        return identify(self.made[name].pid)

    def alive(self) -> set[str]:
        return {name for name, process in self.made.items() if process.poll() is None}

    def end(self) -> None:
        for process in self.made.values():
            process.kill()
            process.wait()


class Sandboxes:
    """A service that keeps a sandbox for each name that was made, and counts the DELETEs. `status`: answered instead of
    deleting anything, where it is not 0; `hang`: of these names nothing is answered until it is over."""

    def __init__(self) -> None:
        self.there: set[str] = set()
        self.deletes: Counter[str] = Counter()
        self.status = 0
        self.hang: set[str] = set()
        self.over = threading.Event()
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_DELETE(self) -> None:
                name = self.path.rpartition("/")[2]
                service.deletes[name] += 1
                if name in service.hang:
                    service.over.wait()
                status = service.status or (204 if name in service.there else 404)
                if not service.status:
                    service.there.discard(name)
                with contextlib.suppress(OSError):  # the server of Roost may be gone
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.host = f"http://127.0.0.1:{self._server.server_port}"

    @property
    def flags(self) -> tuple[str, ...]:
        """The settings of a server whose resources these are."""
        return ("--set", f"http_release_url={self.host}/v1/{{name}}", "--set", f"http_release_hosts={self.host}")

    def end(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
