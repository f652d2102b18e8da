"""File and command line become one checked tree; every fault is named, at once, without torch."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from backbone.cli import fields, load, parse, read_yaml, validate
from backbone.errors import UserError
from backbone.training.recipe import ConstantSchedule, Recipe, StepsSchedule
from detection.gains_recipe import Gains
from tests.conftest import ROOT

FLAGS = {"dry_run": "print the plan and stop"}


@pytest.fixture
def recipe_file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return write


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Parse words that are refused with exit code 2; the lines the user then reads."""

    def run(*words: str) -> list[str]:
        with pytest.raises(SystemExit) as ended:
            parse(Recipe, list(words), FLAGS)
        assert ended.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()

    return run


def accepted(*words: str) -> Recipe:
    return parse(Recipe, list(words), FLAGS)[0]


def test_nothing_given_is_the_default():
    assert accepted() == Recipe()
    assert load(Recipe, "jobs/recipes/quickstart/residual.yaml").name == "residual"


def test_command_line_wins_over_file(recipe_file):
    file = recipe_file("seed: 3\nmodel: {depth: 18}\noptim: {lr: 1e-2, momentum: 0.8}\n")
    recipe = accepted("--optim.lr", "0.5", "--config", file, "--model.shortcut", "C")
    assert (recipe.seed, recipe.model.depth, recipe.model.shortcut) == (3, 18, "C")
    assert (recipe.optim.lr, recipe.optim.momentum) == (0.5, 0.8)
    assert accepted("--config", file).optim.lr == 0.01  # YAML reads 1e-2 as text
    assert accepted("--seed", "1", "--seed", "2").seed == 2


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--optim.lr=0.5"], "optim.lr", 0.5),
        (["--run.storage=s3://bucket/a=b"], "run.storage", "s3://bucket/a=b"),
        (["--compute.channels-last", "false"], "compute.channels_last", False),
        (["--optim.nesterov"], "optim.nesterov", True),
        (["--data.augment.area", "0.5", "1"], "data.augment.area", (0.5, 1.0)),
        (["--schedule.kind", "steps", "--schedule.milestones", "30", "60.5"], "schedule.milestones", (30.0, 60.5)),
        (["--schedule.kind", "steps", "--schedule.milestones=30"], "schedule.milestones", (30.0,)),
    ],
)
def test_forms_of_a_word(words: list[str], field: str, value: Any):
    found: Any = accepted(*words)
    for part in field.split("."):
        found = getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_kind_may_be_another_than_the_files_where_the_file_gives_nothing_of_its_own(recipe_file):
    file = recipe_file("schedule: {kind: plateau, total: 60}")
    words = ["--schedule.kind", "steps", "--schedule.milestones", "30", "45"]
    assert accepted("--config", file, *words).schedule == StepsSchedule(total=60, milestones=(30, 45))


def test_fields_of_another_kind_are_named_with_their_readers(recipe_file, refused):
    file = recipe_file(
        "schedule: {kind: steps, milestones: [30, 60], gamma: 0.2, totl: 3}\ndata: {augment: {pca: 0.1}}\n"
    )
    back = "leave it out or empty, or give another kind"
    assert refused("--config", file, "--schedule.kind", "cosine", "--schedule.patience", "2") == [
        f"error: {file}: schedule.milestones: is read by kind steps or pieces, not by cosine; {back} (got [30, 60])",
        f"error: {file}: schedule.gamma: is read by kind steps or plateau, not by cosine; {back} (got 0.2)",
        f"error: {file}: schedule.totl: unknown key; perhaps you meant schedule.total",
        f"error: command line: schedule.patience: is read by kind plateau, not by cosine; {back} (got '2')",
        f"error: {file}: data.augment.pca: is read by kind paper, not by modern; {back} (got 0.1)",
    ]


@pytest.mark.parametrize(
    "empty", [["--schedule.milestones", "--schedule.gamma="], ["--schedule.milestones=", "--schedule.gamma", ""]]
)
def test_empty_value_takes_back_what_the_file_gives(recipe_file, empty: list[str]):
    file = recipe_file("schedule: {kind: steps, milestones: [30, 60], gamma: 0.2, total: 61}")
    assert accepted("--config", file, *empty, "--schedule.kind", "constant").schedule == ConstantSchedule(total=61)


def test_kind_that_is_none_is_listed_and_one_that_lacks_a_field_names_it(refused):
    assert refused("--schedule.kind", "step", "--schedule.total", "-1", "--schedule.patience", "0") == [
        "error: command line: schedule.kind: Input should be 'cosine', 'steps', 'plateau', 'constant' or 'pieces' "
        "(got 'step'); perhaps you meant steps",
        "error: command line: schedule.total: Input should be greater than 0 (got '-1')",
        "error: command line: schedule.patience: Input should be greater than or equal to 1 (got '0')",
    ]
    assert refused("--schedule.kind", "steps") == [
        "error: schedule.milestones: kind steps needs it; give --schedule.milestones"
    ]


