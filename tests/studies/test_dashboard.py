import base64
import json
import os
import re
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import optuna
import pytest
from optuna_dashboard import wsgi

from data.errors import UserError
from studies.artifacts import StudyFiles
from studies.config import load_study_file
from studies.dashboard import Access, application, plan_access, serve
from studies.password import PasswordHash
from studies.storage import open_storage
from studies.study import create_or_continue, open_study
from tests.conftest import everything_stored

LOCAL = plan_access("127.0.0.1", ["gpu1.lab.org"], None, None, False, False)
EDITABLE = Access(LOCAL.names, None, allow_edits=True)
READING = ("GET", "HEAD")


@dataclass(frozen=True)
class Served:
    """A dashboard that is served, of a study with a running and a complete trial."""

    url: str
    address: str

    def ask(
        self,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
        path: str = "/api/studies",
        body: Mapping[str, object] | None = None,
    ) -> tuple[int, str]:
        """Status and body of an answer."""
        request = urllib.request.Request(
            self.address + path, method=method, headers=dict(headers or {})
        )
        if method not in READING:
            request.data = json.dumps(body or {}).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, response.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def tell(self, **headers: str) -> int:
        body = {"state": "Complete", "values": [-1e9]}
        return self.ask(headers, "POST", "/api/trials/1/tell", body)[0]

    def rename(self, **headers: str) -> int:
        return self.ask(headers, "POST", "/api/studies/1/rename", {"study_name": "another"})[0]

    def delete(self, **headers: str) -> int:
        return self.ask(headers, "DELETE", "/api/studies/1")[0]

    def stored(self) -> str:
        return everything_stored(self.url)


def start(directory: Path, access: Access) -> Served:
    url = f"sqlite:///{directory / 'a.db'}"
    storage = open_storage(url, create=True)
    config = load_study_file("quickstart")
    study = create_or_continue(storage, config, "00", enqueued=[])[0].study
    study.ask()
    study.add_trial(optuna.trial.create_trial(value=1.0))
    port: Queue[int] = Queue()
    app = application(storage, access, StudyFiles(storage, directory, None))
    threading.Thread(target=serve, args=(app, "127.0.0.1", 0, port.put), daemon=True).start()
    return Served(url, f"http://127.0.0.1:{port.get(timeout=10)}")


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return start(tmp_path_factory.mktemp("read-only"), LOCAL)


@pytest.fixture
def editable(tmp_path: Path) -> Served:
    return start(tmp_path, EDITABLE)


def basic(password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"}


def routes(url: str) -> list[tuple[str, str]]:
    """Method and path of all that the dashboard answers to."""
    values = {"plot_type": "contour", "filename": "bundle.js", "": ""}
    return [
        (route.method, re.sub(r"<(\w*)[^<>]*>", lambda of: values.get(of[1], "1"), route.rule))
        for route in wsgi(open_storage(url)).routes
    ]


def test_the_dashboard_shows_but_does_not_change(read_only: Served) -> None:
    before = read_only.stored()
    found = routes(read_only.url)
    changing = [route for route in found if route[0] not in READING]
    paths = {path for _, path in changing}
    assert {"/api/trials/1/tell", "/api/studies/1/rename", "/api/artifacts/1/1"} <= paths
    for method, path in [*changing, ("OPTIONS", "/api/studies"), ("PATCH", "/"), ("TRACE", "/")]:
        code, body = read_only.ask(method=method, path=path)
        assert code == 403, (method, path)
        assert "read-only" in body
    for method, path in found:
        if method in READING:
            assert read_only.ask(method=method, path=path)[0] != 403, path
    # What only shows has not changed anything either.
    assert read_only.stored() == before


def test_edits_can_be_allowed(editable: Served) -> None:
    assert editable.tell() == 204
    assert "-1000000000.0" in editable.stored()
    assert editable.rename() == 201
    assert editable.ask(method="DELETE", path="/api/studies/2")[0] == 204
    assert json.loads(editable.ask()[1])["study_summaries"] == []


def test_a_renamed_study_says_that_it_needs_its_name(editable: Served) -> None:
    storage = open_storage(editable.url)
    assert editable.rename() == 201
    with pytest.raises(UserError, match=r"created as 'quickstart'.*give it that name again"):
        open_study("another", storage)
    body = {"study_name": "quickstart"}
    assert editable.ask(method="POST", path="/api/studies/2/rename", body=body)[0] == 201
    assert open_study("quickstart", storage).config.name == "quickstart"


def test_another_site_s_page_changes_nothing(editable: Served) -> None:
    before = editable.stored()
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ):
        for change in (editable.tell, editable.rename, editable.delete):
            assert change(**headers) == (400 if "Host" in headers else 403)
    assert editable.stored() == before
    own = {"Origin": editable.address, "Sec-Fetch-Site": "same-origin"}
    for change in (editable.tell, editable.rename):
        assert change(**own) in (201, 204)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "a@localhost", "["])
