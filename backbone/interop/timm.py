"""timm: a folder that `timm.create_model("local-dir:...")` reads, free of all that is not timm's."""

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from backbone.artifact import timm_name
from backbone.errors import UserError
from backbone.interop.common import (
    Answer,
    Facts,
    Files,
    Source,
    normalized,
    rgb_state,
    safetensors,
    stage_modules,
    three,
    to_json,
    with_maps,
)
from backbone.nets.external import External
from backbone.options import AnyNet

SAME = re.compile(r"(?:tv_|ssl_|swsl_|gluon_)?(.+?)(?:_v1b)?")
"""Names that timm had for the same nets."""


def write(source: Source) -> Files:
    """`model.safetensors` and `config.json`. timm reads mean, std and size inside `pretrained_cfg` alone."""
    i, classes = source.inputs, source.net.num_classes
    given: dict[str, Any] = {
        "num_classes": classes,
        "input_size": [3, i.size, i.size],
        "interpolation": i.interpolation,
        "crop_pct": i.crop_pct,
        "mean": list(i.mean),
        "std": list(i.std),
        "label_names": list(source.classes),
    }
    config: dict[str, Any] = {"architecture": timm_name(source.net.options), "num_classes": classes}
    # Without first_conv and classifier, timm cannot put on another head or take other than three channels.
    net = source.net
    if isinstance(net, External):
        own = net.model.pretrained_cfg
        given |= {name: own[name] for name in ("first_conv", "classifier")}
        config |= {"num_features": net.model.num_features, "model_args": net.external.arguments}
    elif net.options.net == "vgg":
        given |= {"first_conv": "features.0", "classifier": "head.fc"}
        config |= {"num_features": 4096}
    else:
        given |= {"first_conv": "conv1", "classifier": "fc"}
        config |= {"num_features": net.stages["C5"].channels}
    return {
        "model.safetensors": safetensors(rgb_state(source)),
        "config.json": to_json({**config, "pretrained_cfg": given}),
    }


def snippet(source: Source) -> str:
    """How to load it. Maps and other heads go through the same call, which `checkpoint_path` does not allow."""
    return f"""
import timm

model = timm.create_model("local-dir:{source.place}", pretrained=True).eval()
view = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
backbone = timm.create_model("local-dir:{source.place}", pretrained=True, features_only=True)
""".strip()


def answers(folder: Path, source: Source) -> Answer:
    """timm's net, loaded by timm from the folder, fed as timm resolves its config."""
    import timm
    import timm.data

    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    given = timm.data.resolve_model_data_config(model)
    mean, std = list(given["mean"]), list(given["std"])
    net = source.net
    modules = net.stage_modules if isinstance(net, External) else stage_modules(source.options)
    answer = with_maps(model, lambda images: model(normalized(images, mean, std)), modules)
    if not (isinstance(net, External) and net.nhwc):
        return answer

    def turned(images: Tensor) -> dict[str, Tensor]:
        return {stage: v.permute(0, 3, 1, 2) if v.dim() == 4 else v for stage, v in answer(images).items()}

    return turned


def architecture(files: Files) -> tuple[str, dict[str, Any]]:
    """The name of the net in `config.json`, if there is one, and what its builder is told."""
    config = json.loads(files["config.json"]) if "config.json" in files else {}
    return str(config.get("architecture", "")), dict(config.get("model_args") or {})


def check_named(files: Files, options: AnyNet, where: str) -> None:
    """UserError where the config beside weights is of another net, whose keys are those of `options` all the same."""
    name, arguments = architecture(files)
    model = name.partition(".")[0]
    plain = SAME.fullmatch(model)
    if not name or (plain and plain[1] == timm_name(options) and not arguments):
        return
    told = f" with {arguments}" if arguments else ""
    fix = "use the artifact as it is" if model.startswith("raybone_") else f"give --model {model}, which timm builds"
    raise UserError(
        f"{where}: its config.json is of {name}{told}; {options.name} has the same keys and computes otherwise: {fix}"
    )


def facts(files: Files) -> Facts:
    """What `config.json` says, if there is one."""
    if "config.json" not in files:
        return Facts()
    config = json.loads(files["config.json"])
    given = config.get("pretrained_cfg", config)  # older folders of the hub have it flat
    names = config.get("label_names") or given.get("label_names")
    if isinstance(names, dict):  # number -> name
        names = [names[number] for number in sorted(names, key=int)]
    return Facts(
        channel_order="RGB",
        mean=three(given["mean"]),
        std=three(given["std"]),
        size=int(given["input_size"][1]),
        crop_pct=float(given["crop_pct"]),
        interpolation=str(given["interpolation"]),
        classes=tuple(names) if names else None,
    )
