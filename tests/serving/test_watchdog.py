import threading

from blockexport.serving.watchdog import Watchdog


class Engine:
    """Runs until it is interrupted."""

    def __init__(self) -> None:
        self.interrupted = threading.Event()

    def interrupt(self) -> None:
        self.interrupted.set()

    def rearm(self) -> None:
        self.interrupted.clear()


def test_only_a_call_that_takes_too_long_is_interrupted() -> None:
    watchdog, engine, other = Watchdog(0.01), Engine(), Engine()
    watchdog.begin(other)
    watchdog.end()
    watchdog.begin(engine)
    assert engine.interrupted.wait(30)
    watchdog.end()
    watchdog.begin(engine)
    assert not engine.interrupted.is_set()
    watchdog.end()
    watchdog.close()
    assert not other.interrupted.is_set()


def test_closing_a_watchdog_that_never_watched() -> None:
    before = threading.active_count()
    watchdog = Watchdog(1.0)
    watchdog.close()
    assert threading.active_count() == before
