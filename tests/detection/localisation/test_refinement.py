"""Proposals as files: what disk they need, and what is said where they are not whole."""

import json
import multiprocessing
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from backbone.errors import UserError
from backbone.training.world import local_world
from detection.localisation.localise import prepare
from detection.localisation.recipe import Localise
from detection.localisation.refinement import Refinement
from tests.detection.localisation.conftest import Make
from tests.detection.localisation.test_localise import place, run
from tests.detection.localisation.test_rcnn import ALONE, RCNN

DAMAGES = {
    "proposals.json": (b"{", "is not whole (proposals.json: Expecting property name"),
    "boxes.npy": (b"\x93NUMPY", "SHA-256 is not the one in proposals.json"),
    "starts.npy": (None, "is not whole ([Errno 2] No such file or directory"),
}
"""File -> what is in it instead, nothing where it is gone, and how that is said."""


def second(where: Make, changes: dict[str, Any]) -> Localise:
    """The R-CNN step of two steps on a localiser of one, which is trained here."""
    first = where({"name": "first", "schedule.total": 1})
    run(first)
    own = {"localiser": RCNN, "data.augment": {"kind": "none"}, "name": "second", "schedule.total": 2}
    return where({**own, "proposals": str(place(first) / "artifact"), **changes})


def opened(recipe: Localise, world: Any, url: str) -> Refinement:
    return Refinement(recipe, world, lambda record: None, url)


def test_proposals_that_are_made_need_no_more_disk(where: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run goes on where what is free would not hold them once more."""
    recipe, usage = second(where, {"localiser": {**RCNN, "proposals": 4_000_000}}), shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**40))
    run(recipe, stop_at=1)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=2**30))
    run(recipe)
    shutil.rmtree(place(recipe) / "artifact")  # a finished run writes nothing more
    (place(recipe) / "proposals/proposals.json").unlink()
    with pytest.raises(UserError, match=r"1024 MiB free, .* and what the run makes besides 2930 MiB"):
        prepare(recipe, lambda text: None)


def _rank(rank: int, port: int, tree: dict[str, Any], folder: Path) -> None:
    """Do each of `DAMAGES`, and write down what this rank then says; the last file holds them all."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    recipe, said = Localise.model_validate(tree), []
    with local_world(use_gpu=False, threads=1) as world:
        for name, (instead, _) in DAMAGES.items():
            file = folder / name
            intact = file.read_bytes()
            world.gather(None)
            if world.is_first and instead is None:
                file.unlink()
            elif world.is_first:
                file.write_bytes(instead)
            world.gather(None)
            try:
                opened(recipe, world, str(folder.parent))
            except UserError as error:
                said.append(str(error))
            world.gather(None)
            file.write_bytes(intact)
            world.gather(None)
        opened(recipe, world, str(folder.parent))
    (folder.parent / f"said-{rank}.json").write_text(json.dumps(said))


def test_all_ranks_say_what_is_wrong_with_proposals(where: Make) -> None:
    """The first alone reads them; the other does not wait for it."""
    recipe = second(where, {})
    run(recipe, stop_at=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["detection.localisation.localise"])
    given = port, recipe.model_dump(mode="json"), place(recipe) / "proposals"
    ranks = [context.Process(target=_rank, args=(rank, *given)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]
    said = [json.loads((place(recipe) / f"said-{rank}.json").read_text()) for rank in range(2)]
    assert said[0] == said[1]
    for line, (_, why) in zip(said[0], DAMAGES.values(), strict=True):
        assert line.startswith(f"{place(recipe)}/proposals: {why}")
        assert line.endswith("the proposals are damaged; remove that folder and submit again: they are made anew")


def test_a_remote_runs_proposals_are_verified_as_they_are_fetched(
    where: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe, url = second(where, {}), f"memory://{tmp_path.name}/second"
    run(recipe, stop_at=1)
    memory, local = fsspec.filesystem("memory"), place(recipe) / "proposals"
    memory.put(str(local), f"/{tmp_path.name}/second/proposals", recursive=True)
    train = opened(recipe, ALONE, url).train
    assert np.array_equal(train.boxes.of(3), opened(recipe, ALONE, str(place(recipe))).train.boxes.of(3))  # ty: ignore
    file = f"/{tmp_path.name}/second/proposals/boxes.npy"
    memory.pipe_file(file, b"")
    opened(recipe, ALONE, url)  # the copy is still there
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=rf"{url}/proposals: SHA-256 is not the one in proposals\.json"):
        opened(recipe, ALONE, url)
    memory.rm_file(file)
    with pytest.raises(UserError, match=rf"{url}/proposals: is not whole \(.*boxes\.npy.*remove that folder"):
        opened(recipe, ALONE, url)
