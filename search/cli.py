"""The command line. It adds words to the functions of the other modules, and nothing else.

What a command needs is imported inside it, so that `hpsearch --help` starts in a blink.
"""

import json
import logging
import os
import shlex
import signal
import sys
import traceback
from contextlib import suppress
from enum import StrEnum
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

from data.errors import UserError
from data.files import DEFAULT_ROOT
from studies.text import counted, masked_url, printable, shortened, without_passwords

if TYPE_CHECKING:
    from studies.config import StudyConfig

app = typer.Typer(
    name="hpsearch",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"hpsearch {version('hpsearch')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Print the version, and end."
        ),
    ] = False,
) -> None:
    """Find the hyperparameters with which a ResNet learns your images best."""


StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY",
        help="quickstart or cifar10, which ship; the path of a study file; or a study's name.",
    ),
]


def _without_password(context: typer.Context, option: typer.CallbackParam, url: str) -> str:
    """Refuse a password on the command line, which every user of the machine can read."""
    source = context.get_parameter_source(str(option.name))
    if source and source.name == "COMMANDLINE" and masked_url(url) != url:
        raise UserError(
            "--storage: a command line is no place for a password; put the URL into "
            "HPSEARCH_STORAGE, or the password into PGPASSWORD or ~/.pgpass"
        )
    return url


StorageOption = Annotated[
    str,
    typer.Option(
        "--storage",
        envvar="HPSEARCH_STORAGE",
        show_default="sqlite:///hpsearch.db",
        callback=_without_password,
        help="Database URL, or grpc://host:port of a storage proxy. One with a password belongs in "
        "the environment, where it is not seen.",
    ),
]
DirectoryOption = Annotated[
    Path,
    typer.Option(
        "--directory",
        envvar="HPSEARCH_DIRECTORY",
        help="Where data sets, checkpoints and logs go. All workers of a study share it.",
    ),
]
CheckpointsOption = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        envvar="HPSEARCH_CHECKPOINTS",
        metavar="PLACE",
        help="Where checkpoints go, if not to the directory: another one, or s3://bucket/prefix.",
    ),
]
TensorBoardOption = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard",
        metavar="DIR",
        help="Let each trial write what TensorBoard shows; needs the extra tensorboard.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="SOURCE", help="cifar10-mini, cifar10, or a folder of images."),
]

WarmStartOption = Annotated[
    str | None,
    typer.Option(
        "--warm-start",
        metavar="STUDY",
        help="Let a new study start from the best trials of this earlier one.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers", min=1, help="Worker processes; by default one a GPU, or up to 4 on a CPU."
    ),
]
WorkersPerGpuOption = Annotated[
    int, typer.Option("--workers-per-gpu", min=1, help="Workers that share a GPU.")
]


class EngineName(StrEnum):
    """What runs the workers."""

    LOCAL = "local"
    RAY = "ray"


EngineOption = Annotated[
    EngineName,
    typer.Option(
        "--engine", help="Run the workers as processes of this machine, or on a Ray cluster."
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        show_default="a Ray of this machine alone",
        help="Of a running Ray cluster: host:port, or auto.",
    ),
]

StoragePatienceOption = Annotated[
    float,
    typer.Option(
        "--storage-patience",
        metavar="SECONDS",
        min=0,
        help="For how long to go on while the storage does not answer.",
    ),
]
GraceOption = Annotated[
    float,
    typer.Option(
        "--grace",
        metavar="SECONDS",
        min=0,
        help="How long a running epoch may take to end, when asked to stop.",
    ),
]

LONGEST_LINE = 2000  # characters of an error
# The same as in studies.storage, studies.patience and search.stop; the first two would cost the
# import of Optuna. A test compares.
DEFAULT_STORAGE = "sqlite:///hpsearch.db"
DEFAULT_PATIENCE = 600.0
DEFAULT_GRACE = 10.0


