"""A step of fine-tuning: `engine.train` with a detector against torchvision's own reference for training detectors.

Faster R-CNN with ResNet-50-FPN and frozen norms, the same weights in both, on rendered scenes of several shapes that
both read from one COCO data set in the same order, resized to the same size. Both live in one process and take turns;
the result is the median of the ratios of neighbouring turns. Ours is the whole loop: loading, augmentation, seeds,
finite check, sums, a log record each turn and its display. The reference is `train_one_epoch` of pytorch/vision,
references/detection, written anew: flip and conversion, the resizing within the model, the losses reduced and read each
step, its logger's smoothed values.
"""

import argparse
import contextlib
import json
import math
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from results import parser, spread, write
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.v2 import functional as F

from backbone import artifact
from backbone.compute import Scaling
from backbone.data.stream import MicroBatches
from backbone.data.synthetic import CLASSES, render
from backbone.inputs import InputConvention
from backbone.nets import build
from backbone.options import NetOptions
from backbone.training import engine
from backbone.training.ray_train import launch
from backbone.training.state import Store
from backbone.training.world import Payload, Report, World
from detection.data.sources import open_sources
from detection.finetune import Detection
from detection.nets import Detector
from detection.recipe import Finetune

SHAPES = ((480, 640), (640, 480), (427, 640), (500, 375))  # height and width, pixels: COCO's commonest
CASES = {
    # name: (precision, channels_last of ours)
    "fp32": ("fp32", False),
    "fp32 channels_last": ("fp32", True),
    "bf16": ("bf16", False),
    "bf16 channels_last": ("bf16", True),
}


@dataclass(frozen=True)
class Turns(Payload):
    """What a measurement is given: the folder of its data and run, the recipe, and how often both take turns."""

    recipe: Finetune
    turns: int


def write_scenes(folder: Path, count: int) -> None:
    """A COCO data set: `folder`/images and `folder`/instances.json, `count` scenes of 2 to 8 objects."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in range(1, count + 1):
        height, width = SHAPES[number % len(SHAPES)]
        scene = render(0, number, 640, (2, 8))
        name = f"{number:06d}.jpg"
        pixels = cv2.resize(scene.image, (width, height), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / "images" / name), pixels[..., ::-1])
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        boxes = scene.boxes.astype(np.float64) * ([width / 640, height / 640] * 2)
        for (x1, y1, x2, y2), label in zip(boxes.tolist(), scene.labels.tolist(), strict=True):
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label + 1, **box})
    categories = [{"id": k, "name": name} for k, name in enumerate(CLASSES, 1)]
    tree = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(tree))


def write_backbone(folder: Path) -> None:
    """A ResNet-50 that was not trained, as `folder`/backbone; but its batch statistics are those of scenes, so that
    frozen norms pass on maps of the size a trained net's have."""
    torch.manual_seed(0)
    net, inputs = build(NetOptions(depth=50), 1000), InputConvention()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    scenes = np.stack([render(1, number, 224).image for number in range(8)])
    with torch.no_grad():
        net.train().classify(inputs.normalize(torch.from_numpy(scenes).permute(0, 3, 1, 2)))
    artifact.save(folder / "backbone", net, inputs, tuple(map(str, range(1000))), {})