def test_lists_given_more_than_once_are_refused_and_one_value_or_pair_is_the_last(recipe_file, refused):
    twice = "--schedule.milestones", "30", "--seed", "1", "--schedule.milestones=60"
    says = "error: command line: --schedule.milestones is given twice; name all in one: --schedule.milestones"
    assert refused("--schedule.kind", "steps", *twice) == [f"{says} 30 60"]
    assert refused("--schedule.kind", "steps", *twice, "--schedule.milestones", "80 a")[0] == f"{says} 30 60 '80 a'"
    file = recipe_file("schedule: {kind: steps, milestones: [1, 2]}\n")
    found = accepted("--config", file, "--schedule.milestones", "30", "60").schedule
    assert isinstance(found, StepsSchedule)
    assert found.milestones == (30, 60)
    pairs = "--data.augment.area", "0.5", "1", "--data.augment.area", "0.2", "0.9"
    assert accepted(*pairs).data.augment.area == (0.2, 0.9)
    assert accepted("--optim.lr", "0.5", "--optim.lr=0.25", "--optim.nesterov", "--optim.nesterov", "false").optim == (
        accepted("--optim.lr", "0.25", "--optim.nesterov", "false").optim
    )


def test_flags_are_the_jobs_own():
    assert parse(Recipe, [], FLAGS)[1] == {"dry_run": False}
    assert parse(Recipe, ["--dry-run", "--seed", "2"], FLAGS)[1] == {"dry_run": True}
    assert parse(Recipe, ["--seed", "2", "--dry_run"], FLAGS)[0].seed == 2


def test_flag_takes_no_value(refused):
    assert refused("--dry-run", "yes") == ["error: command line: --dry-run: takes no value, not yes"]


def test_unknown_key_of_a_file_is_named_with_a_suggestion(recipe_file, refused):
    file = recipe_file("optim: {btach: 3}\nlr: 0.5\nsomething: 1\n")
    assert refused("--config", file) == [
        f"error: {file}: optim.btach: unknown key; perhaps you meant optim.batch",
        f"error: {file}: lr: unknown key; perhaps you meant optim.lr",
        f"error: {file}: something: unknown key",
    ]


def test_unknown_options_are_named_with_a_suggestion(refused):
    assert refused("--optim.btach", "3", "--lr", "1", "--dryrun", "stray") == [
        "error: command line: --optim.btach: unknown option; perhaps you meant --optim.batch",
        "error: command line: --lr: unknown option; perhaps you meant --optim.lr",
        "error: command line: --dryrun: unknown option; perhaps you meant --dry-run",
    ]
    assert refused("zzz") == ["error: command line: zzz: unknown option"]
    assert refused("--seed", "1", "2") == ["error: command line: --seed: takes one value, not 1 2"]
    assert refused("--config") == ["error: command line: --config: name one recipe file, not 0"]


def test_all_faults_come_at_once_and_say_where_they_are(recipe_file, refused):
    file = recipe_file(
        "optim: {batch: 0, lr: fast}\ndata: {augment: {kind: strong, area: [0.1, high]}, workers: 2.5}\nrun: 3\n"
    )
    lines = refused("--config", file, "--model.depth", "fifty", "--optim.momentum", "1", "--optim.batch", "-1")
    starts = [
        "command line: optim.batch: ",
        f"{file}: optim.lr: ",
        "command line: optim.momentum: ",
        f"{file}: run: ",
        "command line: model.depth: ",
        f"{file}: data.augment.kind: ",
        f"{file}: data.augment.area.1: ",
        f"{file}: data.workers: ",
    ]
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(f"error: {start}")
    assert lines[0].endswith("(got '-1')")
    assert lines[4].endswith("(got 'fifty')")


def test_a_pair_is_checked_together(recipe_file, refused):
    file = recipe_file("schedule: {kind: steps, total: 90, milestones: [30, 60]}")
    assert accepted("--config", file, "--schedule.total", "61").schedule.total == 61
    (line,) = refused("--config", file, "--schedule.total", "50")
    assert line.startswith(f"error: {file} and command line: schedule: milestones [30.0, 60.0] must rise")
    (line,) = refused("--model.depth", "51")
    assert line.startswith("error: command line: model: depth 51")
    (line,) = refused("--config", file, "--compute.precision", "fp16")  # across sections
    assert line.startswith(f"error: {file} and command line: compute.precision fp16 needs scaling.use_gpu")
    broken = recipe_file("schedule: {total: 0.5, warmup: 1}")
    (line,) = refused("--config", broken, "--seed", "1")
    assert line.startswith(f"error: {broken}: schedule: warmup 1")


def test_override_of_a_section_that_is_none(recipe_file, refused):
    file = recipe_file("optim: fast")
    assert refused("--config", file, "--optim.lr", "1") == [f"error: {file}: optim: is a str, not a section of fields"]


