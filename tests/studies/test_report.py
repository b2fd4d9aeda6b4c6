import html
import json
import math
import re
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.importance import PedAnovaImportanceEvaluator

from data.errors import UserError
from studies.config import parse_study
from studies.confirmation import CONFIRMATION, SEARCHED
from studies.findings import as_document, findings
from studies.report import report_page, write_report
from studies.study import OpenedStudy
from tests.benchmarks.curves import read_table
from tests.studies.kinds import (
    HOSTILE,
    RATE,
    SECTIONS,
    all_pruned,
    data_of,
    grid_of_one_parameter,
    none_begun,
    none_finished,
    one_trial,
    recorded,
    recorded_study,
    study_of_25_parameters,
    without_numbers,
)
from tests.studies.trials import CONFIG, NOW, SMALL, findings_of, found, study_of

EDGES = (
    *(one_trial, none_finished, none_begun, all_pruned, grid_of_one_parameter, without_numbers),
)


def written(text: str) -> str:
    """The page without its figures and scripts."""
    return text.split('<script type="application/json"')[0]


def cells_of(text: str, section: str) -> list[list[str]]:
    """Of each row of the section's table, that with the names too."""
    part = text.split(f'<section id="{section}">')[1].split("</section>")[0]
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)]
        for row in part.split("<tr>")[1:]
    ]


@pytest.mark.parametrize("study", EDGES)
def test_every_section_is_there_whatever_the_study(study: Any) -> None:
    report = study()
    text = report_page(report)
    assert tuple(re.findall(r'<section id="([\w-]+)">', text)) == SECTIONS
    assert text.count('<p class="look">') == len(SECTIONS)
    for place in data_of(text)["figures"]:
        assert f'<div id="{place}"' in text
    assert HOSTILE not in text
    assert "<img src=x" not in text
    json.dumps(as_document(report, 10), allow_nan=False)


def test_what_cannot_be_said_yet_is_said_in_words() -> None:
    text = report_page(none_finished())
    assert text.count("No trial is complete yet.") == 2
    assert text.count("No trial is complete or pruned yet, or no parameter varies.") == 2
    assert set(data_of(text)["figures"]) == {"curves", "runs"}
    assert data_of(report_page(none_begun()))["figures"] == {}


def test_without_the_notebook_s_configuration_nothing_is_said_of_it() -> None:
    assert "notebook" in written(report_page(one_trial()))
    assert "notebook" not in written(report_page(grid_of_one_parameter()))


def test_what_somebody_else_has_stored_is_shown_harmlessly_or_not_at_all() -> None:
    long_ago = {"started": "0001-01-01", "ended": "0001-01-02", "epochs": 10**11, "worker": HOSTILE}
    space = {"rate": RATE, "on": [True, False]}
    report = found(
        {"name": "hostile", "space": space},
        [("complete", {"rate": 0.1, "on": True}, [0.1, math.inf])] * 12,
        attributes={
            "worker": f"{HOSTILE}\ud800\x1b[2J",
            "device": "<b>",
            "error": HOSTILE,
            "earlier_runs": ["x", {"started": 1, "ended": 2}, long_ago],
        },
    )
    strange = replace(report.records[0], parameters={"rate": "fast", "on": 1}, value=0.5)
    text = report_page(replace(report, records=[*report.records, strange]))
    text.encode()
    assert HOSTILE not in text
    assert "\x1b[2J" not in text
    json.dumps(as_document(report, 10), allow_nan=False)


def test_a_thousand_trials_are_small_and_quick() -> None:
    report = recorded(1000)
    started = time.perf_counter()
    text = report_page(report)
    assert time.perf_counter() - started < 20
    assert len(text.encode()) < 8_000_000
    data = data_of(text)
    assert len(data["notes"]) == 1000
    drawn = {
        number
        for trace in data["figures"]["curves"]["data"]
        for number in trace["customdata"]
        if number is not None
    }
    assert drawn == set(range(1000))
    assert len(json.dumps(data)) < 1_500_000, "no hover text with each point"


