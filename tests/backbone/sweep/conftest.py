"""A sweep that never ran: ten trials in all states, with made-up numbers, for the views of a sweep."""

import math
from pathlib import Path
from typing import Any

import pytest

from backbone.sweep.record import Objective, Record, Trial, pareto

EPOCHS = 8
MACS = {20: 40.8e6, 32: 69.1e6, 44: 97.4e6, 56: 125.7e6}
STEPS = {"kind": "steps", "milestones": [4, 6]}
COSINE = {"kind": "cosine", "warmup": 0.5}


def learning_rate(schedule: dict[str, Any], lr: float) -> list[tuple[float, float]]:
    if schedule["kind"] == "steps":
        return [(0, lr), (4, lr), (4, lr / 10), (6, lr / 10), (6, lr / 100), (8, lr / 100)]
    return [(0, 0.0), *((e, lr * 0.5 * (1 + math.cos(math.pi * (e - 0.5) / 7.5))) for e in range(1, EPOCHS + 1))]


def make_trial(i: int, state: Any, depth: int, plain: bool, schedule: dict[str, Any], lr: float, upto: int) -> Trial:
    """A trial that came `upto` epochs far."""
    floor = 9 + 200 / depth + (depth / 5 if plain else 0) + 40 * abs(math.log10(lr / 0.1)) ** 2 / 4
    rows = []
    for epoch in range(1, upto + 1):
        drop = 6 if schedule["kind"] == "steps" and epoch > 4 else 0
        error = floor + 60 * math.exp(-epoch / 2.2) + (6 - drop) + math.sin(7 * i + epoch)
        row = {"step": 100 * epoch, "epoch": epoch, "val_error": error, "val_top5_error": error / 5}
        rows.append({**row, "val_loss": error / 30, "val_images": 10_000.0, "train_seconds": epoch * depth})
    values = {"params": 13600.0 * depth, "macs": MACS[depth]} if state != "waiting" else {}
    if rows:
        values["device_hours"] = upto * depth / 3600
    if state == "finished":
        values |= {"val_error": rows[-1]["val_error"], "latency_ms": depth / 4 + (i % 3)}
    return Trial(
        id=f"{i:04d}",
        point={"model.depth": depth, "model.shortcut": "none" if plain else "A", "schedule": schedule, "optim.lr": lr},
        folder=f"trials/{i:04d}",
        net=f"cifar_{'plain' if plain else 'resnet'}{depth}",
        state=state,
        epochs=EPOCHS,
        history=rows,
        lr=learning_rate(schedule, lr),
        values=values,
        rung={1: -1, 2: 0}.get(upto, 1) if upto else -1,
        started=1e9 if upto else 0.0,
        ended=1e9 + 60 * upto if state in ("finished", "stopped", "failed") else 0.0,
    )


def make_record(url: str | Path) -> Record:
    """Ten trials below `url`: five finished, two stopped, one each running, failed and waiting. Nothing is written."""
    trials = [
        make_trial(1, "finished", 20, False, STEPS, 0.1, 8),
        make_trial(2, "finished", 56, False, COSINE, 0.1, 8),
        make_trial(3, "stopped", 56, True, STEPS, 0.3, 2),
        make_trial(4, "finished", 32, True, COSINE, 0.05, 8),
        make_trial(5, "failed", 44, False, STEPS, 1.0, 1),
        make_trial(6, "finished", 20, True, COSINE, 0.05, 8),
        make_trial(7, "stopped", 44, True, STEPS, 0.02, 4),
        make_trial(8, "finished", 44, False, STEPS, 0.1, 8),
        make_trial(9, "running", 32, False, COSINE, 0.2, 3),
        make_trial(10, "waiting", 32, False, STEPS, 0.1, 0),
    ]
    trials[2].why = "rung 1 at epoch 2: 3rd of 3, 1 goes on"
    trials[6].why = "rung 2 at epoch 4: 4th of 5, 2 go on"
    trials[4].why = "FloatingPointError: loss is not finite at step 131"
    trials[8].lineage = [{"epoch": 2.0, "from": "0002", "lr_before": 0.24, "lr": 0.2}]
    rows = [(t.id, (t.values["val_error"], t.values["macs"])) for t in trials if t.state == "finished"]
    return Record(
        name="sample",
        url=str(url),
        sweep={
            "name": "sample",
            "space": {
                "model.depth": {"choice": [20, 32, 44, 56]},
                "model.shortcut": {"choice": ["A", "none"]},
                "schedule": {"choice": [STEPS, COSINE]},
                "optim.lr": {"loguniform": [0.01, 1.0]},
            },
            "scheduler": {"kind": "asha", "grace": 2, "reduction": 2},
            "budget": {"trials": 12, "device_hours": 1.0, "hours": 0.0},
        },
        base={"model": {"net": "cifar_resnet", "depth": 20, "shortcut": "A"}, "schedule": {"total": 8}},
        objectives=[Objective("val_error", "min", "validation error (%)")],
        rungs=[2 / EPOCHS, 4 / EPOCHS],
        places=2,
        devices="1 worker of 1 CPU",
        dashboard="http://127.0.0.1:8265",
        trials=trials,
        best=min(rows, key=lambda row: row[1][0])[0],
        pareto=pareto(rows, ["min", "min"]),
        importance={"model.depth": 0.5, "model.shortcut": 0.3, "schedule": 0.2, "optim.lr": 0.0},
        created=1e9,
        seconds=754.0,
        versions={"raybone": "0.1.0"},
    )


def write_runs(record: Record) -> None:
    """The files of its trials as a sweep leaves them, and sweep.json."""
    for trial in record.trials:
        place = Path(record.place(trial))
        place.mkdir(parents=True, exist_ok=True)
        if trial.history:
            depth = trial.point["model.depth"]
            (place / "recipe.yaml").write_text(f"name: '{trial.id}'\nmodel:\n  depth: {depth}\n")
            lines = [f"epoch {row['epoch']}/{EPOCHS}  val_error {row['val_error']:.2f}" for row in trial.history]
            (place / "log.txt").write_text("\n".join([*lines, trial.why]) + "\n")
    record.write()


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """`make_record` below a folder of this test's own."""
    return make_record(tmp_path)
