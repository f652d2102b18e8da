"""Detections: from outputs to pixels against torchvision, to JSON and back, and over ranks against one process."""

import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from pycocotools import mask as rle
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from backbone.training.world import World
from detection import scoring
from detection.detections import Detections, collect, concatenate, encode, gather, paste, to_coco
from tests.detection.adversarial import CATEGORIES, HEIGHT, WIDTH, case, stock

ALONE = World(0, 1, torch.device("cpu"))


def output(seed: int, size: tuple[int, int], count: int, masks: bool = False) -> dict[str, Tensor]:
    """What a detector could say of an image of `size` (h, w)."""
    rng = torch.Generator().manual_seed(seed)
    limits = torch.tensor([size[1], size[0]] * 2)
    corners = torch.rand(count, 4, generator=rng) * limits
    boxes = torch.cat([torch.minimum(corners[:, :2], corners[:, 2:]), torch.maximum(corners[:, :2], corners[:, 2:])], 1)
    found = {
        "boxes": boxes,
        "labels": torch.randint(1, len(CATEGORIES) + 1, (count,), generator=rng),
        "scores": torch.rand(count, generator=rng).sort(descending=True).values,
    }
    if masks:
        found["masks"] = torch.rand(count, 1, 28, 28, generator=rng)
    return found


def test_pixels_are_torchvisions() -> None:
    """Boxes and pasted masks as GeneralizedRCNNTransform puts them back, for images scaled up, down and not at all."""
    sizes, originals = [(120, 160), (96, 96), (50, 70), (64, 64)], [(60, 81), (301, 200), (50, 70), (90, 90)]
    outputs = [
        output(i, size, count, masks=True) for i, (size, count) in enumerate(zip(sizes, (5, 3, 4, 0), strict=True))
    ]
    found = collect(outputs, torch.tensor(sizes), torch.tensor(originals), [40, 10, 30, 20])
    transform = GeneralizedRCNNTransform(1, 1, [0.0], [1.0]).eval()
    theirs = transform.postprocess([dict(o) for o in outputs], sizes, originals)
    np.testing.assert_allclose(found.boxes, torch.cat([t["boxes"] for t in theirs]), rtol=1e-5, atol=1e-4)
    assert found.image_ids.tolist() == [40] * 5 + [10] * 3 + [30] * 4
    assert found.evaluated.tolist() == [40, 10, 30, 20]
    assert found.labels.tolist() == torch.cat([o["labels"] for o in outputs]).tolist()
    masks = [m[0] > 0.5 for t in theirs for m in t["masks"]]
    assert found.masks is not None
    for ours, mask in zip(found.masks, masks, strict=True):
        decoded = rle.decode(ours)
        assert decoded.shape == mask.shape
        assert np.mean(decoded != mask.numpy()) < 0.01  # boxes differ by rounding, which may move a pasted edge
        assert isinstance(ours["counts"], str)


