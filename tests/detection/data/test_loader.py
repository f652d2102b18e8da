"""The same batches however many loader processes and ranks there are; flat objects that belong to their images."""

import pickle
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch

from backbone.data.slots import AHEAD, KEPT
from backbone.data.stream import MicroBatches, Stream, mix, share
from backbone.data.synthetic import CLASSES, render
from backbone.errors import BadImage
from detection.data.augment import evaluation_view, target_size, training_view
from detection.data.contract import Categories, Objects
from detection.data.loader import EvalSet, TrainSet, eval_loader, planes, targets, train_loader
from detection.data.options import DetectionAugment, ScenesData
from tests.backbone.data.making import kept
from tests.detection.data.making import of_planes

STEPS = 5  # of 8 images: the second epoch has begun
SHAPES = ((64, 96), (96, 64), (80, 80), (70, 96))
ALL = DetectionAugment(flip=0.5, crop=0.9, colour=0.4)


@dataclass
class Scenes:
    """Rendered scenes cut to several shapes; of every fourth no object is annotated."""

    num: int = 22
    bad: frozenset[int] = frozenset()
    bare: bool = False
    asked_for_masks: list[bool] = field(default_factory=list)
    categories = Categories(CLASSES, tuple(range(1, 13)))
    fingerprint = "scenes"
    has_masks = True
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def image_ids(self) -> np.ndarray:
        return np.arange(self.num) + 100

    @property
    def sizes(self) -> np.ndarray:
        return np.array([SHAPES[i % 4] for i in range(self.num)], np.int32)

    def __len__(self) -> int:
        return self.num

    def name(self, i: int) -> str:
        return f"picture {i}"

    def is_empty(self, i: int) -> bool:
        return self.bare or i % 4 == 1

    def image(self, i: int) -> np.ndarray:
        if i in self.bad:
            raise BadImage(f"picture {i}: torn")
        height, width = SHAPES[i % 4]
        return render(5, i, 96, (4, 4)).image[:height, :width]

    def objects(self, i: int, masks: bool = False) -> Objects:
        self.asked_for_masks.append(masks)
        height, width = SHAPES[i % 4]
        scene = render(5, i, 96, (4, 4))
        boxes = np.clip(scene.boxes, 0, [width, height, width, height]).astype(np.float64)
        kept = ((boxes[:, 2:] - boxes[:, :2]) >= 4).all(1) & (not self.is_empty(i))
        cut = [mask[:height, :width] for mask in scene.masks[kept]]
        return Objects(boxes[kept], scene.labels[kept] + 1, cut if masks else [])

    def num_objects(self) -> np.ndarray:
        return np.array([len(self.objects(i).labels) for i in range(self.num)])

    def ground_truth(self, ids: np.ndarray | None = None) -> dict[str, Any]:
        raise AssertionError("loaders do not judge")


SOURCE = Scenes()


def data(**options: Any) -> ScenesData:
    defaults = {"shorter_side": (48, 64), "longer_side": 100, "augment": ALL, "workers": 0}
    return ScenesData.model_validate(defaults | options)


def train_set(source: Scenes = SOURCE, masks: bool = True, **options: Any) -> TrainSet:
    return TrainSet(source, data(**options), 3, 8, 2, masks)


def micro_batches(rank: int = 0, world: int = 1, start: int = 0) -> MicroBatches:
    return MicroBatches(8, 2, rank, world, start, STEPS)


def assert_same(found: Iterable[Any], expected: list[Any]) -> None:
    found = kept(found)
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
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
def alone() -> list[Any]:
    return kept(train_loader(train_set(), micro_batches()))


