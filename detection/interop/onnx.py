"""A detector as one ONNX file: an image of any size in, detections out, with resizing and suppression inside."""

import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbone.errors import UserError
from detection.detections import Detections, paste
from detection.interop.graph import Whole
from detection.interop.source import Answer, Files, Source

OPSET = 18
TRACED = (120, 160)  # height and width of the image that shows the way; the file takes any


def write(source: Source) -> Files:
    """`model.onnx`.

    By torch's TorchScript exporter, which follows one image and keeps sizes as tensors. The newer one, which proves
    things about sizes, cannot follow the numbers of boxes (pytorch/pytorch, `torch.export` of torchvision's detectors).
    """
    import onnx

    outputs = ["boxes", "labels", "scores", *(["masks"] if source.loaded.detector.options.masks else [])]
    file = io.BytesIO()
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Whole(source.loaded).eval(),
                (torch.from_numpy(np.zeros((*TRACED, 3), np.uint8)),),
                file,  # ty: ignore[invalid-argument-type]  (written to as it is)
                input_names=["image"],
                output_names=outputs,
                dynamic_axes={"image": {0: "height", 1: "width"}, **{name: {0: "detections"} for name in outputs}},
                opset_version=OPSET,
                dynamo=False,
            )
    except torch.onnx.OnnxExporterError as error:  # other libraries' nets may have layers that ONNX lacks
        raise UserError(f"{source.title} cannot go to onnx: {' '.join(str(error).split())[:300]}") from error
    finally:
        log.setLevel(before)
    model = onnx.load_model_from_string(file.getvalue())
    for key, value in facts(source).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    return {"model.onnx": model.SerializeToString()}


def facts(source: Source) -> dict[str, Any]:
    """What the file's metadata say."""
    loaded = source.loaded
    return {
        "detector": source.title,
        "input": "uint8 RGB [H, W, 3], 0..255, of any size, not resized and not normalised: the graph does that",
        "boxes": "x1 y1 x2 y2, pixels of the image given",
        "classes": list(loaded.categories.names),
        "category_ids": list(loaded.categories.ids),
        "shorter_side": loaded.inputs.size,
        "longer_side": loaded.longer_side,
    }


def snippet(source: Source) -> str:
    """How to load it."""
    return f"""
import json

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{source.place}/model.onnx", providers=["CPUExecutionProvider"])
image = np.zeros((480, 640, 3), np.uint8)  # RGB, 0 to 255, as decoded
outputs = session.run(None, {{"image": image}})
found = dict(zip([output.name for output in session.get_outputs()], outputs))
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
print(found["boxes"], [classes[k - 1] for k in found["labels"]], found["scores"])
""".strip()


def answers(folder: Path, source: Source) -> Answer:
    """What onnxruntime finds."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def answer(image: np.ndarray) -> Detections:
        outputs = map(np.asarray, session.run(None, {"image": image}))
        found = dict(zip(names, outputs, strict=True))
        boxes, masks = found["boxes"], None
        if "masks" in found:
            masks = paste(torch.from_numpy(found["masks"])[:, None], boxes, *image.shape[:2])
        ids = np.zeros(len(boxes), np.int64)
        return Detections(np.zeros(1, np.int64), ids, found["labels"], boxes, found["scores"], masks)

    return answer


def sizes(source: Source) -> tuple[tuple[int, int], ...]:
    """One that has to grow, and one that has to shrink."""
    side = source.loaded.inputs.size
    return (3 * side // 4, side), (5 * side // 4, 3 * side // 2)


def notes(source: Source) -> list[str]:
    """What is to be known beside the snippet."""
    said = []
    if source.loaded.detector.options.masks:
        said.append(
            "`masks`, [D, S, S], are probabilities within the boxes; the page says how they become masks of the image."
        )
    return said
