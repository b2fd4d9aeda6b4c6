import threading

import pytest

from search.background import Background

LONG = 30.0
"""Nothing here takes so long."""


def test_what_is_not_answered_soon_is_said_later_and_asked_once_at_a_time() -> None:
    may_answer, calls = threading.Event(), []

    def answer() -> int:
        calls.append(1)
        may_answer.wait(LONG)
        return len(calls)

    background = Background(answer, first=0)
    assert [background.latest(0.01) for _ in range(5)] == [0] * 5
    assert len(calls) == 1
    may_answer.set()
    assert background.latest(LONG) == 1
    assert background.latest(LONG) == 2


def test_what_was_raised_there_is_raised_here_once() -> None:
    divisors = iter([1.0, 0.0, 0.5])
    background = Background(lambda: 1 / next(divisors), first=0.0)
    assert background.latest(LONG) == 1
    with pytest.raises(ZeroDivisionError):
        background.latest(LONG)
    assert background.latest(LONG) == 2
