"""Checks the addresses to listen at before gunicorn tries them."""

import os
import socket
import sys

# With these variables systemd, or an old master, hands on sockets that listen already.
_INHERITED = {"LISTEN_FDS", "GUNICORN_FD"}


def exit_if_taken(addresses: list[object]) -> None:
    """Exit at once, with one line, if one is taken; gunicorn would try it five times.

    `addresses` are gunicorn's: (host, port), the path of a socket, or a descriptor."""
    if _INHERITED & os.environ.keys():
        return
    for address in addresses:
        if isinstance(address, tuple):
            _try(*address)


def _try(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        # gunicorn sets this, too: connections of a service that has just ended are no
        # obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            sys.exit(
                f"Cannot listen at {host}, port {port}: {exc.strerror} (HOST, PORT)"
            )
