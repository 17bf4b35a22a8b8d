"""A recording that takes long rests while somebody uses the mount, and never for good."""

from __future__ import annotations

import time
from collections.abc import Callable

from clivefs.mounts.recording.pace import Pace


class Rests:
    """Notes how often and how long a recording rests; asks the mount something meanwhile, if told to."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.asked_s = 0.0
        self.goes_on = True
        """Requests come all the time."""
        self.while_resting: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        time.sleep(seconds)
        if self.goes_on:
            self.asked_s = time.monotonic()
        self.while_resting()

    def work(self, pace: Pace, seconds: float) -> None:
        """Record for so long."""
        until_s = time.monotonic() + seconds
        while time.monotonic() < until_s:
            if self.goes_on:
                self.asked_s = time.monotonic()
            pace.give_way()


def test_it_rests_while_requests_come_but_goes_on() -> None:
    rests = Rests()
    pace = Pace(lambda: rests.asked_s, rests.sleep)
    pace.begin()
    rests.work(pace, 0.3)
    assert rests.seconds
    began_s = time.monotonic()
    pace.give_way()
    pace.give_way()
    assert len(rests.seconds) < 1000
    assert time.monotonic() - began_s < 5  # two rests at most, though requests never end


def test_a_save_does_not_wait() -> None:
    rests = Rests()
    pace = Pace(lambda: rests.asked_s, rests.sleep)
    rests.asked_s = time.monotonic() + 60  # as if somebody asked in every moment
    rests.goes_on = False
    for _ in range(3):
        pace.begin()
        pace.give_way()
    assert rests.seconds == []


def test_nobody_asks() -> None:
    rests = Rests()
    rests.goes_on = False
    pace = Pace(lambda: rests.asked_s, rests.sleep)
    pace.begin()
    rests.work(pace, 0.1)
    assert rests.seconds == []


def test_somebody_waits_for_it() -> None:
    rests = Rests()
    pace = Pace(lambda: rests.asked_s, rests.sleep)
    pace.begin()
    with pace.hurried():
        rests.work(pace, 0.1)
        assert rests.seconds == []
        with pace.hurried():
            pass
        rests.work(pace, 0.01)
        assert rests.seconds == []
    rests.work(pace, 0.1)
    assert rests.seconds


def test_whoever_comes_to_wait_is_not_kept_by_the_rest() -> None:
    rests = Rests()
    pace = Pace(lambda: rests.asked_s, rests.sleep)
    waiting = pace.hurried()
    rests.while_resting = waiting.__enter__
    pace.begin()
    rests.work(pace, 0.2)
    assert len(rests.seconds) == 1