def make_recipe(folder: Path, case: str, given: argparse.Namespace, steps: int) -> Finetune:
    """A turn of warm-up, those that are timed, each of `steps` steps, and a step more, which ends the last. As in
    torchvision, stem and C2 do not train.
    """
    precision, channels_last = CASES[case]
    images, annotations = str(folder / "images"), str(folder / "instances.json")
    tree = {
        "backbone": str(folder / "backbone"),
        "detector": {"norm": "frozen", "freeze_at": 2},
        "data": {
            **{"source": "coco", "train": images, "val": images, "cache": str(folder / "cache")},
            **{"train_annotations": annotations, "val_annotations": annotations, "workers": given.workers},
            **{"shorter_side": [given.side], "longer_side": given.side * 5 // 3},
        },
        "optim": {"batch": given.batch, "micro_batch": given.batch, "lr": 1e-4, "lr_batch": 0},
        "schedule": {"kind": "constant", "unit": "iterations", "total": steps * (given.turns + 1) + 1},
        "compute": {"precision": precision, "channels_last": channels_last},
        "run": {"log_every": steps, "eval_every": 1 << 30},
    }
    return Finetune.model_validate(tree)


def twin(ours: Detector, classes: int, side: int) -> FasterRCNN:
    """torchvision's detector with our weights."""
    body = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3)
    theirs = FasterRCNN(body, classes + 1, min_size=side, max_size=side * 5 // 3)
    theirs.load_state_dict(ours.state_dict())
    return theirs


class Scenes(CocoDetection):
    """The reference's data set: an image, float [3, H, W] of 0..1, and its objects in its own pixels."""

    def __init__(self, folder: Path, flip: float) -> None:
        with contextlib.redirect_stdout(None):
            super().__init__(folder / "images", str(folder / "instances.json"))
        self.flip = flip

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, objects = super().__getitem__(index)
        boxes = torch.tensor([one["bbox"] for one in objects]).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        if torch.rand(1) < self.flip:
            image = F.hflip(image)
            boxes[:, [0, 2]] = self.coco.imgs[self.ids[index]]["width"] - boxes[:, [2, 0]]
        target = {"boxes": boxes, "labels": torch.tensor([one["category_id"] for one in objects])}
        return F.to_dtype(F.pil_to_tensor(image), scale=True), target | {"image_id": torch.tensor(self.ids[index])}


def in_tuples(batch: list[Any]) -> tuple[Any, ...]:
    """The reference's collate function."""
    return tuple(zip(*batch, strict=True))


def train_one_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, loader: Iterable[Any], world: World, autocast: torch.autocast
) -> Iterator[None]:
    """The reference's loop, a step each time it is asked: on one device it reduces nothing, but reads every loss."""
    model.train()
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1e-3, total_iters=1000)
    meters: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=20))
    for images, targets in loader:
        images = [image.to(world.device) for image in images]
        targets = [{name: value.to(world.device) for name, value in target.items()} for target in targets]
        with autocast:
            losses = model(images, targets)
            loss = sum(losses.values())
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the reference's loss is {loss.item()}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        for name, value in {"loss": loss, **losses}.items():
            meters[name].append(value.item())
        meters["lr"].append(optimizer.param_groups[0]["lr"])
        yield


class Timed(Detection):
    """Detection that times every turn of `steps` steps, then calls `between`. The first turn is warm-up."""

    def prepare(self, steps: int, between: Callable[[], None]) -> None:
        self.steps, self.between = steps, between
        self.seconds: list[float] = []
        """A step's seconds, one value a turn; likewise those spent waiting for data, and in the forward pass."""
        self.waited: list[float] = []
        self.forward: list[float] = []

    def batches(self, micro_batches: MicroBatches) -> Iterator[Any]:
        loader = iter(super().batches(micro_batches))
        while True:
            self.waited.append(0.0)
            self.forward.append(0.0)
            began = now(self.world.device)
            for _ in range(self.steps):
                asked = time.perf_counter()
                batch = next(loader)
                self.waited[-1] += (time.perf_counter() - asked) / self.steps
                yield batch
            self.seconds.append((now(self.world.device) - began) / self.steps)
            self.between()

    def loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        began = time.perf_counter()
        found = super().loss(batch)
        self.forward[-1] += (time.perf_counter() - began) / self.steps
        return found

    def evaluate(self, model: nn.Module, world: World) -> dict[str, float]:
        """Not what is measured here."""
        return {"error": 0.0}


