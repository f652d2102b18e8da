"""The same pixels in the same order, however many loader processes and ranks there are and wherever a run resumes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from backbone.data.augment import evaluation_view
from backbone.data.batches import Batch, Loader, TrainSet, ValSet
from backbone.data.loader import train_loader, val_loader
from backbone.data.options import Augment, CifarAugment, Data, ModernAugment, NoAugment, PaperAugment
from backbone.data.stream import MicroBatches, Stream, share
from backbone.data.synthetic import SyntheticSource
from backbone.errors import BadImage
from tests.backbone.data.making import kept

ROOT = Path(__file__).parents[3]
FILL = (120, 110, 100)
SOURCE = SyntheticSource(0, 22, 36)
STEPS = 5  # of 16 images: the fourth epoch has begun
KINDS: dict[str, Augment] = {
    "none": NoAugment(),
    "cifar": CifarAugment(),
    "paper": PaperAugment(shorter_side=(34, 96), pca=0.1),
    "modern": ModernAugment(policy="trivial", mixup=0.2, cutmix=1.0),
    "rand": ModernAugment(policy="rand"),
}


def data(augment: Augment = KINDS["none"], **options: Any) -> Data:
    return TypeAdapter(Data).validate_python({"size": 32, "crop_pct": 1.0, "augment": augment, "workers": 0, **options})


def train_set(kind: str, **options: Any) -> TrainSet:
    return TrainSet(SOURCE, data(KINDS[kind], **options), 5, FILL)


def micro_batches(rank: int = 0, world: int = 1, start: int = 0) -> MicroBatches:
    return MicroBatches(16, 4, rank, world, start, STEPS)


def assert_same(found: Iterable[Any], expected: list[Any]) -> None:
    for one, two in zip(found, expected, strict=True):  # one by one: a batch's memory is used again
        assert one.keys() == two.keys()
        for key, value in one.items():
            other = two[key]
            assert torch.equal(value, other) if isinstance(other, torch.Tensor) else value == other, key


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """After an error torch waits 5 s for a loader process to end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
        yield


@pytest.fixture(scope="module")
def alone() -> dict[str, list[Batch]]:
    """All micro-batches of each kind, from one rank without loader processes."""
    return {kind: kept(train_loader(train_set(kind), micro_batches())) for kind in KINDS}


def test_batches_hold_what_the_stream_says(alone):
    stream, labels = Stream(5, 22), []
    for number, batch in enumerate(alone["none"]):
        samples = [stream[position][1] for position in range(4 * number, 4 * number + 4)]
        labels += samples
        views = [evaluation_view(SOURCE.image(sample), 32, 1.0) for sample in samples]
        assert np.array_equal(batch["images"].numpy(), np.stack(views).transpose(0, 3, 1, 2))
        assert batch["labels"].tolist() == SOURCE.labels[samples].tolist()
        assert (batch["position"], batch["bad"]) == (4 * number, [])
    assert sorted(labels[:66]) == sorted([*range(22)] * 3)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtypes(alone, kind: str):
    for batch in alone[kind]:
        facts = {key: (value.dtype, tuple(value.shape)) for key, value in batch.items() if hasattr(value, "dtype")}
        assert facts == {
            "images": (torch.uint8, (4, 3, 32, 32)),
            "labels": (torch.int64, (4,)),
            "shift": (torch.float32, (4, 3)),
            "blending": (torch.float32, (4, 5)),
        }
        assert batch["images"].is_contiguous()


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_same_for_every_number_of_ranks(alone, kind: str, world: int):
    ranks = [iter(train_loader(train_set(kind), micro_batches(rank, world))) for rank in range(world)]
    each = 4 // world
    assert_same((next(rank) for _ in range(STEPS) for rank in ranks for _ in range(each)), alone[kind])
    assert [next(rank, None) for rank in ranks] == [None] * world


@dataclass
class AllKinds:
    """Every kind in one data set, asked for as [(kind, position)...]: processes start once for all of them."""

    options: Data
    sets: dict[str, TrainSet] = field(default_factory=lambda: {kind: train_set(kind) for kind in KINDS})

    def fill_in(self, ids: Any, images: torch.Tensor) -> Batch:
        kind, positions = ids[0][0], range(ids[0][1], ids[-1][1] + 1)
        return self.sets[kind].fill_in(positions, images)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4")