def test_a_foreign_name_is_refused_with_what_to_do(read_only: Served, host: str) -> None:
    code, body = read_only.ask({"Host": host})
    assert code == 400
    assert "--allow-host" in body


def test_the_machine_s_own_names_and_allowed_ones_are_answered(read_only: Served) -> None:
    for host in ("localhost:8080", "127.0.0.1", "[::1]:8080", "GPU1.lab.org"):
        assert read_only.ask({"Host": host})[0] == 200


def test_other_sites_may_not_put_the_page_into_a_frame(read_only: Served) -> None:
    with urllib.request.urlopen(f"{read_only.address}/dashboard", timeout=10) as response:
        assert response.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert "frame-ancestors 'self'" in response.headers.get_all("Content-Security-Policy")


def test_a_production_server_answers(read_only: Served) -> None:
    with urllib.request.urlopen(f"{read_only.address}/dashboard", timeout=10) as response:
        assert response.headers["Server"] == "waitress"


def test_without_the_password_nothing_is_shown(tmp_path: Path) -> None:
    served = start(tmp_path, Access(LOCAL.names, PasswordHash.of("right"), False))
    code, body = served.ask()
    assert code == 401
    assert "quickstart" not in body
    assert served.ask(path="/static/bundle.js")[0] == 401
    assert served.ask(basic("right"))[0] == 200
    assert served.ask(basic("wrong"))[0] == 401
    # The wrong one slows further guesses, and not who is in already.
    assert served.ask(basic("another"))[0] == 429
    assert served.ask(basic("right"))[0] == 200


def test_a_name_of_two_addresses_is_served_on_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo

    def with_both(host: str, *arguments: Any, **options: Any) -> list[Any]:
        hosts = ("127.0.0.1", "::1") if host == "localhost" else (host,)
        return [found for item in hosts for found in resolve(item, *arguments, **options)]

    # As on machines whose /etc/hosts has a line of each for it.
    monkeypatch.setattr(socket, "getaddrinfo", with_both)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    storage = open_storage(f"sqlite:///{tmp_path / 'a.db'}", create=True)
    app = application(storage, LOCAL, StudyFiles(storage, tmp_path, None))
    answers: list[int] = []

    def ask() -> None:
        try:
            for address in ("127.0.0.1", "[::1]"):
                url = f"http://{address}:{port}/api/studies"
                with urllib.request.urlopen(url, timeout=20) as response:
                    answers.append(response.status)
        finally:
            os.kill(os.getpid(), signal.SIGINT)  # As Ctrl-C, which ends it.

    asking = threading.Thread(target=ask)
    serve(app, "localhost", port, lambda _: asking.start())
    asking.join()
    assert answers == [200, 200]


def test_an_address_that_others_reach_needs_a_password_or_a_word(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "gpu1.lab.org"):
        with pytest.raises(UserError, match="--password-file"):
            plan_access(host, [], None, None, False, False)
        assert plan_access(host, [], None, None, True, False).password is None
    for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3"):
        assert plan_access(host, [], None, None, False, False).password is None
    file = tmp_path / "password"
    file.write_text("right\n")
    password = plan_access("0.0.0.0", [], file, None, False, False).password
    assert password is not None
    assert password.matches("right")
    known = plan_access("0.0.0.0", [], None, str(password), False, False).password
    assert known == password


def test_what_cannot_be_a_password_or_a_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for file in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(UserError, match="--password-file"):
            plan_access("127.0.0.1", [], file, None, False, False)
    for text in ("secret", "scrypt:00:00", "md5:00:00", "scrypt::" + "00" * 32):
        with pytest.raises(UserError, match="not a hash"):
            plan_access("127.0.0.1", [], None, text, False, False)
    with pytest.raises(UserError, match="--no-password"):
        plan_access("0.0.0.0", [], None, str(PasswordHash.of("x")), True, False)
    with pytest.raises(UserError, match="not a host name"):
        plan_access("127.0.0.1", ["gpu1:80"], None, None, False, False)