def test_a_batch_is_its_samples_padded_and_strung_together(alone):
    stream, view, gaps = train_set().stream, of_planes(training_view(ALL, (48, 64), 100)), 0
    assert [batch["position"] for batch in alone] == list(range(0, 8 * STEPS, 2))
    for batch in alone:
        images, masks = batch["images"], planes(batch, batch["images"])
        num, _, height, width = images.shape
        assert (images.dtype, num, height % 32, width % 32) == (torch.uint8, 2, 0, 0)
        assert (batch["boxes"].dtype, batch["labels"].dtype, masks.dtype) == (torch.float32, torch.int64, torch.uint8)
        total = sum(batch["counts"])
        assert batch["sides"] == [tuple(size) for size in batch["sizes"].tolist()]
        assert batch["boxes"].shape == (total, 4)
        assert masks.shape == (total, height, width)
        assert (batch["sizes"].amax(0) + 32 > torch.tensor([height, width])).all()
        dropped = 0
        for i, target in enumerate(targets(batch)):
            epoch, sample = stream[batch["position"] + i]
            objects = SOURCE.objects(sample, masks=True)
            expected = view(SOURCE.image(sample), objects.boxes, objects.masks, mix(3, epoch, sample))
            h, w = batch["sizes"][i].tolist()
            assert np.array_equal(images[i, :, :h, :w].permute(1, 2, 0).numpy(), expected.image)
            assert images[i].sum() == images[i, :, :h, :w].sum()
            assert np.array_equal(target["boxes"].numpy(), expected.boxes)
            assert target["labels"].tolist() == objects.labels[expected.rows].tolist()
            assert target["masks"].shape == (len(expected.rows), height, width)
            assert target["masks"].sum() == target["masks"][:, :h, :w].sum()
            assert np.array_equal(target["masks"][:, :h, :w].numpy(), np.array(expected.masks).reshape(-1, h, w))
            dropped += expected.dropped
            gaps += int(expected.rows.max(initial=-1)) >= len(expected.rows)
        assert (batch["dropped"], batch["bad"]) == (dropped, [])
    assert sum(not count for batch in alone for count in batch["counts"]) >= 8
    assert gaps  # rows that are not just the first ones


def test_loader_processes_change_nothing(alone):
    assert_same(train_loader(train_set(workers=2), micro_batches()), alone)


def test_batches_lie_in_memory_that_is_filled_in_again():
    train = train_set(workers=2)
    found = next(iter(train_loader(train, micro_batches())))["images"]
    assert found.untyped_storage().nbytes() == (2 * AHEAD + KEPT) * 2 * train.room


class Cramped(TrainSet):
    """No batch fits into its slot: as where copy-paste makes images larger."""

    room = 1000


@pytest.mark.parametrize("workers", [0, 1])
def test_what_does_not_fit_has_memory_of_its_own(alone, workers: int):
    assert_same(train_loader(Cramped(SOURCE, data(workers=workers), 3, 8, 2, True), micro_batches()), alone)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_change_nothing(alone, world: int):
    found = chain(*(kept(train_loader(train_set(), micro_batches(rank, world))) for rank in range(world)))
    assert_same(sorted(found, key=lambda batch: batch["position"]), alone)


def test_resume_changes_nothing(alone):
    assert_same(train_loader(train_set(), micro_batches(start=3)), alone[12:])


def test_masks_only_when_asked(alone):
    source = Scenes()
    found = kept(train_loader(train_set(source, masks=False), micro_batches()))
    assert not any(source.asked_for_masks)
    for batch, full in zip(found, alone, strict=True):
        assert torch.equal(batch["images"], full["images"])
        assert planes(batch, batch["images"]).shape == (0, *batch["images"].shape[-2:])
        for target, other in zip(targets(batch), targets(full), strict=True):
            assert ("masks" in target) == (len(batch["boxes"]) == 0)
            # A crop may cut off what is seen of an object whose box it leaves: such a box goes only with its mask.
            assert len(target["boxes"]) >= len(other["boxes"])


