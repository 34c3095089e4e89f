"""From an application to a process that listens, and ends in an orderly way."""

import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import uvicorn

from blockexport.errors import ConfigError
from blockexport.server.protocol import protocol_of
from blockexport.server.settings import ServerSettings

_BACKLOG = 1024
_SWITCH_S = 5e-4
"""How long the engine's thread may wait for the interpreter between two tokens, at most; ten times less than usual."""
_KEEP_ALIVE_S = 30


def listen(settings: ServerSettings) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address or port cannot be had.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        msg = f"cannot listen on {settings.host} port {settings.port} ({error.strerror}); give another --host or --port"
        raise ConfigError(msg) from error
    listener.listen(_BACKLOG)
    return listener


def server_of(app: Any, settings: ServerSettings) -> Any:
    """The uvicorn server for an application; it answers when it is run on a socket of `listen`."""
    config = uvicorn.Config(
        app,
        http=protocol_of(settings.body_timeout_s, settings.stall_timeout_s),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_timeout_s)),
    )
    return uvicorn.Server(config)


def run(app: Any, settings: ServerSettings, on_ready: Callable[[str], None]) -> None:
    """Serve until told to stop: then take nothing more in, let what runs end, and return.

    Args:
        app: an ASGI application.
        settings: where to listen.
        on_ready: told the address.

    Raises:
        ConfigError: the address or port cannot be had.
    """
    sys.setswitchinterval(_SWITCH_S)
    server = server_of(app, settings)
    with closing(listen(settings)) as listener, _quiet_end(server):
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        on_ready(f"http://{host}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])


@contextmanager
def _quiet_end(server: Any) -> Iterator[None]:
    """Being told to stop is no failure, though uvicorn raises the signals it got once more when it has ended.

    A signal that comes before uvicorn listens to them counts too.
    """

    def stop(*_: Any) -> None:
        server.should_exit = True

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, stop) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
