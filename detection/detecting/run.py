"""Detecting in many images, on a Ray cluster or in this process, over as many runs as it takes.

A folder holds in the end what `files` writes, and `report.html`. Until then `parts/` holds what is done, and
`detect.json` always says what all is of. What is found in an image is a function of the detector and the image: each
goes through the net alone, so that neither parts nor workers change a byte of the results.
"""

import functools
import json
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

import cv2
import PIL
import torch
import torchvision

from backbone.compute import Scaling
from backbone.errors import BadImage, StorageError, UserError, printable
from backbone.lease import FILE as LEASE
from backbone.lease import lease
from backbone.provenance import environment
from backbone.stopping import Stopped
from backbone.storage import absolute, check_kept, filesystem, join, names_in, trouble, writing
from detection import artifact
from detection.detecting import files
from detection.detecting.files import PARTS, STAYS, part_name
from detection.detecting.lists import ImageList, check_readable, open_images
from detection.detecting.options import Detecting
from detection.detecting.page import PAGE, write_page
from detection.detections import to_coco
from detection.evaluate import detect_one

FORMAT = 1  # of the folder
MARK = "detect.json"
SHOWN = 20  # unreadable images that the summary names

Say = Callable[[str], None]


@dataclass(frozen=True)
class Detected:
    """What `jobs/detect.py` says in the end."""

    output: str
    images: int
    detections: int
    unreadable: list[str]

    def as_text(self) -> str:
        lines = [f"images      {self.images:,} with {self.detections:,} detections"]
        lines.append(f"unreadable  {len(self.unreadable):,}")
        lines += [f"{'':>12}{printable(one)}" for one in self.unreadable[:SHOWN]]
        if len(self.unreadable) > SHOWN:
            lines.append(f"{'':>12}and {len(self.unreadable) - SHOWN:,} more, see {files.UNREADABLE}")
        return "\n".join([*lines, f"results     {self.output}: {', '.join([*files.NAMES, PAGE])}"])


