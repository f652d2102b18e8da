"""Plain lines, a bar on a terminal, TensorBoard files that a reader reads, curves as a picture."""

import io
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from backbone.storage import filesystem
from backbone.training.curves import draw_curves
from backbone.training.display import Display
from backbone.training.pretrain import CURVES

RECORDS = [
    {"kind": "log", "step": s, "total": 40, "epoch": s / 20, "loss": 3 - s / 20, "error": 90.0 - s, "lr": 0.1,
     "images_per_second": 100.0, "data_wait": 0.25}
    for s in (10, 20)
] + [
    {"kind": "evaluation", "step": 20, "total": 40, "val_error": 70.0, "val_loss": 2.0, "val_seconds": 1.5}
]  # fmt: skip


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """The scalars in TensorBoard files: records of length, checksum, event, checksum."""
    found = {}
    for file in folder.glob("events.*"):
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
            data = data[16 + size :]
    return found


def test_lines_and_tensorboard(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    display = Display(str(tmp_path))
    for record in RECORDS:
        display.show(record)
    display.show({"kind": "say", "text": "hello"})
    display.close()
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("epoch 0.50  step 10/40  loss 2.500  error 80.0 %  100 img/s")
    assert "eta" in out[1]
    assert out[2].startswith("step 20/40  validation: error 70  loss 2")
    assert out[3] == "hello"
    found = scalars(tmp_path / "tensorboard")
    assert found["train/loss", 10] == pytest.approx(2.5)
    assert found["val/error", 20] == pytest.approx(70)


def test_a_bar_on_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    display = Display(str(tmp_path))
    for record in RECORDS:
        display.show(record)
    display.close()
    captured = capsys.readouterr()
    assert "20/40" in captured.err
    assert "error 70.0 %" in captured.err
    assert "validation: error 70" in captured.out


def test_tensorboard_of_a_remote_run_is_uploaded() -> None:
    display = Display("memory://boards/run")
    for record in RECORDS:
        display.show(record)
    display.close()
    fs, path = filesystem("memory://boards/run/tensorboard")
    assert any("events" in name for name in fs.ls(path, detail=False))


def picture(history: list[dict[str, Any]]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(draw_curves(history, "title", CURVES, "top-1 error (%)", 70.0))))


HISTORY = [{k: v for k, v in r.items() if k not in ("kind", "total")} for r in RECORDS]


@pytest.mark.parametrize("records", [1, 2, 3])
def test_curves_are_drawn(records: int) -> None:
    """Another history is another picture; a single record is a point of each curve, in the curve's colour."""
    whole, before = picture(HISTORY[:records]), picture(HISTORY[: records - 1])
    assert whole.shape[0] > 300
    assert not np.array_equal(whole, before)
    training = [int(CURVES[0].colour[i : i + 2], 16) for i in (1, 3, 5)]
    legend, drawn = ((one[..., :3] == training).all(-1).sum() for one in (before, whole))
    assert drawn > legend + 5 or records == 3  # the third is of another curve


def test_what_a_remote_run_shows_is_in_its_folder_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for attempt in range(2):
        display = Display("memory://displays/run")
        display.say(f"attempt {attempt}")
        assert list(tmp_path.iterdir())
        display.close()
        assert list(tmp_path.iterdir()) == []
    fs, path = filesystem("memory://displays/run/log.txt")
    assert [line.split(" ", 2)[2] for line in fs.cat_file(path).decode().splitlines()] == ["attempt 0", "attempt 1"]


def test_the_step_it_was_stopped_at_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    display = Display(str(tmp_path))
    display.show(RECORDS[0])
    for _ in range(2):
        display.stopped("go on")
        display.show(RECORDS[1])  # workers are told to end, and have not yet
    display.close()
    assert capsys.readouterr().out.splitlines()[1:] == ["stopped at step 10; submit again to go on"]
    assert "stopped at step 10; submit again to go on" in (tmp_path / "log.txt").read_text()


def test_a_slow_run_has_a_rate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As of the first steps where the net is compiled."""
    display = Display(str(tmp_path))
    display.show({**RECORDS[0], "images_per_second": 0.06})
    display.close()
    assert "  0.06 img/s" in capsys.readouterr().out


def test_a_full_disk_takes_no_error_s_place(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Neither a line nor TensorBoard's last words raise anything: the checkpoint's error says what to do, told once."""
    display = Display(str(tmp_path))
    for record in RECORDS[:2]:
        display.show(record)
    capsys.readouterr()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, before[1]))  # no file may grow: as on a full disk, an OSError
    try:
        for record in RECORDS:
            display.show(record)
        display.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "cannot be written" in line]
    assert told == [f"log.txt and TensorBoard files of {tmp_path} cannot be written: [Errno 27] File too large"]
    assert len(lines) == 1 + len(RECORDS)  # and what people read comes all the same


def test_ranks_that_have_nothing_to_say_leave_the_log_alone() -> None:
    place = "memory://ranks/run"
    old = Display(place)
    old.say("attempt 0")
    old.close()
    first, second = Display(place), Display(place, keeps=False)
    first.say("attempt 1")
    first.close()
    second.close()
    fs, path = filesystem(place)
    assert b"attempt 1" in fs.cat_file(f"{path}/log.txt")
