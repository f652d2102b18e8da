"""An evaluation of a detector: ours against torchvision's own reference, from image files to COCO's numbers.

Faster R-CNN with ResNet-50-FPN and frozen norms, the same weights in both, on the data set of `detection_step.py`, one
image at a time, in turns in one process. Ours is `detect_batches` and `judge`: beside COCO's numbers those of
VOC, those of each class, and which detection found which object. The reference is `evaluate` with `CocoEvaluator` of
pytorch/vision, references/detection, written anew: pycocotools loads and matches the detections of each batch, and
accumulates at the end.
"""

import contextlib
import copy
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detection_step import Scenes, Turns, arguments, data_and_backbone, in_tuples, make_recipe, now, run, twin
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from results import spread, write
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_convert

from backbone.training import engine
from backbone.training.world import Report, World
from detection import scoring
from detection.data.loader import EvalSet, eval_loader
from detection.data.sources import open_sources
from detection.evaluate import detect_batches
from detection.finetune import build_detector, load_backbone
from detection.nets import Rcnn


class Scorer:
    """The reference's CocoEvaluator, for boxes in one process."""

    def __init__(self, truth: COCO) -> None:
        self.truth = copy.deepcopy(truth)
        self.evaluator = COCOeval(self.truth, iouType="bbox")
        self.ids: list[int] = []
        self.matched: list[np.ndarray] = []

    def update(self, outputs: dict[int, dict[str, Tensor]]) -> None:
        """Match the detections of a batch."""
        results = []
        for image, output in outputs.items():
            boxes = box_convert(output["boxes"], "xyxy", "xywh").tolist()
            for box, label, score in zip(boxes, output["labels"].tolist(), output["scores"].tolist(), strict=True):
                results.append({"image_id": image, "category_id": label, "bbox": box, "score": score})
        params = self.evaluator.params
        with contextlib.redirect_stdout(None):
            self.evaluator.cocoDt = self.truth.loadRes(results) if results else COCO()
            params.imgIds = sorted(outputs)
            self.evaluator.evaluate()
        shape = (len(params.catIds), len(params.areaRng), len(outputs))
        self.matched.append(np.asarray(self.evaluator.evalImgs, object).reshape(shape))
        self.ids += params.imgIds

    def stats(self) -> np.ndarray:
        """The twelve numbers, float64 [12]."""
        ids, order = np.unique(self.ids, return_index=True)
        self.evaluator.evalImgs = list(np.concatenate(self.matched, 2)[..., order].flatten())
        self.evaluator.params.imgIds = list(ids)
        self.evaluator._paramsEval = copy.deepcopy(self.evaluator.params)
        with contextlib.redirect_stdout(None):
            self.evaluator.accumulate()
            self.evaluator.summarize()
        return np.asarray(self.evaluator.stats)


@torch.inference_mode()
def evaluate(model: nn.Module, loader: DataLoader, truth: COCO, device: torch.device) -> tuple[np.ndarray, int, float]:
    """The reference's loop: the twelve numbers, how many detections, and the seconds scoring took."""
    scorer, count, seconds = Scorer(truth), 0, 0.0
    for images, targets in loader:
        outputs = model([image.to(device) for image in images])
        outputs = [{name: value.cpu() for name, value in output.items()} for output in outputs]
        began = time.perf_counter()
        scorer.update({target["image_id"].item(): output for target, output in zip(targets, outputs, strict=True)})
        seconds += time.perf_counter() - began
        count += sum(len(output["scores"]) for output in outputs)
    began = time.perf_counter()
    return scorer.stats(), count, seconds + time.perf_counter() - began


@torch.no_grad()
def spread_scores(model: Rcnn, images: Tensor, sizes: Tensor) -> None:
    """Make the untrained classes differ from region to region, most of them being background, as a trained net's do.
    Else every region is every class, or none is anything, and it takes a detector quite another time.
    """
    maps = model.backbone(images)
    regions = torch.rand(200, 2) * sizes[0].flip(0) * 0.6
    boxes = torch.cat([regions, regions + 16 + torch.rand(200, 2) * sizes[0].flip(0) * 0.4], 1)
    heads, shape = model.roi_heads, [(int(sizes[0, 0]), int(sizes[0, 1]))]
    layer = heads.box_predictor.cls_score
    vectors = heads.vectors(maps, [boxes], shape)
    layer.weight *= 1.5 / layer(vectors).std(0).mean()
    layer.bias -= layer(vectors).mean(0)
    layer.bias[0] += 10


def measure(payload: Turns, world: World, report: Report) -> dict[str, Any]:
    """Seconds of an evaluation both ways and of scoring in it, turn by turn, and how many detections."""
    recipe = payload.recipe
    folder, context = Path(payload.url), engine.autocast(recipe.compute, world.device)
    net, inputs, _ = load_backbone(recipe)
    train, source = open_sources(recipe.data)
    ours = build_detector(recipe, net, train).eval()
    loader = eval_loader(EvalSet(source, recipe.data), range(len(source)), recipe.eval_batch)
    first = next(iter(loader))
    assert isinstance(ours, Rcnn)
    spread_scores(ours, inputs.normalize(first["images"]), first["sizes"])
    theirs: FasterRCNN = twin(ours, len(source.categories), recipe.data.shorter_side[-1]).eval().to(world.device)
    ours.to(world.device)
    if recipe.compute.channels_last:
        ours.to(memory_format=torch.channels_last)
    scenes = Scenes(folder, flip=0)
    reference = DataLoader(scenes, recipe.eval_batch, num_workers=recipe.data.workers, collate_fn=in_tuples)
    taken: dict[str, list[float]] = {"ours": [], "theirs": [], "our scoring": [], "their scoring": []}
    counts: dict[str, int] = {}
    for _ in range(payload.turns + 1):
        began = now(world.device)
        found, bad = detect_batches(ours, inputs, loader, source.image_ids, world.device, context)
        detected = now(world.device)
        scoring.gather_and_score(found, source, world, bad)
        ended = now(world.device)
        with context:  # the reference knows none, and evaluates in float32
            _, count, their_scoring = evaluate(theirs, reference, scenes.coco, world.device)
        taken["ours"].append(ended - began)
        taken["our scoring"].append(ended - detected)
        taken["theirs"].append(now(world.device) - ended)
        taken["their scoring"].append(their_scoring)
        counts = {"ours": len(found), "theirs": count}
    return {**{name: seconds[1:] for name, seconds in taken.items()}, "detections": counts}


def main() -> None:
    given = arguments(__doc__).parse_args()
    rows = []
    with data_and_backbone(given.images) as folder:
        for case in given.cases:
            found = run(measure, folder, make_recipe(folder, case, given, 1), given)
            ours, theirs = found["ours"], found["theirs"]
            faster, low, high = spread([b / a for a, b in zip(ours, theirs, strict=True)])
            rows.append(
                {
                    "precision": case,
                    "input": f"{given.images} x {given.side} px",
                    "torchvision, images/s": given.images / spread(theirs)[0],
                    "ours, images/s": given.images / spread(ours)[0],
                    "times faster": faster,
                    "quartiles": f"{low:.3f} to {high:.3f}",
                    "torchvision's scoring, ms/image": 1e3 * spread(found["their scoring"])[0] / given.images,
                    "our scoring, ms/image": 1e3 * spread(found["our scoring"])[0] / given.images,
                    "detections": f"{found['detections']['theirs']:,} and {found['detections']['ours']:,}",
                    "turns": len(ours),
                }
            )
    write(given.output, rows)


if __name__ == "__main__":
    main()
