"""The study file: TOML in, frozen and validated settings out."""

import copy
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from data.errors import UserError
from studies.text import shortened
from studies.wording import LONGEST_SHOWN, in_words

DEFAULT_OBJECTIVE = "model.train:train"
SHIPPED_DIRECTORY = Path(__file__).parent
SHIPPED = ("quickstart", "cifar10")

# A study file that does not keep to these is a mistake, or somebody's attempt to do harm.
LARGEST_FILE_BYTES = 1_000_000
LONGEST_TEXT = 1000
LARGEST_NUMBER = 2**53
"""Of whole numbers; beyond it, neighbours are the same float."""
MOST_PARAMETERS = 1000
MOST_CHOICES = 1000

TOO_DEEP = "tables or lists stand too deeply in one another"

Scalar = str | int | float | bool


class Section(BaseModel):
    """A table of the study file. Unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _check_size(value: Scalar) -> None:
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise ValueError(f"a text of {len(value):,} characters must have {LONGEST_TEXT:,} at most")
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"whole numbers must be within {LARGEST_NUMBER:,} of 0")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("numbers must be finite")


class Range(Section):
    """A parameter between two bounds, both included; whole numbers if both bounds are."""

    low: int | float
    high: int | float
    log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether only whole numbers are in it."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for bound in (self.low, self.high):
            _check_size(bound)
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"low ({self.low}) must be above 0 when log = true")
        return self


def _as_choices(value: object) -> object:
    """One value or a list becomes a tuple of choices; a table stays as it is."""
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("an empty list: give at least one choice")
        if not all(isinstance(choice, str | int | float | bool) for choice in value):
            raise ValueError("choices must be text, numbers or true/false")
        if len(value) > MOST_CHOICES:
            raise ValueError(f"there must be {MOST_CHOICES:,} choices at most")
        for choice in value:
            _check_size(choice)
        if len({(type(choice), choice) for choice in value}) < len(value):
            raise ValueError("the same choice stands there twice")
        return tuple(value)
    if isinstance(value, str | int | float | bool):
        _check_size(value)
        return (value,)
    if isinstance(value, Range):
        return value
    if not isinstance(value, dict):
        raise ValueError("give a value, a list of choices, or { low = …, high = … }")
    return Range.model_validate(value)


Parameter = Annotated[Range | tuple[Scalar, ...], BeforeValidator(_as_choices)]


def is_fixed(parameter: Parameter) -> bool:
    """Whether every trial has the same value of this parameter."""
    return not isinstance(parameter, Range) and len(parameter) == 1


def is_same(choice: Any, value: Any) -> bool:
    """Exactly: True is 1 to Python, and not to a user."""
    return bool(choice == value) and isinstance(choice, bool) == isinstance(value, bool)


def _as_tables(value: object) -> object:
    """A list of tables becomes a tuple."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, dict) for item in value):
        raise ValueError("write each as a table of its own, below [[start]]")
    return tuple(value)


def _one_value(value: object) -> object:
    if not isinstance(value, str | int | float | bool) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError("give one value: text, a number, or true/false")
    _check_size(value)
    return value


ParameterName = Annotated[str, StringConstraints(min_length=1, max_length=100)]
Start = dict[ParameterName, Annotated[Scalar, BeforeValidator(_one_value)]]
"""A configuration that is known to be good: some or all parameters of the space."""

StudyName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
]


class DataSettings(Section):
    source: str = Field(default="cifar10-mini", min_length=1, max_length=LONGEST_TEXT)
    """`cifar10-mini`, `cifar10`, or the path of a folder."""
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Of each class's training images."""


class TrialSettings(Section):
    objective: str = Field(
        default=DEFAULT_OBJECTIVE,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        max_length=LONGEST_TEXT,
    )
    """`package.module:function`; see `model/trial.py`."""
    epochs: int = Field(default=10, ge=1)
    """A trial's, if it is not pruned."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 where the hardware has it, fp16 on older GPUs, else fp32."""
    deterministic: bool = False
    """Whether a GPU, too, is to give the same results each time. It is then slower."""
    max_retries: int = Field(default=3, ge=0)
    """How many workers a trial may lose, without a new epoch in between, before it has failed."""
    compile: bool = False
    """Whether to compile the network with `torch.compile`."""