@app.command()
def run(
    study: StudyArgument,
    trials: Annotated[
        int | None, typer.Option(help="How many trials, over all runs of the study.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="After so long, no trial is started.")
    ] = None,
    workers: WorkersOption = None,
    workers_per_gpu: WorkersPerGpuOption = 1,
    engine: EngineOption = EngineName.LOCAL,
    address: AddressOption = None,
    name: Annotated[str | None, typer.Option(help="Another name for the study.")] = None,
    data: DataOption = None,
    warm_start: WarmStartOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Any setting of the study file, such as trial.epochs=5 or space.width=16.",
        ),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    storage_patience: StoragePatienceOption = DEFAULT_PATIENCE,
    grace: GraceOption = DEFAULT_GRACE,
    directory: DirectoryOption = DEFAULT_ROOT,
    checkpoints: CheckpointsOption = None,
    tensorboard: TensorBoardOption = None,
) -> None:
    """Search: create or continue a study, run workers, and export the best model."""
    _check_engine(engine, address)
    _check_tensorboard(tensorboard)
    from studies.config import is_study_file

    # From the cheapest to the dearest: what cannot be run is refused before PyTorch is imported.
    overrides = _overrides(trials, minutes, name, data, warm_start, settings or [])
    if is_study_file(study):
        config = _checked_study_file(study, overrides)
        from studies.storage import open_storage
        from studies.study import continues, earlier_study

        with_storage = open_storage(storage, create=True)
        if not continues(with_storage, config):
            earlier_study(with_storage, config)
    else:
        from studies.storage import open_storage
        from studies.study import stored_config

        try:
            with_storage = open_storage(storage)
        except UserError as error:
            raise UserError(f"{study!r} is no study file (FILE.toml); {error}") from error
        config = stored_config(with_storage, study, overrides)
    _log_to_terminal()
    from search.run import RunOptions, run_study

    options = RunOptions(
        command=_this_command(),
        origin=study,
        root=directory,
        checkpoints=checkpoints,
        workers=workers,
        workers_per_gpu=workers_per_gpu,
        storage_patience=storage_patience,
        grace=grace,
        engine=engine,
        address=address,
        tensorboard=tensorboard,
    )
    raise typer.Exit(run_study(config, with_storage, options))


def _this_command() -> str:
    return shlex.join(["hpsearch", *sys.argv[1:]])


def _check_engine(engine: EngineName, address: str | None) -> None:
    if engine is EngineName.RAY and find_spec("ray") is None:
        raise UserError("--engine ray: Ray is not installed: pip install -e '.[ray]'")
    if engine is not EngineName.RAY and address is not None:
        raise UserError("--address is that of a Ray cluster: add --engine ray")


def _check_tensorboard(directory: Path | None) -> None:
    if directory and find_spec("tensorboard") is None:
        raise UserError("--tensorboard: it is not installed: pip install -e '.[tensorboard]'")


def _overrides(
    trials: int | None,
    minutes: float | None,
    name: str | None,
    data: str | None,
    warm_start: str | None,
    settings: list[str],
) -> dict[str, Any]:
    from studies.config import parse_assignment

    given = {
        "budget.trials": trials,
        "budget.minutes": minutes,
        "name": name,
        "data.source": data,
        "sampler.warm_start": warm_start and _study_name(warm_start),
    }
    overrides = dict(parse_assignment(setting) for setting in settings)
    return {**overrides, **{key: value for key, value in given.items() if value is not None}}


def _study_file(study: str, overrides: dict[str, Any]) -> "StudyConfig":
    from studies.config import load_study_file

    return load_study_file(study, overrides)


def _checked_study_file(study: str, overrides: dict[str, Any]) -> "StudyConfig":
    from search.space import check_names

    config = _study_file(study, overrides)
    check_names(config, study)
    return config


