"""Data opened by several ranks: three on two nodes of different names, in processes of their own."""

import multiprocessing
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from backbone.data.index import IndexedSource
from backbone.data.sources import open_source
from backbone.errors import Lost, StorageLost, UserError
from backbone.training import opening
from backbone.training.opening import open_together
from backbone.training.world import World
from tests.backbone.data.making import make_folder

NODES = ("here", "here", "there")
Told = list[dict[str, Any]]


def _rank(rank: int, case: str, folder: str) -> None:
    """Open images of the node's own folder, or do as the case says; what was found goes into a file."""
    platform.node = lambda: NODES[rank]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=len(NODES))
    world, opened, told = World(rank, len(NODES), torch.device("cpu")), [0], Told()
    opening.SAY_AFTER_S = 0.2
    if case == "hangs":
        opening.LONGEST_S = 0.5

    def opener() -> tuple[IndexedSource, ...]:
        opened[0] += 1
        if case == "slow" and rank == 2:
            time.sleep(1)
        if (case, rank) in (("early", 0), ("hangs", 2)):
            time.sleep(60)
        if case in ("fails", "early") and rank == 2:
            raise UserError("cat.jpg: truncated")
        if case == "lost" and rank == 2:
            raise StorageLost("s3://bucket: does not answer")
        if case == "breaks" and rank == 0:
            raise ZeroDivisionError("a fault of ours")
        cache = f"{folder}/cache-{rank if case == 'apart' else NODES[rank]}"
        source = open_source("imagefolder", f"{folder}/{NODES[rank]}", cache)
        if case == "apart" and rank == 0:  # another container: nobody else sees its cache
            shutil.move(cache, f"{cache}-of-its-own")
        return (source,)

    found: dict[str, Any] = {}
    try:
        (source,) = open_together(opener, world, told.append, ("abc",) if case == "changed" else ())
        found |= {"names": [source.name(i) for i in range(len(source))], "fingerprint": source.fingerprint}
    except Exception as error:
        found |= {"error": f"{type(error).__name__}: {error}", "is_lost": isinstance(error, Lost)}
    torch.save({**found, "opened": opened[0], "told": told}, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def ranks(case: str, folder: Path) -> list[dict[str, Any]]:
    """What each of three ranks found."""
    for node in set(NODES):
        make_folder(folder / node)
    if case == "other":
        next((folder / "there").glob("*/*.*")).unlink()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.backbone.training.test_opening"])
    processes = [context.Process(target=_rank, args=(rank, case, str(folder))) for rank in range(len(NODES))]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(NODES))]


def test_files_are_listed_once_a_node(tmp_path: Path) -> None:
    found = ranks("slow", tmp_path)
    assert [one["opened"] for one in found] == [1, 0, 1]
    assert len({one["fingerprint"] for one in found}) == 1
    assert found[0]["names"] == found[1]["names"]
    assert all(name.startswith(str(tmp_path / "there")) for name in found[2]["names"])
    texts = [record["text"] for record in found[0]["told"]]
    assert texts
    assert all(text.startswith("the data are still being listed after ") for text in texts)
    assert all(text.endswith(" s, on there") for text in texts)
    assert not found[1]["told"]
    assert not found[2]["told"]


def test_a_rank_that_does_not_see_its_nodes_index_makes_its_own(tmp_path: Path) -> None:
    found = ranks("apart", tmp_path)
    assert [one["opened"] for one in found] == [1, 1, 1]
    assert found[0]["fingerprint"] == found[1]["fingerprint"] == found[2]["fingerprint"]


@pytest.mark.parametrize(
    ("case", "errors"),
    [
        ("fails", ["UserError: cat.jpg: truncated (on node there)"] * 2 + ["UserError: cat.jpg: truncated"]),
        ("lost", ["StorageLost: s3://bucket: does not answer"] * 3),
        (
            "breaks",
            ["ZeroDivisionError: a fault of ours"]
            + ["RuntimeError: ZeroDivisionError: a fault of ours (on node here)"] * 2,
        ),
        ("other", ["UserError: data.val: node there sees other files there than node here (fingerprints differ)"] * 3),
        ("changed", ["UserError: data.val: node here sees other files there than the job's start"] * 3),
    ],
)
def test_all_ranks_end_for_the_same_reason(case: str, errors: list[str], tmp_path: Path) -> None:
    for found, error in zip(ranks(case, tmp_path), errors, strict=True):
        assert found["error"].startswith(error), found
        assert found["is_lost"] == (case == "lost")


def test_the_first_failure_ends_the_waiting(tmp_path: Path) -> None:
    began = time.monotonic()
    assert all("cat.jpg: truncated" in found["error"] for found in ranks("early", tmp_path))
    assert time.monotonic() - began < 30


def test_a_disk_that_hangs_is_not_waited_for_for_ever(tmp_path: Path) -> None:
    for found in ranks("hangs", tmp_path):
        assert found["error"].startswith("Lost: the data were not listed within 0.0 h on there; look at the disks"), (
            found
        )


def test_alone_it_is_opened_here(tmp_path: Path) -> None:
    alone, folder = World(0, 1, torch.device("cpu")), make_folder(tmp_path / "images")

    def opener() -> tuple[IndexedSource, ...]:
        return (open_source("imagefolder", str(folder), str(tmp_path / "cache")),)

    (source,) = open_together(opener, alone, lambda record: None)
    assert len(source) > 1
    open_together(opener, alone, lambda record: None, (source.fingerprint,))
    shutil.rmtree(next(one for one in folder.iterdir() if one.is_dir()))
    with pytest.raises(UserError, match=r"sees other files there than the job's start .*; copy them anew, or name a"):
        open_together(opener, alone, lambda record: None, (source.fingerprint,))
