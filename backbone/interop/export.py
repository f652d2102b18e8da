"""An artifact to another framework's folder, written only after the same image came out the same on both sides."""

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from backbone import artifact
from backbone.errors import UserError
from backbone.interop import card, detectron2, mmdetection, onnx, probe, timm, torchvision, transformers
from backbone.interop.common import Answer, Files, Source
from backbone.interop.convert import convert
from backbone.interop.layouts import Layout
from backbone.options import AnyNet, NetOptions
from backbone.storage import check_kept, write_folder

BLOCK = "raybone.json"


@dataclass(frozen=True)
class Target:
    """What is particular to one framework."""

    write: Callable[[Source], Files]
    snippet: Callable[[Source], str]
    obstacle: Callable[[NetOptions], str]
    """Why it cannot have a net of raybone's own; empty: it can."""
    answers: Callable[[Path, Source], Answer] | None = None
    """Its own side of the probe; None: it is not on the package index, so its side is the way back alone."""
    packages: tuple[str, ...] = ()
    """What `write` and `answers` need; the last one answers."""
    way_back: str = ""
    """Whose names an import would read it with."""
    external: bool = False
    """Whether it can have nets of other libraries."""

    def refuses(self, options: AnyNet) -> str:
        """Why it cannot have a net; empty: it can."""
        if isinstance(options, NetOptions):
            return self.obstacle(options)
        return "" if self.external else f"it has none of {options.library}'s nets by their names"


def _usual(options: NetOptions) -> str:
    """What no framework's ResNet has, whichever it is."""
    odd = [
        (options.net == "cifar_resnet", "it has no nets for CIFAR"),
        (options.shortcut == "none", "it has no plain nets"),
        (options.shortcut in ("A", "C"), f"it has no shortcuts of kind {options.shortcut}"),
        (options.preact, "its units have no pre-activation"),
        (options.shortcut_scale != 1 or options.residual_scale != 1, "its units scale neither branch"),
        (options.norm == "group", "its nets of this kind have batch norm"),
    ]
    return next((reason for is_odd, reason in odd if is_odd), "")


def _resnet(options: NetOptions, stride: bool = True, width: bool = True, vgg: bool = False) -> str:
    """`stride`, `width`, `vgg`: whether it has stride in the first 1x1, other widths, and VGGs."""
    if options.net == "vgg" and not vgg:
        return "it has no VGG with these maps"
    if options.stride_in_1x1 and not stride:
        return "its bottlenecks have stride in the 3x3 only, and it would load stride_in_1x1 weights without a word"
    if options.width != 1 and not width:
        return f"it has no width {options.width:g}"
    return _usual(options)


def _detectron2(options: NetOptions) -> str:
    if options.depth < 50 and options.width != 1:
        return "its ResNet-18 and 34 have 64 channels (RES2_OUT_CHANNELS)"
    return _resnet(options) or _doubles(options)


def _doubles(options: NetOptions) -> str:
    """detectron2 and mmdetection double the channels from stage to stage; rounding may not."""
    exact = [64 * options.width * 2**i for i in range(4)]
    return "" if exact[0] == round(exact[0]) else "its channels double from stage to stage, and these, rounded, do not"


TARGETS: dict[str, Target] = {
    "torchvision": Target(
        torchvision.write,
        torchvision.snippet,
        partial(_resnet, stride=False, width=False, vgg=True),
        torchvision.answers,
        ("torchvision",),
        "torchvision",
    ),
    "torchvision-detection": Target(
        torchvision.write_detection,
        torchvision.detection_snippet,
        partial(_resnet, stride=False, width=False),
        torchvision.detection_answers,
        ("torchvision",),
        "torchvision",
    ),
    "timm": Target(
        timm.write,
        timm.snippet,
        partial(_resnet, stride=False, width=False, vgg=True),
        timm.answers,
        ("timm",),
        "timm",
        external=True,
    ),
    "transformers": Target(
        transformers.write, transformers.snippet, _resnet, transformers.answers, ("transformers",), "transformers"
    ),
    "detectron2": Target(detectron2.write, detectron2.snippet, _detectron2, way_back="detectron2"),
    "mmdetection": Target(
        mmdetection.write,
        mmdetection.snippet,
        lambda options: _resnet(options) or _doubles(options),
        way_back="mmdetection",
    ),
    "onnx": Target(
        onnx.write, onnx.snippet, lambda options: "", onnx.answers, ("onnxscript", "onnxruntime"), external=True
    ),
}


