"""Runs that are tracked, stopped and resumed, read back through MLflow's client and from W&B's offline files."""

import json
import signal
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backbone import tracking
from backbone.errors import UserError
from backbone.job import submit
from backbone.stopping import Stopped
from backbone.training.pretrain import PRETRAIN
from backbone.training.recipe import Recipe, identity

Make = Callable[..., Recipe]
BLOCK = 1 << 15


@pytest.fixture(autouse=True)
def own_services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's server is asked."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_DIR", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    waits = dict.fromkeys(("finished", "failed", "stopped"), 300.0)  # importing takes long on a loaded machine
    monkeypatch.setattr(tracking, "LEAVING_S", waits)


def stop_at(step: int) -> Callable[[dict[str, Any]], None]:
    def watch(record: dict[str, Any]) -> None:
        if record.get("step") == step:
            raise Stopped(signal.SIGTERM)

    return watch


def stopped_and_resumed(recipe: Recipe) -> list[dict[str, Any]]:
    """Stop behind a checkpoint, so that the resumption does steps over; returns the history that came of it."""
    with pytest.raises(Stopped):
        submit(PRETRAIN, recipe, watch=stop_at(15))
    outcome = submit(PRETRAIN, recipe)
    return json.loads(Path(outcome.url, "history.json").read_text())


def test_a_resumed_run_is_one_run_in_mlflow(tiny: Make, tmp_path: Path) -> None:
    recipe = tiny({"run.track": "mlflow"})
    history = stopped_and_resumed(recipe)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("raybone").experiment_id])
    assert run.info.run_id == json.loads((tmp_path / "runs/tiny/tracking.json").read_text())["mlflow"]["id"]
    assert (run.info.run_name, run.info.status) == ("tiny", "FINISHED")
    assert run.data.tags["raybone.url"] == str(tmp_path / "runs" / "tiny")
    assert (run.data.params["optim.lr"], run.data.params["model.depth"]) == ("0.05", "8")
    for kind, split, name in (("log", "train", "loss"), ("evaluation", "val", "error")):
        sent = {one.step: one.value for one in client.get_metric_history(run.info.run_id, f"{split}/{name}")}
        key = name if kind == "log" else f"val_{name}"
        assert sent == {record["step"]: record[key] for record in history if record["kind"] == kind}
    steps = Counter(one.step for one in client.get_metric_history(run.info.run_id, "train/loss"))
    assert max(steps.values()) == 1  # what was done over was not sent again
    config = json.loads((tmp_path / "runs/tiny/artifact/config.json").read_text())
    final = config["raybone"]["provenance"]["metrics"]["val_error"]
    assert run.data.metrics["final/val_error"] == final


def test_what_is_remembered_is_never_half_written(tmp_path: Path) -> None:
    """The driver may be killed while it writes; a resumption that cannot read the file is not tracked at all."""
    tracking.Memory(str(tmp_path), "wandb").begin("one")
    file = tmp_path / "tracking.json"
    before, inode = file.read_bytes(), file.stat().st_ino
    with file.open("rb") as opened:  # as one who reads it meanwhile
        tracking.Memory(str(tmp_path), "wandb").logged("train", 7)
        assert opened.read() == before
    assert file.stat().st_ino != inode
    assert tracking.Memory(str(tmp_path), "wandb").steps == {"train": 7}


def test_a_resumed_run_is_one_run_of_wandb(tiny: Make, tmp_path: Path) -> None:
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    history = stopped_and_resumed(tiny({"run.track": "wandb"}))
    files = sorted((tmp_path / "runs/tiny/wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    sent, ids, final = [], set(), {}
    for file in files:
        for data in leveldb_records(file.read_bytes()):
            record = pb.Record.FromString(data)
            if record.HasField("history"):
                row = {(i.key or ".".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}
                sent.append(row)
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("summary"):
                final |= {(i.key or ".".join(i.nested_key)): i.value_json for i in record.summary.update}
    assert ids == {json.loads((tmp_path / "runs/tiny/tracking.json").read_text())["wandb"]["id"]}
    losses = [(row["step"], row["train/loss"]) for row in sent if "train/loss" in row]
    assert losses == [(one["step"], one["loss"]) for one in history if one["kind"] == "log"]
    errors = [(row["step"], row["val/error"]) for row in sent if "val/error" in row]
    assert errors == [(one["step"], one["val_error"]) for one in history if one["kind"] == "evaluation"]
    assert final["state"] == '"finished"'


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Of W&B's file, a LevelDB log behind a header of 7 bytes: records in pieces that cross no block of 32 KiB."""
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield whole
            whole = b""


def test_a_server_that_is_not_there_costs_no_training(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    outcome = submit(PRETRAIN, tiny({"run.track": "mlflow", "schedule.total": 4}), say=said.append)
    assert Path(outcome.artifact, "config.json").exists()
    (line,) = [line for line in said if line.startswith("run.track")]
    assert line.endswith("; the run goes on untracked")


def test_a_service_that_hangs_is_left_behind(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setitem(tracking.LEAVING_S, "finished", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and answers nothing
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "300")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        said: list[str] = []
        outcome = submit(PRETRAIN, tiny({"run.track": "mlflow", "schedule.total": 4}), say=said.append)
    assert Path(outcome.artifact, "config.json").exists()
    assert "run.track mlflow: does not answer; what was not sent is left behind" in said


def test_tracking_is_no_part_of_what_a_run_is(tiny: Make) -> None:
    assert identity(tiny({"run.track": "wandb"})) == identity(tiny())


@pytest.mark.parametrize("kind", ["mlflow", "wandb"])
def test_a_missing_extra_is_named_before_anything_is_written(
    tiny: Make, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=f"uv sync --inexact --extra {kind}, or pip install '{kind}"):
        submit(PRETRAIN, tiny({"run.track": kind}))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("kind", "variable"), [("mlflow", "MLFLOW_TRACKING_URI"), ("wandb", "WANDB_DIR")])
def test_where_it_goes_from_an_object_store_must_be_said(tiny: Make, kind: str, variable: str) -> None:
    with pytest.raises(UserError, match=f"export {variable}="):
        tracking.check(tiny({"run.track": kind, "run.storage": "memory://runs"}))
