"""The mistakes that everybody makes first, and what each is told: exit code 2, no traceback, what to type instead."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from backbone.hints import of_another_job
from tests.detection.data.making import make_voc

Run = Callable[..., subprocess.CompletedProcess]
RESIDUAL = "jobs/recipes/quickstart/residual.yaml"
DETECTOR = "jobs/recipes/quickstart/detector.yaml"
STARTER = "jobs/recipes/starter/gains.yaml"


def said(run_job: Run, job: str, *words: object, **env: str) -> list[str]:
    """The lines of a job that is refused."""
    done = run_job(job, *words, **env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize("job", ["pretrain", "finetune", "gains", "sweep"])
@pytest.mark.parametrize("words", [[], ["--name", "mine"]], ids=["nothing", "a name"])
def test_no_recipe_trains_nothing_and_shows_three_examples(run_job: Run, job: str, words: list[str]) -> None:
    *usage, last = said(run_job, job, *words)
    examples = [line for line in usage if line.startswith(f"  python jobs/{job}.py --config jobs/recipes/")]
    assert len(examples) == 3
    assert last.startswith("no recipe: name one with --config FILE; --help")


@pytest.mark.parametrize("job", ["doctor", "prepare", "evaluate", "detect", "export", "import", "curves", "serve"])
def test_nothing_to_do_shows_examples(run_job: Run, job: str) -> None:
    *usage, last = said(run_job, job)
    assert any(line.startswith(f"  python jobs/{job}.py --") for line in usage)
    assert last.startswith("nothing to do")


def test_a_recipe_of_another_job(run_job: Run) -> None:
    gains = "jobs/recipes/quickstart/gains.yaml"
    assert said(run_job, "pretrain", "--config", gains) == [
        f"error: {gains}: this is a recipe of jobs/gains.py; give it to that: python jobs/gains.py --config {gains}"
    ]
    (line,) = said(run_job, "gains", "--config", RESIDUAL)
    assert "this is a recipe of jobs/pretrain.py" in line
    (line,) = said(run_job, "gains", "--config", gains, "--finetune", RESIDUAL)
    assert line.startswith(f"error: {RESIDUAL}: this is a recipe of jobs/pretrain.py")


def test_a_slip_within_a_section_is_that_sections(run_job: Run) -> None:
    sweep = "jobs/recipes/quickstart/sweep.yaml"
    (line,) = said(run_job, "sweep", "--config", sweep, "--budget.trails", "3")
    assert line.endswith("--budget.trails: unknown option; perhaps you meant --budget.trials")


def test_a_field_is_no_other_jobs_recipe() -> None:
    assert of_another_job("Recipe", {"model": {}, "steps": 100}) == ""
    assert of_another_job("Recipe", {"steps": 100}) == ""
    assert of_another_job("Finetune", {"model": "resnet50", "detector": {}}) == ""
    assert of_another_job("Recipe", {"steps": [{"refine": True}]}) == "entry"


def test_a_recipe_without_config(run_job: Run) -> None:
    assert said(run_job, "pretrain", RESIDUAL) == [
        f"error: command line: {RESIDUAL}: a recipe is given with --config {RESIDUAL}"
    ]


@pytest.mark.parametrize(
    ("job", "config", "option", "meant"),
    [
        ("pretrain", RESIDUAL, "--optim.learning_rate", "--optim.lr"),
        ("pretrain", RESIDUAL, "--lr", "--optim.lr"),
        ("pretrain", RESIDUAL, "--epochs", "--schedule.total (with --schedule.unit epochs)"),
        ("pretrain", RESIDUAL, "--batch_size", "--optim.batch"),
        ("pretrain", RESIDUAL, "--batch-size", "--optim.batch"),
        ("pretrain", RESIDUAL, "--imgsz", "--data.size"),
        ("finetune", DETECTOR, "--imgsz", "--data.shorter_side"),
        (
            "pretrain",
            RESIDUAL,
            "--workers",
            "--data.workers (loader processes) or --scaling.num_workers (training processes)",
        ),
        ("pretrain", RESIDUAL, "--device", "--scaling.use_gpu true (false for CPUs)"),
        ("finetune", DETECTOR, "--weights", "--backbone"),
        ("detect", "", "--device", "--use_gpu true (false for CPUs)"),
        (
            "gains",
            "jobs/recipes/quickstart/gains.yaml",
            "--epochs",
            "--pretrain_with.schedule.total (with --pretrain_with.schedule.unit epochs) or "
            "--finetune_with.schedule.total (with --finetune_with.schedule.unit epochs) or "
            "--scratch_with.schedule.total (with --scratch_with.schedule.unit epochs)",
        ),
        (
            "gains",
            STARTER,
            "--scaling.num_workers",
            "--pretrain_with.scaling.num_workers (training processes) or "
            "--finetune_with.scaling.num_workers (training processes) or "
            "--scratch_with.scaling.num_workers (training processes)",
        ),
    ],
)
def test_options_as_other_tools_call_them(run_job: Run, job: str, config: str, option: str, meant: str) -> None:
    first = said(run_job, job, *(["--config", config] if config else []), option, "64")[0]
    assert first == f"error: command line: {option}: unknown option; perhaps you meant {meant}"


def test_a_comparison_is_told_of_what_was_typed_alone(run_job: Run) -> None:
    (line,) = said(run_job, "gains", "--config", STARTER, "--data.train", "boxes:train")  # pretrains nothing
    assert line.startswith("error: command line: --data.train: unknown option; perhaps you meant --pretrain_with.data")
    (line,) = said(run_job, "gains", "--config", STARTER, "--backbone", "runs/mine/artifact")
    assert line.endswith("unknown option; a backbone is a row: --rows.NAME.artifact FOLDER")


def test_one_value_in_place_of_a_list(run_job: Run) -> None:
    (line,) = said(run_job, "gains", "--config", STARTER, "--finetune_with.data.shorter_side", "96", "--dry-run")
    assert line.endswith("data.shorter_side: Input should be a valid tuple (got 96); a list of one is written [96]")


def test_an_unknown_option_hides_nothing(run_job: Run) -> None:
    lines = said(run_job, "pretrain", "--config", RESIDUAL, "--optim.learning_rate", "-1", "--model.depth", "19")
    assert lines == [
        "error: command line: --optim.learning_rate: unknown option; perhaps you meant --optim.lr",
        "error: command line: optim.lr: Input should be greater than 0 (got '-1')",
        f"error: {RESIDUAL} and command line: model: depth 19: resnet has 18, 34, 50, 101, 152",
    ]


def test_all_faults_of_a_recipe_at_once(run_job: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {depht: 18, width: -1}\n")
    assert said(run_job, "pretrain", "--config", file) == [
        f"error: {file}: model.depht: unknown key; perhaps you meant model.depth",
        f"error: {file}: model: width -1: give a factor above 0",
    ]


def test_no_backbone(run_job: Run) -> None:
    (line,) = said(run_job, "finetune", "--config", DETECTOR)
    assert line.startswith(f"error: {DETECTOR}: backbone, from_detector: give one of them, none is given: --backbone ")
    assert said(run_job, "finetune", "--backbone", "runs/mine/artifact") == [
        "error: detector: Field required; give --detector.norm: frozen, trainable, sync or group",
        "error: no recipe was given: --config FILE names one",
    ]
    (line,) = said(run_job, "evaluate", "--batch", "2")
    assert line == "error: detector: Field required; give --detector"


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("resnet50", "--source torchvision --weights resnet50.pth --output runs/resnet50/artifact"),
        (
            "resnet18d",
            "--source timm --model resnet18d --weights resnet18d.safetensors --output runs/resnet18d/artifact",
        ),
    ],
)
def test_a_backbone_by_the_name_of_a_net(name: str, made: str, run_job: Run) -> None:
    (line,) = said(run_job, "finetune", "--config", DETECTOR, "--backbone", name)
    assert line.endswith(f"python jobs/import.py {made}")


def test_a_run_in_place_of_its_artifact(run_job: Run, tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "config.json").write_text("{}")
    for words in (("finetune", "--config", DETECTOR, "--backbone"), ("evaluate", "--detector")):
        (line,) = said(run_job, *words, tmp_path)
        assert line.endswith(f"perhaps you meant {tmp_path}/artifact")


def test_an_artifact_of_another_name(run_job: Run, tmp_path: Path) -> None:
    for name, block in (("try", "raybone"), ("try-detector", "raybone_detector")):
        (tmp_path / name / "artifact").mkdir(parents=True)
        (tmp_path / name / "artifact" / "config.json").write_text(f'{{"{block}": {{}}}}')
    for name, words in (
        ("try", ("finetune", "--config", DETECTOR, "--backbone")),
        ("try-detector", ("evaluate", "--detector")),
    ):
        (line,) = said(run_job, *words, tmp_path / "mine" / "artifact")
        assert line.endswith(f"runs/NAME/artifact; newest there: {tmp_path}/{name}/artifact")


def test_a_file_of_weights_in_place_of_an_artifact(run_job: Run, tmp_path: Path) -> None:
    (tmp_path / "model_best.pth.tar").write_bytes(b"weights")
    (line,) = said(run_job, "finetune", "--config", DETECTOR, "--backbone", tmp_path / "model_best.pth.tar")
    assert f"python jobs/import.py --source torchvision --weights {tmp_path}/model_best.pth.tar --output runs/" in line


def test_a_gpu_that_is_not_there(run_job: Run, tmp_path: Path) -> None:
    words = ["--config", RESIDUAL, "--scaling.num_workers", "0", "--scaling.use_gpu", "true"]
    words += ["--data.train_images", "64", "--data.val_images", "64", "--run.storage", str(tmp_path)]
    *_, line = said(run_job, "pretrain", *words, CUDA_VISIBLE_DEVICES="")
    assert line.endswith("train on CPUs: --scaling.use_gpu false")


def test_the_doctor_with_the_wrong_source(run_job: Run, tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc")
    (line,) = said(run_job, "doctor", "--images", root)
    assert line.endswith(f"perhaps you meant --source voc --images {root}:trainval")
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    (tmp_path / "classes" / "cat" / "1.jpg").write_bytes(b"")
    (line,) = said(run_job, "doctor", "--images", tmp_path / "classes")
    assert line.endswith(f"perhaps you meant --source imagefolder --images {tmp_path}/classes")


def test_the_doctor_of_voc_names_the_list_to_judge_on(run_job: Run, tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", split="train")
    lists = root / "ImageSets" / "Main"

    def next_step(split: str) -> str:
        return run_job("doctor", "--source", "voc", "--images", f"{root}:{split}").stdout.splitlines()[-1]

    assert next_step("train").endswith(f"--data.val {root}:VAL")
    for name in ("val", "trainval"):
        (lists / f"{name}.txt").write_text((lists / "train.txt").read_text())
    assert next_step("train").endswith(f"--data.val {root}:val")
    assert next_step("trainval").endswith(f"--data.val {root}:VAL")  # VOC's trainval holds its val
    (line,) = said(run_job, "doctor", "--source", "voc", "--images", f"{root}:train", "--val", f"{root}:val")
    assert line.endswith(f"leave it out; look at it by itself, --images {root}:val")


def test_plans_say_what_is_hardly_meant(run_job: Run) -> None:
    words = ["--config", RESIDUAL, "--optim.batch", "1024", "--data.train_images", "61"]
    done = run_job("pretrain", *words, "--schedule.total", "5000", "--schedule.unit", "iterations", "--dry-run")
    assert done.returncode == 0, done.stderr
    warnings = [line.removeprefix("warning").strip() for line in done.stdout.splitlines() if "warning" in line]
    assert warnings == [
        "optim.batch 1,024 over 61 images: a step sees images several times; --optim.batch 8",
        "83,934 epochs: the schedule is for more images than 61; give one in epochs, such as --schedule.unit epochs "
        "--schedule.total 50 with schedule.kind cosine",
    ]