def now(device: torch.device) -> float:
    """Seconds, once the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(payload: Turns, world: World, report: Report) -> dict[str, list[float]]:
    """Seconds a step of both, turn by turn, and of ours those waiting for data and in the forward pass."""
    recipe = payload.recipe
    steps = recipe.run.log_every
    theirs: list[float] = []

    def run_theirs() -> None:
        began = now(world.device)
        for _ in islice(reference, steps):
            pass
        theirs.append((now(world.device) - began) / steps)

    task = Timed(recipe, *open_sources(recipe.data), world)
    task.prepare(steps, run_theirs)
    model = twin(task.model, len(task.categories), recipe.data.shorter_side[-1]).to(world.device)
    optim = recipe.optim
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    micro_batches = MicroBatches(optim.batch, optim.batch, 0, 1, 0, int(recipe.schedule.total))
    same = [[task.train.stream[position][1] for position in positions] for positions in micro_batches]
    scenes = Scenes(Path(payload.url), recipe.data.augment.flip)
    loader = DataLoader(scenes, batch_sampler=same, num_workers=recipe.data.workers, collate_fn=in_tuples)
    reference = train_one_epoch(model, optimizer, loader, world, engine.autocast(recipe.compute, world.device))
    with tempfile.TemporaryDirectory() as checkpoints:
        engine.train(task, recipe, world, Store(checkpoints), report)
    turns = len(theirs)
    return {"ours": task.seconds, "theirs": theirs, "waited": task.waited[:turns], "forward": task.forward[:turns]}


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line of both benchmarks of detectors."""
    words = parser(description)
    words.add_argument("--cases", nargs="+", choices=CASES, default=["fp32", "bf16 channels_last"])
    words.add_argument("--side", type=int, default=256, help="shorter side of the detector's input, pixels")
    words.add_argument("--batch", type=int, default=2, help="images a step")
    words.add_argument("--images", type=int, default=32, help="scenes in the data set")
    words.add_argument("--turns", type=int, default=9, help="turns of each")
    words.add_argument("--workers", type=int, default=0, help="loader processes; 0: load between the steps")
    words.add_argument("--threads", type=int, default=1)
    words.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return words


@contextlib.contextmanager
def data_and_backbone(images: int) -> Generator[Path]:
    """A folder with the scenes and the backbone, for as long as they are needed."""
    with tempfile.TemporaryDirectory() as folder:
        write_scenes(Path(folder), images)
        write_backbone(Path(folder))
        yield Path(folder)


def run(worker: Callable[..., Any], folder: Path, recipe: Finetune, given: argparse.Namespace) -> Any:
    """`worker(payload, world, report)` in this process; what it reports goes to a file."""
    payload = Turns(str(folder), recipe, given.turns)
    scaling = Scaling(num_workers=0, use_gpu=given.device == "cuda", cpus_per_worker=given.threads)
    with (folder / "log").open("w") as log, contextlib.redirect_stdout(log):
        return launch(worker, payload, scaling)


def main() -> None:
    words = arguments(__doc__)
    words.add_argument("--steps", type=int, default=2, help="steps a turn")
    given = words.parse_args()
    rows = []
    with data_and_backbone(given.images) as folder:
        for case in given.cases:
            recipe = make_recipe(folder, case, given, given.steps)
            seconds = {name: values[1:] for name, values in run(measure, folder, recipe, given).items()}
            ours, theirs = seconds["ours"], seconds["theirs"]
            faster, low, high = spread([b / a for a, b in zip(ours, theirs, strict=True)])
            waited, forward = (
                spread([100 * part / step for part, step in zip(seconds[name], ours, strict=True)])[0]
                for name in ("waited", "forward")
            )
            rows.append(
                {
                    "precision": case,
                    "input": f"{given.batch} x {given.side} px",
                    "torchvision, ms a step": 1e3 * spread(theirs)[0],
                    "ours, ms a step": 1e3 * spread(ours)[0],
                    "times faster": faster,
                    "quartiles": f"{low:.3f} to {high:.3f}",
                    "waiting for data, %": waited,
                    "forward, %": forward,
                    "turns": len(ours),
                }
            )
    write(given.output, rows)


if __name__ == "__main__":
    main()
