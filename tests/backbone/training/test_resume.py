"""All ranks go on from one checkpoint, the one the first chose, or none does."""

import multiprocessing
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from backbone.training.resume import newest, take_best
from backbone.training.state import Progress, Store
from backbone.training.world import World, local_world

ALONE = World(0, 1, torch.device("cpu"))


def save(folder: Path, step: int, error: float = 50.0, content: float = 0.0) -> None:
    """A checkpoint of one weight, which is its step."""
    progress = Progress(step=step).as_dict()
    state = {"model": {"weight": torch.tensor([step + content])}, "average": {}, "progress": progress}
    Store(str(folder)).save(step, state, {"val_error": error})


def damage(folder: Path, step: int) -> None:
    place = folder / f"step-{step:08d}" / "state.pt"
    place.write_bytes(place.read_bytes()[:-1])


def _rank(rank: int, port: int, folders: list[str], out: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with local_world(use_gpu=False, threads=1) as world:
        try:
            state = newest(Store(folders[rank]), world, lambda text: None)
            out.put((rank, state and state["model"]["weight"].item()))
        except RuntimeError as error:
            out.put((rank, str(error)))


def both(first: Path, second: Path) -> list[Any]:
    """What two ranks go on from that see the run's folder so."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["backbone.training.resume"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = context.Queue()
    ranks = [context.Process(target=_rank, args=(r, port, [str(first), str(second)], out)) for r in range(2)]
    for process in ranks:
        process.start()
    found = dict(out.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join()
    return [found[0], found[1]]


def test_ranks_agree_or_fail_together(tmp_path: Path) -> None:
    lagging, full = tmp_path / "lagging", tmp_path / "full"
    save(lagging, 8)
    shutil.copytree(lagging, full)
    save(full, 10)
    assert both(lagging, full) == [8.0, 8.0], "the first rank's view counts"
    refused = both(full, lagging)
    assert all("rank 1: step-00000010 cannot be read" in words for words in refused), "both fail"
    damage(full, 10)
    assert both(full, lagging) == [8.0, 8.0]
    save(lagging, 10, content=0.5)
    shutil.rmtree(full / "step-00000010")
    save(full, 10)
    assert "rank 1: step-00000010 is another one than the first worker has loaded" in both(full, lagging)[1]


@pytest.mark.parametrize(
    ("damaged", "taken", "words"),
    [([], 2, ""), ([2], 4, "step-00000002 is damaged"), ([2, 4], 6, "the weights of step 6 are exported")],
)
def test_a_damaged_best_gives_way_to_the_next_best(tmp_path: Path, damaged: list[int], taken: int, words: str) -> None:
    for step, error in ((2, 10.0), (4, 20.0), (6, 30.0), (5, 40.0)):
        save(tmp_path, step, error)
    for step in damaged:
        damage(tmp_path, step)
    model = nn.Linear(1, 1, bias=False)
    model.weight = nn.Parameter(torch.tensor([6.0]))
    progress = Progress(step=6, best=10.0, best_step=2, history=[{"kind": "evaluation", "step": 6, "val_error": 30.0}])
    said: list[str] = []
    assert take_best(model, progress, Store(str(tmp_path)), ALONE, said.append) == taken
    assert model.weight.item() == taken
    assert words in " ".join(said)


def test_a_best_whose_manifest_is_cut_off_gives_way_too(tmp_path: Path) -> None:
    for step, error in ((2, 10.0), (4, 20.0), (6, 30.0)):
        save(tmp_path, step, error)
    (tmp_path / "step-00000002" / "manifest.json").write_text('{"ver')
    model = nn.Linear(1, 1, bias=False)
    model.weight = nn.Parameter(torch.tensor([6.0]))
    progress = Progress(step=6, best=10.0, best_step=2, history=[{"kind": "evaluation", "step": 6, "val_error": 30.0}])
    said: list[str] = []
    assert take_best(model, progress, Store(str(tmp_path)), ALONE, said.append) == 4
    assert any("step-00000002 is damaged" in line for line in said)