@pytest.mark.parametrize("workers", [1, 4])
def test_same_for_every_number_of_loader_processes(alone, workers: int):
    """As the second of two ranks."""
    asked: Any = [
        [(kind, position) for position in positions] for kind in KINDS for positions in micro_batches(rank=1, world=2)
    ]
    everything: Any = AllKinds(data(workers=workers))
    expected = [batch for batches in alone.values() for number, batch in enumerate(batches) if number % 4 >= 2]
    assert_same(Loader(everything, asked, 4, (3, 32, 32), workers, torch.device("cpu")), expected)


@pytest.mark.parametrize("start", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_resumed_at_any_step_goes_on_alike(alone, kind: str, start: int):
    assert_same(train_loader(train_set(kind), micro_batches(start=start)), alone[kind][4 * start :])


@dataclass
class Stub:
    """The same picture under every number, but for those that cannot be read."""

    num: int
    bad: frozenset[int] = frozenset()
    picture: np.ndarray = field(default_factory=lambda: SOURCE.image(0))
    classes: tuple[str, ...] = ("a",)
    fingerprint: str = ""

    @property
    def labels(self) -> np.ndarray:
        return np.arange(self.num)

    def __len__(self) -> int:
        return self.num

    def name(self, i: int) -> str:
        return f"picture {i}"

    def image(self, i: int) -> np.ndarray:
        if i in self.bad:
            raise BadImage(f"picture {i}: torn")
        return self.picture


@pytest.mark.parametrize("kind", ["paper", "modern", "rand"])
def test_no_two_draws_are_alike(kind: str):
    """One picture only: across ranks, epochs and places in a batch nothing is drawn twice."""
    stub = TrainSet(Stub(22), data(KINDS[kind]), 5, FILL)
    batches = kept(chain(*(train_loader(stub, micro_batches(rank, 4)) for rank in range(4))))
    images = [image.numpy().tobytes() for batch in batches for image in batch["images"]]
    assert len(images) == 16 * STEPS
    assert len(set(images)) == len(images)
    shifts = {tuple(shift) for batch in batches for shift in batch["shift"].tolist()}
    assert len(shifts) == (len(images) if kind == "paper" else 1)


def test_seeds_draw_differently(alone):
    other = kept(train_loader(replace(train_set("modern"), seed=6), micro_batches()))
    assert not any(torch.equal(a["images"], b["images"]) for a, b in zip(other, alone["modern"], strict=True))
    assert not torch.equal(torch.cat([b["labels"] for b in other]), torch.cat([b["labels"] for b in alone["modern"]]))


@pytest.fixture
def with_bad() -> Callable[..., TrainSet]:
    def make(bad: set[int], **options: Any) -> TrainSet:
        return TrainSet(Stub(22, frozenset(bad)), data(**options), 5, FILL)

    return make


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_stops_and_is_named(with_bad, workers: int):
    """In one line, also where the error comes out of a loader process."""
    message = "^picture 3: torn; mend or remove it, or set data.on_bad: skip$"
    with pytest.raises(BadImage, match=message):
        kept(train_loader(with_bad({3}, workers=workers), micro_batches()))


def test_bad_image_is_skipped_counted_and_replaced_by_the_next(with_bad):
    bad, stream = {3, 4, 21}, Stream(5, 22)
    found = kept(train_loader(with_bad(bad, on_bad="skip"), micro_batches()))
    replaced = {3: 5, 4: 5, 21: 0}  # the last one by the first
    for batch in found:
        samples = [stream[position][1] for position in range(batch["position"], batch["position"] + 4)]
        assert batch["labels"].tolist() == [replaced.get(sample, sample) for sample in samples]
        names = {3: ["picture 3: torn", "picture 4: torn"], 4: ["picture 4: torn"], 21: ["picture 21: torn"]}
        assert batch["bad"] == [name for sample in samples for name in names.get(sample, [])]
    assert sum(len(batch["bad"]) for batch in found) >= 3 * 4
    resumed = train_loader(with_bad(bad, on_bad="skip"), micro_batches(start=2))
    assert_same(resumed, found[8:])


@pytest.mark.parametrize(("max_bad", "stops"), [(0, True), (1, True), (2, False)])
def test_bad_images_in_a_row_stop_in_the_end(with_bad, max_bad: int, stops: bool):
    batches = train_loader(with_bad({3, 4}, on_bad="skip", max_bad=max_bad), micro_batches())
    if stops:
        with pytest.raises(BadImage, match=f"more than data.max_bad {max_bad} unreadable images in a row: picture "):
            list(batches)
    else:
        assert len(list(batches)) == 4 * STEPS


def test_nothing_but_bad_images_ends(with_bad):
    with pytest.raises(BadImage, match="in a row"):
        kept(train_loader(with_bad({*range(22)}, on_bad="skip"), micro_batches()))


@pytest.mark.parametrize("world", [1, 2, 4])
def test_validation_scores_each_image_once_in_order(world: int):
    val = ValSet(SOURCE, data())
    batches = kept(chain(*(val_loader(val, share(22, rank, world), 4) for rank in range(world))))
    images = torch.cat([batch["images"] for batch in batches]).numpy()
    assert np.array_equal(
        images, np.stack([evaluation_view(SOURCE.image(i), 32, 1.0) for i in range(22)]).transpose(0, 3, 1, 2)
    )
    assert torch.cat([batch["labels"] for batch in batches]).tolist() == SOURCE.labels.tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_validation_image_keeps_its_place(workers: int):
    loader = val_loader(ValSet(Stub(10, frozenset({2, 9})), data(on_bad="skip", workers=workers)), range(10), 4)
    for _ in range(2):
        batches = kept(loader)
        labels = torch.cat([batch["labels"] for batch in batches])
        assert labels.tolist() == [0, 1, -1, 3, 4, 5, 6, 7, 8, -1]
        images = torch.cat([batch["images"] for batch in batches])
        assert images.flatten(1).any(1).tolist() == (labels >= 0).tolist()
        assert [batch["bad"] for batch in batches] == [["picture 2: torn"], [], ["picture 9: torn"]]
        assert [batch["position"] for batch in batches] == [0, 4, 8]


def test_bad_validation_image_stops():
    with pytest.raises(BadImage, match=r"^picture 2: torn; mend or remove it"):
        kept(val_loader(ValSet(Stub(10, frozenset({2})), data()), range(10), 4))


GROUP = """
import os, signal
from torch.utils.data import Dataset
from backbone.data.batches import make_loader

class Numbers(Dataset):
    def __getitems__(self, ids):
        return ids

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: print("told"))
    batches = iter(make_loader(Numbers(), 2, batch_sampler=[[i] for i in range(60)], prefetch_factor=2))
    print(next(batches))
    os.killpg(os.getpgrp(), signal.SIGTERM)
    print(sum(i for [i] in batches))
"""


def test_a_signal_to_the_whole_group_leaves_loaders_at_work(tmp_path: Path) -> None:
    """As Ctrl-C and `timeout` send it: the job still wants the batches until it has saved."""
    (tmp_path / "loads.py").write_text(GROUP)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, str(tmp_path / "loads.py")]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200, start_new_session=True)
    assert (done.returncode, done.stdout) == (0, f"[0]\ntold\n{sum(range(60))}\n"), done.stderr


ORPHANS = """
import time
from torch.utils.data import Dataset
from backbone.data.batches import make_loader

class Numbers(Dataset):
    def __getitems__(self, ids):
        return ids

if __name__ == "__main__":
    batches = iter(make_loader(Numbers(), 2, batch_sampler=[[i] for i in range(60)], prefetch_factor=2))
    next(batches)
    print(*(worker.pid for worker in batches._workers), flush=True)
    time.sleep(600)
"""


def test_loaders_end_with_the_job_however_it_ends(tmp_path: Path) -> None:
    (tmp_path / "orphans.py").write_text(ORPHANS)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    words = [sys.executable, str(tmp_path / "orphans.py")]
    job = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert job.stdout
    loaders = [int(one) for one in job.stdout.readline().split()]
    assert len(loaders) == 2
    servers = {int(Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()[1]) for one in loaders}
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    deadline = time.monotonic() + 120
    while any(map(runs, {*loaders, *servers})):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