@app.command()
def worker(
    study: StudyArgument,
    data: DataOption = None,
    warm_start: WarmStartOption = None,
    allow_objective: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Run this objective if the study names it. What is not allowed here is not "
            "imported, whatever the database says.",
        ),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
    storage_patience: StoragePatienceOption = DEFAULT_PATIENCE,
    grace: GraceOption = DEFAULT_GRACE,
    directory: DirectoryOption = DEFAULT_ROOT,
    checkpoints: CheckpointsOption = None,
    tensorboard: TensorBoardOption = None,
) -> None:
    """Be one worker of a study, on any machine that reaches its storage.

    The study is joined if it exists, and created if STUDY is a study file.
    """
    _check_tensorboard(tensorboard)
    from studies.config import is_study_file

    overrides = _overrides(None, None, None, data, warm_start, [])
    config = _checked_study_file(study, overrides) if is_study_file(study) else None
    from search.run import WorkerOptions, run_worker
    from studies.patience import Patience
    from studies.storage import open_storage

    _log_to_terminal()
    patience = Patience(storage_patience)
    with_storage = open_storage(storage, create=config is not None, patience=patience)
    options = WorkerOptions(
        study=study,
        config=config,
        root=directory,
        checkpoints=checkpoints,
        source=data,
        allowed_objective=allow_objective,
        warm_start=overrides.get("sampler.warm_start"),
        grace=grace,
        tensorboard=tensorboard,
    )
    raise typer.Exit(run_worker(with_storage, options, patience))


