import base64
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from studies.password import LONGEST_PAUSE_SECONDS, SCRYPT, Login, PasswordHash, Verdict


@pytest.fixture
def right(monkeypatch: pytest.MonkeyPatch) -> PasswordHash:
    """Of a cost at which tests are quick."""
    monkeypatch.setitem(SCRYPT, "n", 2)
    return PasswordHash.of("right")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def header(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


def test_a_hash_recognises_its_password_and_can_be_written_down(right: PasswordHash) -> None:
    assert right.matches("right")
    assert not right.matches("Right")
    assert PasswordHash.parse(f"{right}\n") == right
    assert str(PasswordHash.of("right")) != str(right)
    assert "right" not in str(right)


def test_each_wrong_password_makes_the_pause_longer(right: PasswordHash) -> None:
    clock = Clock()
    login = Login(right, clock)
    for pause in (1, 2, 4, 8, 16, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS):
        assert login.judge(header("wrong"), "192.0.2.1") is Verdict.REFUSED
        clock.now += pause - 0.1
        # Not even the right one is looked at.
        assert login.judge(header("right"), "192.0.2.1") is Verdict.TOO_SOON
        clock.now += 0.1
    assert login.judge(header("right"), "192.0.2.1") is Verdict.ADMITTED


def test_who_guesses_slows_neither_others_nor_who_is_in(right: PasswordHash) -> None:
    login = Login(right, Clock())
    assert login.judge(header("wrong"), "192.0.2.1") is Verdict.REFUSED
    assert login.judge(header("right"), "192.0.2.2") is Verdict.ADMITTED
    assert login.judge(header("right"), "192.0.2.1") is Verdict.ADMITTED
    assert login.judge(header("wrong"), "192.0.2.1") is Verdict.TOO_SOON


def test_one_password_is_checked_at_a_time_and_nobody_waits_for_it() -> None:
    begun, may_end = threading.Event(), threading.Event()

    class Slow(PasswordHash):
        def matches(self, password: str) -> bool:
            begun.set()
            return may_end.wait(20) and password == "right"

    login = Login(Slow(b"", b""), Clock())
    with ThreadPoolExecutor(1) as threads:
        guess = threads.submit(login.judge, header("wrong"), "192.0.2.1")
        assert begun.wait(20)
        assert login.judge(header("right"), "192.0.2.2") is Verdict.TOO_SOON
        may_end.set()
        assert guess.result(20) is Verdict.REFUSED
    assert login.judge(header("right"), "192.0.2.2") is Verdict.ADMITTED


def test_a_network_of_ipv6_is_one_guesser(right: PasswordHash) -> None:
    login = Login(right, Clock())
    assert login.judge(header("wrong"), "2001:db8::1") is Verdict.REFUSED
    assert login.judge(header("wrong"), "2001:db8::2%eth0") is Verdict.TOO_SOON
    assert login.judge(header("wrong"), "2001:db8:0:1::1") is Verdict.REFUSED


@pytest.mark.parametrize(
    "authorization", ["", "Basic", "Basic !", "Basic /w==", "Bearer right", header("")]
)
def test_what_is_no_password_is_a_wrong_one(authorization: str, right: PasswordHash) -> None:
    assert Login(right, Clock()).judge(authorization, "192.0.2.1") is Verdict.REFUSED
