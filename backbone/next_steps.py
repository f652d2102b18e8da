"""What to do with what a job has made: a command to copy, with the paths that are there now."""

import shlex
from pathlib import Path
from typing import Any

from backbone.console import typed

STARTER = "jobs/recipes/starter"


def line(*words: str) -> str:
    """The last line of a job: a command of these words, each quoted where a shell wants it."""
    job, *options = words
    return f"next      {typed(f'python jobs/{job}.py')} {typed(' '.join(shlex.quote(near(word)) for word in options))}"


def near(place: str) -> str:
    """A local path as short as it can be typed from here."""
    try:
        return str(Path(place).relative_to(Path.cwd())) if Path(place).is_absolute() else place
    except ValueError:
        return place


def after_doctor(source: str, images: str, val: str, count: int, annotations: str = "") -> str:
    """Images without errors: make shards of many, train on few; `count` is how many there are."""
    if source in ("coco", "voc"):
        words = ["--config", f"{STARTER}/detect.yaml", "--backbone", "runs/my-backbone/artifact"]
        val = val or ("VAL" if source == "coco" else f"{images.partition(',')[0].rpartition(':')[0]}:VAL")
        words += ["--data.source", source, "--data.train", images, "--data.val", val]
        return line("finetune", *words, *(["--data.train_annotations", annotations] if annotations else []))
    if source == "ilsvrc" or count >= 20_000:
        output = f"shards/{images.rstrip('/').rpartition('/')[2].partition('.')[0] or 'train'}"
        words = ["--source", source, "--images", images, "--output", output, "--shorter_side", "256"]
        return line("prepare", *words)
    return line("pretrain", *_pretrain(source, images, val, count))


def after_preparing(output: str) -> str:
    """Shards of one split."""
    return line("pretrain", *_pretrain("webdataset", output, "VAL"))


def _pretrain(source: str, train: str, val: str, count: int = 0) -> list[str]:
    judged = ["--data.val", val] if val else ["--data.hold_out", str(max(1, count // 5))]
    told = ["--config", f"{STARTER}/classify.yaml", "--data.train", train, *judged]
    return told + ([] if source == "imagefolder" else ["--data.source", source])


def after_backbone(artifact: str, synthetic: bool = False) -> str:
    """A backbone, pretrained or imported: put it into a detector."""
    recipe = "jobs/recipes/quickstart/detector.yaml" if synthetic else f"{STARTER}/detect.yaml"
    places = [] if synthetic else ["--data.train", "boxes:train", "--data.val", "boxes:val"]
    return line("finetune", "--config", recipe, "--backbone", artifact, *places)


def after_detector(artifact: str, semantic: bool = False) -> str:
    """A detector: look at what it finds, and judge it with all the paper's steps; `semantic` ones on other data."""
    if semantic:
        return line("evaluate", "--detector", artifact, "--data.val", "VAL")
    seen = line("detect", "--detector", artifact, "--images", "PHOTOS", "--output", "found")
    return "\n".join([seen, line("evaluate", "--detector", artifact, "--flip", "--vote")])


def after_evaluation(provenance: dict[str, Any]) -> str:
    """A detector that was judged: is its backbone worth anything? `provenance` is that of its artifact."""
    recipe = provenance.get("recipe", {})
    backbone, data = recipe.get("backbone") or "BACKBONE", recipe.get("data", {"source": "synthetic"})
    words = ["--config", f"{STARTER}/gains.yaml", "--rows.yours.artifact", backbone]
    if data["source"] == "synthetic":
        return line("gains", *words, "--finetune", "jobs/recipes/quickstart/detector.yaml")
    for name in ("source", "train", "val", "train_annotations", "val_annotations"):
        words += [f"--finetune_with.data.{name}", data[name]] if data.get(name) else []
    return line("gains", *words)


def after_gains(artifact: str, to: str) -> str:
    """A comparison: hand the best pretrained backbone on to a framework that can have it. Empty without one."""
    if not artifact:
        return ""
    return line("export", "--artifact", artifact, "--to", to, "--output", f"exported/{to}") + "\n"
