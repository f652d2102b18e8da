"""The driver's side without Ray: what is written down, what goes on, what is refused, what is kept."""

import json
import time
from pathlib import Path

import pytest

from backbone.cli import load
from backbone.errors import UserError
from backbone.sweep.board import Board
from backbone.sweep.record import Record, Trial, pareto, read
from backbone.sweep.run import run
from backbone.sweep.space import key
from backbone.training.recipe import Recipe
from backbone.training.run import open_run
from tests.backbone.sweep.sweeps import ON_RAY, make


def board(folder: Path, **more: object) -> Board:
    return Board(make(folder, **more), lambda text: None)


def evaluate(board: Board, trial: Trial, epoch: int, error: float) -> None:
    board.reported(
        trial, {"step": 10 * epoch, "epoch": float(epoch), "val_error": error}, {"device_hours": epoch / 100}
    )


def finish(board: Board, trial: Trial, error: float) -> None:
    trial.values["val_error"] = error
    board.finished(trial)


def test_everything_is_written_down_before_it_happens(tmp_path: Path) -> None:
    mine = board(tmp_path, budget={"trials": 3})
    trial = mine.next()
    assert trial is not None
    assert read(tmp_path / "s").trials == [trial]
    assert trial.state == "waiting"
    mine.started(trial)
    mine._due = 0.0  # however slow this disk was
    evaluate(mine, trial, 1, 80.0)
    assert read(tmp_path / "s").trials == [trial]
    recipe = mine.recipe(trial)
    assert (recipe.name, recipe.run.storage) == ("0000", str(tmp_path / "s" / "trials"))
    assert recipe.model.depth == trial.point["model.depth"]
    assert trial.values["params"] == {8: 75420, 14: 172636}[recipe.model.depth]  # 3x3 convolutions, norms, 12 classes
    assert trial.epochs == 2.4  # 24 steps of 16 of 160 images
    assert trial.lr[0] == (0.0, recipe.optim.lr)


def test_a_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    first = board(tmp_path, budget={"trials": 4})
    a, b, c = (first.next() for _ in range(3))
    for trial in (a, b, c):
        first.started(trial)
        evaluate(first, trial, 1, 80.0)
    finish(first, a, 70.0)
    first.failed(c, "loss is not finite", final=True)

    second = board(tmp_path, budget={"trials": 5}, parallel=7)  # a larger budget is the same sweep
    assert second.todo == [b]
    assert second.next() == b
    new = [second.next(), second.next(), second.next()]
    assert [trial and trial.id for trial in new] == ["0003", "0004", None]
    points = [key(trial.point) for trial in second.record.trials]
    assert len(set(points)) == 5
    evaluate(second, second.record.trial("0001"), 1, 99.0)  # seen before the interruption
    assert [row["val_error"] for row in second.record.trial("0001").history] == [80.0]


def test_trials_begun_on_other_hardware_take_the_precision_of_the_first(tmp_path: Path) -> None:
    """They are compared; and `best.yaml` trains again what was trained."""
    auto = {"base_with": {**ON_RAY, "compute": {"precision": "auto"}}}
    first = board(tmp_path, **auto)
    trial, new = first.next(), first.next()
    assert first.recipe(trial).compute.precision == "auto"
    open_run(first.recipe(trial).with_precision("bf16"), {}, 1)
    second = board(tmp_path, **auto)
    assert second.recipe(new).compute.precision == "bf16"
    finish(second, second.record.trial(trial.id), 70.0)
    second.end("finished", "")
    assert load(Recipe, tmp_path / "s" / "best.yaml").compute.precision == "bf16"
    board(tmp_path, **auto)


def test_what_failed_by_bad_luck_is_tried_again(tmp_path: Path) -> None:
    first = board(tmp_path)
    lost, bad = first.next(), first.next()
    first.failed(lost, "the node died")
    first.failed(bad, "depth", final=True)
    assert [trial.id for trial in board(tmp_path).todo] == [lost.id]


