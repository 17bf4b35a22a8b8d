"""Long work that somebody ends: with a message and the exit code that shells expect, not without a word."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from clivefs.base.errors import ClivefsError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ended(ClivefsError):
    """A signal ended the call: the exit code is 128 and its number."""

    def __init__(self, number: signal.Signals, *, place: str, remedy: str) -> None:
        super().__init__(f"ended by {number.name}", place=place, remedy=remedy)
        self.exit_code = 128 + number


class _Signal(BaseException):
    """Passes by whatever takes errors for something else."""


@contextmanager
def ended_by_signals(place: str, remedy: str) -> Iterator[None]:
    """While the block lasts, a signal that ends processes is an `Ended`, once everything has been cleaned up. For the
    main thread."""

    def end(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)  # one is enough: what follows is soon over
        raise _Signal(number)

    # Who was told to ignore one (nohup) goes on doing so.
    before = {each: signal.getsignal(each) for each in _SIGNALS}
    caught = [each for each in _SIGNALS if before[each] is not signal.SIG_IGN]
    for each in caught:
        signal.signal(each, end)
    try:
        yield
    except _Signal as ended:
        raise Ended(signal.Signals(ended.args[0]), place=place, remedy=remedy) from None
    finally:
        for each in caught:
            signal.signal(each, before[each])
