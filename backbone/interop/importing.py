"""Foreign weights to an artifact, written only after both sides agreed on the same image."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from backbone import artifact
from backbone.errors import UserError
from backbone.interop import external, timm
from backbone.interop.advice import Advice
from backbone.interop.common import Facts, Files, Source
from backbone.interop.convert import Imported, convert
from backbone.interop.export import BLOCK, TARGETS, verify
from backbone.interop.facts import sound
from backbone.interop.files import read, weights_files
from backbone.interop.foreign import Foreign
from backbone.interop.layouts import Layout
from backbone.interop.options import Import
from backbone.interop.probe import Agreement
from backbone.nets import Backbone
from backbone.options import net_options
from backbone.storage import check_kept, filesystem


@dataclass(frozen=True)
class Brought:
    """What came of an import."""

    found: Imported
    agreements: tuple[Agreement, ...]
    notes: tuple[str, ...]


def run(options: Import) -> Brought:
    """Read, convert, check and write an artifact.

    Raises:
        UserError: anything is unexplained, missing, contradictory, unsaid, damaged or does not agree; names it.
    """
    check_kept(options.output, "output")
    files, unread = ({}, []) if options.random else read(options.weights)
    where = options.weights
    if options.model:
        found = external.bring(options, files, _given(options))
    else:
        layout = Layout(options.source, options.entry, options.prefix, options.drop)
        try:
            found = convert(layout, files, where, _given(options))
        except Advice as advice:
            raise advice.commands(options) from advice
        except Foreign as odd:
            raise external.by_its_name(odd, files, options) from odd
        if options.source == "timm":
            timm.check_named(files, found.net.options, where)
    _check_output(options.output, found.net)
    made = _answers_its_probe(found, files, where)
    # Caffe's own nets have a home in detectron2.
    to = "detectron2" if options.source == "caffe" else options.source
    notes = [*unread, *found.notes]
    agreements: list[Agreement] = []
    if to not in TARGETS:
        notes.append("not asked: no framework has the nets of CIFAR, so nothing but their names and shapes was checked")
    elif TARGETS[to].refuses(found.net.options):
        notes.append(f"not asked: {to}, which has no such net")
    else:
        source = Source(net=found.net, inputs=found.inputs, classes=found.classes, place="weights")
        agreements = verify(source, to, TARGETS[to].write(source))
    imported = {
        "source": options.source,
        "file": where or "random weights",
        "sha256": {name: hashlib.sha256(files[name]).hexdigest() for name in _read(files, where)},
        "notes": notes,
        "agreements": [asdict(row) for row in agreements],
    }
    artifact.save(options.output, found.net, found.inputs, found.classes, {**made, "imported": imported})
    return Brought(found, tuple(agreements), tuple(notes))


def _given(options: Import) -> Facts:
    """What the user said, None for what not."""
    for name in ("mean", "std"):
        if getattr(options, name) and len(getattr(options, name)) != 3:
            raise UserError(f"{name}: takes three numbers, red green blue on the 0..1 scale")
    if any(not 0 < value <= 1 for value in options.std) or any(not 0 <= value <= 1 for value in options.mean):
        raise UserError("mean, std: numbers of the 0..1 scale; divide those of the 0..255 scale by 255")
    classes = None
    if options.classes:
        fs, path = filesystem(options.classes)
        try:
            classes = tuple(line for line in fs.cat_file(path).decode().splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"classes {options.classes}: {error}") from error
    given = Facts(
        stride_in_1x1={"true": True, "false": False}.get(options.stride_in_1x1),
        shortcut_pad=options.shortcut_pad or None,
        dilation=options.dilation or None,
        channel_order=options.channel_order or None,
        mean=options.mean or None,
        std=options.std or None,
        size=options.size or None,
        crop_pct=options.crop_pct or None,
        classes=classes,
    )
    try:
        return sound(given)
    except ValueError as error:
        raise UserError(str(error)) from error


def _check_output(url: str, net: Backbone) -> None:
    """UserError where the artifact of another net lies, which detectors and comparisons may name."""
    fs, path = filesystem(url)
    if not fs.exists(f"{path}/config.json"):
        return
    held = net_options(artifact.read_config(url)["raybone"]["net"]).name
    if held != net.options.name:  # the same net may be brought anew, with other strides or pixels
        raise UserError(f"output {url}: holds another net, {held}; give another --output, or remove that")


def _read(files: Files, where: str) -> list[str]:
    return weights_files(files, where) if files else []


def _answers_its_probe(found: Imported, files: Files, where: str) -> dict[str, Any]:
    """The provenance of weights that raybone exported, whose answers to the probe must not have changed."""
    if BLOCK not in files:
        return {}
    try:
        block = json.loads(files[BLOCK])
        expected, provenance = block["probe"], dict(block["provenance"])
        fault = artifact.answers_otherwise(found.net, found.inputs, expected, () if found.has_head else ("logits",))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{where}/{BLOCK} cannot be read: {error!r}; remove it if it is not needed") from error
    if fault:
        raise UserError(
            f"{where}: {fault[0]}, was {fault[1]} when raybone exported this: the weights or what the config says of "
            f"them were changed; look at stride placement, channel order, mean and std. If it is meant, remove {BLOCK}"
        )
    return provenance
