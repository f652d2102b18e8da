"""Does every detector learn? Trains each kind on 16 images of a COCO data set and judges it on the same images.

python benchmarks/overfit.py --images coco/train2017 --annotations coco/annotations/instances_train2017.json \
    --backbone runs/my-resnet18/artifact
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from backbone.cli import validate
from backbone.training.ray_train import launch
from benchmarks.results import parser, write
from detection.finetune import finetune, prepare
from detection.recipe import Finetune

C4 = {"kind": "c4"}
FPN = {"kind": "fpn", "channels": 128, "hidden": 512}
KINDS: dict[str, dict[str, Any]] = {
    "Faster R-CNN C4": {**C4, "roi": {"size": 7}},
    "Faster R-CNN FPN": FPN,
    "Mask R-CNN C4": {**C4, "masks": True},
    "Mask R-CNN FPN": {**FPN, "masks": True},
    # Without norms its narrow heads, whose weights begin at a deviation of 0.01, pass next to nothing on for long.
    "RetinaNet": {"kind": "retinanet", "channels": 128, "head_norm": "group"},
    "Semantic FPN": {"kind": "semantic", "channels": 128},
}
ANCHORS = {"anchor_sizes": [12, 24, 48, 96, 160]}
# Few regions, so that minutes on one core are enough.
FEW = {
    "rpn": {"batch": 64, "pre_nms_train": 300, "pre_nms_test": 300, "post_nms_train": 200, "post_nms_test": 200},
    "roi": {"batch": 32},
}
SMALLEST = 32  # pixels: the square root of an object's area, at the image's own size; COCO calls less "small"


def chosen(annotations: Path, count: int) -> dict[str, Any]:
    """The first `count` images with 1 to 6 objects, none below SMALLEST and no crowd: what little input can show."""
    tree = json.loads(annotations.read_text())
    of: dict[int, list[dict[str, Any]]] = {}
    for annotation in tree["annotations"]:
        of.setdefault(annotation["image_id"], []).append(annotation)

    def fits(image: dict[str, Any]) -> bool:
        objects = of.get(image["id"], [])
        large = all(a["area"] >= SMALLEST**2 and not a["iscrowd"] for a in objects)
        return 1 <= len(objects) <= 6 and large

    images = [image for image in tree["images"] if fits(image)][:count]
    return {**tree, "images": images, "annotations": [a for image in images for a in of[image["id"]]]}


def main() -> None:
    words = parser(__doc__)
    words.add_argument("--images", required=True, help="folder of COCO images")
    words.add_argument("--annotations", type=Path, required=True, help="their instances JSON")
    words.add_argument("--backbone", required=True, help="backbone artifact")
    words.add_argument("--count", type=int, default=16, help="images to learn by heart")
    words.add_argument("--side", type=int, default=160, help="their shorter side, pixels")
    words.add_argument("--steps", type=int, default=1200, help="of 4 images")
    words.add_argument("--only", choices=list(KINDS), nargs="*", default=list(KINDS))
    args = words.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        subset = Path(folder) / "subset.json"
        subset.write_text(json.dumps(chosen(args.annotations, args.count)))
        for name in args.only:
            rows.append(learn(name, args, str(subset), folder))
    write(args.output, rows)


def few(name: str) -> dict[str, Any]:
    """Anchors of detectors of boxes, and what keeps the regions of Faster and Mask R-CNN few."""
    if KINDS[name]["kind"] == "semantic":
        return {}
    if KINDS[name]["kind"] == "retinanet":
        return ANCHORS
    return ANCHORS | {"rpn": FEW["rpn"], "roi": FEW["roi"] | KINDS[name].get("roi", {})}


def learn(name: str, args: Any, subset: str, folder: str) -> dict[str, Any]:
    """One row: how well 16 images are known by heart."""
    place = {"train": args.images, "val": args.images, "train_annotations": subset, "val_annotations": subset}
    tree = {
        "name": name.lower().replace(" ", "-"),
        "backbone": args.backbone,
        "detector": {
            **KINDS[name],
            "norm": "frozen",
            "freeze_at": 1,
            **few(name),
        },
        "data": {"source": "coco", **place, "shorter_side": [args.side], "longer_side": 2 * args.side, "workers": 0}
        | {"augment": {"flip": 0}},
        "optim": {"batch": 4, "lr": 0.02, "lr_batch": 4, "clip": 10.0},
        "schedule": {"kind": "cosine", "unit": "iterations", "total": args.steps, "warmup": 50},
        "scaling": {"num_workers": 0},
        "run": {"storage": folder, "log_every": 50, "eval_every": 50},
    }
    recipe = validate(Finetune, tree, name)
    payload = prepare(recipe)
    began = time.monotonic()
    metrics = launch(finetune, payload, recipe.scaling)
    row: dict[str, Any] = {"detector": name, "steps": args.steps, "images": metrics["images"]}
    if "semantic" in metrics:
        row |= {what: metrics["semantic"][what] for what in ("mIoU", "accuracy")}
        return row | {"seconds": round(time.monotonic() - began)}
    row |= {"AP50": metrics["bbox"]["AP50"], "AP": metrics["bbox"]["AP"]}
    row |= {"mask " + key: metrics["segm"][key] if "segm" in metrics else None for key in ("AP50", "AP")}
    return row | {"seconds": round(time.monotonic() - began)}


if __name__ == "__main__":
    main()
