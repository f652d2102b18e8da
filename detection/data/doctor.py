"""The data doctor: every fault of a data set at once, where the readers stop at the first."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from backbone.data.decode import decode
from backbone.data.findings import Diagnosis, Findings, Severity
from backbone.data.formats import is_image
from backbone.data.listing import THREADS
from backbone.data.splits import splits_among
from backbone.errors import BadImage, UserError
from backbone.storage import filesystem
from detection.data.annotated import AS_STORED, orientation, read
from detection.data.coco import annotations_of
from detection.data.doctor_coco import examine_coco
from detection.data.doctor_voc import examine_voc
from detection.data.files import MISSING, RESTORE
from detection.data.findings import statistics
from detection.data.share import Share
from detection.data.sources import open_source
from detection.data.voc_lists import LISTS, to_train_on

File = tuple[str, str, tuple[int, int], bool]  # as in Survey
Fault = tuple[Severity, str, str, str]  # as Findings.add takes them

DAMAGED = "put a good copy in its place; data.on_bad skip trains without it"
WRONG_SIZE = "put the image there that was annotated, or mend width, height and boxes"
SWAPPED = "exchange width and height, if boxes fit the image so"
UPRIGHT = "read upright, as their recorded size says"
STORED = "read as stored, since only so they have the recorded size"
EITHER = "read upright; look whether boxes were drawn so, and save the image without its EXIF orientation"


def examine(
    kind: str, location: str, annotations: str = "", check_images: bool = True, share: float = 0.0
) -> Diagnosis:
    """Look a split over.

    Args:
        kind: coco or voc.
        location: coco: folder or URL of images; voc: `folder:split[,folder:split]`.
        annotations: coco: the JSON; `annotations/instances_<folder>.json` beside the folder by default.
        check_images: decode every image, too.
        share: say what `data.share` leaves of images that have no error; 0: nothing is said.

    Raises:
        UserError: unknown kind, or a folder, list or JSON that is not there; a share of no image or object.
    """
    findings = Findings()
    if kind == "coco":
        fs, root = filesystem(location)
        if not fs.isdir(root):
            raise UserError(f"{location}: no such folder of images")
        annotations = annotations_of(location, annotations)
        survey = examine_coco(findings, location, annotations)
    elif kind == "voc":
        if annotations:
            raise UserError(f"annotations {annotations}: Pascal VOC has them in its own folder, leave this out")
        survey = examine_voc(findings, location)
    else:
        raise UserError(f"unknown kind of annotated images {kind}; there are coco and voc")
    if check_images:
        _check(findings, [file for file in survey.files if file[-1]])
    else:
        findings.add("note", "images were not opened", "damaged ones go unseen", count=len(survey.files))
    if share and not findings.errors:
        part = Share(open_source(kind, location, annotations), share)
        objects = f"with {part.num_objects().sum():,} objects; a hash of their ids chooses them, the same for every run"
        findings.add("note", f"images in data.share {share:g}", objects, count=len(part))
        findings.join([one for one in part.findings if "data.share" in one.what])
    subject = {"source": kind, "images": location, "annotations": annotations}
    return Diagnosis(subject, findings.sorted(), statistics(survey))


def looks_like(location: str) -> str:
    """The options of the doctor for what lies at a place, where its layout is a known one; else empty."""
    place = location.rpartition(":")[0] if ":" in location and "://" not in location else location
    fs, root = filesystem(place)
    if not fs.isdir(root):
        return ""
    inside = [path.rstrip("/").rpartition("/")[2] for path in fs.ls(root, detail=False)]
    if {"Annotations", "JPEGImages"} <= {*inside}:
        split = to_train_on(place)
        return f"--source voc --images {place}:{split}" if split else ""
    if "annotations" in inside:
        beside = [name for name in inside if fs.exists(f"{root}/annotations/instances_{name}.json")]
        return f"--source coco --images {place}/{beside[0]}" if beside else ""
    for source, suffix in (("parquet", ".parquet"), ("webdataset", ".tar")):
        if any(name.endswith(suffix) for name in inside):
            return f"--source {source} --images {place}"
    folders = [name for name in inside if fs.isdir(f"{root}/{name}")]
    if folders and not splits_among(folders) and any(map(is_image, fs.ls(f"{root}/{folders[0]}", detail=False))):
        return f"--source imagefolder --images {place}"
    return ""


def held_out(location: str) -> str:
    """Pascal VOC's list to judge on, `folder:split`, beside the one to train on at `location`; empty: there is none."""
    folder, _, split = location.partition(",")[0].strip().rpartition(":")
    fs, root = filesystem(folder)
    beside = {"train": ("val", "test"), "trainval": ("test",)}.get(split, ())  # VOC's own trainval holds its val
    return next((f"{folder}:{name}" for name in beside if fs.exists(f"{root}/{LISTS}/{name}.txt")), "")


def _check(findings: Findings, files: Sequence[File]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for fault in tqdm(pool.map(_fault, files), "images", len(files), leave=False, disable=None):
            if fault:
                findings.add(*fault)


def _fault(file: File) -> Fault | None:
    """What is wrong with one image."""
    root, name, size, _ = file
    try:
        data = read(root, name)
    except FileNotFoundError:
        return "error", MISSING, RESTORE, name
    except OSError as error:
        return "error", "images that cannot be read", DAMAGED, f"{name}: {error.strerror or error}"
    try:
        found = decode(data, name).shape[:2]
    except BadImage as error:
        return "error", "images that are damaged", DAMAGED, str(error)
    turn = orientation(data)
    if found != size and not (turn in AS_STORED and found == size[::-1]):
        example = f"{name} is {found[1]}x{found[0]}, recorded {size[1]}x{size[0]}"
        if found == size[::-1]:
            return "error", "images whose width and height are recorded the other way round", SWAPPED, example
        return "error", "images of another size than recorded", WRONG_SIZE, example
    if turn == 1:
        return None
    example = f"{name} (orientation {turn})"
    if turn not in AS_STORED or size[0] == size[1]:
        return "warning", "images turned by EXIF whose recorded size does not say which way is meant", EITHER, example
    which = STORED if found != size else UPRIGHT
    return "note", "images turned by EXIF, " + which, "labels are read so; nothing to do", example
