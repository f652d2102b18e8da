"""What weights do not say: where a net strides and pads, what it does to pixels. From where it is known, or asked."""

import math
from dataclasses import fields
from typing import Any

from backbone.data.augment import pil_filter
from backbone.errors import UserError
from backbone.interop import weights
from backbone.interop.advice import Advice, Way, fact_words
from backbone.interop.common import Facts, Files
from backbone.interop.layouts import Layout, dilated
from backbone.interop.origins import ORIGINS
from backbone.options import NetOptions

MOST_PIXELS = 8192  # a side
DROPPED = "its dilation was dropped, as asked: C4 and C5 are not the maps that it was trained with"


def said_beside(layout: Layout, tree: Any, files: Files, where: str) -> Facts:
    """What the config beside the weights says, or the one that mmdetection puts into its checkpoints."""
    inner = inner_config(layout, tree, files)
    try:
        given = {**files, "meta.py": inner.encode(errors="replace")} if inner else files
        return sound(ORIGINS[layout.source].facts(given))
    except Exception as error:  # it is somebody else's file, and can be anything
        if inner:
            return Facts()  # what it does not say is asked
        raise UserError(f"{where}: the config beside the weights cannot be read: {error!r}") from error


def sound(facts: Facts) -> Facts:
    """The same; ValueError for numbers that no image could be normalised or cut with."""
    if not all(math.isfinite(value) for value in facts.mean or ()):
        raise ValueError(f"mean {facts.mean}")
    if not all(math.isfinite(value) and value > 0 for value in facts.std or ()):
        raise ValueError(f"std {facts.std}")
    if facts.size is not None and not 1 <= facts.size <= MOST_PIXELS:
        raise ValueError(f"size {facts.size}: give 1 to {MOST_PIXELS} pixels a side")
    if facts.crop_pct is not None and not 0 < facts.crop_pct <= 1:
        raise ValueError(f"crop_pct {facts.crop_pct}: a share above 0, 1 at most, such as --crop_pct 0.875")
    if facts.interpolation is not None:
        pil_filter(facts.interpolation)
    if not all(isinstance(name, str) for name in facts.classes or ()):
        raise ValueError("classes that are no texts")
    return facts


def inner_config(layout: Layout, tree: Any, files: Files) -> str:
    """The text of the config in an mmdetection checkpoint, unless one lies beside it."""
    meta = (weights.named(tree) or {}).get("meta")
    if layout.source != "mmdetection" or not isinstance(meta, dict) or any(name.endswith(".py") for name in files):
        return ""
    text = meta.get("cfg", meta.get("config"))  # mmengine's word, and that of mmcv before it
    return text if isinstance(text, str) else ""


def settled(
    layout: Layout, tree: Any, defaults: Facts, said: Facts, given: Facts, options: NetOptions
) -> tuple[Facts, list[str]]:
    """Each fact from the config beside the weights, from the user or from the framework's documentation; with notes.

    Raises:
        UserError: two of them disagree, or none says.
    """
    for field in fields(Facts):
        config, user = getattr(said, field.name), getattr(given, field.name)
        compared = field.name not in ("size", "crop_pct", "classes", "dilation")  # the first three change no map
        if compared and None not in (config, user) and not _same(config, user):
            raise UserError(f"{field.name}: {user} is given, the config beside the weights says {config}; remove one")
    if said.dilation == "dilated" and given.dilation == "none":
        raise UserError(
            "dilation: none is given, the config beside the weights has one; --dilation dropped gives it up"
        )
    if given.stride_in_1x1 and layout.source in ("torchvision", "timm"):
        raise UserError(
            f"stride_in_1x1: {layout.source} has no such nets; name weights of its names --source mmdetection"
        )
    facts, ways = asked(layout, tree, defaults, said, given, options)
    unsaid = [name for name in _needed(tree, said, options) if getattr(facts, name) is None]
    if unsaid:
        why = "no config beside the weights says, and the weights would load with any value"
        if "dilation" in unsaid:
            what = "one whose config says so" if said.dilation == "dilated" else dilated(_names(tree))
            why += f" (dilation: this is the body of {what}, and no net here is dilated)"
        raise Advice(f"{', '.join(unsaid)}: {why}", ways)
    notes = [DROPPED] if facts.dilation == "dropped" else []
    pixels = ("channel_order", "mean", "std")
    taken = [name for name in pixels if getattr(said, name) is None and getattr(given, name) is None]
    if taken and layout.source != "cifar":
        notes.append(f"as {layout.source} documents of its own weights, for nothing else says it: {', '.join(taken)}")
    return facts, notes


def asked(
    layout: Layout, tree: Any, defaults: Facts, said: Facts, given: Facts, options: NetOptions
) -> tuple[Facts, list[Way]]:
    """What is known, and the options that say the rest: one way for each that is usual."""
    known = {}
    for field in fields(Facts):
        config = getattr(said, field.name)
        config = None if (field.name, config) == ("dilation", "dilated") else config
        values = [v for v in (getattr(given, field.name), config, getattr(defaults, field.name)) if v is not None]
        known[field.name] = values[0] if values else None
    unsaid = [name for name in _needed(tree, said, options) if known[name] is None]
    ways = [Way({})]
    pixels = [name for name in unsaid if name != "dilation"]
    if pixels:
        ways = []
        for comment, usual in ORIGINS[layout.source].usual:
            meant = {field.name: getattr(usual, field.name) for field in fields(Facts)}
            agrees = all(None in (value, known[name]) or _same(value, known[name]) for name, value in meant.items())
            way = Way(fact_words(Facts(**{name: meant[name] for name in pixels})), comment)
            ways += [way] if agrees and not any(way.words == other.words for other in ways) else []
        # Where none of the usual fits what is known, the form of it is shown.
        ways = ways or [Way(dict.fromkeys(pixels, ("...",)))]
    if "dilation" in unsaid:
        what = dilated(_names(tree)) or "as its config says"
        told = {"dropped": f"its body was dilated, which is given up ({what})", "none": "its body was not dilated"}
        ways = [
            Way({**way.words, "dilation": (value,)}, ", ".join(filter(None, (way.comment, why))))
            for way in ways
            for value, why in told.items()
        ]
    return Facts(**known), [way for way in ways if way.words]


def _needed(tree: Any, said: Facts, options: NetOptions) -> list[str]:
    """What must be known of a net that its weights do not say."""
    strides = options.net == "resnet" and options.depth >= 50
    shown = said.dilation is None and options.net == "resnet" and dilated(_names(tree))
    dilates = said.dilation == "dilated" or shown
    return [
        "channel_order",
        "mean",
        "std",
        *(["stride_in_1x1"] if strides else []),
        *(["shortcut_pad"] if options.shortcut == "A" else []),
        *(["dilation"] if dilates else []),
    ]


def _names(tree: Any) -> list[str]:
    return [name for values in weights.branches(tree).values() for name in values]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b, strict=True))
    return a == b
