"""A real S3 server for tests, in this process, that can be told to misbehave."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

Answer = tuple[str, str]  # status line, error code


@dataclass
class S3:
    """One server with one bucket, "bucket"."""

    port: int = 0
    requests: list[tuple[str, str]] = field(default_factory=list)  # method and path
    # Of a method and a path: what is answered instead, "hang", or "lose": it is done, and the answer is an error.
    trouble: Callable[[str, str], Answer | str | None] = lambda _method, _path: None
    # Called before a request is answered.
    before: Callable[[str, str], None] = lambda _method, _path: None
    _released: threading.Event = field(default_factory=threading.Event)

    @property
    def options(self) -> dict[str, str]:
        """Options for open_target."""
        return {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "allow_http": "true",
            "region": "us-east-1",
            "access_key_id": "test-key",
            "secret_access_key": SECRET,
        }

    def answer(self, app: Any, environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.requests.append((method, path))
        self.before(method, path)
        trouble = self.trouble(method, path)
        if trouble == "hang":
            self._released.wait()
            trouble = ("500 Internal Server Error", "InternalError")
        if trouble == "lose":
            for _ in app(environ, lambda *_: None):
                pass
            trouble = ("500 Internal Server Error", "InternalError")
        if trouble is None:
            return app(environ, start)  # type: ignore[no-any-return]
        status, code = trouble
        start(status, [("Content-Type", "application/xml")])
        return [f"<Error><Code>{code}</Code><Message>said {SECRET}</Message></Error>".encode()]


SECRET = "canary-of-a-secret"


@contextmanager
def running() -> Iterator[S3]:
    """A server with an empty bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    s3 = S3()
    server = make_server("127.0.0.1", 0, lambda environ, start: s3.answer(app, environ, start), threaded=True)
    server.daemon_threads = True
    s3.port = server.port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    import urllib.request

    def ask(method: str, path: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{s3.port}{path}", method=method)
        with urllib.request.urlopen(request) as answer:
            answer.read()

    ask("POST", "/moto-api/reset")
    ask("PUT", "/bucket")
    s3.requests.clear()
    try:
        yield s3
    finally:
        s3._released.set()
        server.shutdown()
        server.server_close()
        thread.join()