def test_the_table_has_the_ten_best_with_their_parameters() -> None:
    header, *cells = cells_of(report_page(recorded(300)), "top")
    rows = read_table()[1]
    complete = sorted(
        range(0, 300, 2), key=lambda number: (-max(rows[number]["accuracies"]), number)
    )
    assert [int(row[0]) for row in cells] == complete[:10]
    assert [row[1] for row in cells] == [
        f"{max(rows[number]['accuracies']):.2%}" for number in complete[:10]
    ]
    place = header.index("optimizer")
    assert [row[place] for row in cells] == [
        rows[number]["parameters"]["optimizer"] for number in complete[:10]
    ]


def test_what_all_of_the_best_have_is_said_once_and_is_no_column() -> None:
    space = {"rate": RATE, "<on>": [True, False], "pool_size": {"low": 1, "high": 8}}
    trials = [
        ("complete", {"rate": rate, "<on>": True, "pool_size": 2}, [rate / 2])
        for rate in (0.1, 0.2, 0.3)
    ]
    settings = {"name": "alike", "space": space, "trial": {"objective": "own:train"}}
    text = written(report_page(found(settings, trials)))
    assert "in common; all of these have &lt;on&gt; true, pool_size 2. The best" in text
    table = text.split('<section id="top">')[1].split("</table>")[0]
    header = re.findall(r"<th(?: [^>]*)?>(.*?)</th>", table)
    assert header == ["trial", "validation", "time", "rate"]
    alone = written(report_page(found(settings, trials[:1])))
    assert "all of these" not in alone
    assert ">pool_<wbr>size</th>" in alone, "a long name may be on two lines"


@pytest.mark.parametrize("result", [None, "strange", "known"])
def test_a_confirming_study_is_not_to_be_confirmed(result: str | None) -> None:
    settings = {"name": "a-confirm", "space": {"rate": RATE}, "pruner": {"name": "none"}}
    opened = study_of(settings, [("complete", {"rate": 0.1}, [0.4, 0.5])] * 4)
    opened.study.set_user_attr(SEARCHED, "another")
    seven = {"trial": 7, "claimed": 0.7, "mean": 0.6, "std": 0.01, "diverged": 0}
    eight = {**seven, "trial": 8, "mean": 0.5, "std": 0.02}
    # As versions before this one stored it.
    known = {
        **{"candidates": [seven, eight], "winner": seven, "trial": 1, "parameters": {}},
        **{"seeds": 2, "test": None, "baseline": None, "difference": None},
    }
    if result:
        value = {"asked": [[7, 1]], "result": known if result == "known" else result}
        opened.study.set_user_attr(CONFIRMATION, value)
    text = written(report_page(findings_of(opened)))
    assert "sampler, no pruner; as of" in text
    assert "hpsearch confirm" not in text
    assert tuple(re.findall(r'<section id="([\w-]+)">', text)) == (
        "top",
        "learning-curves",
        "timeline",
        "cost",
        "reproduce",
    )
    assert "of the best trials of another study" in text
    assert ("on average trial 7 60.00% ± 1.00%, trial 8 50.00% ± 2.00%; confirmed" in text) == (
        result == "known"
    )


def test_what_it_cost_is_said_in_epochs_and_hours() -> None:
    report = recorded(300)
    said = dict(cells_of(report_page(report), "cost"))
    lengths = [len(item.accuracies) for item in report.records]
    saved = sum(10 - length for length in lengths[1::2])
    assert said["epochs trained"] == f"{sum(lengths):,}"
    assert said["epochs saved by pruning"] == f"{saved:,} ({saved / (sum(lengths) + saved):.0%})"
    assert said["CPU hours spent on trials"] == f"{10 * sum(lengths) / 3600:.2f}"
    assert said["CPU hours saved by pruning, at each trial's own speed"] == (
        f"{10 * saved / 3600:.2f}"
    )


