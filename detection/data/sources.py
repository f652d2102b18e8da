"""Where annotated images come from: the two splits a recipe names, checked against each other."""

from backbone.data.formats import some
from backbone.errors import UserError
from detection.data.annotated import doctor, nothing_to_train_on
from detection.data.coco import open_coco
from detection.data.contract import DetectionSource
from detection.data.det import Choice, open_det
from detection.data.files import UNREADABLE
from detection.data.label_map import check_labelled
from detection.data.options import CocoData, DetData, DetectionData, ScenesData, VocData
from detection.data.settle import alike
from detection.data.share import Share
from detection.data.synthetic import SyntheticScenes
from detection.data.voc import categories_of, open_split, open_voc, read_split, sound
from detection.data.voc_segments import open_segments

KINDS = ("coco", "voc")


def open_sources(data: DetectionData, maps: bool = False) -> tuple[DetectionSource, DetectionSource]:
    """The images to train on and those to judge by. Both have the same labels.

    `keep_empty` and `share` concern training alone: a detector is judged on all images, also those without objects.

    Args:
        maps: whether label maps are asked for; Pascal VOC's are those of SegmentationClass.

    Raises:
        UserError: missing, damaged, wrong (see `refuse_errors`), no object to train on, categories that differ, or no
            label maps.
    """
    train, val = _open_both(data, maps)
    if maps:
        for split, source in (("train", train), ("val", val)):
            check_labelled(source.has_masks, source.categories, f"data.{split}")
    return (Share(train, data.share) if data.share < 1 else train), val


def _open_both(data: DetectionData, maps: bool) -> tuple[DetectionSource, DetectionSource]:
    if isinstance(data, ScenesData):
        return SyntheticScenes(data.seed, data.train_images, data.render, data.objects, "train"), open_val(data)
    if isinstance(data, VocData) and maps:
        train, val = (open_segments(place, data.cache or None) for place in (data.train, data.val))
        check_categories(train, val)
        return train, val
    cache, beside = data.cache or None, ("", "")
    match data:
        case CocoData():
            beside = data.train_annotations, data.val_annotations
            train = open_coco(data.train, beside[0], data.keep_empty, cache)
            val = open_coco(data.val, beside[1], cache=cache)
        case VocData():
            train, val = open_voc(data.train, data.val, data.keep_empty, cache)
        case DetData():
            choice = Choice(data.partial, data.negatives)
            train, val = open_det([data.train, data.val], choice, data.keep_empty, data.devkit, cache)
    refuse_errors(train, data.source, data.train, beside[0], unreadable=data.on_bad == "skip")
    refuse_errors(val, data.source, data.val, beside[1], unreadable=data.on_bad == "skip")
    if nothing := nothing_to_train_on(int(train.num_objects().sum()), train.dropped):
        look = f"; look at it with {doctor(data.source, data.train)}" if data.source in KINDS else ""
        raise UserError(f"{data.train}: {nothing}{look}")
    check_categories(train, val)
    return train, val


def open_val(data: DetectionData, maps: bool = False, unreadable: bool = True) -> DetectionSource:
    """The images to judge by, alone; `maps` as in `open_sources`, `unreadable` as in `refuse_errors`.

    Raises:
        UserError: missing, damaged, wrong (see `refuse_errors`), or without label maps that are asked for.
    """
    source = _open_val(data, maps, unreadable)
    if maps:
        check_labelled(source.has_masks, source.categories, "data.val")
    return source


def _open_val(data: DetectionData, maps: bool, unreadable: bool) -> DetectionSource:
    if isinstance(data, VocData) and maps:
        return open_segments(data.val, data.cache or None)
    if isinstance(data, ScenesData):
        return SyntheticScenes(data.seed, data.val_images, data.render, data.objects, "val")
    if isinstance(data, DetData):
        (source,) = open_det([data.val], Choice(), True, data.devkit, data.cache or None)
        refuse_errors(source, data.source, data.val, unreadable=unreadable)
        return source
    annotations = data.val_annotations if isinstance(data, CocoData) else ""
    source = open_source(data.source, data.val, annotations, data.cache or None)
    refuse_errors(source, data.source, data.val, annotations, unreadable)
    return source


def open_source(kind: str, location: str, annotations: str = "", cache: str | None = None) -> DetectionSource:
    """One split alone, as it is judged: images without objects included.

    The labels of Pascal VOC follow from the classes this split has, where they are not VOC's own.

    Raises:
        UserError: unknown kind, or what is there is not such a data set.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of annotated images {kind}; there are {', '.join(KINDS)}")
    if kind == "coco":
        return open_coco(location, annotations, cache=cache)
    split = sound(read_split(location), location)
    return open_split(split, categories_of(split.classes), cache=cache)


def refuse_errors(
    source: DetectionSource, kind: str, location: str, annotations: str = "", unreadable: bool = True
) -> None:
    """Check that nothing the reader found makes training or scoring wrong.

    `unreadable`: images without a file are let pass, as with on_bad skip. They are left out of training one by one, and
    judged as images without detections.

    Raises:
        UserError: a finding is an error. Names it, and the doctor.
    """
    wrong = [one for one in source.findings if one.severity == "error" and not (unreadable and one.what in UNREADABLE)]
    if wrong:
        doctored = f"; all its faults: {doctor(kind, location, annotations)}" if kind in KINDS else ""
        skips = "; or --data.on_bad skip, which passes over them" if wrong[0].what in UNREADABLE else ""
        raise UserError(f"{location}: {wrong[0].as_line()}{skips}{doctored}")


def judged_on_trained(data: DetectionData, train: DetectionSource, val: DetectionSource) -> list[str]:
    """Says so where images to judge by are trained on, too: Pascal VOC's trainval holds all of val."""
    if isinstance(data, ScenesData):  # whose scenes are called alike in both splits
        return []
    trained = {train.name(i) for i in range(len(train))}
    both = [name for i in range(len(val)) if (name := val.name(i)) in trained]
    if not both:
        return []
    return [
        f"data.val {data.val}: {len(both):,} of its {len(val):,} images are trained on, too ({some(both)}): what was "
        "trained on does not test anything; name lists that share none"
    ]


def remarks(source: DetectionSource) -> list[str]:
    """What to say of a split before it is used, a line each; the doctor says the same with more words."""
    return [finding.as_line() for finding in source.findings if finding.severity != "note"]


def check_categories(train: DetectionSource, val: DetectionSource) -> None:
    """Check that labels mean the same in both splits. Their numbers in the data set may differ.

    Raises:
        UserError: a category is only in one of them, or the order of their ids differs.
    """
    one, two = train.categories.names, val.categories.names
    if one == two:
        return
    only = {"train": sorted(set(one) - set(two)), "val": sorted(set(two) - set(one))}
    missing = "; ".join(f"only in {split}: {', '.join(names)}" for split, names in only.items() if names)
    if missing:
        pairs = [(a, b) for a in only["train"] for b in only["val"] if alike(a) == alike(b)]
        if pairs:
            names = ", ".join(f"{a!a} in train is {b!a} in val" for a, b in pairs[:5])
            raise UserError(f"train and val spell categories otherwise ({names}); write them alike in both JSONs")
        raise UserError(f"train and val have different categories ({missing}); give both the same in their JSON")
    first = next(k for k, pair in enumerate(zip(one, two, strict=True)) if pair[0] != pair[1])
    raise UserError(
        f"categories in the order of their ids differ: number {first + 1} is {one[first]} in train, but {two[first]} in"
        " val; give both splits the same ids"
    )
