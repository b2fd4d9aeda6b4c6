from pathlib import Path

import pytest

from data.errors import UserError
from search.objective import check_space
from search.prepare import first_trials
from studies.config import (
    SHIPPED,
    StudyConfig,
    differences,
    load_study_file,
    parse_assignment,
    parse_study,
    write_template,
)

MINIMAL = """
name = "tiny"
[space]
learning_rate = { low = 1e-4, high = 0.1, log = true }
[budget]
trials = 3
"""


def load(directory: Path, text: str) -> StudyConfig:
    file = directory / "study.toml"
    file.write_text(text)
    return load_study_file(str(file))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_studies_that_ship_are_valid_and_named_like_their_files(name: str) -> None:
    config = load_study_file(name)
    check_space(config, name)
    assert config.name == name


def test_what_is_left_out_has_the_documented_default(tmp_path: Path) -> None:
    config = load(tmp_path, MINIMAL)
    assert config.sampler.name == "gp"
    assert config.pruner.name == "median"
    assert config.trial.epochs == 10
    assert config.data.validation_fraction == 0.1
    assert config.checkpoints.keep == 5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('[sampler]\nnam = "gp"', "sampler.nam: unknown key; known here are name, startup_trials"),
        ("[colour]\nx = 1", "colour: unknown key; known here are name, seed"),
        (
            '[sampler]\nname = "gpp"',
            "sampler.name: must be 'gp', 'tpe', 'random' or 'grid'",
        ),
        ('[trial]\nepochs = "ten"', "trial.epochs: must be a whole number, but is 'ten'"),
        ("[trial]\nepochs = 1.5", "trial.epochs: must be a whole number, but is 1.5"),
        ("[trial]\ncompile = 1", "trial.compile: must be true or false, but is 1"),
        ('[[pruner]]\nname = "none"', "pruner: must be a table, but is [{"),
        ("[trial]\nepochs = 0", "trial.epochs: must be at least 1, but is 0"),
        ("[data]\nvalidation_fraction = 1.5", "data.validation_fraction: must be below 1"),
        ('[trial]\nobjective = "os.system"', "trial.objective: must be of the form"),
        ("[start]\nx = 1", "start: write each as a table of its own, below [[start]]"),
        ("[[start]]\nx = [1, 2]", "start.0.x: give one value: text, a number, or true/false"),
        ("[[start]]\nx = 1\n[[start]]\nx = nan", "start.1.x: give one value"),
        ("[checkpoints]\nkeep = 0", "checkpoints.keep: must be at least 1, but is 0"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, MINIMAL + line)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ("{ low = 0.1, high = 0.01 }", "space.x: low (0.1) must be below high (0.01)"),
        ("{ low = 0, high = 1, log = true }", "space.x: low (0) must be above 0 when log = true"),
        ("{ low = 0, hihg = 1 }", "space.x.hihg: unknown key; known here are low, high, log"),
        ("{ low = 0 }", "space.x.high: missing"),
        ("{ low = nan, high = 1 }", "space.x.low"),
        ("[]", "space.x: an empty list"),
        ("[1, 1]", "space.x: the same choice stands there twice"),
        ("[[1], [2]]", "space.x: choices must be text, numbers or true/false"),
    ],
)
def test_an_impossible_parameter_is_named(tmp_path: Path, parameter: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, MINIMAL.replace("[budget]", f"x = {parameter}\n[budget]"))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("space.optimizer=adamm", "space.optimizer: optimizer must be one of sgd, adam"),
        ("space.optimiser=adam", "space.optimiser: unknown hyperparameter 'optimiser'; known are"),
        ("space.depth=19", "space.depth: depth must be one of 18, 34, 50"),
        ("space.layers=numpy", "space.layers: layers must be one of torch, scratch"),
        ("space.batch_size=0", "space.batch_size: batch_size must be a whole number from 1"),
        ("space.dropout={ low = 0, high = 1 }", "space.dropout: between whole numbers only"),
        ("space.dropout=1.0", "space.dropout: dropout must be from 0 to below 1"),
    ],
)
def test_a_hyperparameter_that_the_trial_cannot_use_is_named(setting: str, said: str) -> None:
    config = load_study_file("quickstart", dict([parse_assignment(setting)]))
    with pytest.raises(UserError) as error:
        check_space(config, "study.toml")
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "<b>", "x" * 101])
def test_a_name_that_is_not_a_plain_word_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="name"):
        load_study_file("quickstart", {"name": name})


def test_a_missing_file_says_which_studies_ship() -> None:
    with pytest.raises(UserError, match="quickstart and cifar10 ship"):
        load_study_file("nowhere.toml")


