"""Checkpoints: whole or not at all, safe to load, and a damaged one costs only the steps since the one before."""

import errno
from pathlib import Path

import pytest
import torch

from backbone.errors import UserError
from backbone.storage import join
from backbone.training.schedule import Events
from backbone.training.state import Checkpointer, Progress, Store, training_seconds


def state(value: float) -> dict:
    return {
        "model": {"conv1.weight": torch.full((4, 3), value), "bn1.num_batches_tracked": torch.tensor(7)},
        "optimizer": {"state": {0: {"momentum_buffer": torch.full((4, 3), -value)}}, "param_groups": [{"lr": 0.1}]},
        "progress": Progress(step=int(value), events=Events(hold_end=3, drops=(5, 9))).as_dict(),
    }


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "checkpoints") if request.param == "local" else f"memory://{tmp_path.name}/checkpoints")


def test_round_trip_and_order(store: Store) -> None:
    assert store.newest(print) is None
    for step in (1, 2, 10):
        store.save(step, state(step), {"val_error": 50.0})
    assert store.steps() == [1, 2, 10]
    newest = store.newest(print)
    assert newest is not None
    assert torch.equal(newest["model"]["conv1.weight"], torch.full((4, 3), 10.0))
    assert Progress.from_dict(newest["progress"]).events == Events(hold_end=3, drops=(5, 9))
    assert store.manifest(10)["val_error"] == 50.0


def test_loads_with_weights_only_by_torch_itself(tmp_path: Path) -> None:
    Store(str(tmp_path)).save(3, state(3), {})
    loaded = torch.load(tmp_path / "step-00000003" / "state.pt", weights_only=True)
    assert set(loaded) == {"version", "model", "optimizer", "progress"}


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "no manifest", "bad manifest"])
def test_a_damaged_newest_falls_back_and_says_so(store: Store, damage: str) -> None:
    for step in (4, 8):
        store.save(step, state(step), {})
    file, manifest = (join(store.path, "step-00000008", name) for name in ("state.pt", "manifest.json"))
    data = bytearray(store.fs.cat_file(file))
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        store.fs.pipe_file(file, bytes(data))
    elif damage == "truncated":
        store.fs.pipe_file(file, bytes(data[:100]))
    elif damage == "missing":
        store.fs.rm(file)
    elif damage == "no manifest":
        store.fs.rm(manifest)
    else:
        store.fs.pipe_file(manifest, b"{")
    said: list[str] = []
    newest = store.newest(said.append)
    assert newest is not None
    assert newest["progress"]["step"] == 4
    assert damage == "no manifest" or "falling back" in said[0]


def test_another_version_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backbone.training.state.VERSION", 0)
    store.save(1, state(1), {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="state version 0"):
        store.load(1)


def test_prune_keeps_newest_and_best(store: Store) -> None:
    for step in range(1, 7):
        store.save(step, state(step), {})
    if store.local:
        (Path(store.path) / ".step-00000009.123").mkdir()  # a killed writer's
    store.prune(keep=2, best_step=3)
    assert store.steps() == [3, 5, 6]
    assert not store.local or not list(Path(store.path).glob(".step*"))


def test_a_full_disk_leaves_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    store.save(1, state(1), {})

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    checkpointer = Checkpointer(store, keep=2)
    checkpointer.hold(state(2), Progress(step=2), {})
    checkpointer.commit()
    with pytest.raises(UserError, match=r"step-00000002.*No space left.*submit again"):
        checkpointer.wait()
    monkeypatch.undo()
    assert store.steps() == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == ["step-00000001"]


def test_the_writer_works_on_a_copy(tmp_path: Path) -> None:
    """What the loop does to its tensors after save() must not reach the file."""
    checkpointer = Checkpointer(Store(str(tmp_path)), keep=3)
    live = state(1)
    for step in (1, 2, 3):
        live["model"]["conv1.weight"].fill_(step)
        checkpointer.hold(live, Progress(step=step), {})
        checkpointer.commit()
        live["model"]["conv1.weight"].fill_(99)
    checkpointer.wait()
    found = [Store(str(tmp_path)).load(step)["model"]["conv1.weight"][0, 0].item() for step in (1, 2, 3)]
    assert found == [1, 2, 3]


def test_training_seconds_are_those_of_steps() -> None:
    """20 steps at 40 images/s, 10 at 20; logged twice where a checkpoint falls between; evaluations left out."""
    history = [
        {"step": 10, "images_per_second": 40.0, "loss": 1.0},
        {"step": 20, "images_per_second": 40.0, "loss": 1.0},
        {"step": 20, "val_AP": 3.0, "val_seconds": 500.0},
        {"step": 25, "images_per_second": 20.0, "loss": 1.0},
        {"step": 30, "images_per_second": 20.0, "loss": 1.0},
    ]
    assert training_seconds(history, 8) == pytest.approx(20 * 8 / 40 + 10 * 8 / 20)


def test_records_are_not_copied_one_by_one() -> None:
    progress = Progress(step=3, history=[{"step": 1}], bad={"a.jpg": 2})
    told = progress.as_dict()
    assert told["history"][0] is progress.history[0]
    assert told["history"] is not progress.history
    assert Progress.from_dict(told) == progress
