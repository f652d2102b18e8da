"""Batches from CPUs elsewhere in the cluster are those of the loader, bit for bit, whatever befalls on the way."""

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter

from backbone.artifact import load
from backbone.data.batches import TrainSet
from backbone.data.loader import train_loader
from backbone.data.options import Data, ModernAugment
from backbone.data.remote import Maker, _check_room, _pack, remote_batches
from backbone.data.sources import open_source
from backbone.data.stream import MicroBatches
from backbone.errors import BadImage, UserError
from backbone.training.pretrain import prepare, pretrain
from backbone.training.ray_train import launch

pytestmark = pytest.mark.ray
FILL = (120, 110, 100)
MODERN = ModernAugment(policy="trivial", mixup=0.2, cutmix=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 images of two classes, each of its own size; the seventh is torn."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for i in range(30):
        path = root / "train" / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40 + i, 70 - i, 3), np.uint8)).save(path)
    torn = root / "train" / "a" / "06.jpg"
    torn.write_bytes(torn.read_bytes()[:300])
    return root


@pytest.fixture
def make(folder: Path, ray_cluster: Any) -> Callable[..., TrainSet]:
    def make(cpus: int = 1, **options: Any) -> TrainSet:
        given = {
            "source": "imagefolder",
            "train": f"{folder}/train",
            "val": f"{folder}/train",
            "cache": f"{folder}/cache",
            "size": 32,
            "augment": MODERN,
            "workers": 0,
            "on_bad": "skip",
            "remote_cpus": cpus,
            **options,
        }
        data = TypeAdapter(Data).validate_python(given)
        return TrainSet(open_source(data.source, data.train, data.cache), data, 5, FILL)

    return make


def copies(batches: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """A batch lasts until the next but one is asked for."""
    for batch in batches:
        yield {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}


def here(train_set: TrainSet, batches: MicroBatches) -> list[dict[str, Any]]:
    alone = replace(train_set, options=train_set.options.model_copy(update={"remote_cpus": 0}))
    return list(copies(train_loader(alone, batches)))


def assert_same(found: Iterable[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    found = list(found)
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.keys() == two.keys()
        for key, value in one.items():
            assert torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key], key


def kill_one() -> None:
    """kill -9 a process that makes batches."""
    titles = [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"ray::Maker" in p.read_bytes()]
    os.kill(int(titles[0].parent.name), signal.SIGKILL)


def test_ranks_get_what_their_loaders_give(make, folder: Path, monkeypatch):
    """Two ranks at once, resumed at the third step, one of their processes killed; from relative paths and without an
    index, as on another node."""
    monkeypatch.setattr("backbone.data.remote.PORTION", 8)  # two micro-batches a task
    monkeypatch.chdir(folder)
    train_set = make(train="train", cache="elsewhere")
    ranks = [MicroBatches(16, 4, rank, 2, 2, 30) for rank in range(2)]
    expected = [here(train_set, rank) for rank in ranks]
    assert sum(len(batch["bad"]) for batch in expected[0] + expected[1]) >= 2
    for index in (folder / "elsewhere").rglob("*.index"):
        shutil.rmtree(index)
    found = [copies(train_loader(train_set, rank)) for rank in ranks]
    for step, (pair, wanted) in enumerate(zip(zip(*found, strict=True), zip(*expected, strict=True), strict=True)):
        assert_same(pair, wanted)
        if step == 0:
            kill_one()


def test_makers_that_hang_are_not_waited_for_for_ever(make, monkeypatch) -> None:
    """Frozen, as on a node that is cut off before Ray knows of it."""
    monkeypatch.setattr("backbone.data.remote.PORTION", 4)
    found = copies(train_loader(make(), MicroBatches(16, 4, 0, 1, 0, 400)))
    next(found)
    monkeypatch.setattr("backbone.data.remote.PATIENCE", 2)
    frozen = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/cmdline") if b"ray::Maker" in p.read_bytes()]
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError, match=r"^no batch for 2 s from \d CPU\(s\) of other nodes .*: they are lost$"):
            for _ in found:
                pass
    finally:
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)


def test_images_grow_as_they_do_here(make) -> None:
    train_set = make(progressive={"from_size": 16, "end": 2, "step": 8})
    batches = MicroBatches(8, 4, 0, 1, 0, 10)
    expected = here(train_set, batches)
    assert {batch["images"].shape[-1] for batch in expected} == {16, 24, 32}
    assert_same(copies(train_loader(train_set, batches)), expected)


