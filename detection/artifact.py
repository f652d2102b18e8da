"""The detector artifact: a folder with `model.safetensors` and `config.json`, and nothing that runs when loaded.

It holds all that is needed to build the detector again, feed it, and name what it finds in the data set's own numbers.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from backbone.artifact import beside
from backbone.data.stream import order
from backbone.errors import StorageError, UserError
from backbone.inputs import InputConvention
from backbone.nets import build as build_backbone
from backbone.options import net_options
from backbone.provenance import environment
from backbone.storage import filesystem, join, write_folder
from detection.data.contract import Categories
from detection.nets import Detector, build
from detection.options import detector_options

FORMAT = 1
PROBE_SIZE = 128
PROBE_TOLERANCE = 1e-3  # as that of backbones: other processors differ by some 1e-5


class Loaded(NamedTuple):
    """What `load` gives."""

    detector: Detector  # in eval mode, on CPU
    inputs: InputConvention  # with `size` the shorter side it was trained at
    categories: Categories
    longer_side: int
    block: dict[str, Any]  # `raybone_detector` of the config


def save(
    url: str | Path,
    detector: Detector,
    inputs: InputConvention,
    categories: Categories,
    sides: tuple[int, int],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Write an artifact to a local folder or URL and return its config.

    `sides` are shorter and longer side of its input, pixels. The config, which holds the weights' hash, comes last: a
    folder without it is no artifact.

    Raises:
        UserError: the place cannot be written.
    """
    weights = save_tensors({name: t.detach().cpu().contiguous() for name, t in detector.state_dict().items()})
    conventions = {key: value for key, value in asdict(inputs).items() if key not in ("size", "crop_pct", "mean_image")}
    config = {
        "raybone_detector": {
            "format": FORMAT,
            "detector": detector.options.model_dump(mode="json"),
            "net": detector.backbone.body.options.recorded,
            "categories": {"names": list(categories.names), "ids": list(categories.ids)},
            # Detection sees images of any size, so a mean image gives way to its channel means.
            "inputs": conventions,
            "shorter_side": sides[0],
            "longer_side": sides[1],
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "probe": probe(detector, inputs),
            "provenance": {**provenance, **environment()},
        }
    }
    text = (json.dumps(config, indent=2) + "\n").encode()
    write_folder(url, {"model.safetensors": weights, "config.json": text}, "artifact")
    return config


def load(url: str | Path) -> Loaded:
    """Read and verify an artifact: hash, every key, and the detector's answer to its probe.

    Raises:
        UserError: it is not a detector artifact, or not an intact one; the message says which part and what to do.
    """
    block = read_config(url)["raybone_detector"]
    fs, path = filesystem(url)
    try:
        weights = fs.cat_file(join(path, "model.safetensors"))
    except StorageError:
        raise
    except OSError as error:
        raise UserError(f"{url}: incomplete artifact: {error}") from error
    if hashlib.sha256(weights).hexdigest() != block["weights_sha256"]:
        raise UserError(f"{url}/model.safetensors: SHA-256 is not the one in config.json; the file is damaged")
    try:
        options = detector_options(block["detector"])
        categories = Categories(tuple(block["categories"]["names"]), tuple(block["categories"]["ids"]))
        said: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in block["inputs"].items()}
        inputs = InputConvention(**said, size=block["shorter_side"])
        # The head is not the backbone's, so a class is enough.
        net = build_backbone(net_options(block["net"]), 1)
        detector, tensors = build(options, net, len(categories)), load_tensors(weights)
        longer_side = int(block["longer_side"])
    except (ValidationError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{url}: config.json or weights cannot be read: {' '.join(str(error).split())}") from error
    try:
        detector.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{url}: weights are not those of config.json: {' '.join(str(error).split())[:300]}") from error
    found = probe(detector.eval(), inputs)
    for name, value in found.items():
        expected = block["probe"].get(name, float("inf"))
        if abs(value - expected) > PROBE_TOLERANCE * max(abs(expected), 1e-3):
            raise UserError(
                f"{url}: the detector does not answer its probe: {name} is {value:.6g}, config.json says {expected}. "
                "The description does not fit the weights: look at net, detector and inputs"
            )
    return Loaded(detector, inputs, categories, longer_side, block)


def read_config(url: str | Path) -> dict[str, Any]:
    """The config of an artifact, without its weights; UserError where `url` is not one of a detector."""
    fs, path = filesystem(url)
    try:
        config = json.loads(fs.cat_file(join(path, "config.json")))
    except (FileNotFoundError, NotADirectoryError) as error:
        below = fs.exists(join(path, "artifact", "config.json"))
        made = f"jobs/finetune.py writes it, runs/NAME/artifact{beside(url, 'raybone_detector')}"
        hint = f"perhaps you meant {url}/artifact" if below else made
        raise UserError(f"{url}: no detector artifact here: config.json is missing; {hint}") from error
    except StorageError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{url}/config.json cannot be read: {error}") from error
    config = config if isinstance(config, dict) else {}
    block = config.get("raybone_detector")
    if not isinstance(block, dict) or not {"weights_sha256", "probe"} <= block.keys():
        if "raybone" in config:
            raise UserError(f"{url}: this is a backbone artifact; put it into a detector with jobs/finetune.py first")
        raise UserError(f"{url}: not a detector artifact: config.json has no such block")
    if block.get("format") != FORMAT:
        raise UserError(f"{url}: artifact format {block.get('format')}; this raybone reads {FORMAT}")
    return config


@torch.no_grad()
def probe(detector: Detector, inputs: InputConvention) -> dict[str, float]:
    """What the detector makes of one fixed image, in eval mode, on CPU, in fp32: see `Detector.probe`."""
    device, was_training = next(detector.parameters()).device, detector.training
    detector.to("cpu").eval()
    pixels = torch.from_numpy((order(2015, 6, 3 * PROBE_SIZE**2) % 256).astype("uint8"))
    found = detector.probe(inputs.normalize(pixels.view(1, 3, PROBE_SIZE, PROBE_SIZE)))
    detector.to(device).train(was_training)
    return found
