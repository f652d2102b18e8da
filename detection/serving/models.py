"""Artifacts that answer: from the bytes of an image to what a detector or a backbone says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from backbone import artifact as backbones
from backbone.data.augment import evaluation_view
from backbone.data.decode import decode
from backbone.errors import BadImage, UserError
from backbone.inputs import InputConvention
from backbone.nets import Backbone
from backbone.storage import filesystem, join
from detection import artifact as detectors
from detection.data.loader import DIVISOR
from detection.detections import Detections
from detection.evaluate import detect_views, view_of
from detection.nets import Semantic
from detection.serving.options import Limits
from detection.serving.questions import IMAGE, Answer, Question, Refused, as_json, check_pixels

Kind = Literal["detector", "backbone"]
TASKS: dict[Kind, tuple[str, ...]] = {"detector": ("detect",), "backbone": ("classify", "features")}
SAFETENSORS = "application/octet-stream"


@dataclass(frozen=True)
class Classifier:
    """A backbone and what it was told of its classes."""

    net: Backbone  # in eval mode
    inputs: InputConvention
    block: dict[str, Any]  # `raybone` of the config


@dataclass(frozen=True)
class Model:
    """An artifact that was verified."""

    name: str
    kind: Kind
    sha256: str
    """Of its weights."""
    loaded: detectors.Loaded | Classifier


@dataclass(frozen=True)
class Look:
    """An image as a net is to see it, and the question that it came with."""

    question: Question
    view: np.ndarray
    """uint8 RGB [h, w, 3]."""
    size: tuple[int, int]
    """Height and width of the image, upright."""

    @property
    def sides(self) -> tuple[int, int]:
        """Of the view, padded as a detector's input is."""
        height, width = self.view.shape[:2]
        return -(-height // DIVISOR) * DIVISOR, -(-width // DIVISOR) * DIVISOR


def kind_of(url: str) -> Kind:
    """Whether a detector's or a backbone's artifact lies there.

    Raises:
        UserError: neither.
    """
    fs, path = filesystem(url)
    try:
        is_detector = b'"raybone_detector"' in fs.cat_file(join(path, "config.json"))
    except OSError:
        is_detector = False
    (detectors if is_detector else backbones).read_config(url)
    return "detector" if is_detector else "backbone"


def load(name: str, url: str, device: str = "cpu") -> Model:
    """Read and verify an artifact: every key, the weights' hash, and what it says of its probe.

    Raises:
        UserError: it is none, or not an intact one.
    """
    if kind_of(url) == "detector":
        loaded = detectors.load(url)
        if isinstance(loaded.detector, Semantic):
            raise UserError(f"{url}: a detector of kind semantic finds no boxes, and /detect answers with boxes")
        loaded.detector.to(device)
        return Model(name, "detector", loaded.block["weights_sha256"], loaded)
    net, inputs, block = backbones.load(url)
    return Model(name, "backbone", block["weights_sha256"], Classifier(net.to(device), inputs, block))


def described(model: Model) -> dict[str, Any]:
    """What `/models` says of it."""
    about: dict[str, Any] = {"name": model.name, "kind": model.kind, "tasks": list(TASKS[model.kind])}
    about["sha256"] = model.sha256
    if isinstance(model.loaded, Classifier):
        net, inputs = model.loaded.net, model.loaded.inputs
        stages = {name: {"channels": stage.channels, "stride": stage.stride} for name, stage in net.stages.items()}
        return about | {"classes": list(model.loaded.block["classes"]), "stages": stages, "size": inputs.size}
    loaded = model.loaded
    names, sides = list(loaded.categories.names), [loaded.inputs.size, loaded.longer_side]
    return about | {"classes": names, "masks": bool(getattr(loaded.detector.options, "masks", False)), "sides": sides}


def look(model: Model, question: Question, limits: Limits) -> Look:
    """Decode an image and bring it to the size that the net expects.

    Raises:
        Refused: the file is damaged; it would have too many pixels when resized; the model or its stages do not fit.
    """
    if question.task not in TASKS[model.kind]:
        asked = " and ".join(f"/{task}" for task in TASKS[model.kind])
        raise Refused(400, "wrong_model", f"{model.name} is a {model.kind}; ask it with {asked}")
    if isinstance(model.loaded, Classifier):
        _check_stages(model, model.loaded.net, question, limits)
    try:
        image = decode(question.data, IMAGE)
    except BadImage as error:
        raise Refused(400, "damaged_image", str(error)) from error
    height, width = image.shape[:2]
    if not isinstance(model.loaded, Classifier):
        return Look(question, view_of(model.loaded, image), (height, width))
    inputs = model.loaded.inputs
    shorter, target = min(height, width), int(inputs.size / inputs.crop_pct)
    # Only then is it cropped: an image of 1x10000 would become one of many megapixels.
    check_pixels(target * height // shorter, target * width // shorter, limits, "resized to be cropped, the image has")
    return Look(question, evaluation_view(image, inputs.size, inputs.crop_pct, inputs.interpolation), (height, width))


def _check_stages(model: Model, net: Backbone, question: Question, limits: Limits) -> None:
    unknown = [stage for stage in question.stages if stage not in net.stages]
    if unknown:
        raise Refused(400, "unknown_stage", f"{model.name} has no stage {unknown[0]}; it has {', '.join(net.stages)}")
    if question.task == "features" and not question.pooled:
        assert isinstance(model.loaded, Classifier)
        side, stages = model.loaded.inputs.size, [net.stages[name] for name in chosen(question, net)]
        values = sum(stage.channels * (-(-side // stage.stride)) ** 2 for stage in stages)
        if values > limits.values:
            raise Refused(413, "too_many_values", f"those maps hold {values:,} numbers, at most {limits.values:,}")


def chosen(question: Question, net: Backbone) -> tuple[str, ...]:
    """The stages that are asked for, deep ones last."""
    return tuple(name for name in net.stages if name in question.stages) or (list(net.stages)[-1],)


@torch.no_grad()
def answers(model: Model, looks: Sequence[Look]) -> list[Answer]:
    """What the net says of views of the same padded sides and task; each question's own answer, in order.

    Several go through the net together. The last bits are then others than those of one by one: on CPU the kernels of
    matrix products and convolutions are chosen by the size of the whole.
    """
    if isinstance(model.loaded, Classifier):
        return _say(model, model.loaded, looks)
    views, sizes = [one.view for one in looks], [one.size for one in looks]
    found = detect_views(model.loaded, views, sizes, range(len(looks)))
    return [_detections(model, model.loaded, one, found, row) for row, one in enumerate(looks)]


def _detections(model: Model, loaded: detectors.Loaded, one: Look, found: Detections, row: int) -> Answer:
    mine = found.select((found.image_ids == row) & (found.scores >= np.float32(one.question.min_score)))
    labels = mine.labels.tolist()
    tree = {
        **_head(model, one),
        "boxes": mine.boxes.tolist(),  # a float32 as its float64, which JSON gives back to the bit
        "labels": labels,
        "names": [loaded.categories.names[label - 1] for label in labels],
        "scores": mine.scores.tolist(),
    }
    return as_json(tree if mine.masks is None else tree | {"masks": mine.masks})


def _say(model: Model, loaded: Classifier, looks: Sequence[Look]) -> list[Answer]:
    device = next(loaded.net.parameters()).device
    pixels = torch.from_numpy(np.stack([one.view for one in looks]).transpose(0, 3, 1, 2).copy()).to(device)
    images = loaded.inputs.normalize(pixels)
    if looks[0].question.task == "classify":
        scores = loaded.net.classify(images).float().softmax(1).cpu()
        return [_classes(model, loaded, one, row) for one, row in zip(looks, scores, strict=True)]
    deepest = max((chosen(one.question, loaded.net)[-1] for one in looks), key=list(loaded.net.stages).index)
    maps = {name: level.float().cpu() for name, level in loaded.net(images, deepest).items()}
    return [_features(model, loaded, one, maps, row) for row, one in enumerate(looks)]


def _classes(model: Model, loaded: Classifier, one: Look, scores: Tensor) -> Answer:
    best, labels = scores.topk(min(one.question.top, len(scores)))
    classes = loaded.block["classes"]
    names = [classes[label] if label < len(classes) else str(label) for label in labels.tolist()]
    return as_json({**_head(model, one), "labels": labels.tolist(), "names": names, "scores": best.tolist()})


def _features(model: Model, loaded: Classifier, one: Look, maps: dict[str, Tensor], row: int) -> Answer:
    names = chosen(one.question, loaded.net)
    if one.question.pooled:
        return as_json(
            {**_head(model, one), "features": {name: maps[name][row].mean((1, 2)).tolist() for name in names}}
        )
    about = {"model": model.name, "sha256": model.sha256}
    return Answer(save({name: maps[name][row].contiguous() for name in names}, about), SAFETENSORS)


def _head(model: Model, one: Look) -> dict[str, Any]:
    image = {"height": one.size[0], "width": one.size[1]}
    return {"model": model.name, "sha256": model.sha256, "image": image}


def prepare_process(cpus: int, use_gpu: bool) -> str:
    """Threads of torch and OpenCV in a replica's process; returns its device.

    Raises:
        UserError: a GPU is asked for and torch sees none.
    """
    torch.set_num_threads(cpus)
    cv2.setNumThreads(0)
    if use_gpu and not torch.cuda.is_available():
        raise UserError("use_gpu: torch sees no GPU on this node; look at nvidia-smi, or leave it off")
    return "cuda" if use_gpu else "cpu"