def test_missing_file_names_the_near_ones(tmp_path, refused):
    for name in ("resnet50.yaml", "quickstart.yaml"):
        (tmp_path / name).touch()
    (line,) = refused("--config", str(tmp_path / "resnet5.yaml"))
    assert line == f"error: {tmp_path}/resnet5.yaml: no such recipe; there is resnet50.yaml"
    with pytest.raises(UserError, match=r"no such recipe$"):
        read_yaml(tmp_path / "none" / "resnet5.yaml")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("- 1\n- 2\n", "holds a list, not sections of fields"),
        ("just text", "holds a str, not sections of fields"),
        ("a: [1", "not readable as YAML: "),
        ("a: \x00", "not readable as YAML: "),
    ],
)
def test_what_is_no_recipe_is_refused(recipe_file, refused, text: str, complaint: str):
    file = recipe_file(text)
    (line,) = refused("--config", file)
    assert line.startswith(f"error: {file}: {complaint}")


def test_empty_file_is_the_default_and_a_folder_is_refused(recipe_file, tmp_path):
    assert load(Recipe, recipe_file("# nothing yet\n")) == Recipe()
    with pytest.raises(UserError, match="not readable as YAML"):
        load(Recipe, tmp_path)


def test_validate_leaves_its_argument_alone():
    tree = {"data": {"augment": {"kind": "cifar"}}}
    validate(Recipe, tree, "here", {"data.augment.kind": "none", "optim.batch": 8})
    assert tree == {"data": {"augment": {"kind": "cifar"}}}


def test_fields_are_the_leaves():
    names = fields(Recipe)
    assert {"seed", "model.depth", "data.augment.kind", "run.storage"} <= names.keys()
    assert "data.augment" not in names


@pytest.mark.parametrize("help_word", ["--help", "--help-all", "-h"])
def test_help_shows_fields_defaults_and_flags(help_word, recipe_file, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(Recipe, ["--config", recipe_file("optim: {batch: 77}"), help_word], FLAGS)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for part in ("--config FILE", "--dry-run", "print the plan and stop", "--data.augment.kind", "(default: 77)"):
        assert part in shown


def test_help_shows_the_fields_of_all_kinds_and_who_reads_them(recipe_file, capsys):
    with pytest.raises(SystemExit):
        parse(Recipe, ["--help-all", "--config", recipe_file("schedule: {kind: steps, milestones: [31], gamma: 0.3}")])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for part in (
        "--schedule.kind {cosine,steps,plateau,constant,pieces} cosine: to zero at the end. steps: times gamma",
        "(default: steps)",
        "--schedule.milestones [FLOAT [FLOAT ...]] steps, pieces: ",
        "(default: 31.0)",
        "--schedule.gamma FLOAT steps, plateau: ",
        "(default: 0.3)",
        "--schedule.patience INT plateau: ",
        "(default: 5)",
    ):
        assert part in shown
    assert shown.count("--schedule.gamma") == 1


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--optim.btach", "3"], 2), ([], 2)])
def test_job_answers_before_anything_slow_is_imported(words: list[str], code: int):
    command = [sys.executable, "-X", "importtime", "jobs/pretrain.py", *words]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == code, ended.stderr
    imported = {line.rsplit("|")[-1].strip() for line in ended.stderr.splitlines() if line.startswith("import time:")}
    assert "backbone.training.recipe" in imported
    assert not imported & {"torch", "torchvision", "ray", "numpy", "cv2", "albumentations", "pyarrow"}


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["jobs/pretrain.py", "--help-all"], 0),
        (["-c", "from backbone.console import main; main()", "--help"], 0),
        (["-c", "from backbone.cli import run_main; run_main(lambda: [print(i) for i in range(10_000)])"], 141),
    ],
    ids=["help", "console", "job"],
)
def test_output_that_nobody_reads_ends_a_job_without_a_traceback(words: list[str], code: int) -> None:
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()  # as `| head` does that has seen enough
        assert (process.stderr.read(), process.wait()) == (b"", code)


def test_a_recipe_at_a_url_is_read_there() -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/recipes/best.yaml", b"name: x")
    assert read_yaml("memory://recipes/best.yaml") == {"name": "x"}
    fs.pipe_file("/recipes/list.yaml", b"- x")
    for name, says in (("none", "cannot be read as a recipe"), ("list", "holds a list, not sections")):
        with pytest.raises(UserError, match=f"memory://recipes/{name}.yaml: {says}"):
            read_yaml(f"memory://recipes/{name}.yaml")


@pytest.mark.parametrize("text", ["*.tar", "{a,b}.tar", "shards/*.tar"])
def test_text_that_is_no_yaml_is_text_below_fields_without_types(text: str) -> None:
    words = ["--config", str(ROOT / "jobs/recipes/quickstart/gains.yaml"), "--finetune_with.data.train", text]
    gains, _ = parse(Gains, words)
    assert gains.finetune_with["data"]["train"] == text
