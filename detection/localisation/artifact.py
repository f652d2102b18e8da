"""The localiser's artifact: a folder with `model.safetensors` and `config.json`, and nothing that runs when loaded."""

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

from backbone.artifact import PROBE_TOLERANCE, probe_images
from backbone.errors import UserError
from backbone.inputs import InputConvention
from backbone.nets import build as build_backbone
from backbone.options import net_options
from backbone.provenance import environment
from backbone.storage import filesystem, join, write_folder
from detection.localisation.net import Localiser, build
from detection.localisation.rcnn import RegionNet, build_regions
from detection.localisation.recipe import LocaliserOptions, RegionOptions

FORMAT = 1
BLOCK = "raybone_localiser"


class Loaded(NamedTuple):
    """What `load` gives."""

    localiser: Localiser | RegionNet  # in eval mode, on CPU
    inputs: InputConvention
    classes: tuple[str, ...]
    block: dict[str, Any]


def save(
    url: str | Path,
    localiser: Localiser | RegionNet,
    inputs: InputConvention,
    classes: tuple[str, ...],
    provenance: dict[str, Any],
) -> None:
    """Write an artifact to a local folder or URL. The config, which holds the weights' hash, comes last.

    Raises:
        UserError: the place cannot be written.
    """
    weights = save_tensors({name: t.detach().cpu().contiguous() for name, t in localiser.state_dict().items()})
    said = {key: value for key, value in asdict(inputs).items() if key != "mean_image"}
    files = {"model.safetensors": weights}
    if inputs.mean_image is not None:
        files["mean_image.safetensors"] = save_tensors({"mean_image": inputs.mean_image.cpu().contiguous()})
    block = {
        "format": FORMAT,
        "localiser": localiser.options.model_dump(mode="json"),
        "net": localiser.body.options.recorded,
        "classes": list(classes),
        "inputs": said,
        "mean_image": inputs.mean_image is not None,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "probe": probe(localiser, inputs),
        "provenance": {**provenance, **environment()},
    }
    files["config.json"] = (json.dumps({BLOCK: block}, indent=2) + "\n").encode()
    write_folder(url, files, "artifact")


def load(url: str | Path) -> Loaded:
    """Read and verify an artifact: hash, every key, and the localiser's answer to its probe.

    Raises:
        UserError: it is not a localiser's artifact, or not an intact one.
    """
    fs, path = filesystem(url)
    try:
        block = json.loads(fs.cat_file(join(path, "config.json")))[BLOCK]
        weights = fs.cat_file(join(path, "model.safetensors"))
        mean = fs.cat_file(join(path, "mean_image.safetensors")) if block["mean_image"] else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{url}: no artifact of a localiser, or not a complete one: {error}") from error
    if block.get("format") != FORMAT:
        raise UserError(f"{url}: artifact format {block.get('format')}; this raybone reads {FORMAT}")
    if hashlib.sha256(weights).hexdigest() != block["weights_sha256"]:
        raise UserError(f"{url}/model.safetensors: SHA-256 is not the one in config.json; the file is damaged")
    try:
        classes, is_rcnn = tuple(block["classes"]), block["localiser"].get("kind") == "rcnn"
        said: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in block["inputs"].items()}
        inputs = InputConvention(**said, mean_image=load_tensors(mean)["mean_image"] if mean else None)
        net = build_backbone(net_options(block["net"]), 1)
        if is_rcnn:
            options = RegionOptions.model_validate(block["localiser"])
            localiser: Localiser | RegionNet = build_regions(options, net, len(classes))
        else:
            localiser = build(LocaliserOptions.model_validate(block["localiser"]), net, len(classes))
        localiser.load_state_dict(load_tensors(weights))
    except (ValidationError, KeyError, TypeError, ValueError, SafetensorError, RuntimeError) as error:
        raise UserError(f"{url}: config.json or weights cannot be read: {' '.join(str(error).split())}") from error
    for name, value in probe(localiser.eval(), inputs).items():
        expected = block["probe"].get(name, float("inf"))
        if abs(value - expected) > PROBE_TOLERANCE * max(abs(expected), 1e-3):
            raise UserError(f"{url}: does not answer its probe: {name} is {value:.6g}, config.json says {expected}")
    return Loaded(localiser, inputs, classes, block)


def load_localiser(url: str | Path, field: str) -> tuple[Localiser, Loaded]:
    """A localiser of kind rpn, which sees whole images; UserError as `load`, or it is of another kind."""
    loaded = load(url)
    if not isinstance(loaded.localiser, Localiser):
        raise UserError(
            f"{field} {url}: is an R-CNN (localiser.kind rcnn), which moves the boxes of a localiser; give that one's "
            "artifact, which this one's recipe.yaml names as proposals"
        )
    return loaded.localiser, loaded


@torch.no_grad()
def probe(localiser: Localiser | RegionNet, inputs: InputConvention) -> dict[str, float]:
    """Deviations of what the localiser says of two fixed images for its first and last class, and of its anchors.

    In eval mode, on CPU, in fp32; mode and device are put back.
    """
    device, was_training = next(localiser.parameters()).device, localiser.training
    localiser.to("cpu").eval()
    images = inputs.normalize(probe_images())
    ends = [0, localiser.classes - 1]
    if isinstance(localiser, Localiser):
        logits, deltas = localiser(images, torch.tensor([ends] * len(images)))
        found = {"logits": logits, "deltas": deltas, "anchors": localiser.anchors(*(int(n) for n in images.shape[-2:]))}
    else:
        logits, deltas = localiser(images.repeat_interleave(2, 0), torch.tensor(ends * len(images)))
        found = {"logits": logits, "deltas": deltas}
    localiser.to(device).train(was_training)
    return {name: values.double().std().item() for name, values in found.items()}