class SamplerSettings(Section):
    name: Literal["gp", "tpe", "random", "grid"] = "gp"
    """gp: a Gaussian process over parameters and epochs."""
    startup_trials: int | None = Field(default=None, ge=1)
    """Before a model suggests: 4 for gp, 10 for tpe if not given. gp counts all that have a value
    (starts, pruned and running ones too), tpe those that ended; what lacks is tried at random."""
    grid_points: int = Field(default=3, ge=2, le=MOST_CHOICES)
    """How many values of a range are tried (grid)."""
    warm_start: StudyName | None = None
    """An earlier study in the same storage, from whose best configurations this one starts."""


class PrunerSettings(Section):
    name: Literal["median", "predictive", "asha", "hyperband", "none"] = "median"
    """By what a trial is stopped early."""
    startup_trials: int = Field(default=1, ge=0)
    """Others that got as far before a trial is pruned (median, predictive)."""
    warmup_epochs: int = Field(default=0, ge=0)
    """In which no trial is pruned (median, predictive)."""
    threshold: float = Field(default=0.1, gt=0, lt=1)
    """A trial with a smaller chance to end among the best is pruned (predictive)."""
    better_than: int = Field(default=3, ge=1)
    """Among how many of the best (predictive)."""
    reduction_factor: int = Field(default=3, ge=2)
    """Trials are judged after epochs that are powers of it: 1, 3, 9 (all but none). asha and
    hyperband let one trial in so many go on."""


class Budget(Section):
    trials: int | None = Field(default=None, ge=1)
    """Complete and pruned ones, over all runs of the study."""
    minutes: float | None = Field(default=None, gt=0)
    """Wall-clock, of one run; trials that are running then are finished."""


class CheckpointSettings(Section):
    keep: int = Field(default=5, ge=1)
    """How many of the best trials keep their weights."""


class StudyConfig(Section):
    """A whole study file."""

    name: StudyName
    """The study's identity in its storage."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the validation split and, with its number, of each trial."""
    data: DataSettings = DataSettings()
    trial: TrialSettings = TrialSettings()
    space: dict[ParameterName, Parameter] = Field(min_length=1, max_length=MOST_PARAMETERS)
    start: Annotated[tuple[Start, ...], BeforeValidator(_as_tables)] = ()
    """Tried first, in this order, after the notebook's configuration."""
    sampler: SamplerSettings = SamplerSettings()
    pruner: PrunerSettings = PrunerSettings()
    budget: Budget = Budget()
    checkpoints: CheckpointSettings = CheckpointSettings()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.budget == Budget():
            raise ValueError("budget: give trials, minutes, or both")
        if self.sampler.warm_start == self.name:
            raise ValueError("sampler.warm_start: a study cannot start from itself; rename it")
        return self


def is_study_file(study: str) -> bool:
    """Whether a STUDY argument means a file (a path, or one that ships) rather than a name."""
    return study in SHIPPED or study.endswith(".toml") or "/" in study


def load_study_file(study: str, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """Read a study file.

    Args:
        study: `quickstart` or `cifar10`, which ship, or the path of a TOML file.
        overrides: dotted key (`budget.trials`) to value, in place of what the file says.

    Raises:
        UserError: the file is missing, not TOML, or says something impossible.
    """
    path = SHIPPED_DIRECTORY / f"{study}.toml" if study in SHIPPED else Path(study)
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE_BYTES + 1)
        if len(text) > LARGEST_FILE_BYTES:
            raise UserError(f"study file {study!r}: larger than {LARGEST_FILE_BYTES:,} bytes")
        content = tomllib.loads(text.decode())
    except (OSError, UnicodeDecodeError) as error:
        shipped = " and ".join(SHIPPED)
        reason = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise UserError(
            f"study file {study!r}: {reason}; {shipped} ship with hpsearch, "
            "and hpsearch init writes one to start from"
        ) from error
    except ValueError as error:  # TOMLDecodeError is one; so is a number of too many digits.
        raise UserError(f"{study}: not TOML: {shortened(str(error), LONGEST_SHOWN)}") from error
    except RecursionError as error:
        raise UserError(f"{study}: {TOO_DEEP}") from error
    return parse_study(content, study, overrides)


