"""A recording that takes long rests while somebody uses the mount, and never for good."""

from __future__ import annotations

from collections.abc import Callable

from clivefs.mounts.recording.pace import Pace


class Rests:
    """Notes how long a recording rests; asks the mount something meanwhile, if told to. The clock is its own."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.seconds: list[float] = []
        self.asked_s = 0.0
        self.goes_on = True
        """Requests come all the time."""
        self.while_resting: Callable[[], None] = lambda: None
        self.pace = Pace(lambda: self.asked_s, self.sleep, lambda: self.now_s)

    def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.now_s += seconds
        if self.goes_on:
            self.asked_s = self.now_s
        self.while_resting()

    def work(self, seconds: float) -> None:
        """Record for so long, rests included."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += 0.0001
            if self.goes_on:
                self.asked_s = self.now_s
            self.pace.give_way()


def test_it_rests_while_requests_come_but_goes_on() -> None:
    rests = Rests()
    rests.pace.begin()
    rests.work(0.3)
    assert 0.2 < sum(rests.seconds) < 0.28  # most of the time, once it was not over soon
    rests.now_s += 1
    rests.asked_s = rests.now_s
    before_s = rests.now_s
    rests.pace.give_way()
    rests.pace.give_way()
    assert 0 < rests.now_s - before_s < 0.1  # one rest, though requests never end


def test_a_save_does_not_wait() -> None:
    rests = Rests()
    rests.asked_s = rests.now_s + 60  # as if somebody asked in every moment
    rests.goes_on = False
    for _ in range(3):
        rests.pace.begin()
        rests.now_s += 0.04
        rests.pace.give_way()
    assert rests.seconds == []


def test_nobody_asks() -> None:
    rests = Rests()
    rests.goes_on = False
    rests.pace.begin()
    rests.work(0.1)
    assert rests.seconds == []


def test_somebody_waits_for_it() -> None:
    rests = Rests()
    rests.pace.begin()
    with rests.pace.hurried():
        rests.work(0.1)
        assert rests.seconds == []
        with rests.pace.hurried():
            pass
        rests.work(0.01)
        assert rests.seconds == []
    rests.work(0.1)
    assert rests.seconds


def test_whoever_comes_to_wait_is_not_kept_by_the_rest() -> None:
    rests = Rests()
    waiting = rests.pace.hurried()
    rests.while_resting = waiting.__enter__
    rests.pace.begin()
    rests.work(0.2)
    assert len(rests.seconds) == 1
