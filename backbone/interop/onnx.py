"""ONNX: one file that takes uint8 RGB images of any number and size. Preprocessing is inside, so it cannot be wrong."""

import json
import logging
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from backbone.errors import UserError
from backbone.interop.common import Answer, Files, Source


class _Whole(nn.Module):
    """Images, uint8 RGB [N, 3, H, W], to the stage maps and logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.net, self.flip = source.net, source.inputs.channel_order == "BGR"
        self.classifies = classifies(source)
        for name, values in (("mean", source.inputs.mean), ("std", source.inputs.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = (images.float() / 255 - self.mean) / self.std
        x = x.flip(1) if self.flip else x
        maps = self.net(x)
        return (*maps.values(), self.net.classify(x)) if self.classifies else tuple(maps.values())


def classifies(source: Source) -> bool:
    """VGG's head pools to 7x7 cells whatever the size, for which ONNX has no operator: its maps alone are exported."""
    return source.net.options.net != "vgg"


def write(source: Source) -> Files:
    """`model.onnx`, with dynamic batch, height and width."""
    names = [*source.net.stages, *(["logits"] if classifies(source) else [])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log = logging.getLogger("torch.onnx")
        before, log.level = log.level, logging.ERROR
        try:
            program = torch.onnx.export(
                _Whole(source).eval(),
                (torch.zeros(2, 3, 64, 96, dtype=torch.uint8),),
                input_names=["images"],
                output_names=names,
                dynamic_shapes=({0: Dim("batch"), 2: Dim("height"), 3: Dim("width")},),
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:  # other libraries' nets may branch on the size of an image
            raise UserError(
                f"{source.net.options.name} cannot go to onnx for any number and size of images: "
                f"{' '.join(str(error.__cause__ or error).split())[:300]}"
            ) from error
        finally:
            log.level = before
    assert program is not None
    i = source.inputs
    facts = {
        "net": source.net.options.name,
        "input": "uint8 RGB [N, 3, H, W], 0..255, not normalised: the graph does that",
        "mean": list(i.mean),
        "std": list(i.std),
        "resize_and_crop": [int(i.size / i.crop_pct), i.size],
        "classes": list(source.classes),
    }
    program.model.metadata_props.update({key: json.dumps(value) for key, value in facts.items()})
    return {"model.onnx": program.model_proto.SerializeToString()}


def snippet(source: Source) -> str:
    """How to load it."""
    return f"""
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{source.place}/model.onnx", providers=["CPUExecutionProvider"])
images = np.zeros((1, 3, 224, 320), np.uint8)  # RGB, 0 to 255, as decoded
outputs = session.run(None, {{"images": images}})
found = dict(zip([output.name for output in session.get_outputs()], outputs))
""".strip()


def answers(folder: Path, source: Source) -> Answer:
    """What onnxruntime computes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def answer(images: Tensor) -> dict[str, Tensor]:
        found = session.run(None, {"images": images.numpy()})
        return {name: torch.from_numpy(value) for name, value in zip(names, found, strict=True)}

    return answer