def test_boxes_are_clipped_to_the_image() -> None:
    given = {"boxes": torch.tensor([[-3.0, 2, 50, 90]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    found = collect([given], [[40, 40]], [[20, 80]], [1])
    np.testing.assert_array_equal(found.boxes, np.array([[0, 1, 80, 20]], np.float32))
    assert found.masks is None
    assert [getattr(found, f).dtype for f in ("image_ids", "labels", "boxes", "scores")] == [
        np.int64,
        np.int64,
        np.float32,
        np.float32,
    ]


def test_a_sure_mask_fills_its_box() -> None:
    given = output(0, (40, 60), 1) | {"boxes": torch.tensor([[10.0, 5, 30, 35]]), "masks": torch.ones(1, 1, 28, 28)}
    found = collect([given], [[40, 60]], [[80, 120]], [1])
    assert found.masks is not None
    mask = rle.decode(found.masks[0])
    assert mask[11:69, 21:59].all()
    mask[8:73, 18:63] = 0  # torchvision pastes onto whole pixels, about one too many on each side
    assert not mask.any()


def boxes_in(rng: np.random.Generator, height: int, width: int, count: int) -> np.ndarray:
    """float32 [count, 4]: any, the whole image, along each edge, a column, a row, a point, nothing at the corner."""
    x, y = np.sort(rng.random((2, count, 2)) * [[[width]], [[height]]])
    boxes = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1)
    odd = np.array(
        [
            [0, 0, width, height],
            [0, 0, width / 2, height],
            [width / 2, 0, width, height],
            [0, height / 2, width, height],
            [width / 3, 0, width / 3, height],
            [0, height / 3, width, height / 3],
            [width / 2, height / 2, width / 2, height / 2],
            [width, height, width, height],
        ]
    )
    boxes[: len(odd)] = odd
    return boxes.astype(np.float32)


@pytest.mark.parametrize("side", [14, 28])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (37, 2), (33, 47), (120, 90)])
def test_masks_are_pasted_as_by_torchvision(size: tuple[int, int], side: int) -> None:
    """To the bit, and encoded to the same text: noise, all, nothing, columns, and what touches the image's edges."""
    rng = np.random.default_rng(sum(size) + side)
    boxes = boxes_in(rng, *size, 40)
    masks = torch.from_numpy(rng.random((40, 1, side, side)).astype(np.float32))
    masks[8:12], masks[12:14] = 1, 0
    masks[14:20, :, :, ::3], masks[14:20, :, :, 1::3] = 1, 0
    masks[:8:2] = 1
    whole = paste_masks_in_image(masks, torch.from_numpy(boxes), size)[:, 0] > 0.5
    found = paste(masks, boxes, *size)
    assert found == [encode(mask.numpy()) for mask in whole]
    assert all(np.array_equal(rle.decode(one), mask.numpy()) for one, mask in zip(found, whole, strict=True))
    assert paste(masks[:0], boxes[:0], *size) == []


def test_encoded_masks_come_back() -> None:
    mask = np.zeros((7, 9), bool)
    mask[2:4, 3:8] = True
    assert encode(mask)["size"] == [7, 9]
    np.testing.assert_array_equal(rle.decode(encode(mask)), mask)


def test_parts_without_rows_or_masks() -> None:
    assert len(concatenate([])) == len(collect([], np.zeros((0, 2)), np.zeros((0, 2)), [])) == 0
    given = collect([output(0, (40, 60), 2, masks=True)], [[40, 60]], [[40, 60]], [1])
    both = concatenate([concatenate([]), given])
    assert both.masks == given.masks
    bare = collect([output(0, (40, 60), 2)], [[40, 60]], [[40, 60]], [2])
    with pytest.raises(ValueError, match="some detections have masks"):
        concatenate([given, bare])
    with pytest.raises(ValueError, match="rows do not belong together"):
        Detections(given.evaluated, given.image_ids[:1], given.labels, given.boxes, given.scores, None)


def test_json_keeps_what_is_scored() -> None:
    """Sorted by image, ids of the data set, and JSON text gives back every bit; scores keep float32's order."""
    ids = [90, 5, 700]
    found = collect([output(i, (400, 600), 50) for i in ids], [[400, 600]] * 3, [[427, 640]] * 3, ids)
    results = to_coco(found, CATEGORIES)
    assert [r["image_id"] for r in results] == sorted([*ids] * 50)
    assert json.loads(json.dumps(results)) == results
    rows = np.argsort(found.image_ids, kind="stable")
    assert [np.float32(r["score"]) for r in results] == found.scores[rows].tolist()
    assert [r["category_id"] for r in results] == [CATEGORIES.ids[k - 1] for k in found.labels[rows]]
    x, y, w, h = np.array([r["bbox"] for r in results]).T
    np.testing.assert_allclose(np.stack([x, y, x + w, y + h], 1), found.boxes[rows], rtol=0, atol=1.1e-3)
    assert max(len(json.dumps(r["bbox"])) for r in results) <= 4 * 7 + 8
    assert to_coco(concatenate([]), CATEGORIES) == []


