"""HTTP for the live page: the standard library's threaded server, reading only.

/            the page, with every part that is ready
/state       versions of the parts, and what happens now
/part/NAME   one section or figure
/runs        a window of the table: sort, falling, words, first, count
/curve       the training curve of one run: id
"""

from __future__ import annotations

import gzip
import secrets
import socket
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from markupsafe import Markup

from windtunnel.report.page import SECTIONS, asset, environment, look
from windtunnel.view.guard import SECURITY_HEADERS, Guard, content_security_policy
from windtunnel.view.live import FIGURE_NAMES, PARTS, Live
from windtunnel.view.table import Question

VIEW_SCRIPTS = ("curve", "runs", "view")
"""In the order in which they build on each other, after the chart's."""
HTML, JSON, TEXT = "text/html", "application/json", "text/plain"
SMALL = 1500
"""Bytes; compressing less than a packet gains nothing."""


class Server(ThreadingHTTPServer):
    """Serves one :class:`Live`; a thread a connection, none of which keeps the process alive."""

    daemon_threads = True

    def __init__(self, host: str, port: int, live: Live) -> None:
        self.live = live
        self.guard = Guard.of(host)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else host
        shown = f"[{shown}]" if ":" in shown else shown
        query = f"?token={self.guard.token}" if self.guard.token else ""
        self.address = f"http://{shown}:{self.server_address[1]}/{query}"

    def server_bind(self) -> None:
        """Without the base class's look-up of a host name, which may wait for a network."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no news; anything else keeps its traceback."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD; there is no other method, and no path that writes."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version = "windtunnel"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        """Answer, or say why not."""
        address = urlsplit(self.path)
        query = {name: found[-1] for name, found in parse_qs(address.query).items()}
        refusal = self.server.guard.refusal(self.headers.get("Host", ""), query.get("token", ""))
        nonce = secrets.token_urlsafe(12)
        if refusal:
            self._send(HTTPStatus.FORBIDDEN, TEXT, refusal.encode(), nonce)
            return
        found = self._find(address.path, query, nonce)
        if found is None:
            self._send(HTTPStatus.NOT_FOUND, TEXT, b"There is nothing here.", nonce)
        else:
            self._send(HTTPStatus.OK, *found, nonce)

    do_HEAD = do_GET

    def _find(self, path: str, query: dict[str, str], nonce: str) -> tuple[str, bytes] | None:
        live = self.server.live
        body: bytes | None = None
        kind = JSON
        if path == "/":
            kind, body = HTML, page(live, nonce).encode()
        elif path == "/state":
            body = live.state()
        elif path == "/runs":
            question = Question(
                sort=query.get("sort", ""),
                falling=query.get("falling") == "1",
                words=query.get("words", "")[:200],
            )
            body = live.rows(
                question,
                first=_number(query.get("first"), 0),
                count=_number(query.get("count"), 50),
            )
        elif path == "/curve":
            body = live.curve(query.get("id", ""))
        elif path.startswith("/part/"):
            name = path.removeprefix("/part/")
            kind, body = JSON if name == "chart" else HTML, live.part(name)
        return None if body is None else (kind, body)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, nonce: str) -> None:
        """``nonce`` is that of the page's scripts, which no other answer has."""
        self.send_response(status)
        if len(body) > SMALL and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, compresslevel=3)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", content_security_policy(nonce))
        for name, value in SECURITY_HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: addresses may hold the token, and nobody reads a request a second."""


def page(live: Live, nonce: str) -> str:
    """The page with the parts that are ready; figures and rows are fetched once it is shown."""
    ready = {name: live.part(name) for name in PARTS}
    return (
        environment("windtunnel.view")
        .get_template("view.html")
        .render(
            **look("theme"),
            view_style=_asset("view.css"),
            view_scripts=[_asset(f"{name}.js") for name in VIEW_SCRIPTS],
            nonce=nonce,
            sweep=live.sweep,
            sections=SECTIONS,
            parts={name: Markup(body.decode()) for name, body in ready.items() if body},
            state=Markup(live.state().decode().replace("<", "\\u003c")),
            figures=FIGURE_NAMES,
        )
    )


def _asset(name: str) -> Markup:
    return asset(name, package="windtunnel.view")


def _number(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else default
