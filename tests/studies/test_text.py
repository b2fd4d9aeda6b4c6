import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data.errors import UserError
from studies.storage import masked, parse_url
from studies.text import counted, printable, readable, shortened, without_passwords

ENVIRONMENT = {
    "HPSEARCH_STORAGE": "postgresql://me:tell%20no-one@db/hpsearch",
    "PGPASSWORD": "nor-anybody",
}


def test_passwords_of_any_url_and_of_the_database_are_masked() -> None:
    text = (
        "cannot reach https://me:k3y@tracking/x nor postgresql://me:p@ss@db/hpsearch?a=b "
        "nor db?sslpassword=k4y&a=b; tried 'tell no-one' and tell%20no-one and nor-anybody"
    )
    assert without_passwords(text, ENVIRONMENT) == (
        "cannot reach https://me:***@tracking/x nor postgresql://me:***@db/hpsearch?a=b "
        "nor db?sslpassword=***&a=b; tried '***' and *** and ***"
    )


def test_text_without_a_password_stays_as_it_is() -> None:
    for text in ("http://127.0.0.1:8080/dashboard", "sqlite:///a.db", "me@host: 10:30"):
        assert without_passwords(text, {}) == text


@pytest.mark.timeout(30)
@pytest.mark.parametrize("part", ["a.", "a://b:", "?pass", "://"])
def test_a_long_hostile_text_is_soon_masked(part: str) -> None:
    text = part * (1_000_000 // len(part))
    assert without_passwords(text, {}) == text


def test_no_code_reaches_the_terminal() -> None:
    hostile = "\x1b[31mred\x1b]0;title\x07 \x9b2J \u202ereversed \ud800 line\n\ttab"
    assert printable(hostile) == "[31mred]0;title 2J reversed  line\n\ttab"
    printable(hostile).encode()


def test_what_is_too_long_is_cut() -> None:
    assert shortened("abcdef", 4) == "abc…"
    assert shortened("abcd", 4) == "abcd"


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"]), min_size=4))
@example("00@:")
def test_no_part_of_a_password_in_a_url_is_shown_however_it_is_written(password: str) -> None:
    marked = f"SECRET{password}SECRET"
    url = f"postgresql://me:{marked}@host/database"
    assert "SECRET" not in masked(url)
    try:
        parsed = parse_url(url)
        # What the driver may show in an error.
        shown = f"{parsed.host}{parsed.database}{parsed.username}"
    except UserError as error:
        shown = str(error)
    assert "SECRET" not in shown


def test_parameters_are_shown_on_one_line_with_four_digits() -> None:
    parameters = {"rate": 0.012345678901, "size": 128, "optimizer": "sgd", "note": "a\n" * 100}
    assert readable(parameters).startswith("rate 0.01235, size 128, optimizer sgd, note a a a ")
    assert len(readable(parameters)) < 200


def test_one_is_not_several() -> None:
    assert [counted(number, "trial") for number in (0, 1, 2)] == ["0 trials", "1 trial", "2 trials"]
