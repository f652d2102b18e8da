"""How many cores feed a GPU: images/s that a core loads, beside those a GPU trains, for `--dry-run`.

A GPU wants ceil(its images/s / a core's) cores. What a core loads is measured on the recipe's own images, through the
code of the loader processes; where the images are not there, it is what was recorded elsewhere.
"""

import math
import os
import time
from dataclasses import dataclass

import torch

from backbone.data.batches import TrainSet, empty_images, one_thread
from backbone.data.options import Data, ModernAugment, PaperAugment, SyntheticData
from backbone.data.sources import Source
from backbone.errors import BadImage
from backbone.nets import build
from backbone.nets.count import macs
from backbone.nets.meta import on_meta
from backbone.training.recipe import Recipe

NODE = 8
"""GPUs of a node, as they are sold."""

RESNET50 = 4_089_184_256
"""Multiply-adds of ResNet-50 for one image of 224 px, forward."""

H200 = {"none": 4598, "default": 6768, "reduce-overhead": 6768}
"""Images/s of ResNet-50 at 224 px in bf16 on one H200, by compute.compile; docs/results/gpu_training.json (whose
"compile default" stands for CUDA graphs, too, which that net does not need)."""

RECORDED = {
    "crop and flip": {"original files": 633, "JPEG shards": 1958, "raw shards": 5293},
    "imagenet-modern": {"original files": 580, "JPEG shards": 1510, "raw shards": 2897},
    "RandAugment": {"original files": 554, "JPEG shards": 1304, "raw shards": 2261},
    "jitter and erasing": {"original files": 555, "JPEG shards": 1402, "raw shards": 2352},
    "imagenet-paper": {"original files": 517, "JPEG shards": 1343, "raw shards": 2530},
}
"""Images/s of a core, by augmentation and storage; docs/results/input_augmentation.json."""

WHERE = "a Xeon with AMX at 224 px"
"""Whose core that was."""

GREY = (124, 116, 104)
FEW = 8  # images between two looks at the clock


@dataclass(frozen=True)
class Feed:
    """What a core loads of a recipe's images."""

    rate: float
    """Images/s; 0: not known."""

    how: str
    """Where that is from, for people."""


def measured(source: Source, data: Data, seed: int, seconds: float = 1.5) -> Feed:
    """Load training images in this process for so much processor time, and four times that by the clock at most.

    An image that cannot be read ends it: it is the run that refuses it, or not, as data.on_bad says. Resident images
    are loaded once, and not measured.
    """
    if data.resident:
        return Feed(0.0, "")
    one_thread()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a loader process
    train, images = TrainSet(source, data, seed, GREY), empty_images(FEW, data.size)
    side = data.trained_at(0)
    what = f"{'rendered' if isinstance(data, SyntheticData) else data.source}, {_called(data)}, {side} px"
    if data.decode == "nvjpeg":
        what += ", reading alone: the GPU decodes"
    done = 0
    try:
        train.fill_in(range(FEW), images)  # makes the order, tables, connections
        began, began_clock = time.process_time(), time.monotonic()
        while (spent := time.process_time() - began) < seconds and time.monotonic() - began_clock < 4 * seconds:
            done += FEW
            train.fill_in(range(done, done + FEW), images)
    except BadImage as error:
        return Feed(0.0, f"not measured: {error}")
    finally:
        torch.set_num_threads(threads)
    return Feed(done / max(spent, 1e-9), f"measured here: {what}")


def recorded(data: Data) -> list[Feed]:
    """What was recorded elsewhere for this augmentation, by kind of storage; of a recipe whose images are not there."""
    rates = RECORDED.get(_recorded_as(data), {})
    kinds = ("JPEG shards", "raw shards") if data.source == "webdataset" else ("original files",)
    return [Feed(rates[kind], kind) for kind in kinds if rates]


def lines(
    recipe: Recipe, feed: Feed, multiply_adds: int, gpu_rate: float = 0.0, at_size: int = 0
) -> list[tuple[str, str]]:
    """The line of the plan about cores, and warnings, as (label, text).

    `multiply_adds` are the net's for one image, forward; `gpu_rate` the images/s of one GPU, where they are known: else
    what an H200 did with ResNet-50, scaled by multiply-adds. Small nets do not come near that, hence "at most": those
    of few multiply-adds `at_size`, which are for an image of data.size; 0: the same, images do not grow.
    """
    data, scaling = recipe.data, recipe.scaling
    if data.resident:
        return [("cores", "none for loading: data.resident keeps the images on the device")]
    if not feed.rate:
        return [("cores", feed.how)]
    images, whose = gpu_images(recipe, multiply_adds, gpu_rate)
    each = math.ceil(images / feed.rate)
    bound = "at most " if not gpu_rate and (at_size or multiply_adds) < RESNET50 / 2 else ""
    text = (
        f"{feed.rate:,.0f} images/s a core ({feed.how}); {NODE} GPUs of {images:,.0f} images/s ({whose}) want "
        f"{bound}{math.ceil(NODE * images / feed.rate):,} cores"
    )
    found = [("cores", text)]
    gpus, here = (torch.cuda.device_count() if scaling.use_gpu else 0), len(os.sched_getaffinity(0))
    if not bound:  # nobody is told to type a number that only bounds what is wanted
        found += [("warning", line) for line in short(recipe, each, gpus, here)]
    return found