def test_times_and_what_was_gained_are_those_of_a_small_study(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """See `SMALL`: trial 0 is the notebook's configuration, trial 2 the best."""
    opened = study_of(CONFIG.model_dump(), [])
    monkeypatch.setattr(OpenedStudy, "records_of", lambda *_: SMALL)
    text = report_page(findings(opened, SMALL[0], NOW))

    tiles = re.findall(r'<div class="tile"><b>(.*?)</b><span>(.*?)</span>', html.unescape(text))
    assert ("+30.00", "points above the notebook's 40.00%") in tiles

    figure = data_of(text)["figures"]["best-over-time"]
    assert figure["layout"]["xaxis"]["title"]["text"] == "seconds of wall time"
    drawn = [(trace["name"], trace["x"], trace["y"]) for trace in figure["data"]]
    assert drawn == [
        ("complete trial", [40, 130], [0.4, 0.7]),
        ("best so far", [40, 65, 75, 130], [0.4, 0.4, 0.4, 0.7]),
        ("the notebook's (trial 0)", [0, 130], [0.4, 0.4]),
    ]

    assert [row[:3] for row in cells_of(text, "top")] == [
        ["trial", "validation", "time"],
        ["2", "70.00%", "50 s"],
        ["0", "40.00%", "40 s"],
    ]
    assert cells_of(text, "timeline") == [
        ["worker", "from (UTC)", "to", "runs", "resumed", "lost", "busy", "idle"],
        ["host-1", "01-01 12:00:00", "01-01 12:16:40", "4", "0", "0", "2 min", "14 min"],
        ["host-2", "01-01 12:00:10", "01-01 12:01:10", "2", "0", "1", "40 s", "20 s"],
        ["host-3", "01-01 12:01:40", "01-01 12:02:10", "1", "1", "0", "30 s", "0 s"],
    ]
    # Of 13 epochs and 220 seconds; two workers were idle for 850 and 20.
    said = dict(cells_of(text, "cost"))
    assert said["epochs trained"] == "13"
    assert said["of these again, since the state of a run was lost"] == "1"
    assert said["CPU hours spent on trials"] == "0.06"
    assert said["CPU hours that workers were idle between trials"] == "0.24 (80%)"


@pytest.mark.parametrize(
    ("devices", "hours"),
    [
        (["cpu"], "CPU hours"),
        (["NVIDIA A100", "NVIDIA H100"], "GPU hours"),
        (["NVIDIA A100", "cpu"], "hours"),
        (["NVIDIA A100, then cpu"], "hours"),
        ([None], "hours"),
    ],
)
def test_hours_are_of_gpus_only_if_no_cpu_is_among_them(
    devices: list[str | None], hours: str
) -> None:
    report = one_trial()
    records = [replace(report.records[0], device=device) for device in devices]
    text = report_page(replace(report, records=records))
    assert f">{hours} spent on trials<" in text


def test_what_a_trial_that_began_anew_has_lost_is_no_part_of_what_pruning_saved() -> None:
    """Eight epochs in a run whose state was lost, then pruned after three of ten."""
    lost = {"started": "2026-01-01T10:00:00", "ended": "2026-01-01T11:00:00", "epochs": 8}
    report = found(
        {"name": "anew", "space": {"rate": RATE}, "trial": {"epochs": 10}},
        [("pruned", {"rate": 0.1}, [0.1, 0.2, 0.3])],
        attributes={"earlier_runs": [{**lost, "lost": True, "worker": "host-9"}]},
    )
    text = report_page(report)
    assert ">7 (70%)<" in text
    assert "Workers that were lost: 1; trials that were taken up again: 1." in text
    document = as_document(report, 1)
    assert document["restarts"] == {"workers_lost": 1, "trials_taken_up_again": 1}


@pytest.mark.parametrize(("trials", "some"), [(60, "20 most important"), (5, "first 20")])
def test_of_many_parameters_it_is_said_how_many_are_drawn(trials: int, some: str) -> None:
    report = findings_of(study_of_25_parameters(trials))
    text = report_page(report)
    which = f"the {some} of 25 parameters"
    assert f"<h2>Each of {which}</h2>" in text
    assert f"<h2>Parallel coordinates of {which}</h2>" in text
    assert (f"<h2>Importance of {which}</h2>" in text) == bool(report.importances)
    drawn = data_of(text)["figures"]
    assert sum(name.startswith("slice-") for name in drawn) == 20


def test_the_importance_in_it_is_that_of_optuna_s_own_evaluator() -> None:
    """Of a study with the same trials, in which the pruned ones have ended with what they had."""
    study = optuna.create_study(direction="maximize")
    for trial in recorded_study(60).study.trials:
        study.add_trial(
            optuna.trial.create_trial(
                params=trial.params,
                distributions=trial.distributions,
                value=max(trial.intermediate_values.values()),
            )
        )
    known = study.trials[0].distributions.items()
    names = [name for name, distribution in known if not distribution.single()]
    # By default a tenth of the trials are the best ones.
    evaluated = PedAnovaImportanceEvaluator().evaluate(study, params=names)
    total = sum(evaluated.values())
    (bars,) = data_of(report_page(recorded(60)))["figures"]["importances"]["data"]
    drawn = dict(zip(bars["y"], bars["x"], strict=True))
    assert drawn.keys() == evaluated.keys()
    assert max(drawn.values()) > 3 * min(drawn.values())
    for name, share in drawn.items():
        assert share == pytest.approx(evaluated[name] / total, rel=1e-3)


def test_advice_is_no_bolder_than_what_is_known() -> None:
    text = written(report_page(recorded(20)))
    assert "more epochs may pay, but most curves rise there if the learning rate falls" in text
    assert "a stricter pruner saves more, and stops the best trial more often" in text
    assert "waited for the database, for a suggestion or for a trial to take" in text
    assert "and begins a new one, with other suggestions, in another" in text
    few = "of 20 trials it says little, and other ones may say otherwise"
    many = "what is near zero may be held fixed"
    assert (few in text, many in text) == (True, False)
    more = replace(recorded(20), records=[*recorded(20).records] * 5)
    text = written(report_page(more))
    assert ("it says little" in text, many in text) == (False, True)


def test_the_study_file_in_it_makes_the_same_study() -> None:
    report = recorded(20)
    text = report_page(report)
    *_, study_file = re.findall(r"<pre>(.*?)</pre>", text, re.DOTALL)
    assert parse_study(tomllib.loads(html.unescape(study_file)), "report") == report.config
    assert "Save the study file below as <code>recorded.toml</code>" in text
    assert "hpsearch replay recorded --trial" in text
    own = report_page(grid_of_one_parameter())
    assert "hpsearch replay" not in own, "it replays no own objective"


def test_the_json_has_the_numbers_of_all_figures(tmp_path: Path) -> None:
    report = recorded(60)
    write_report(report, tmp_path / "a.html", tmp_path / "a.json")
    document = json.loads((tmp_path / "a.json").read_text())
    assert (document["study"], document["baseline"], len(document["top"])) == ("recorded", 0, 10)
    assert [item["accuracies"] for item in document["trials"]] == [
        list(item.accuracies) for item in report.records
    ]
    assert document["importances"] == dict(report.importances)
    assert len(document["progress"]) == len(document["timeline"]) == 60
    assert document["timeline"][0]["run"]["started"] == "2026-01-01T12:00:00Z"
    assert document["cost"]["epochs"] == sum(len(item.accuracies) for item in report.records)
    assert document["pair"]["names"] == list(report.importances)[:2]


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_report(one_trial(), tmp_path / "file" / "a.html")
    with pytest.raises(UserError, match="cannot be written"):
        write_report(one_trial(), tmp_path)