def detect_all(options: Detecting, say: Say = print) -> Detected:
    """Detect in the images that are in no part yet, and write the results.

    Raises:
        UserError: the detector does not verify; there is no image, or none that can be read; the output holds other
            results, cannot be written, or another process is at it.
        Lost: the cluster is gone.
    """
    check_kept(options.output, "output")
    update = {name: absolute(getattr(options, name)) for name in ("detector", "output")}
    options = options.model_copy(update=update)
    block = artifact.read_config(options.detector)["raybone_detector"]
    if block["detector"].get("kind") == "semantic":
        raise UserError(
            f"{options.detector}: is of kind semantic, which classifies pixels and finds no objects; call "
            "detection.segment in Python, or judge it with jobs/evaluate.py"
        )
    images = open_images(options.images, options.image_folder)
    for line in images.remarks:
        say(f"--images: {line}")
    if options.use_gpu and not options.num_workers and not torch.cuda.is_available():
        raise UserError("--use_gpu: torch sees no GPU on this machine; look at nvidia-smi, or leave it off")
    check_readable(images)
    device = "cuda" if options.use_gpu and not options.num_workers else "cpu"
    loaded = _loaded(options.detector, block["weights_sha256"], device)
    plan = _plan(options, images, block)
    with lease(options.output, "worked on", "--output", say=say) as held:
        mark = _claim(options, plan, say)
        if mark["results"] is None:
            options = options.model_copy(update={"images_per_part": mark["images_per_part"]})
            _detect(options, images, loaded, say, held.check)
            mark["results"] = files.write(options.output, images, loaded, -(-len(images) // options.images_per_part))
            mark["provenance"] = {"detector": options.detector, "images": list(images.roots), **environment()}
            _write_mark(options.output, mark)
        shown = {"pictures": options.pictures, "min_score": options.min_score}
        if mark["page"] != shown:
            write_page(options, images, loaded, mark["results"]["unreadable"])
            _write_mark(options.output, mark | {"page": shown})
        _remove_parts(options.output)
    return Detected(options.output, **mark["results"])


def _plan(options: Detecting, images: ImageList, block: dict[str, Any]) -> dict[str, Any]:
    """All that the results depend on."""
    return {
        "format": FORMAT,
        "detector": block["weights_sha256"],
        "kind of images": images.kind,
        "number of images": len(images),
        "names of images": images.fingerprint,
        "on": "GPU" if options.use_gpu else "CPU",
        # Others may round or decode otherwise.
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "opencv": cv2.__version__,
        "pillow": PIL.__version__,
    }


def _claim(options: Detecting, plan: dict[str, Any], say: Say) -> dict[str, Any]:
    """Mark the folder as this plan's, or find that it is: `{"plan", "images_per_part", "results", "page"}`.

    Raises:
        UserError: it is another's, or cannot be written.
    """
    output = options.output
    fs, path = filesystem(output)
    try:
        found = [name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False)]
        ours = MARK in found
        # What a killed run left; one job at a time has a folder. Where there is no mark yet, the mark's own alone.
        left = [name for name in found if name.endswith(".tmp") and (ours or name.startswith(f"{MARK}."))]
        for name in left:
            fs.rm_file(join(path, name))
        if not ours:
            others = [name for name in found if name != LEASE and name not in left]
            if others:
                raise UserError(f"{output}: holds {others[0]}, which is not of this job; name another --output")
            mark = {"plan": plan, "images_per_part": options.images_per_part, "results": None, "page": None}
            _write_mark(output, mark)
            return mark
        try:
            mark = json.loads(fs.cat_file(join(path, MARK)))
            there = mark["plan"]
        except StorageError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{output}/{MARK}: is damaged; remove the folder, or name another --output") from error
    except StorageError:
        raise
    except OSError as error:
        raise UserError(trouble(error, output, STAYS)) from error
    differ = [key for key in there | plan if there.get(key) != plan.get(key)]
    if differ:
        what = "; ".join(f"{key}: {there.get(key)} there, {plan.get(key)} now" for key in differ)
        raise UserError(f"{output}: holds results of another run; name another --output, or remove it. {what}")
    say(f"{output}: {'goes on' if mark['results'] is None else 'is complete'}")
    return mark


def _write_mark(output: str, mark: dict[str, Any]) -> None:
    with writing(output, MARK, STAYS) as file:
        file.write((json.dumps(mark, indent=1) + "\n").encode())


def _remove_parts(output: str) -> None:
    fs, path = filesystem(output)
    with suppress(OSError):  # they do no harm
        if fs.isdir(join(path, PARTS)):
            fs.rm(join(path, PARTS), recursive=True)


def _detect(
    options: Detecting, images: ImageList, loaded: artifact.Loaded, say: Say, check: Callable[[], None]
) -> None:
    """Make the parts that are not there."""
    fs, path = filesystem(options.output)
    fs.makedirs(join(path, PARTS), exist_ok=True)
    there = names_in(join(options.output, PARTS))
    every = range(-(-len(images) // options.images_per_part))
    waiting = [number for number in every if part_name(number) not in there]
    of_parts = {number: len(_samples(options, images, number)) for number in every}
    began, first = time.monotonic(), len(images) - sum(of_parts[number] for number in waiting)
    done = first
    tenth = 10 * first // len(images)
    if first:
        say(f"{first:,} of {len(images):,} images are done")
    try:
        with closing(_make(options, images, loaded, waiting, say)) as made:
            for count in made:
                done += count
                check()
                if 10 * done // len(images) > tenth:
                    tenth = 10 * done // len(images)
                    rate = (done - first) / (time.monotonic() - began)
                    say(f"{done:,} of {len(images):,} images, {rate:.1f} a second")
    except KeyboardInterrupt:
        say(f"stopped at {done:,} of {len(images):,} images; submit again to go on")
        Stopped.told = True
        raise


def _make(
    options: Detecting, images: ImageList, loaded: artifact.Loaded, numbers: Iterable[int], say: Say
) -> Generator[int]:
    """How many images were done, time and again."""
    if not options.num_workers:
        for number in numbers:
            yield from make_part(options, images, loaded, number)
        return
    from backbone.cluster import check_resources, connect, each, room

    ray, started = connect(say)
    try:
        one = Scaling(num_workers=1, use_gpu=options.use_gpu, cpus_per_worker=options.cpus_per_worker)
        check_resources(one)
        if room(one) < options.num_workers:
            say(f"the cluster has room for {room(one)} of {options.num_workers} workers")
        needs = {"num_cpus": options.cpus_per_worker, "num_gpus": int(options.use_gpu)}
        shared = (options.model_dump(), images, loaded.block["weights_sha256"])
        yield from each(_task, shared, numbers, options.num_workers, needs)
    finally:
        if started:
            ray.shutdown()


def _task(shared: tuple[dict[str, Any], ImageList, str], number: int) -> tuple[int | None, str]:
    """Runs on the cluster: a part, or what the user must mend."""
    tree, images, sha256 = shared
    options = Detecting(**tree)
    try:
        fs, path = filesystem(options.output)
        if not fs.exists(join(path, MARK)):
            raise UserError(f"{options.output}: not every node sees it; name a shared folder or a URL")
        for root in images.roots:
            fs, path = filesystem(root)
            if not fs.isdir(path):
                raise UserError(f"{root}: not every node sees it; name a shared folder or a URL")
        loaded = _loaded(options.detector, sha256, "cuda" if options.use_gpu else "cpu")
        return sum(make_part(options, images, loaded, number)), ""
    except UserError as error:
        return None, str(error)


def make_part(options: Detecting, images: ImageList, loaded: artifact.Loaded, number: int) -> Generator[int]:
    """Detect in the images of one part and write it; 1 for each image.

    Raises:
        UserError: storage does not give an image, or takes no part.
    """
    torch.set_num_threads(options.cpus_per_worker)
    cv2.setNumThreads(0)
    part: dict[str, list[Any]] = {"images": [], "detections": [], "unreadable": []}
    for i in _samples(options, images, number):
        try:
            image = images.image(i)
        except BadImage as error:
            part["unreadable"].append(str(error))
        else:
            found = detect_one(loaded, image, images.ids[i])
            height, width = image.shape[:2]
            entry = {"id": images.ids[i], "file_name": images.paths[i], "height": height, "width": width}
            part["images"].append(entry)
            part["detections"] += to_coco(found, loaded.categories)
        yield 1
    with writing(join(options.output, PARTS), part_name(number), STAYS) as file:
        file.write(json.dumps(part).encode())


def _samples(options: Detecting, images: ImageList, number: int) -> range:
    first = number * options.images_per_part
    return range(first, min(first + options.images_per_part, len(images)))


@functools.lru_cache(maxsize=1)
def _loaded(url: str, sha256: str, device: str) -> artifact.Loaded:
    """The verified detector, once a process."""
    loaded = artifact.load(url)
    if loaded.block["weights_sha256"] != sha256:
        raise UserError(f"{url}: nodes see another detector there")
    loaded.detector.to(device).to(memory_format=torch.channels_last)  # as `evaluate` does, so that its numbers come out
    return loaded