@app.command()
def status(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="One study; without it, all.")
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="How many of the best trials.")] = 5,
    as_json: JsonOption = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Show how far a study is, who is at work on it, and its best trials."""
    from dataclasses import asdict

    from rich.text import Text

    from search.terminal import SafeConsole
    from studies.confirmation import mentioned
    from studies.results import as_json as summary_as_json
    from studies.results import for_json, rank, summarise, utc_now
    from studies.storage import open_storage
    from studies.study import open_study, started_from, study_names

    _log_to_terminal(logging.WARNING)
    with_storage = open_storage(storage)
    names = [_study_name(study)] if study else study_names(with_storage)
    console = SafeConsole()
    documents: list[dict[str, Any]] = []
    for name in names:
        try:
            opened = open_study(name, with_storage)
        except UserError as error:
            if study:
                raise
            # One study that is damaged does not hide the others.
            documents.append({"study": name, "error": str(error)})
            if not as_json:
                console.print(shortened(str(error), LONGEST_LINE))
            continue
        records = opened.records_of(opened.study.get_trials(deepcopy=False))
        summary = summarise(records)
        confirmation = mentioned(opened)
        if as_json:
            document = summary_as_json(summary, rank(records)[:top])
            documents.append(
                {
                    "study": name,
                    "trials": opened.config.budget.trials,
                    "warm_start": opened.config.sampler.warm_start,
                    "confirmed": confirmation and asdict(confirmation.winner),
                    "at_work": for_json([asdict(r) for r in records if r.state == "running"]),
                    **document,
                }
            )
            continue
        from search.live import counts_line, results_table, running_table

        total = opened.config.budget.trials
        of_all = f"{summary.finished} of " if total else ""
        finished = f"{of_all}{counted(total or summary.finished, 'trial')} finished"
        if name != names[0]:
            console.print()
        console.print(Text.assemble((name, "bold"), f"  {finished}"))
        earlier = started_from(opened)
        if earlier:
            console.print(earlier)
        console.print(counts_line(summary))
        console.print(
            results_table(records, opened.config, top) if summary.best else "no trial complete yet"
        )
        if summary.running:
            console.print(running_table(records, opened.config.trial.epochs, utc_now()))
        if confirmation:
            console.print(confirmation.headline)
    if as_json:
        print(json.dumps(documents[0] if study else documents, indent=2))
    elif not names:
        console.print("no studies in this storage yet")


def _study_name(study: str) -> str:
    """The name that a STUDY argument means: a study file is read for its name."""
    from studies.config import is_study_file

    return _study_file(study, {}).name if is_study_file(study) else study


class ExportOn(StrEnum):
    """The images that an exported model was trained on."""

    TRAIN = "train"
    ALL = "train+validation"


class ExportFormat(StrEnum):
    """What an exported model is written as."""

    SAFETENSORS = "safetensors"
    ONNX = "onnx"
    TORCH_EXPORT = "torch-export"


@app.command()
def export(
    study: StudyArgument,
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to write.")],
    on: Annotated[
        ExportOn,
        typer.Option(
            "--on",
            help="train: the model as the search trained it. train+validation: its configuration "
            "trained anew on all of these images.",
        ),
    ] = ExportOn.TRAIN,
    best: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            min=1,
            help="The K best trials of the search, in a folder each, best first.",
        ),
    ] = None,
    trial: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="The trial of this number.")
    ] = None,
    formats: Annotated[
        list[ExportFormat],
        typer.Option(
            "--format",
            help="Beside the weights as safetensors, a graph that runs without hpsearch, for any "
            "number of images. May be given twice.",
        ),
    ] = [ExportFormat.SAFETENSORS],  # noqa: B006
    with_preprocessing: Annotated[
        bool,
        typer.Option(
            "--with-preprocessing",
            help="The graph takes uint8 images and gives probabilities; without it, normalised "
            "ones and logits.",
        ),
    ] = False,
    data: DataOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    directory: DirectoryOption = DEFAULT_ROOT,
    checkpoints: CheckpointsOption = None,
) -> None:
    """Write a model to a folder, with its accuracy on the test images.

    It is the confirmed one if the study was confirmed, else the best trial's, unless --best or
    --trial says which. An earlier export in the folder is replaced, but only once all is well.
    """
    graphs = frozenset(formats) - {ExportFormat.SAFETENSORS}
    _check_export(best, trial, graphs, with_preprocessing)
    from studies.chosen import choose
    from studies.export import check_output
    from studies.study import open_study

    opened = open_study(_study_name(study), storage)
    # What there is not, is said without PyTorch.
    choose(opened, best, trial)
    check_output(output)
    on_validation_too = on is ExportOn.ALL
    _log_to_terminal()
    from model.trial import Diverged
    from search.export import describe
    from search.finished import Graphs
    from search.run_export import export_study

    try:
        exported = export_study(
            opened,
            output,
            directory,
            checkpoints,
            data,
            on_validation_too,
            best,
            trial,
            Graphs(frozenset(map(str, graphs)), with_preprocessing),
        )
    except Diverged as error:
        _fail(f"with the validation images too, the training diverged: {error}", 1)
    for item in exported:
        print(printable(describe(item)))


def _check_export(
    best: int | None,
    trial: int | None,
    graphs: frozenset[ExportFormat],
    with_preprocessing: bool,
) -> None:
    if best is not None and trial is not None:
        raise UserError("--best and --trial: give one of them")
    if with_preprocessing and not graphs:
        raise UserError("--with-preprocessing is for a graph: add --format onnx or torch-export")
    needed = ("onnx", "onnxscript", "onnxruntime")
    if ExportFormat.ONNX in graphs and not all(map(find_spec, needed)):
        raise UserError("--format onnx: ONNX is not installed: pip install -e '.[onnx]'")


@app.command()
def report(
    study: StudyArgument,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The HTML file to write.", show_default="STUDY-report.html"
        ),
    ] = None,
    numbers: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all its numbers to a file, too."),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Write what a study has found as one HTML file, which opens without a network.

    It can be written at any time, also while the study runs.
    """
    from studies.study import open_study

    opened = open_study(_study_name(study), storage)
    _log_to_terminal(logging.WARNING)
    from search.run_report import report_study

    print(report_study(opened, output, numbers))


