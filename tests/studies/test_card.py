from typing import Any

import pytest
import yaml

from studies.card import model_card

DESCRIPTION: dict[str, Any] = {
    "study": "flowers",
    "trial": 7,
    "parameters": {"learning_rate": 0.01, "optimizer": "sgd"},
    "validation_accuracy": 0.75,
    "validation_accuracy_per_epoch": [0.5, 0.75],
    "best_epoch": 2,
    "test_accuracy": 0.7,
    "test_accuracy_with_flips": 0.72,
    "data": {"source": "photos", "classes": ["rose", "tulip"]},
}


def front_matter(text: str) -> Any:
    empty, yaml_text, _ = text.split("---\n", maxsplit=2)
    assert empty == ""
    return yaml.safe_load(yaml_text)


def test_the_front_matter_is_what_the_hub_reads() -> None:
    found = front_matter(model_card(DESCRIPTION, "best"))
    assert found["library_name"] == "hpsearch"
    assert found["pipeline_tag"] == "image-classification"
    assert found["metrics"] == ["accuracy"]
    assert {"pytorch", "safetensors"} <= set(found["tags"])
    assert "datasets" not in found, "a folder of the user's own is not on the Hub"
    ((name, (result,)),) = [tuple(item.values()) for item in found["model-index"]]
    assert name == "flowers, trial 7"
    assert result["task"]["type"] == "image-classification"
    assert result["dataset"] == {"type": "image-folder", "name": "photos", "split": "test"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [
        ("accuracy", 0.7),
        ("accuracy", 0.72),
    ]


@pytest.mark.parametrize(
    ("source", "measured_on"), [("cifar10", "uoft-cs/cifar10"), ("cifar10-mini", "image-folder")]
)
def test_of_cifar10_the_front_matter_names_the_hub_s_data_set(
    source: str, measured_on: str
) -> None:
    data = {**DESCRIPTION["data"], "source": source}
    files = {"model.onnx": {"largest_difference": 1e-7, "images": 64, "preprocessing": True}}
    text = model_card({**DESCRIPTION, "data": data, "files": files}, "best")
    assert "on 64 training images its probabilities differ" in text
    found = front_matter(text)
    assert found["datasets"] == ["uoft-cs/cifar10"]
    (result,) = found["model-index"][0]["results"]
    assert (result["dataset"]["type"], result["dataset"]["name"]) == (measured_on, source)
    assert "onnx" in found["tags"]


@pytest.mark.parametrize(
    ("source", "measured_on"), [("cifar10", "uoft-cs/cifar10"), ("flowers", "image-folder")]
)
def test_the_figures_of_an_evaluation_are_in_the_front_matter_and_the_text(
    source: str, measured_on: str
) -> None:
    evaluation = {
        "macro": {"f1": 0.66},
        "calibration": {"error": 0.05},
        "mean_accuracy_corrupted": 0.4,
    }
    data = {**DESCRIPTION["data"], "source": source}
    text = model_card({**DESCRIPTION, "data": data}, "best", evaluation)
    found = front_matter(text)
    assert found["metrics"] == ["accuracy", "f1", "expected_calibration_error"]
    clean, worse = found["model-index"][0]["results"]
    assert [(metric["type"], metric["value"]) for metric in clean["metrics"]] == [
        *(("accuracy", 0.7), ("accuracy", 0.72)),
        *(("f1", 0.66), ("expected_calibration_error", 0.05)),
    ]
    assert len({metric["name"] for metric in clean["metrics"]}) == 4
    assert [(metric["type"], metric["value"]) for metric in worse["metrics"]] == [("accuracy", 0.4)]
    assert [
        (item["dataset"]["type"], item["dataset"].get("config")) for item in (clean, worse)
    ] == [*((measured_on, None), ("image-folder", "corrupted"))]
    assert worse["dataset"]["name"] == f"{source}, made worse"
    for line in ("macro F1: the mean over the classes | 66.00% |", "calibration error | 5.00% |"):
        assert line in text


@pytest.mark.parametrize("measured", [0.0, 5e-05, 1.25e-05, 1 / 3, 0.7, 1.0])
def test_a_value_in_the_front_matter_is_the_number_in_full(measured: float) -> None:
    found = front_matter(model_card({**DESCRIPTION, "test_accuracy": measured}, "best"))
    metric, _ = found["model-index"][0]["results"][0]["metrics"]
    assert type(metric["value"]) is float
    assert metric["value"] == measured


@pytest.mark.parametrize("measured", [None, float("nan")])
def test_what_was_not_measured_is_not_in_the_front_matter(measured: float | None) -> None:
    unknown = {"test_accuracy": measured, "test_accuracy_with_flips": measured}
    found = front_matter(model_card({**DESCRIPTION, **unknown}, "best"))
    assert "model-index" not in found


def test_hostile_names_stay_within_the_front_matter_s_strings() -> None:
    hostile = 'x"\n---\n: [}\\ \x1b[2J \U0001f600 \u0085'
    data = {**DESCRIPTION["data"], "source": hostile}
    found = front_matter(model_card({**DESCRIPTION, "study": hostile, "data": data}, "best"))
    shown = 'x"\n---\n: [}\\ [2J \U0001f600 '
    assert found["model-index"][0]["name"] == f"{shown}, trial 7"
    assert found["model-index"][0]["results"][0]["dataset"]["name"] == shown


def test_what_a_data_set_is_called_is_shown_as_it_is_in_the_text() -> None:
    hostile = "<img src=x onerror=alert(1)> [x](http://evil) ![y](z) `a` | **b**\n\n# c\n---\nd: e"
    data = {**DESCRIPTION["data"], "source": hostile}
    text = model_card({**DESCRIPTION, "data": data}, "best")
    _, front, body = text.split("---\n", maxsplit=2)
    assert yaml.safe_load(front) == front_matter(text)
    assert "d" not in front_matter(text), "no key of its own"
    (line,) = [line for line in body.splitlines() if "evil" in line]
    assert line.endswith(
        "found by hpsearch on &lt;img src=x onerror=alert(1)&gt; \\[x\\](http://evil) "
        "!\\[y\\](z) \\`a\\` \\| \\*\\*b\\*\\* # c --- d: e."
    )


def test_the_text_says_how_good_it_is_and_how_to_use_it() -> None:
    text = model_card(DESCRIPTION, "best")
    assert "test (never seen by the search) | 70.00%" in text
    assert 'load("best")' in text
    assert "hpsearch predict best photo.jpg" in text
    data = {**DESCRIPTION["data"], "test_images": 1000}
    text = model_card({**DESCRIPTION, "data": data}, "best")
    assert "test (1,000 images never seen by the search) | 70.00%" in text


@pytest.mark.parametrize(
    ("seeds", "diverged", "lost", "on_validation", "on_test"),
    [
        (1, 0, 0, "validation, 1 seed", "test, 1 seed"),
        (3, 0, 0, "validation, mean of 3 seeds", "test, mean of 3 seeds"),
        (
            3,
            0,
            1,
            "validation, mean of 3 seeds",
            "test, 2 of 3 seeds; the weights of 1 are lost",
        ),
        (
            3,
            1,
            0,
            "validation, mean of 3 seeds, 1 diverged and counted as 0",
            "test, 2 of 3 seeds; 1 diverged",
        ),
        (
            2,
            1,
            0,
            "validation, mean of 2 seeds, 1 diverged and counted as 0",
            "test, 1 of 2 seeds; 1 diverged",
        ),
    ],
)
def test_of_a_confirmed_model_the_text_says_over_how_many_seeds(
    seeds: int, diverged: int, lost: int, on_validation: str, on_test: str
) -> None:
    confirmation = {
        "seeds": seeds,
        "winner": {"mean": 0.65, "diverged": diverged},
        "test": {"mean": 0.6, "std": None, "seeds": seeds - diverged - lost, "lost": lost},
    }
    text = model_card({**DESCRIPTION, "confirmation": confirmation}, "best")
    assert f"| {on_validation} | 65.00% |" in text
    assert f"| {on_test} | 60.00% |" in text


def test_of_a_model_trained_anew_the_text_says_whose_accuracy_is_whose() -> None:
    searched = ("validation_accuracy", "validation_accuracy_per_epoch", "best_epoch")
    before = {key: DESCRIPTION[key] for key in searched}
    retrained = {key: value for key, value in DESCRIPTION.items() if key not in searched}
    text = model_card({**retrained, "validation_accuracy": None, "before": before}, "best")
    this, that = text.split("| the model before | accuracy |")
    assert "on the training and validation images together, for 2 epochs" in this
    assert "those of the last epoch" in this
    assert "| test (never seen by the search) | 70.00% |" in this
    assert "75.00%" not in this
    assert "| validation, epoch 2 of 2 | 75.00% |" in that
    assert "70.00%" not in that


def test_a_model_that_hpsearch_cannot_load_is_not_said_to_be_usable() -> None:
    text = model_card({**DESCRIPTION, "test_accuracy": None}, "best")
    assert "predict" not in text
    assert "test (" not in text


def test_the_readme_shows_hostile_parameters_as_they_are() -> None:
    hostile = "<script>[x](http://evil)|\x1b[2J\n# big" + "y" * 10_000_000
    text = model_card({**DESCRIPTION, "parameters": {hostile: hostile}}, "best")
    assert len(text) < 5000
    assert "<script>" not in text
    assert "[x](http" not in text
    assert "\x1b" not in text