def test_a_bad_image_stops_in_its_place_and_frees_the_cpus(make, ray_cluster):
    train_set = make(on_bad="stop")
    batches = MicroBatches(8, 4, 0, 1, 0, 8)
    bad = [len(batch["bad"]) for batch in here(make(), batches)]
    found = copies(train_loader(train_set, batches))
    for _ in range(bad.index(1)):
        next(found)
    with pytest.raises(BadImage, match=r"^.*train/a/06.jpg: .*; mend or remove it, or set data.on_bad: skip$"):
        next(found)
    until = time.monotonic() + 10
    while ray_cluster.available_resources().get("CPU") != 4 and time.monotonic() < until:
        time.sleep(0.1)
    assert ray_cluster.available_resources()["CPU"] == 4


def said(train_set: TrainSet) -> str:
    """What the process that is to make the batches says of it."""
    images, (error,) = Maker(_pack(train_set), 4).make([range(4)])
    assert not images.size
    assert isinstance(error, UserError)
    return str(error)


def test_other_files_on_a_node_are_refused(make, folder: Path, tmp_path: Path):
    shutil.copytree(folder / "train", tmp_path / "train")
    train_set = make(train=f"{tmp_path}/train", cache=f"{tmp_path}/cache")
    (tmp_path / "train" / "a" / "00.jpg").unlink()
    assert re.search(r"^node [0-9.]+, which makes .* has other files under .*/train than the node", said(train_set))
    shutil.rmtree(tmp_path / "train")
    assert re.search(r"^node [0-9.]+, .*: .*/train.*; data.train must be a shared folder or a URL", said(train_set))


def test_what_cannot_be_met_is_refused(make, ray_cluster, monkeypatch):
    batches = MicroBatches(16, 4, 0, 2, 0, 1)
    with pytest.raises(UserError, match=r"remote_cpus 3 for each of 2 .* are 6 CPUs; the cluster has 4 on 1 node\(s\)"):
        next(remote_batches(make(3), batches))
    held = ray_cluster.util.placement_group([{"CPU": 1}, {"CPU": 2}])
    ray_cluster.get(held.ready())
    with pytest.raises(UserError, match="are 2 CPUs; the cluster has 1 on"):
        next(remote_batches(make(), batches))
    ray_cluster.util.remove_placement_group(held)
    monkeypatch.setattr(ray_cluster, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"Ray does not run in this training process; set scaling\.num_workers to 1"):
        next(remote_batches(make(), batches))


def test_nodes_with_a_gpu_are_left_alone(ray_cluster, monkeypatch):
    """As long as there are others."""
    has = {"a": {"CPU": 8.0, "GPU": 2.0}, "b": {"CPU": 3.0}, "c": {"CPU": 8.0, "GPU": 1.0}, "d": {"GPU": 1.0}}
    nodes = [{"NodeID": name, "Resources": resources, "Alive": True} for name, resources in has.items()]
    monkeypatch.setattr(ray_cluster, "nodes", lambda: nodes)
    assert _check_room(3, 1) == {"ray.io/node-id": "!in(a,c,d)"}
    with pytest.raises(UserError, match=r"the cluster has 3 on 1 node\(s\) without a GPU beside"):
        _check_room(4, 1)
    del nodes[1]
    assert _check_room(16, 1) == {}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"decode": "nvjpeg", "source": "imagefolder", "train": "a", "val": "b"}, "give one of the two"),
        ({"resident": True, "augment": {"kind": "cifar"}}, "remote_cpus is not read with resident"),
    ],
)
def test_options_that_contradict_it(given: dict[str, Any], complaint: str):
    with pytest.raises(ValueError, match=complaint):
        TypeAdapter(Data).validate_python({"remote_cpus": 1, **given})


@pytest.mark.slow
def test_training_learns_the_same(ray_cluster, tiny):
    """The weights of a run whose loader is in its one process."""
    short = {"schedule.total": 12, "run.precise_bn": 0}
    alone = tiny({**short, "name": "alone"})
    remote = tiny({**short, "name": "remote", "scaling.num_workers": 1, "data.remote_cpus": 1})
    for recipe in (alone, remote):
        launch(pretrain, prepare(recipe), recipe.scaling)
    weights, found = (load(f"{r.run.storage}/{r.name}/artifact")[0].state_dict() for r in (alone, remote))
    assert [name for name, value in found.items() if not torch.equal(value, weights[name])] == []