def parse_study(
    content: Mapping[str, Any], origin: str, overrides: Mapping[str, Any] | None = None
) -> StudyConfig:
    """Validate the content of a study file; `origin` is named in errors.

    Args:
        overrides: dotted key to value, in place of what the content says.

    Raises:
        UserError: in one line, the first key that is wrong and why.
    """
    try:
        settings = copy.deepcopy(dict(content))
        for key, value in (overrides or {}).items():
            _set(settings, key, value)
        return StudyConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"{origin}: {_first_error(error)}") from error
    except RecursionError as error:
        raise UserError(f"{origin}: {TOO_DEEP}") from error


def _first_error(error: ValidationError) -> str:
    # A misspelt key first: it explains why another is missing.
    errors = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first = errors[0]
    # A parameter is a union; the name of the member that failed means nothing to the user.
    location = [str(part) for part in first["loc"] if not re.match(r"Range|tuple\[", str(part))]
    key = shortened(".".join(location), LONGEST_SHOWN)
    message = in_words(first)
    if first["type"] == "extra_forbidden":
        message = "unknown key; known here are " + ", ".join(_known_keys(location[:-1]))
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return f"{key}: {message}{more}" if key else f"{message}{more}"


def _known_keys(location: list[str]) -> Iterator[str]:
    section: type[BaseModel] = StudyConfig
    for part in location:
        if part in section.model_fields:
            annotation = section.model_fields[part].annotation
            section = (
                annotation
                if isinstance(annotation, type) and issubclass(annotation, BaseModel)
                else Range
            )
    return iter(section.model_fields)


def parse_assignment(assignment: str) -> tuple[str, Any]:
    """Read `key=value`, the value as in TOML or, for `True` and `.1`, as in Python.

    Text needs no quotes.

    Raises:
        UserError: there is no `=`.
    """
    key, equals, value = assignment.partition("=")
    if not equals or not key.strip():
        raise UserError(
            f"{assignment!r}: write key=value, as in trial.epochs=5 (a study's setting) or "
            "learning_rate=0.1 (a parameter)"
        )
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key.strip(), _as_in_python(value.strip())


def _as_in_python(text: str) -> object:
    if text in ("True", "False"):
        return text == "True"
    try:
        return float(text)
    except ValueError:
        return text


def _set(content: dict[str, Any], dotted_key: str, value: object) -> None:
    *sections, key = dotted_key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise UserError(f"{dotted_key}: {section} is not a table")
    content[key] = value


def differences(stored: StudyConfig, given: StudyConfig) -> list[str]:
    """What two study files say differently, a line each, budget and checkpoints aside.

    Those two may change from run to run; all else decides what a trial's accuracy means. The
    earlier study that this one started from need not be named again.
    """
    before, after = _flat(stored), _flat(given)
    if given.sampler.warm_start is None:
        before.pop("sampler.warm_start", None)
    return [
        f"{key}: the study has {before.get(key, 'nothing')}, given is {after.get(key, 'nothing')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _flat(config: StudyConfig) -> dict[str, object]:
    """Dotted key to value, of what has a value; tables in a list are numbered from 0."""

    def walk(prefix: str, value: object) -> Iterator[tuple[str, object]]:
        if isinstance(value, list) and all(isinstance(item, dict) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else key, inner)
        elif value is not None:
            yield prefix, value

    return dict(walk("", config.model_dump(mode="json", exclude={"budget", "checkpoints"})))


def write_template(path: Path) -> None:
    """Write a study file with every setting explained, its study named after the file.

    Raises:
        UserError: the file exists, cannot be written, or its name cannot name a study.
    """
    name = path.stem
    template = (SHIPPED_DIRECTORY / "template.toml").read_text().replace("NAME", name)
    if path.suffix != ".toml":
        raise UserError(f"{path}: a study file ends in .toml")
    parse_study(tomllib.loads(template), str(path))
    try:
        with path.open("x") as file:
            file.write(template)
    except FileExistsError:
        raise UserError(f"{path}: exists already; give another name or remove it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
