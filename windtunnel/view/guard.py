"""Who may read the page: this machine alone, or whoever holds the token in the address."""

from __future__ import annotations

import ipaddress
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def is_loopback(host: str) -> bool:
    """Whether a server bound to ``host`` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Guard:
    """Judges requests. Without a token the server is bound to loopback."""

    token: str

    @classmethod
    def of(cls, host: str) -> Guard:
        """A fresh token where other machines can reach ``host``."""
        return cls("" if is_loopback(host) else secrets.token_urlsafe(18))

    def refusal(self, host_header: str, token: str) -> str:
        """Why a request is refused; empty for a good one.

        On loopback the Host header must name this machine: a page elsewhere could otherwise point
        a name of its own at 127.0.0.1 and read along.
        """
        if self.token:
            if secrets.compare_digest(token.encode(), self.token.encode()):
                return ""
            return "This address lacks its token. Take the whole address from the terminal."
        name = urlsplit(f"//{host_header}").hostname or ""
        return "" if is_loopback(name) else "Only this machine may read this page."


def content_security_policy(nonce: str) -> str:
    """Scripts with ``nonce`` and requests to this server; nothing else is run or loaded."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'unsafe-inline'; "
        "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
