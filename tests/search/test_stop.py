import os
import signal
import time
from collections.abc import Iterator

import pytest

from search.stop import Stopped, StopRequest


@pytest.fixture
def restored_signals() -> Iterator[None]:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in signals}
    yield
    signal.alarm(0)
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def stop(restored_signals: None) -> StopRequest:
    request = StopRequest()
    request.install()
    return request


def test_nothing_is_requested_at_first(stop: StopRequest) -> None:
    assert not stop.requested
    assert stop.exit_code == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_only_asks(stop: StopRequest, number: signal.Signals, code: int) -> None:
    with stop.interruptible():
        os.kill(os.getpid(), number)
    assert stop.requested
    assert stop.exit_code == code


def test_the_second_signal_stops_at_once(stop: StopRequest) -> None:
    def train() -> None:
        with stop.interruptible():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("not stopped")

    with pytest.raises(Stopped):
        train()


def test_a_terminal_that_closes_asks_once_however_often_it_says_so(
    stop: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.stop.leave_terminal", lambda: None)
    with stop.interruptible():
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
    assert stop.exit_code == 129
    assert not stop.is_over


def test_what_must_not_be_interrupted_is_not(stop: StopRequest) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Stopped), stop.interruptible():
        pytest.fail("not stopped before it began")


@pytest.mark.usefixtures("restored_signals")
@pytest.mark.parametrize("grace", [0.0, 0.5])
def test_after_the_grace_period_one_signal_stops(grace: float) -> None:
    stop = StopRequest(grace)
    stop.install()
    started = time.monotonic()

    def train() -> None:
        with stop.interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            while time.monotonic() - started < 10:
                time.sleep(0.01)

    with pytest.raises(Stopped):
        train()
    assert grace <= time.monotonic() - started < grace + 4
    assert stop.exit_code == 143


def test_a_process_that_is_leaving_is_not_killed_by_the_end_of_the_grace_period(
    stop: StopRequest,
) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested
    stop.disarm()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0, "no alarm is left"
