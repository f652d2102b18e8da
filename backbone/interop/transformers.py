"""transformers: a folder that `from_pretrained` of its ResNet classes reads."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from backbone.interop import keys
from backbone.interop.common import (
    Answer,
    Facts,
    Files,
    Source,
    resize_size,
    rgb_state,
    safetensors,
    three,
    to_json,
    with_maps,
)
from backbone.nets.resnet import UNITS

# PIL's numbers for filters.
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}


def write(source: Source) -> Files:
    """`model.safetensors`, `config.json` of a ResNetConfig and `preprocessor_config.json` of a BitImageProcessor."""
    net, i = source.net, source.inputs
    labels = {str(k): name for k, name in enumerate(source.classes)}
    config = {
        "architectures": ["ResNetForImageClassification"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": net.state_dict()["conv1.weight"].shape[0],
        "hidden_sizes": [stage.channels for stage in net.stages.values()],
        "depths": list(UNITS[source.options.depth]),
        "layer_type": "bottleneck" if source.options.depth >= 50 else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "downsample_in_bottleneck": source.options.stride_in_1x1,
        "id2label": labels,
        "label2id": {name: int(k) for k, name in labels.items()},
        "dtype": "float32",
    }
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": resize_size(i)},
        "resample": RESAMPLE.get(i.interpolation, RESAMPLE["bilinear"]),
        "do_center_crop": True,
        "crop_size": {"height": i.size, "width": i.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(i.mean),
        "image_std": list(i.std),
    }
    tensors = {keys.transformers(name): t for name, t in rgb_state(source).items()}
    return {
        "model.safetensors": safetensors(tensors),
        "config.json": to_json(config),
        "preprocessor_config.json": to_json(processor),
    }


def snippet(source: Source) -> str:
    """How to load it."""
    return f"""
from transformers import AutoImageProcessor, ResNetBackbone, ResNetForImageClassification

processor = AutoImageProcessor.from_pretrained("{source.place}")
model = ResNetForImageClassification.from_pretrained("{source.place}").eval()
stages = ["stage1", "stage2", "stage3", "stage4"]
backbone = ResNetBackbone.from_pretrained("{source.place}", out_features=stages).eval()
""".strip()


def answers(folder: Path, source: Source) -> Answer:
    """transformers' net and image processor, both loaded by transformers from the folder."""
    from transformers import AutoImageProcessor, ResNetForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    loaded: Any = ResNetForImageClassification.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    model, report = loaded
    wrong = {kind: sorted(names) for kind, names in report.items() if names}
    if wrong:
        raise RuntimeError(f"transformers did not take all of it: {wrong}")

    def forward(images: Tensor) -> Tensor:
        given = processor(list(images), do_resize=False, do_center_crop=False, return_tensors="pt")
        return model(**given).logits

    return with_maps(model, forward, {f"C{i + 2}": f"resnet.encoder.stages.{i}" for i in range(4)})


def facts(files: Files) -> Facts:
    """What `config.json` and `preprocessor_config.json` say, as far as they are there."""
    found: dict[str, Any] = {}
    if "config.json" in files:
        config = json.loads(files["config.json"])
        if config.get("downsample_in_first_stage"):
            raise ValueError("downsample_in_first_stage: no net of ours halves the map in its first stage")
        if config.get("hidden_act", "relu") != "relu":
            raise ValueError(f"hidden_act {config['hidden_act']}: nets here have relu")
        found["stride_in_1x1"] = bool(config.get("downsample_in_bottleneck", False))
        if config.get("id2label"):
            found["classes"] = tuple(name for _, name in sorted((int(k), v) for k, v in config["id2label"].items()))
    if "preprocessor_config.json" in files:
        given = json.loads(files["preprocessor_config.json"])
        if abs(given.get("rescale_factor", 1 / 255) * 255 - 1) > 1e-6:
            raise ValueError(f"rescale_factor {given['rescale_factor']}: not the 1/255 that mean and std are meant for")
        size, crop = _side(given["size"]), given.get("crop_pct")
        cut = _side(given["crop_size"]) if given.get("do_center_crop") and "crop_size" in given else None
        filters = {number: name for name, number in RESAMPLE.items()}
        found |= {
            "channel_order": "RGB",
            "mean": three(given["image_mean"]),
            "std": three(given["image_std"]),
            "size": cut or size,
            "crop_pct": float(crop) if crop else (cut / size if cut else None),
            "interpolation": filters.get(given.get("resample", 2)),
        }
    return Facts(**found)


def _side(size: int | dict[str, int]) -> int:
    return size if isinstance(size, int) else size.get("shortest_edge", size.get("height", 0))