def short(recipe: Recipe, each: int, gpus: int, cores: int) -> list[str]:
    """What is short where a GPU wants `each` cores, on a machine with so many GPUs and cores; nothing on CPUs."""
    data, scaling = recipe.data, recipe.scaling
    if not scaling.use_gpu or data.resident:
        return []
    ways = ["jobs/prepare.py"] if data.source in ("imagefolder", "parquet") else []
    ways += ["--data.decode nvjpeg"] if data.source != "synthetic" and data.decode != "nvjpeg" else []
    cheaper = f"; cheaper images: {', or '.join(ways)}" if ways else ""
    if data.remote_cpus:
        few = data.remote_cpus < each
        told = f"data.remote_cpus {data.remote_cpus} feed a GPU that wants {each} cores: --data.remote_cpus {each}"
        return [told + cheaper] if few else []
    found = []
    if min(data.workers, scaling.cpus_per_worker) < each:
        found.append(
            f"a GPU wants {each} cores of loading; data.workers is {data.workers}, scaling.cpus_per_worker "
            f"{scaling.cpus_per_worker}: --data.workers {each} --scaling.cpus_per_worker {each}{cheaper}"
        )
    if gpus and cores < gpus * each:
        found.append(f"this machine's {gpus} GPU(s) want {gpus * each} cores of loading, it has {cores}{cheaper}")
    return found


def without_images(recipe: Recipe, gpu_rate: float = 0.0) -> str:
    """The line about cores of a recipe whose images are not there, from recorded rates; empty where none were.

    The net is taken to have a thousand classes, which are hardly seen in its multiply-adds.
    """
    feeds = recorded(recipe.data)
    if not feeds or recipe.data.resident:
        return ""
    with on_meta():
        net = build(recipe.model, 1000)
    images, whose = gpu_images(recipe, macs(net, recipe.data.trained_at(0)), gpu_rate)
    each = "; ".join(
        f"{feed.rate:,} images/s a core from {feed.how}, {math.ceil(NODE * images / feed.rate):,} cores"
        for feed in feeds
    )
    of = f"{NODE} GPUs of {images:,.0f} images/s ({whose})"
    return f"{'cores':<11}of {of}, recorded on {WHERE}, not measured here: {each}\n"


def gpu_images(recipe: Recipe, multiply_adds: int, gpu_rate: float = 0.0) -> tuple[float, str]:
    """Images/s of one GPU that trains this net, and whose they are; see `lines`."""
    if gpu_rate:
        return gpu_rate, "as given"
    how = "" if recipe.compute.compile == "none" else " compiled"
    whose = f"ResNet-50{how} at 224 px on an H200, as measured"
    scaled = RESNET50 / multiply_adds
    if abs(scaled - 1) < 0.05:
        return H200[recipe.compute.compile], whose
    return H200[recipe.compute.compile] * scaled, f"{whose}, by multiply-adds"


def _called(data: Data) -> str:
    """Augmentation and decoding in a few words."""
    augment = data.augment
    words: list[str] = [augment.kind]
    if isinstance(augment, ModernAugment):
        words += [augment.policy] if augment.policy != "none" else []
        words += [name for name in ("jitter", "erasing") if getattr(augment, name)]
    return " + ".join(words) + (f", {data.decode}" if data.decode != "exact" else "")


def _recorded_as(data: Data) -> str:
    """The row of `RECORDED` for this augmentation; empty: none."""
    augment = data.augment
    if data.decode == "nvjpeg":
        return ""
    if isinstance(augment, PaperAugment):
        return "imagenet-paper"
    if not isinstance(augment, ModernAugment):
        return ""
    by_policy = {"trivial": "imagenet-modern", "rand": "RandAugment", "increasing": "RandAugment"}
    varied = "jitter and erasing" if augment.jitter or augment.erasing else "crop and flip"
    return by_policy.get(augment.policy, varied)