def test_batch_of_backgrounds():
    batch = train_set(Scenes(bare=True)).make(range(1))
    assert batch["boxes"].shape == (0, 4)
    assert batch["labels"].shape == (0,)
    assert planes(batch, batch["images"]).shape == (0, *batch["images"].shape[-2:])
    assert (batch["labels"].dtype, batch["boxes"].dtype, batch["counts"]) == (torch.int64, torch.float32, [0])
    (target,) = targets(batch)
    assert [tuple(target[name].shape) for name in ("boxes", "labels")] == [(0, 4), (0,)]
    assert target["masks"].shape == (0, *batch["images"].shape[-2:])


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_image_stops_and_is_named(workers: int):
    """In one line, also where the error comes out of a loader process; after what came before it."""
    bad = 7
    stream = train_set().stream
    place = [stream[position][1] for position in range(22)].index(bad)
    batches = iter(train_loader(train_set(Scenes(bad=frozenset({bad})), workers=workers), micro_batches()))
    for _ in range(place // 2):
        next(batches)
    with pytest.raises(BadImage, match=r"^picture 7: torn; mend or remove it, or set data\.on_bad: skip$"):
        next(batches)


def test_bad_image_is_replaced_by_the_next_one_with_its_objects():
    bad = frozenset({3, 4, 21})
    replaced = {3: 5, 4: 5, 21: 0}  # the last one by the first
    names = {3: ["picture 3: torn", "picture 4: torn"], 4: ["picture 4: torn"], 21: ["picture 21: torn"]}
    found = kept(train_loader(train_set(Scenes(bad=bad), on_bad="skip", augment={"flip": 0.0}), micro_batches()))
    stream = train_set().stream
    for batch in found:
        samples = [stream[batch["position"] + i][1] for i in range(2)]
        assert batch["bad"] == [name for sample in samples for name in names.get(sample, [])]
        for sample, target in zip(samples, targets(batch), strict=True):
            assert target["labels"].tolist() == SOURCE.objects(replaced.get(sample, sample)).labels.tolist()
    assert sum(len(batch["bad"]) for batch in found) >= 4
    resumed = train_loader(
        train_set(Scenes(bad=bad), on_bad="skip", augment={"flip": 0.0}, workers=1), micro_batches(start=2)
    )
    assert_same(resumed, found[8:])


@pytest.mark.parametrize(("max_bad", "stops"), [(1, True), (2, False)])
def test_too_many_bad_images_in_a_row_stop(max_bad: int, stops: bool):
    batches = train_loader(train_set(Scenes(bad=frozenset({3, 4})), on_bad="skip", max_bad=max_bad), micro_batches())
    if stops:
        with pytest.raises(BadImage, match=f"more than data.max_bad {max_bad} unreadable images in a row: picture "):
            list(batches)
    else:
        assert len(list(batches)) == 4 * STEPS


def test_nothing_but_bad_images_ends():
    with pytest.raises(BadImage, match="in a row"):
        train_set(Scenes(bad=frozenset(range(22))), on_bad="skip").make(range(1))


def test_steps_hold_the_samples_of_the_backbones_stream():
    stream, plain = train_set().stream, Stream(3, 22)
    for step in range(STEPS):
        positions = range(8 * step, 8 * step + 8)
        assert sorted(stream[p] for p in positions) == sorted(plain[p] for p in positions)


def test_train_set_pickles_small():
    found = train_set(Scenes(2000))
    found.make(range(1))
    copy = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 2000 * 4 + 4000
    assert_same([copy.make(range(5, 6))], [found.make(range(5, 6))])


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (5, 0), (1, 1)])
def test_evaluation_gives_each_image_once_in_order(world: int, workers: int):
    loaders = [eval_loader(EvalSet(SOURCE, data(workers=workers)), share(22, rank, world), 4) for rank in range(world)]
    for _ in range(2):
        batches = list(chain(*loaders))
        assert list(chain(*(batch["indices"] for batch in batches))) == list(range(22))
        for batch in batches:
            assert batch["originals"].tolist() == SOURCE.sizes[batch["indices"]].tolist()
            assert batch["readable"].all()
            assert batch["images"].shape[-2] % 32 == batch["images"].shape[-1] % 32 == 0
            for image, size, index in zip(batch["images"], batch["sizes"], batch["indices"], strict=True):
                expected = evaluation_view(SOURCE.image(index), 64, 100)
                h, w = size.tolist()
                assert np.array_equal(image[:, :h, :w].permute(1, 2, 0).numpy(), expected)
                assert image.sum() == image[:, :h, :w].sum()


def test_bad_evaluation_image_keeps_its_place_and_size():
    source = Scenes(10, frozenset({2, 9}))
    batches = list(eval_loader(EvalSet(source, data(on_bad="skip")), range(10), 4))
    assert [batch["bad"] for batch in batches] == [["picture 2: torn"], [], ["picture 9: torn"]]
    assert list(chain(*(batch["indices"] for batch in batches))) == list(range(10))
    readable = torch.cat([batch["readable"] for batch in batches]).tolist()
    assert readable == [i not in source.bad for i in range(10)]
    assert [bool(image.any()) for batch in batches for image in batch["images"]] == readable
    sizes = torch.cat([batch["sizes"] for batch in batches]).tolist()
    assert sizes == [list(target_size(*size, 64, 100)) for size in source.sizes.tolist()]
    with pytest.raises(BadImage, match=r"^picture 2: torn; mend or remove it, or set data\.on_bad: skip$"):
        list(eval_loader(EvalSet(source, data()), range(10), 4))


def test_train_loader_refuses_steps_of_another_size():
    with pytest.raises(AssertionError):
        train_loader(train_set(), MicroBatches(4, 2, 0, 1, 0, STEPS))