@dataclass(frozen=True)
class Exported:
    """What was written."""

    agreements: tuple[probe.Agreement, ...]
    notes: tuple[str, ...]
    snippet: str
    files: tuple[str, ...]


def export(url: str, to: str, output: str, license: str = "unknown") -> Exported:
    """Write the artifact at `url` for the framework `to` into the folder `output`.

    Nothing is written unless both sides agree on the same image.

    Raises:
        UserError: the artifact is not intact, the framework cannot have the net, a side does not agree, a package is
            missing, or the place cannot be written.
    """
    check_kept(output, "output")
    net, inputs, block = artifact.load(url)
    notes = _notes(net.options, inputs.mean_image is not None, inputs.channel_order, to)
    source = Source(
        net=net,
        inputs=replace(inputs, mean_image=None),
        classes=tuple(block["classes"]),
        place=str(output).rstrip("/"),
    )
    refuse(net.options, to)
    absent = [name for name in TARGETS[to].packages if not installed(name)]
    if absent:
        raise UserError(f"{to}: its own side of the probe needs {' and '.join(absent)}: pip install {' '.join(absent)}")
    files = TARGETS[to].write(source)
    about = {"probe": artifact.probe(net, source.inputs), "provenance": block["provenance"]}
    files[BLOCK] = (json.dumps(about, indent=2) + "\n").encode()
    agreements = verify(source, to, files)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    snippet = TARGETS[to].snippet(source)
    files["README.md"] = card.write(source, to, block, sums, agreements, notes, snippet, license).encode()
    write_folder(output, files, "export")
    return Exported(tuple(agreements), notes, snippet, tuple(files))


def refuse(options: AnyNet, to: str) -> None:
    """UserError if the framework cannot have the net; names those that can."""
    reason = TARGETS[to].refuses(options)
    if reason:
        raise UserError(f"{options.name} cannot go to {to}: {reason}. These can have it: {', '.join(able(options))}")


def able(options: AnyNet) -> list[str]:
    """The frameworks that can have a net, those first whose packages are here."""
    those = [name for name, target in TARGETS.items() if not target.refuses(options)]
    return sorted(those, key=lambda name: not all(map(installed, TARGETS[name].packages)))


def verify(source: Source, to: str, files: Files) -> list[probe.Agreement]:
    """Read `files` as the framework does, where it is installed, and back as an import would; each must answer as our
    net does.

    Raises:
        UserError: one does not, or cannot read them.
    """
    target, found = TARGETS[to], []
    if target.way_back and isinstance(source.net.options, NetOptions):
        given = {name: data for name, data in files.items() if name != BLOCK}
        back = convert(Layout(target.way_back), given, f"the {to} export read back")

        def back_again(images: Tensor) -> dict[str, Tensor]:
            maps = probe.ours(back.net, back.inputs, images)
            return maps if back.has_head else {stage: value for stage, value in maps.items() if stage != "logits"}

        found += probe.agree(source.net, source.inputs, back_again, "read back by raybone")
    if target.answers is None or not all(map(installed, target.packages)):
        return found
    side = f"{target.packages[-1]} {importlib.metadata.version(target.packages[-1])}"
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        try:
            answer = target.answers(Path(folder), source)
        except (RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{to} does not load what was written: {' '.join(str(error).split())[:400]}") from error
        return found + probe.agree(source.net, source.inputs, answer, side)


def installed(package: str) -> bool:
    """Whether a package of this name is there."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _notes(options: AnyNet, mean_image: bool, order: str, to: str) -> tuple[str, ...]:
    notes = []
    if mean_image:
        notes.append("The mean image gives way to its channel means: logits of images of its own size change slightly.")
    if order == "BGR" and to in ("torchvision", "torchvision-detection", "timm", "transformers"):
        notes.append("The net reads BGR, this framework feeds RGB: the channels of the first kernels were reversed.")
    if to in ("torchvision-detection", "detectron2", "mmdetection"):
        notes.append("Left out, since a detector has no use for it: the classifier (fc.weight, fc.bias).")
    if to == "detectron2" and isinstance(options, NetOptions) and options.depth < 50:
        notes.append(
            "FPN alone: detectron2's C4 head is of bottlenecks always, and would start at random beneath this net."
        )
    if to == "detectron2":
        notes.append("Left out, since detectron2 has no such buffers: counters of batches (num_batches_tracked).")
    if to == "onnx" and options.net == "vgg":
        notes.append("Stage maps alone: VGG's head pools any size to 7x7 cells, for which ONNX has no operator.")
    return tuple(notes)