@app.command()
def confirm(
    study: StudyArgument,
    top: Annotated[int, typer.Option(min=1, help="How many of the best configurations.")] = 5,
    seeds: Annotated[int, typer.Option(min=1, help="How often each is trained again.")] = 3,
    workers: WorkersOption = None,
    workers_per_gpu: WorkersPerGpuOption = 1,
    engine: EngineOption = EngineName.LOCAL,
    address: AddressOption = None,
    data: DataOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    storage_patience: StoragePatienceOption = DEFAULT_PATIENCE,
    grace: GraceOption = DEFAULT_GRACE,
    directory: DirectoryOption = DEFAULT_ROOT,
    checkpoints: CheckpointsOption = None,
) -> None:
    """Train the best configurations again with new seeds, and see which is really the best.

    The winner is chosen by its mean validation accuracy; only then are the test images looked at.
    The retrainings are a study of their own, STUDY-confirm. Afterwards export writes its model.
    """
    _check_engine(engine, address)
    from studies.config import is_study_file
    from studies.storage import open_storage

    with_storage = open_storage(storage)
    name, trusted = _study_name(study), None
    if is_study_file(study):
        trusted = _study_file(study, {}).trial.objective
    _log_to_terminal()
    from search.run import RunOptions
    from search.run_confirm import confirm_study

    options = RunOptions(
        command=_this_command(),
        origin=study,
        root=directory,
        checkpoints=checkpoints,
        workers=workers,
        workers_per_gpu=workers_per_gpu,
        storage_patience=storage_patience,
        grace=grace,
        engine=engine,
        address=address,
    )
    raise typer.Exit(confirm_study(with_storage, name, options, top, seeds, data, trusted))


