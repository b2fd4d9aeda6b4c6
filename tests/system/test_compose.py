"""The compose files and the image: there is no Docker engine in the tests, so that the files are
read as Compose reads them, and each service's exact command is run against a real PostgreSQL."""

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.forked import HPSEARCH

ROOT = Path(__file__).parents[2]
OURS = ("dashboard", "worker", "export")


class Loader(yaml.SafeLoader):
    """Knows Compose's tag for a value that an override takes away."""


RESET = object()
Loader.add_constructor("!reset", lambda _, __: RESET)


def read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.load((ROOT / name).read_text(), Loader)
    return document


def merged(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """As Compose merges what these files hold: mappings by key, commands whole, resets away."""
    result = dict(base)
    for key, value in override.items():
        if value is RESET:
            result.pop(key)
        elif isinstance(value, dict):
            result[key] = merged(result.get(key, {}), value)
        else:
            result[key] = value
    return result


MAIN = read("docker-compose.yml")
CPU = merged(MAIN, read("docker-compose.cpu.yml"))


def substituted(text: str, **variables: str) -> str:
    return re.sub(
        r"\$\{(\w+)(?::-([^}]*))?\}", lambda match: variables.get(match[1], match[2]), text
    )


def test_no_password_stands_in_the_files() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assigned = re.findall(r"^\s*(?:PGPASSWORD|POSTGRES_PASSWORD): (.*)$", text, re.MULTILINE)
    assert len(assigned) == 2
    assert all(value.startswith("${POSTGRES_PASSWORD:?") for value in assigned)
    url = MAIN["services"]["worker"]["environment"]["HPSEARCH_STORAGE"]
    assert url == "postgresql+psycopg://hpsearch@postgres/hpsearch"
    assert "\nPOSTGRES_PASSWORD=\n" in (ROOT / ".env.example").read_text()


def test_every_variable_is_explained_in_the_example() -> None:
    example = (ROOT / ".env.example").read_text()
    for name in ("docker-compose.yml", "docker-compose.cpu.yml"):
        for variable in re.findall(r"\$\{(\w+)", (ROOT / name).read_text()):
            assert variable in example


def test_the_dashboard_is_published_on_this_machine_alone() -> None:
    assert MAIN["services"]["dashboard"]["ports"] == ["127.0.0.1:8080:8080"]
    assert not any("ports" in MAIN["services"][name] for name in ("postgres", "worker", "export"))


def test_workers_scale_on_gpus_and_without() -> None:
    worker = MAIN["services"]["worker"]
    assert "container_name" not in worker
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])
    assert "deploy" not in CPU["services"]["worker"]


def test_a_worker_has_more_time_to_stop_than_it_gives_its_epoch() -> None:
    from search.stop import GRACE_SECONDS

    assert int(MAIN["services"]["worker"]["stop_grace_period"].removesuffix("s")) > GRACE_SECONDS


@pytest.mark.parametrize("service", OURS)
def test_every_service_waits_for_the_database(service: str) -> None:
    depends = MAIN["services"][service]["depends_on"]
    assert depends == {"postgres": {"condition": "service_healthy"}}


@pytest.mark.parametrize("service", [*OURS, "postgres"])
def test_every_service_has_few_rights(service: str) -> None:
    settings = MAIN["services"][service]
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["security_opt"] == ["no-new-privileges:true"]


@pytest.mark.parametrize("service", OURS)
def test_a_service_ends_at_sigterm_whatever_it_is_doing(service: str) -> None:
    """As process 1, without an init, hpsearch would not get a SIGTERM that it does not handle."""
    assert MAIN["services"][service]["init"] is True


def test_one_service_builds_the_image_that_the_others_use() -> None:
    services = [MAIN["services"][name] for name in OURS]
    assert sum("build" in service for service in services) == 1
    assert {service["image"] for service in services} == {"hpsearch"}


def test_the_database_is_checked_and_kept() -> None:
    postgres = MAIN["services"]["postgres"]
    assert postgres["healthcheck"]["test"][:2] == ["CMD", "pg_isready"]
    used = {
        volume.split(":")[0]
        for service in MAIN["services"].values()
        for volume in service["volumes"]
    }
    assert used == set(MAIN["volumes"])


def test_the_image_runs_hpsearch_as_an_ordinary_user() -> None:
    instructions = (ROOT / "Dockerfile").read_text().splitlines()
    assert "USER hpsearch" in instructions
    assert instructions[-1] == 'ENTRYPOINT ["hpsearch"]'
    assert not any("user" in MAIN["services"][service] for service in OURS)


def test_the_database_runs_as_an_ordinary_user() -> None:
    assert MAIN["services"]["postgres"]["user"] == "postgres"


def test_the_command_of_each_service_works(postgres_url: str, tmp_path: Path) -> None:
    study = tmp_path / "tiny.toml"
    study.write_text(
        'name = "tiny"\n[trial]\nepochs = 1\n[space]\nwidth = 4\nlearning_rate = [1e-3]\n'
        "[budget]\ntrials = 1\n"
    )
    environment = {
        **os.environ,
        "HPSEARCH_STORAGE": postgres_url,
        "HPSEARCH_DIRECTORY": str(tmp_path / "var"),
    }

    def command(service: str) -> list[str]:
        words = [
            substituted(word, HPSEARCH_STUDY=str(study))
            for word in CPU["services"][service]["command"]
        ]
        return [HPSEARCH, *(word.replace("/app/var", str(tmp_path / "var")) for word in words)]

    def finish(words: list[str]) -> None:
        result = subprocess.run(
            words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr

    port = free_port()
    serving = [port if word == "8080" else word for word in command("dashboard")]
    dashboard = subprocess.Popen(serving, env=environment, cwd=tmp_path)
    try:
        finish(command("worker"))
        finish(command("export"))
        exported = json.loads((tmp_path / "var" / "best" / "trial.json").read_text())
        assert exported["study"] == "tiny"
        wait_for_port(int(port))
        address = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{address}/dashboard", timeout=10) as page:
            assert page.status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{address}/api/studies", data=b"{}", timeout=10)
        with urllib.request.urlopen(f"{address}/api/studies", timeout=10) as response:
            (summary,) = json.load(response)["study_summaries"]
        assert summary["study_name"] == "tiny"
    finally:
        dashboard.terminate()
        dashboard.wait(10)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return str(probe.getsockname()[1])


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, f"nothing listens on port {port}"
            time.sleep(0.1)
        else:
            return


def test_the_studies_that_the_services_name_ship() -> None:
    from studies.config import SHIPPED

    for document in (MAIN, CPU):
        assert substituted(document["services"]["worker"]["command"][1]) in SHIPPED
