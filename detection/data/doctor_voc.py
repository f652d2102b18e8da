"""What can be wrong with Pascal VOC annotations: what the reader says, and what else is worth a word."""

from collections import Counter

import numpy as np

from backbone.data.findings import Findings
from detection.data.annotated import left_out_of, nothing_to_train_on
from detection.data.findings import Survey
from detection.data.voc import CLASSES, Split, arrays_of, categories_of, read_split


def examine_voc(findings: Findings, location: str) -> Survey:
    """Look over the lists and annotations of `folder:split[,folder:split]`.

    Raises:
        UserError: a folder or list is not there, or the list is of one class.
    """
    split = read_split(location)
    arrays = arrays_of(split, categories_of(split.classes), split.findings)
    findings.join(split.refused).join(split.findings)
    used = Counter(name for annotation in split.annotations for name in annotation.classes)
    _file_names(findings, split)
    _classes(findings, used)
    survey = Survey(per_class=dict(used))
    survey.areas = arrays["areas"][np.isfinite(arrays["areas"])].tolist()
    survey.with_objects = sum(bool(annotation.classes) for annotation in split.annotations)
    files = zip(split.parts, split.names, split.annotations, split.missing, strict=True)
    survey.files = [(split.folders[part], name, annotation.size, not lost) for part, name, annotation, lost in files]
    nothing = nothing_to_train_on(int((arrays["left_out"] == 0).sum()), left_out_of(arrays))
    if nothing:
        findings.add("error", nothing, "training refuses this", count=sum(used.values()))
    without = len(split.annotations) - survey.with_objects
    if without:
        remedy = "trained on as background; data.keep_empty false leaves them out"
        findings.add("note", "images without objects", remedy, count=without)
    return survey


def _file_names(findings: Findings, split: Split) -> None:
    for name, annotation, read in zip(split.ids, split.annotations, split.names, strict=True):
        own = {_stem(f"{name}.jpg"), _stem(read)}  # the image may have been found by what the annotation calls it
        if annotation.file and annotation.file != name and _stem(annotation.file) not in own:
            remedy = "not read: the image is found by the name in the list"
            findings.add("note", "annotations that name another file", remedy, f"{name}.xml: {annotation.file}")


def _stem(file: str) -> str:
    return file.replace("\\", "/").rpartition("/")[2].rpartition(".")[0]


def _classes(findings: Findings, used: Counter[str]) -> None:
    own = [name for name in used if name not in CLASSES]
    handled = "classes are those found in train and val, sorted"
    if own and len(own) < len(used):
        remedy = f"a slip of the pen? {handled}; with the 20 alone, the customary order"
        for name in own:
            findings.add("warning", "classes unknown among VOC's 20, used beside them", remedy, name, used[name])
    elif own:
        for name in sorted(own):
            findings.add("note", "classes other than VOC's 20", handled, name)
    else:
        for name in CLASSES:
            if name not in used:
                findings.add("warning", "classes never used", "the detector learns a class it never sees", name)