@app.command()
def enqueue(
    study: StudyArgument,
    assignments: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE...",
            help="Hyperparameters, such as learning_rate=0.1; the sampler chooses the others.",
        ),
    ],
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Let the next free worker of an existing study try a configuration of yours."""
    from search.enqueue import enqueue_trial
    from studies.config import parse_assignment
    from studies.study import open_study

    _log_to_terminal(logging.WARNING)
    opened = open_study(_study_name(study), storage)
    queued = enqueue_trial(opened, dict(parse_assignment(item) for item in assignments))
    print(printable(queued))


@app.command()
def replay(
    study: StudyArgument,
    trial: Annotated[int, typer.Option(min=0, help="The number of the trial.")],
    as_json: JsonOption = False,
    data: DataOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    directory: DirectoryOption = DEFAULT_ROOT,
) -> None:
    """Train a recorded trial again and compare the learning curves; records nothing.

    Exit code 0 if they are identical, 1 if not.
    """
    from studies.study import open_study

    opened = open_study(_study_name(study), storage)
    _log_to_terminal()
    from dataclasses import asdict

    from search.replay import describe_replay, replay_trial

    found = replay_trial(opened, trial, directory, data)
    if as_json:
        print(json.dumps({**asdict(found), "identical": found.identical}, indent=2))
    else:
        print(printable(describe_replay(found)))
    raise typer.Exit(0 if found.identical else 1)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that export wrote.")],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE...", help="Image files, and directories of them."),
    ],
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV for programs.")] = False,
) -> None:
    """Classify images with an exported model.

    One that cannot be read is named, and the others are classified; the exit code is then 1.
    """
    if as_json and as_csv:
        raise UserError("--json and --csv: give one of them")
    from search.run_predict import predict_images

    raise typer.Exit(
        predict_images(model, images, "json" if as_json else "csv" if as_csv else "text")
    )


@app.command()
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="DIR_OR_STUDY", help="A folder that export wrote, or a study with its best."
        ),
    ],
    against: Annotated[
        str | None, typer.Option(metavar="DIR_OR_STUDY", help="Another, to compare it with.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", show_default="NAME-evaluation", help="The folder for page and figures."
        ),
    ] = None,
    image: Annotated[
        str,
        typer.Option(
            metavar="FILE_OR_INDEX",
            help="The image whose feature maps are shown: a file, or which of the test images.",
        ),
    ] = "0",
    data: DataOption = None,
    storage: StorageOption = DEFAULT_STORAGE,
    directory: DirectoryOption = DEFAULT_ROOT,
    checkpoints: CheckpointsOption = None,
) -> None:
    """Measure a trained model on the test images: a page to look at, and evaluation.json.

    Each class, calibration, robustness, speed, mistakes and feature maps.
    """
    from studies.study import OpenedStudy, best_record, open_study

    models: list[Path | OpenedStudy] = []
    for item in filter(None, [model, against]):
        if Path(item).is_dir():
            models.append(Path(item))
        else:
            try:
                opened = open_study(_study_name(item), storage)
            except UserError as error:
                raise UserError(f"{item!r} is no folder here; {error}") from error
            best_record(opened)  # Says without PyTorch if there is none.
            models.append(opened)
    _log_to_terminal(logging.WARNING)
    if not sys.stderr.isatty():
        # In place of the bar.
        logging.getLogger("search.run_evaluate").setLevel(logging.INFO)
    from search.run_evaluate import evaluate_models, in_a_line

    found = evaluate_models(models, output, image, directory, checkpoints, data)
    print(printable(f"{in_a_line(found.evaluations)}; {found.page}"))


def _ask_for_a_hash(asked: bool) -> None:
    if asked:
        from studies.password import HASH_VARIABLE, PasswordHash

        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
        print(f"{HASH_VARIABLE}={PasswordHash.of(password)}")
        raise typer.Exit


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8080,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A further name of this machine, or of a proxy for it."),
    ] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Let in who knows the password in this file, with any user name; or see "
            "--hash-password. Without HTTPS in front, a password can be overheard.",
        ),
    ] = None,
    hash_password: Annotated[
        bool,
        typer.Option(
            "--hash-password",
            is_eager=True,
            callback=_ask_for_a_hash,
            help="Ask for a password, print the line for the environment that stands for it, and "
            "end.",
        ),
    ] = False,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="Let everybody in who can reach the address.")
    ] = False,
    allow_edits: Annotated[
        bool, typer.Option("--allow-edits", help="Let the page change and delete studies.")
    ] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    directory: DirectoryOption = DEFAULT_ROOT,
    checkpoints: CheckpointsOption = None,
) -> None:
    """Serve optuna-dashboard on the storage, for looking only unless edits are allowed.

    Other machines reach it with --host, which needs a password or --no-password. The weights of the
    best trials and the exported model can be downloaded, if they are in --directory and
    --checkpoints.
    """
    from studies.artifacts import StudyFiles
    from studies.dashboard import application, plan_access, serve
    from studies.password import HASH_VARIABLE
    from studies.storage import open_storage

    password_hash = os.environ.get(HASH_VARIABLE)
    access = plan_access(
        host, allow_host or [], password_file, password_hash, no_password, allow_edits
    )
    opened = open_storage(storage)
    app = application(opened, access, StudyFiles(opened, directory, checkpoints))

    def started(actual_port: int) -> None:
        name = f"[{host}]" if ":" in host else host
        print(f"http://{name}:{actual_port}/dashboard (Ctrl-C stops)", flush=True)

    _log_to_terminal(logging.WARNING)
    # It warns of each request that has to wait for a moment.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)
    try:
        serve(app, host, port, started)
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror}; give another --port") from error


@app.command()
def storage_proxy(
    port: Annotated[int, typer.Option(min=0, max=65535)] = 13000,
    host: Annotated[
        str,
        typer.Option(
            help="The address to listen on. Any but this machine's own needs a token. There is no "
            "encryption: let it be in a private network, or reached through a tunnel."
        ),
    ] = "127.0.0.1",
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="HPSEARCH_PROXY_TOKEN_FILE",
            help="A secret that workers must know too. They have it from the file that "
            "HPSEARCH_PROXY_TOKEN_FILE names, or in HPSEARCH_PROXY_TOKEN, as this command may.",
        ),
    ] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let in everybody who reaches the address.")
    ] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    storage_patience: StoragePatienceOption = DEFAULT_PATIENCE,
) -> None:
    """Speak to the database for many workers, which say --storage grpc://HOST:PORT.

    It alone needs the database's password. It waits for a database that is not up yet.
    """
    # Its native half would write to the terminal what is said here in a line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from studies.proxied import address, proxy_secret
        from studies.proxy import THREADS, start, wait
    except ImportError as error:
        raise UserError("gRPC is not installed: pip install -e '.[proxy]'") from error

    from studies.guard import is_of_this_machine
    from studies.patience import Patience
    from studies.storage import open_database

    secret = None if no_token else proxy_secret(token_file)
    if secret is None and not no_token and not is_of_this_machine(host):
        raise UserError(f"--host {host} needs --token-file, or --no-token if all there may write")
    _log_to_terminal()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    patience = Patience(storage_patience)
    database = open_database(storage, create=True, patience=patience, connections=THREADS)
    try:
        server, actual_port = start(database, host, port, secret)
    except OSError as error:
        raise UserError(
            f"{address(host, port)}: taken, or not of this machine; give another --host or --port"
        ) from error
    print(f"grpc://{address(host, actual_port)} (Ctrl-C stops)", flush=True)
    wait(server)


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The study file to write.")],
) -> None:
    """Write a study file with every setting explained."""
    from studies.config import write_template

    write_template(file)
    print(f"{file} written; edit it, then: hpsearch run {file}")


class _Formatter(logging.Formatter):
    """What is logged, exceptions with their tracebacks included, as it may be shown."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(without_passwords(super().format(record)))


