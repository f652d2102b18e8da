"""Every head and family on 1, 2 and 3 ranks: the same losses, weights and judgement; killed and resumed, the same bits.

Each size trains all kinds in one set of processes. An optimizer step is six micro-batches of one image, so every size
deals equal shares of it. What is drawn, and what losses are divided by, belongs to a micro-batch and never to a rank;
what is left is that gradients of six micro-batches are added in another order: float32 sums differ in their last bits,
and training carries that on. Hence `WEIGHTS` and `LOSSES`, and no equality, between sizes. Of one size all bits are
equal, killed or not.
"""

import json
import multiprocessing
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from backbone.data.stream import MicroBatches
from backbone.training import engine
from backbone.training.state import Store
from backbone.training.world import TIMEOUT_S, World
from detection.data.sources import open_sources
from detection.finetune import Detection, Finetuning, finetune, prepare
from tests.detection.conftest import recipe, write_backbone

SIZES = (1, 2, 3)
TOTAL, SAVED, KILLED = 3, 1, 2
LOSSES = {"rtol": 1e-6, "atol": 0.0}
WEIGHTS = {"rtol": 1e-4, "atol": 1e-6}

FPN = {"norm": "frozen", "freeze_at": 1, "channels": 16, "hidden": 32, "anchor_ratios": [1.0]}
FPN |= {"anchor_sizes": [8, 16, 24, 32, 48]}
FPN |= {"rpn": {"batch": 32, "pre_nms_train": 50, "pre_nms_test": 30, "post_nms_train": 30, "post_nms_test": 10}}
FPN |= {"roi": {"canonical": 32, "batch": 16, "detections": 5, "score": 0.01}}
C4 = {name: FPN[name] for name in ("norm", "freeze_at", "anchor_ratios", "rpn")}
C4 |= {"kind": "c4", "anchor_sizes": [16, 32], "roi": {"size": 4, "batch": 8, "detections": 5, "score": 0.01}}
RETINA = {name: FPN[name] for name in ("norm", "freeze_at", "anchor_ratios", "channels", "anchor_sizes")}
RETINA |= {"kind": "retinanet", "score": 0.005, "detections": 5}
SEMANTIC = {"kind": "semantic", "norm": "frozen", "freeze_at": 1, "channels": 16, "head_channels": 64}
KINDS: dict[str, dict[str, Any]] = {
    "faster fpn": FPN,
    "faster fpn, context": FPN | {"context": True},
    "faster c4": C4,
    "faster c4, context": C4 | {"context": True},
    "mask fpn": FPN | {"masks": True},
    "mask c4": C4 | {"masks": True},
    "retinanet": RETINA,
    "semantic": SEMANTIC,
}


class Killed(Exception):
    """As the loop sees it: nothing of it runs on."""


class Dying(Detection):
    """Gone on all ranks at once, before its last step."""

    def batches(self, micro_batches: MicroBatches) -> Iterator[Any]:
        for i, batch in enumerate(super().batches(micro_batches)):
            if i == KILLED * len(micro_batches.units):
                raise Killed
            yield batch


def _rank(rank: int, size: int, meet: str, runs: dict[str, tuple[Finetuning, Finetuning]]) -> None:
    torch.set_num_threads(1)
    if size > 1:
        dist.init_process_group("gloo", f"file://{meet}", timedelta(seconds=TIMEOUT_S), size, rank)
    world = World(rank, size, torch.device("cpu"))
    for whole, parts in runs.values():
        finetune(whole, world, lambda record: None)
        dying = Dying(parts.recipe, *open_sources(parts.recipe.data, parts.recipe.semantic), world)
        with pytest.raises(Killed):
            engine.train(dying, parts.recipe, world, Store(f"{parts.url}/checkpoints"), lambda record: None)
        world.gather(None)  # all see the checkpoint that the first wrote
        said: list[dict[str, Any]] = []
        finetune(parts, world, said.append)
        assert rank or any(f"resuming at step {SAVED} of {TOTAL}" in one.get("text", "") for one in said)
    if size > 1:
        dist.destroy_process_group()


def run_name(kind: str, part: str) -> str:
    return f"{kind}-{part}".replace(",", "").replace(" ", "-")


def train(root: Path) -> None:
    """Every kind on every number of ranks, whole and in two parts, in folders `<size>/<kind>-<whole or parts>`."""
    backbone = write_backbone(root / "backbone")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["detection.finetune"])
    processes = []
    for size in SIZES:
        runs = {}
        for kind, detector in KINDS.items():
            changes = {"detector": detector, "data.train_images": 12, "data.val_images": 6, "optim.batch": 6}
            changes |= {"optim.micro_batch": 1, "schedule.total": TOTAL, "run.checkpoint_every": SAVED}
            changes |= {"run.log_every": 1, "run.eval_every": 100}
            made = [
                recipe(root / str(size), backbone, {**changes, "name": run_name(kind, part)})
                for part in ("whole", "parts")
            ]
            runs[kind] = tuple(prepare(one, lambda text: None) for one in made)
        processes += [
            context.Process(target=_rank, args=(r, size, str(root / f"meet{size}"), runs)) for r in range(size)
        ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def folder(root: Path, size: int, kind: str, part: str) -> Path:
    return root / str(size) / run_name(kind, part)


def losses(run: Path) -> torch.Tensor:
    """Of each step, float64 [TOTAL]."""
    history = json.loads((run / "history.json").read_text())
    return torch.tensor([record["loss"] for record in history if "loss" in record], dtype=torch.float64)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "artifact" / "model.safetensors")


def check_sizes(root: Path, kind: str) -> None:
    """The first step's losses are of the same weights, and differ in the order of their sum alone."""
    runs = [folder(root, size, kind, "whole") for size in SIZES]
    alone, initial = weights(runs[0]), losses(runs[0])[0]
    assert len(losses(runs[0])) == TOTAL
    for run in runs[1:]:
        torch.testing.assert_close(losses(run)[0], initial, rtol=3e-7, atol=0)
        torch.testing.assert_close(losses(run), losses(runs[0]), **LOSSES)
        found = weights(run)
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, **WEIGHTS, msg=lambda text, name=name: f"{name}: {text}")


def check_resumed(root: Path, kind: str, size: int) -> None:
    """Weights, statistics, each step's loss and the judgement."""
    whole, parts = (folder(root, size, kind, part) for part in ("whole", "parts"))
    expected, found = weights(whole), weights(parts)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert losses(whole).tolist() == losses(parts).tolist()
    judged = "matches.npz" if kind == "semantic" else "detections.json"
    assert (whole / "results" / judged).read_bytes() == (parts / "results" / judged).read_bytes()


def test_numbers_of_ranks_and_resuming_change_nothing(tmp_path: Path) -> None:
    """One test, so that what takes long is trained once, whoever runs tests side by side."""
    train(tmp_path)
    faults = list[str]()
    for kind in KINDS:
        checks = [("1, 2, 3 ranks", lambda kind=kind: check_sizes(tmp_path, kind))]
        checks += [(f"resumed on {n}", lambda kind=kind, n=n: check_resumed(tmp_path, kind, n)) for n in SIZES]
        for what, check in checks:
            try:
                check()
            except AssertionError as error:
                faults.append(f"{kind}, {what}: {error}")
    assert faults == []
