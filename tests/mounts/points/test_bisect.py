"""The search for the first bad point, against a look at all of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from clivefs.mounts.points.bisect import Bisection, Verdict


@given(st.integers(2, 200), st.data())
def test_it_finds_the_first_bad_one(count: int, data: st.DataObject) -> None:
    first_bad = data.draw(st.integers(1, count - 1))
    skipped = data.draw(st.sets(st.integers(1, count - 2))) if count > 2 else set()
    search = Bisection(count)
    tried = 0
    while (number := search.next()) is not None:
        assert 0 < number < count - 1
        tried += 1
        bad = Verdict.BAD if number >= first_bad else Verdict.GOOD
        search.note(number, Verdict.SKIP if number in skipped else bad)
    assert first_bad in search.suspects
    assert all(each in skipped for each in search.suspects[:-1])
    if not skipped:
        assert list(search.suspects) == [first_bad]
        assert tried <= count.bit_length()