def test_images_are_evaluated_once() -> None:
    size = [[40, 60]] * 3
    found = collect([output(i, (40, 60), i % 2) for i in range(3)], size, size, [3, 4, 5])
    assert len(gather(found, ALONE, [5, 4, 3])) == len(found)
    with pytest.raises(RuntimeError, match=r"each of 4 images .* not at all 1, such as \[9\]"):
        gather(found, ALONE, [3, 4, 5, 9])
    with pytest.raises(RuntimeError, match=r"though not asked for 1, such as \[5\]"):
        gather(found, ALONE, [3, 4])
    padded = concatenate([found, collect([output(0, (40, 60), 0)], size[:1], size[:1], [4])])  # no detections on it
    with pytest.raises(RuntimeError, match=r"twice 1, such as \[4\]"):
        gather(padded, ALONE, [3, 4, 5])


class Source:
    """As much of a DetectionSource as judging asks for."""

    def __init__(self, truth: dict[str, Any]) -> None:
        self.truth, self.categories, self.has_masks = truth, CATEGORIES, True
        self.image_ids = np.array([image["id"] for image in truth["images"]])

    def ground_truth(self, ids: np.ndarray | None = None) -> dict[str, Any]:
        return self.truth


def scene() -> tuple[Source, list[dict[str, Tensor]]]:
    """21 images, and outputs near their objects; nothing found on images 7 to 13."""
    source = Source(case(11, images=21)[0])
    outputs = []
    for place, image in enumerate(source.image_ids.tolist()):
        found = output(image, (HEIGHT, WIDTH), 0 if 7 <= place < 14 else 12, masks=True)
        near = [a for a in source.truth["annotations"] if a["image_id"] == image][: len(found["boxes"])]
        for row, a in enumerate(near):
            x, y, w, h = a["bbox"]
            found["boxes"][row] = torch.tensor([x, y, x + w, y + h]) + found["boxes"][row] / WIDTH
            found["labels"][row] = CATEGORIES.ids.index(a["category_id"]) + 1
            found["masks"][row] += 0.3
        outputs.append(found)
    return source, outputs


def judge(world: World, mine: list[int]) -> scoring.Scored:
    source, outputs = scene()
    sizes = [[HEIGHT, WIDTH]] * len(mine)
    # One image at a time, as a loader's batches come.
    parts = [collect([outputs[i]], sizes[:1], sizes[:1], source.image_ids[[i]]) for i in mine]
    return scoring.gather_and_score(concatenate(parts), source, world)  # ty: ignore[invalid-argument-type]


def _rank(rank: int, shards: list[list[int]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=len(shards))
    judged = judge(World(rank, len(shards), torch.device("cpu")), shards[rank])
    Path(folder, f"{rank}.pickle").write_bytes(pickle.dumps(judged))
    dist.destroy_process_group()


def test_ranks_are_one_process_and_stock_pycocotools(tmp_path: Path) -> None:
    """21 images on 1, 2 and 3 ranks, each time one rank without detections: the same to the bit."""
    source, _ = scene()
    alone = judge(ALONE, list(range(21)))
    assert 0 < alone.metrics["bbox"]["AP"] < 1
    for kind in ("bbox", "segm"):
        slow = scoring.score_coco(source.truth, alone.detections, CATEGORIES, kind, fast=False)  # ty: ignore[invalid-argument-type]
        stats = [None if v == -1 else v for v in stock(source.truth, alone.detections, kind).stats]
        assert [slow[k] for k in scoring.STATS] == stats
        assert [alone.metrics[kind][k] for k in scoring.STATS] == pytest.approx(stats, abs=1e-15)
    empty = list(range(7, 14))
    plans = {
        "two": [[i for i in range(21) if i not in empty], empty],
        "three": [list(range(14, 21)), empty, list(range(7))],
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.detection.test_detections"])
    ranks = []
    for name, shards in plans.items():
        (tmp_path / name).mkdir()
        ranks += [context.Process(target=_rank, args=(r, shards, str(tmp_path / name))) for r in range(len(shards))]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0] * 5
    for path in sorted(tmp_path.glob("*/*.pickle")):
        judged = pickle.loads(path.read_bytes())
        assert judged.metrics == alone.metrics, path
        if path.stem != "0":  # the first rank alone holds the rest
            continue
        assert judged[:2] == alone[:2], path
        assert all(np.array_equal(judged.matches[name], array) for name, array in alone.matches.items()), path
    assert len(list(tmp_path.glob("*/*.pickle"))) == 5