class _TerminalHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the moment: the live view puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def _log_to_terminal(level: int = logging.INFO) -> None:
    from optuna.logging import disable_default_handler, enable_propagation

    handler = _TerminalHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(process)d %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(True)
    disable_default_handler()
    enable_propagation()
    # Its messages repeat ours, in other words.
    for talkative in ("optuna", "torch", "botocore", "onnxscript", "onnx_ir"):
        logging.getLogger(talkative).setLevel(logging.WARNING)


def _show_traceback(kind: type[BaseException], error: BaseException, trace: object) -> None:
    text = "".join(traceback.format_exception(error))
    print(printable(without_passwords(text)), file=sys.stderr)


def main() -> None:
    """The command `hpsearch`: 0 if all is well, 2 for what the user can mend, 1 for the rest."""
    sys.excepthook = _show_traceback
    try:
        app()
    except UserError as error:
        _fail(str(error), 2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # The reader, such as head, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        # Of the files of this machine: a full disk, a folder that cannot be written.
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 1)
    except Exception as error:
        from search.broken import WorkerBroken
        from studies.patience import STORAGE_LOST_EXIT_CODE, StorageLost
        from studies.storage import storage_failure

        if isinstance(error, StorageLost):
            _fail(f"{error}; what was running is taken up again later", STORAGE_LOST_EXIT_CODE)
        if isinstance(error, WorkerBroken):
            _say(f"this worker is broken, and its trial is for another ({error})")
            with suppress(OSError):
                sys.stdout.flush()
            # A broken CUDA may abort a process that ends in order, with an exit code of its own.
            os._exit(error.exit_code)
        message = storage_failure(error)
        if message is None:
            raise
        _fail(message, 1)


def _fail(message: str, code: int) -> NoReturn:
    _say(message)
    sys.exit(code)


def _say(message: str) -> None:
    line = printable(without_passwords(" ".join(message.split())))
    print(f"hpsearch: {shortened(line, LONGEST_LINE)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
