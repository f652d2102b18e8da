"""The backbone artifact: a directory with `model.safetensors` and `config.json`, and nothing that runs when loaded.

`config.json` is at once what timm reads (`timm.create_model("local-dir:DIR", pretrained=True)`, where timm has the net)
and, in its block `raybone`, all that is needed to build the net again, feed it, and know what it was trained on.
"""

import hashlib
import json
import math
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from backbone.console import typed
from backbone.data.stream import order
from backbone.errors import StorageError, UserError
from backbone.inputs import InputConvention
from backbone.nets import Backbone, build
from backbone.nets.external import External
from backbone.nets.vgg import VGG
from backbone.noise import NOISE_FACTOR, noise
from backbone.options import AnyNet, ExternalNet, NetOptions, net_options
from backbone.provenance import environment
from backbone.storage import filesystem, join, write_folder

FORMAT = 1
PROBE_SIZE = 64
# Of a map's standard deviation. Other processors and libraries differ by some 1e-5; a wrong stride or channel order by
# 1e-2 and more. A map whose values lie far from 0 and close together may differ by more: what its noise explains.
PROBE_TOLERANCE = 1e-3


def save(
    url: str | Path,
    net: Backbone,
    inputs: InputConvention,
    classes: tuple[str, ...],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write an artifact to a local directory or a URL and return its config.

    `provenance` is kept as it is: recipe, data fingerprint, metrics. The weights are written first and the config,
    which holds their hash, last: a directory without `config.json` is no artifact.

    Raises:
        UserError: the place cannot be written.
    """
    tensors = {name.removeprefix(net.prefix): t.cpu().contiguous() for name, t in net.state_dict().items()}
    extra: dict[str, bytes] = {}
    if inputs.mean_image is not None:
        extra["mean_image.safetensors"] = save_tensors({"mean_image": inputs.mean_image.cpu().contiguous()})
    weights = save_tensors(tensors)
    options, last = net.options.lasting, list(net.stages.values())[-1]
    config = {
        "architecture": timm_name(options) or f"raybone_{options.name}",
        "num_classes": net.num_classes,
        "num_features": last.channels,
        **({"model_args": options.arguments} if isinstance(options, ExternalNet) else {}),
        "pretrained_cfg": {
            "num_classes": net.num_classes,
            "input_size": [3, inputs.size, inputs.size],
            "interpolation": inputs.interpolation,
            "crop_pct": inputs.crop_pct,
            "mean": list(inputs.mean),
            "std": list(inputs.std),
            "label_names": list(classes),
            **_layers(net),
        },
        "raybone": {
            "format": FORMAT,
            "net": options.recorded,
            "norm_eps": 1e-5,
            "stages": {name: {"channels": s.channels, "stride": s.stride} for name, s in net.stages.items()},
            "channel_order": inputs.channel_order,
            "value_range": [0, 1],
            "mean_image": hashlib.sha256(extra["mean_image.safetensors"]).hexdigest() if extra else None,
            "classes": list(classes),
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "probe": probe(net, inputs),
            "provenance": {**provenance, **environment()},
        },
    }
    write_folder(url, {**extra, "model.safetensors": weights, "config.json": _json(config)}, "artifact")
    return config


def load(url: str | Path) -> tuple[Backbone, InputConvention, dict[str, Any]]:
    """Read and verify an artifact: the net in eval mode, its input convention, and the `raybone` block of its config.

    Every key must be accounted for, the hash must be the config's, and the net built from the recorded options must
    answer the probe as it did when it was saved.

    Raises:
        UserError: it is not an artifact, or not an intact one; the message says which part and what to do.
    """
    fs, path = filesystem(url)
    config = read_config(url)
    block = config["raybone"]
    try:
        weights = fs.cat_file(join(path, "model.safetensors"))
        mean_image = fs.cat_file(join(path, "mean_image.safetensors")) if block["mean_image"] else b""
    except StorageError:
        raise
    except OSError as error:
        raise UserError(f"{url}: incomplete artifact: {error}") from error
    for data, expected, name in (
        (weights, block["weights_sha256"], "model.safetensors"),
        (mean_image, block["mean_image"], "mean_image.safetensors"),
    ):
        if expected and hashlib.sha256(data).hexdigest() != expected:
            raise UserError(f"{url}/{name}: SHA-256 is not the one in config.json; the file is damaged or exchanged")
    try:
        net = build(net_options(block["net"]), config["num_classes"])
        tensors = {net.prefix + name: tensor for name, tensor in load_tensors(weights).items()}
        inputs = _inputs(config, load_tensors(mean_image)["mean_image"] if mean_image else None)
    except (ValidationError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{url}: config.json or weights cannot be read: {' '.join(str(error).split())}") from error
    own = net.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [k for k in own.keys() & tensors.keys() if own[k].shape != tensors[k].shape]
    if missing or extra or shapes:
        raise UserError(
            f"{url}: weights are not those of {block['net']}: missing {missing[:3]}, unknown {extra[:3]}, "
            f"of another shape {sorted(shapes)[:3]}"
        )
    net.load_state_dict(tensors)
    recorded = {name: {"channels": s.channels, "stride": s.stride} for name, s in net.stages.items()}
    if recorded != block["stages"]:
        raise UserError(f"{url}: config.json says stages {block['stages']}, the net it describes has {recorded}")
    fault = answers_otherwise(net, inputs, block["probe"])
    if fault:
        raise UserError(
            f"{url}: the net does not answer its probe: {fault[0]}, config.json says {fault[1]}. The description does "
            "not fit the weights: look at stride_in_1x1, shortcut, shortcut_pad, channel_order, mean and std"
        )
    return net.eval(), inputs, block


def read_config(url: str | Path) -> dict[str, Any]:
    """The config of an artifact, without its weights; UserError where `url` is not one."""
    fs, path = filesystem(url)
    try:
        config = json.loads(fs.cat_file(join(path, "config.json")))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{url}: no backbone artifact here: config.json is missing; {_where_from(url)}") from error
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{url}/config.json cannot be read: {error}") from error
    block = config.get("raybone") if isinstance(config, dict) else None
    if block is None and isinstance(config, dict) and "raybone_detector" in config:
        raise UserError(f"{url}: this is a detector's artifact; give that of a backbone")
    if not isinstance(block, dict) or "weights_sha256" not in block:
        raise UserError(f"{url}: not a raybone backbone artifact: config.json has no such block")
    if block.get("format") != FORMAT:
        raise UserError(f"{url}: artifact format {block.get('format')}; this raybone reads {FORMAT}")
    return config


def beside(url: str | Path, block: str) -> str:
    """What to add to the message that `runs/NAME/artifact` is none: those of other names; `block` tells their kind."""
    place = Path(url)
    if "://" in str(url) or place.name != "artifact":
        return ""
    found = []
    for one in place.parent.parent.glob("*/artifact/config.json"):
        with suppress(OSError, ValueError):
            if f'"{block}"' in one.read_text():
                found.append((one.stat().st_mtime, one))
    newest = [one for _, one in sorted(found, reverse=True)[:3]]
    return f"; newest there: {', '.join(str(one.parent) for one in newest)}" if newest else ""


def _where_from(url: str | Path) -> str:
    """How to come by an artifact."""
    fs, path = filesystem(url)
    if fs.exists(join(path, "artifact", "config.json")):
        return f"perhaps you meant {url}/artifact"
    if fs.isfile(path):
        folder = str(url).rpartition("/")[0]
        if folder and fs.exists(join(path.rpartition("/")[0], "config.json")):
            return f"this is a file of an artifact; give its folder, {folder}"
        made = typed(f"python jobs/import.py --source torchvision --weights {url} --output runs/imported/artifact")
        return f"this is a file, and an artifact a folder; of a file of weights: {made} (or another --source)"
    name = str(url).strip("/")
    if re.fullmatch(r"[a-z]+[a-z0-9_]*\d[a-z0-9_]*", name):  # resnet50: what other libraries call a net
        whose, how = "torchvision", f"--weights {name}.pth"
        if not re.fullmatch(r"resnet\d+|vgg\d+(_bn)?", name):  # nets that raybone has not are timm's to build
            whose, how = "timm", f"--model {name} --weights {name}.safetensors"
        made = typed(f"python jobs/import.py --source {whose} {how} --output runs/{name}/artifact")
        return f"a backbone is what jobs/pretrain.py or jobs/import.py writes; one of {whose}'s weights: {made}"
    return f"it is what jobs/pretrain.py and jobs/import.py write, runs/NAME/artifact{beside(url, 'raybone')}"


@torch.no_grad()
def probe(net: Backbone, inputs: InputConvention) -> dict[str, dict[str, float]]:
    """What the net makes of one fixed image: of each stage map and the logits mean, deviation and a random projection.

    In eval mode, on CPU, in fp32, through the input convention: stride placement, channel order, mean and deviation all
    show. The net's mode and device are put back.
    """
    device, was_training = next(net.parameters()).device, net.training
    net.to("cpu").eval()
    images = inputs.normalize(probe_images())
    found = {}
    for name, values in {**net(images), "logits": net.classify(images)}.items():
        values = values.double()
        sign = torch.from_numpy(order(1512, 3385, values.numel()) % 2 * 2 - 1).view_as(values)
        found[name] = {
            "mean": values.mean().item(),
            "std": values.std().item(),
            "projection": (values * sign).sum().item() / values.numel() ** 0.5,
        }
    net.to(device).train(was_training)
    return found


def answers_otherwise(
    net: Backbone, inputs: InputConvention, expected: dict[str, dict[str, float]], skip: tuple[str, ...] = ()
) -> tuple[str, str] | None:
    """Where a net does not answer its probe as `expected`: what it says, and what was expected. None: nowhere.

    `skip` are stages that are not asked. What the noise of fp32 explains is no difference.
    """
    close: dict[str, float] = {}
    for stage, values in probe(net, inputs).items():
        wanted = {statistic: expected.get(stage, {}).get(statistic, float("nan")) for statistic in values}
        for statistic, value in values.items() if stage not in skip else ():
            apart = abs(value - wanted[statistic])
            if apart <= PROBE_TOLERANCE * max(abs(wanted["std"]), 1e-12):
                continue
            close = close or noise(net, inputs, probe_images())
            largest = PROBE_TOLERANCE * math.hypot(wanted["mean"], wanted["std"])
            if not apart <= min(NOISE_FACTOR * close[stage], largest):
                return f"{statistic} of {stage} is {value:.6g}", f"{wanted[statistic]:.6g}"
    return None


def probe_images() -> Tensor:
    """Two images of noise, the second dark and tinted, uint8 RGB [2, 3, H, W]."""
    pixels = order(2015, 12, 3 * PROBE_SIZE**2) % 256
    image = torch.from_numpy(pixels.astype(np.uint8)).view(1, 3, PROBE_SIZE, PROBE_SIZE)
    return torch.cat([image, image // 2 + torch.arange(3).view(1, 3, 1, 1).byte() * 60])


def timm_name(options: AnyNet) -> str | None:
    """The timm architecture that computes the same from the same keys; None where timm has no such net.

    timm and torchvision cannot express stride in the first 1x1, and would load such weights without a word.
    """
    if isinstance(options, ExternalNet):
        return options.model.partition(".")[0]
    if options.net == "vgg":
        usual = NetOptions(net="vgg", depth=options.depth, norm=options.norm)
        return options.name if options == usual and options.norm in ("batch", "none") else None
    if options.net == "resnet":
        usual = NetOptions(depth=options.depth, zero_init_residual=options.zero_init_residual)
        return options.name if options == usual else None
    return None


def _layers(net: Backbone) -> dict[str, Any]:
    """The names of first convolution and classifier, without which timm puts no other head on."""
    if isinstance(net, External):
        return {name: net.model.pretrained_cfg[name] for name in ("first_conv", "classifier")}
    return {} if isinstance(net, VGG) else {"first_conv": "conv1", "classifier": "fc"}


def _inputs(config: dict[str, Any], mean_image: Tensor | None) -> InputConvention:
    cfg = config["pretrained_cfg"]
    return InputConvention(
        size=cfg["input_size"][1],
        crop_pct=cfg["crop_pct"],
        channel_order=config["raybone"]["channel_order"],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"],
        mean_image=mean_image,
    )


def _json(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2) + "\n").encode()