def test_a_file_that_is_not_toml_says_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not TOML: .*line 2"):
        load(tmp_path, 'name = "a"\nseed = = 3\n')


def test_a_study_without_a_budget_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="budget: give trials, minutes, or both"):
        load(tmp_path, MINIMAL.replace("trials = 3", ""))


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("a.b=5", 5),
        ("a.b=0.5", 0.5),
        ("a.b=true", True),
        ("a.b=True", True),
        ("a.b=.5", 0.5),
        ("a.b=adam", "adam"),
        ("a.b=[1, 2]", [1, 2]),
    ],
)
def test_an_assignment_is_read_as_toml_or_python_or_else_as_text(
    assignment: str, value: object
) -> None:
    assert parse_assignment(assignment) == ("a.b", value)


def test_an_assignment_without_a_value_is_refused() -> None:
    with pytest.raises(UserError, match="write key=value"):
        parse_assignment("trial.epochs")


def test_overrides_replace_what_the_file_says() -> None:
    config = load_study_file("quickstart", {"trial.epochs": 3, "space.width": 16})
    assert config.trial.epochs == 3
    assert config.space["width"] == (16,)


def test_a_stored_study_reads_back_the_same() -> None:
    config = load_study_file("cifar10")
    assert parse_study(config.model_dump(mode="json"), "stored") == config


def test_differences_name_each_key_with_both_values() -> None:
    stored = load_study_file("quickstart")
    given = load_study_file("quickstart", {"trial.epochs": 3, "space.dropout": 0.5})
    assert differences(stored, given) == [
        "space.dropout: the study has nothing, given is [0.5]",
        "trial.epochs: the study has 10, given is 3",
    ]


def test_starts_that_differ_are_named_by_number_and_parameter() -> None:
    starts = [{"learning_rate": 0.1, "optimizer": "sgd"}, {"optimizer": "adam"}]
    stored = load_study_file("quickstart", {"start": starts})
    changed = [{"optimizer": "sgd", "learning_rate": 0.2}]
    assert differences(stored, stored) == []
    assert differences(stored, load_study_file("quickstart", {"start": changed})) == [
        "start.0.learning_rate: the study has 0.1, given is 0.2",
        "start.1.optimizer: the study has adam, given is nothing",
    ]


def test_a_study_from_before_there_were_starts_opens_and_continues() -> None:
    config = load_study_file("quickstart", {"start": []})
    content = config.model_dump(mode="json")
    del content["start"]
    stored = parse_study(content, "stored")
    assert stored.start == ()
    assert differences(stored, config) == []


def test_the_starts_of_the_template_are_valid(tmp_path: Path) -> None:
    file = tmp_path / "flowers.toml"
    write_template(file)
    lines = file.read_text().splitlines()
    first = lines.index("# [[start]]")
    last = lines.index("[sampler]")
    lines[first:last] = [line.removeprefix("# ") for line in lines[first:last]]
    config = load(tmp_path, "\n".join(lines))
    _, _, *starts = first_trials(config, str(file))
    assert len(starts) == len(config.start) == 2


def test_the_budget_and_the_checkpoints_may_change() -> None:
    stored = load_study_file("quickstart")
    given = load_study_file("quickstart", {"budget.trials": 99, "checkpoints.keep": 1})
    assert differences(stored, given) == []


def test_a_study_that_started_from_another_need_not_name_it_again_but_no_third() -> None:
    plain = load_study_file("quickstart")
    warm = load_study_file("quickstart", {"sampler.warm_start": "old"})
    other = load_study_file("quickstart", {"sampler.warm_start": "older"})
    assert differences(warm, warm) == differences(warm, plain) == []
    assert differences(warm, other) == [
        "sampler.warm_start: the study has old, given is older",
    ]
    assert differences(plain, warm) == [
        "sampler.warm_start: the study has nothing, given is old",
    ]


def test_a_study_cannot_start_from_itself() -> None:
    with pytest.raises(UserError, match=r"sampler\.warm_start: a study cannot start from itself"):
        load_study_file("quickstart", {"sampler.warm_start": "quickstart"})


def test_the_template_is_a_valid_study_named_after_its_file(tmp_path: Path) -> None:
    file = tmp_path / "flowers.toml"
    write_template(file)
    config = load_study_file(str(file))
    check_space(config, str(file))
    assert config.name == "flowers"


def test_the_template_names_every_setting() -> None:
    template = (Path(__file__).parents[2] / "studies" / "template.toml").read_text()
    for section, field in StudyConfig.model_fields.items():
        assert section in template
        for key in getattr(field.annotation, "model_fields", {}):
            assert key in template, f"{section}.{key}"


def test_the_template_never_overwrites_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        write_template(file)
    assert file.read_text() == "precious"