def test_another_sweep_under_the_name_is_refused(tmp_path: Path) -> None:
    board(tmp_path)
    with pytest.raises(UserError, match=r'is another sweep:\n  search: the sweep has "random", this one "tpe"'):
        board(tmp_path, search="tpe")
    with pytest.raises(UserError, match=r'recipe\'s optim: the sweep has .*"lr": 0.05.*, this one .*"lr": 0.2'):
        board(tmp_path, base_with={**ON_RAY, "optim": {"lr": 0.2}})


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"base_with": {}}, r"scaling.num_workers 0: a trial is a run on Ray"),
        ({"base_with": {**ON_RAY, "run": {"eval_every": 2}}}, r"eval_every 2 epochs is above the scheduler's 1"),
        ({"space": {"optim.batch": {"choice": [15, 16]}}, "base_with": {"scaling": {"num_workers": 2}}}, r"batch 15"),
        (
            {"space": {"optim.lr": {"uniform": [0.1, 0.2]}}, "scheduler": {"kind": "pbt"}},
            r"it needs schedule.kind constant",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_at_once(tmp_path: Path, more: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        board(tmp_path, **more)
    assert not (tmp_path / "s").exists()


def test_best_pareto_and_the_recipe_of_the_best(tmp_path: Path) -> None:
    mine = board(tmp_path, objectives=["val_error", "macs"], budget={"trials": 4})
    results = {"0000": (60.0, 5e6), "0001": (50.0, 9e6), "0002": (55.0, 9e6), "0003": (40.0, 20e6)}
    for error, macs in results.values():
        trial = mine.next()
        mine.started(trial)
        evaluate(mine, trial, 1, error)
        trial.values["macs"] = macs
        if trial.id == "0003":
            mine.stopped(trial, "behind")  # the best so far, but nobody knows how it would have ended
        else:
            finish(mine, trial, error)
    mine.end("finished", "")
    record = read(tmp_path / "s")
    assert (record.best, record.pareto) == ("0001", ["0000", "0001"])
    assert record.trial("0003").why == "behind"
    best = load(Recipe, tmp_path / "s" / "best.yaml")
    point = record.trial("0001").point
    assert (best.model.depth, best.optim.lr) == (point["model.depth"], point["optim.lr"])
    assert (best.name, best.run.storage) == ("s-best", str(tmp_path))


def test_only_the_best_keep_checkpoints(tmp_path: Path) -> None:
    mine = board(tmp_path, budget={"trials": 4}, keep_checkpoints=1)
    for error in (60.0, 40.0, 50.0, 30.0):
        trial = mine.next()
        for name in ("checkpoints", "artifact"):
            Path(mine.record.place(trial), name).mkdir(parents=True)
        if error == 30:
            mine.stopped(trial, "behind")
        else:
            finish(mine, trial, error)
    kept = sorted(path.parent.name for path in (tmp_path / "s" / "trials").glob("*/checkpoints"))
    assert kept == ["0001"]
    assert len(list((tmp_path / "s" / "trials").glob("*/artifact"))) == 4


def test_checkpoints_that_are_gone_are_not_looked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbone.sweep.board.SETTLED", -1.0)
    mine = board(tmp_path, budget={"trials": 3}, keep_checkpoints=1)
    finish(mine, mine.next(), 20.0)
    finish(mine, behind := mine.next(), 60.0)
    Path(mine.record.place(behind), "checkpoints").mkdir(parents=True)
    finish(mine, mine.next(), 50.0)
    assert Path(mine.record.place(behind), "checkpoints").is_dir()
    mine.started(behind)  # once more
    finish(mine, behind, 60.0)
    assert not Path(mine.record.place(behind), "checkpoints").exists()


def test_budgets(tmp_path: Path) -> None:
    mine = board(tmp_path, budget={"trials": 4, "device_hours": 0.025})
    a, b = mine.next(), mine.next()
    evaluate(mine, a, 1, 50.0)
    evaluate(mine, b, 1, 50.0)
    assert mine.over_budget() == ""
    evaluate(mine, b, 2, 50.0)
    assert mine.over_budget() == "budget.device_hours 0.025 is used up"
    tree = json.loads((tmp_path / "s" / "sweep.json").read_text())
    tree["seconds"] = 3600.0  # earlier attempts count
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(tree))
    assert board(tmp_path, budget={"trials": 4, "hours": 0.5}).over_budget() == "budget.hours 0.5 is used up"


def test_disk_use_is_foretold(tmp_path: Path) -> None:
    mine = board(tmp_path, space={"model.depth": {"choice": [8, 14]}}, budget={"trials": 2})
    weights = 4 * 172636  # of the larger net
    assert mine.ahead.disk_bytes(places=3) == 2 * weights + (3 * 4 + 3) * 2 * weights


def test_pareto() -> None:
    rows = [("a", (1, 5)), ("b", (2, 4)), ("c", (2, 5)), ("d", (3, 1)), ("e", (1, 5))]
    assert pareto(rows, ["min", "min"]) == ["a", "b", "d", "e"]
    assert pareto(rows, ["max", "max"]) == ["c", "d"]


def test_a_damaged_record_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no sweep: there is no sweep.json"):
        read(tmp_path)
    board(tmp_path)
    place = tmp_path / "s" / "sweep.json"
    whole = place.read_text()
    for text, complaint in (
        (whole[: len(whole) // 2], "cannot be read"),
        (whole.replace('"version": 1', '"version": 99'), "version 99"),
        (whole.replace('"objectives"', '"goals"'), "is damaged"),
    ):
        place.write_text(text)
        with pytest.raises(UserError, match=complaint):
            read(tmp_path / "s")


def test_a_record_that_is_dear_to_write_is_written_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = board(tmp_path, budget={"trials": 1})
    trial, write, written = mine.next(), Record.write, []

    def slow(record: Record) -> None:
        time.sleep(0.1)
        written.append(len(record.trials[0].history))
        write(record)

    monkeypatch.setattr(Record, "write", slow)
    for epoch in range(1, 21):
        evaluate(mine, trial, epoch, 50.0)
    assert written == [1]
    mine.heartbeat()
    assert written == [1]
    mine._due = 0.0  # the time has come
    mine.heartbeat()
    assert written == [1, 20]


def test_a_sweep_killed_before_its_last_word_is_finished_by_submitting_it(tmp_path: Path) -> None:
    one = {"space": {"model.depth": {"choice": [8]}}, "search": "grid", "budget": {"trials": 0}}
    mine = board(tmp_path, **one)
    trial = mine.next()
    mine.record.state = "running"
    finish(mine, trial, 50.0)
    assert run(make(tmp_path, **one), say=lambda text: None).state == "finished"


def test_the_recipe_of_the_best_is_there_when_pages_name_it(tmp_path: Path) -> None:
    mine = board(tmp_path, budget={"trials": 3})
    for error in (60.0, 50.0, 55.0):
        finish(mine, trial := mine.next(), error)
        best = mine.record.trial(mine.record.best)
        assert load(Recipe, tmp_path / "s" / "best.yaml").optim.lr == best.point["optim.lr"]
    assert best is not trial
