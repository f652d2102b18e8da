"""What somebody may have meant: options as other tools call them, slips of the pen, recipes of other jobs."""

import difflib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple


class Meant(NamedTuple):
    """A field that may have been meant."""

    field: str
    value: str = ""
    """The value that says it, where the field takes another kind of value than what was typed."""
    more: str = ""
    """What is to be known besides."""


ALIASES: tuple[tuple[str, tuple[Meant, ...]], ...] = (
    ("lr lr0 base_lr learning_rate", (Meant("optim.lr"),)),
    ("epochs num_epochs max_epochs epoch", (Meant("schedule.total", more="with schedule.unit epochs"),)),
    ("iterations iters max_iter max_steps steps", (Meant("schedule.total", more="with schedule.unit iterations"),)),
    ("batch batch_size bs ims_per_batch", (Meant("optim.batch"), Meant("batch"))),
    ("imgsz img_size image_size input_size", (Meant("data.size"), Meant("data.shorter_side"))),
    (
        "workers num_workers j",
        (
            Meant("data.workers", more="loader processes"),
            Meant("scaling.num_workers", more="training processes"),
            Meant("num_workers"),
        ),
    ),
    (
        "device gpu cuda",
        (Meant("scaling.use_gpu", "true", "false for CPUs"), Meant("use_gpu", "true", "false for CPUs")),
    ),
    (
        "gpus num_gpus devices nproc_per_node",
        (Meant("scaling.num_workers", more="one GPU each with scaling.use_gpu true"), Meant("num_workers")),
    ),
    ("weights pretrained checkpoint ckpt init", tuple(map(Meant, ("backbone", "detector", "weights", "artifact")))),
    ("data data_dir data_path dataset root train", (Meant("data.train"), Meant("images"))),
    ("val val_dir val_data", (Meant("data.val"),)),
    ("output_dir save_dir project out log_dir", tuple(map(Meant, ("run.storage", "storage", "output")))),
    ("arch net", (Meant("model.net"), Meant("backbone"))),
    ("amp fp16 half bf16 dtype", (Meant("compute.precision"),)),
    ("wd decay_rate", (Meant("optim.weight_decay"),)),
    ("warmup_epochs warmup_steps", (Meant("schedule.warmup"),)),
    ("sched scheduler lr_scheduler cos_lr", (Meant("schedule.kind"),)),
    ("smoothing", (Meant("optim.label_smoothing"),)),
    ("optimizer opt", (Meant("optim.kind"),)),
    ("cfg conf recipe config_file yaml", (Meant("config"),)),
)
"""What timm, ultralytics, detectron2 and torchvision call it -> our fields; those that a job has are meant."""

BY_NAME: dict[str, tuple[Meant, ...]] = {name: fields for names, fields in ALIASES for name in names.split()}

TOLD = {
    "resume": "no option is needed, the same command goes on from where it stopped",
}
"""What is said of options that have no field."""

ROW = ("backbone", "backbones", "weights", "pretrained", "checkpoint", "artifact")
"""What somebody calls the backbone who gives it to a comparison."""

JOBS = {
    "Gains": ("gains", "rows"),
    "Sweep": ("sweep", "space"),
    "Finetune": ("finetune", "detector"),
    "Localise": ("localise", "localiser"),
    "Entry": ("entry", "steps"),
    "Recipe": ("pretrain", "model"),
}
"""Model -> its job, and the section that only recipes of that job have."""


def of_another_job(model: str, tree: Mapping[str, Any]) -> str:
    """The job whose recipe this is, where a `model` is of another; empty: none is known."""
    own = {section: job for job, section in JOBS.values() if isinstance(tree.get(section), dict | list)}
    return "" if model not in JOBS or JOBS[model][1] in own else next(iter(own.values()), "")


def meant(name: str, known: list[str]) -> list[Meant]:
    """The fields, best first, that somebody may have meant by a name that is none."""
    last = name.rpartition(".")[2]
    fields = [one for one in BY_NAME.get(last, ()) if one.field in known]
    first = name.partition(".")[0]
    own = any(field.partition(".")[0] == first for field in known)
    inside = [field for field in known if field.endswith("_with")]
    # Fields of the recipes that a comparison or a sweep names.
    if not fields and inside and not own and (last in BY_NAME or "." in name):
        fields = [one._replace(field=f"{into}.{one.field}") for into in inside for one in _inside(name, last)]
    if not fields:
        near = difflib.get_close_matches(name, known, 1, 0.6)
        near = near or [field for field in known if field.rpartition(".")[2] == last]
        fields = [Meant(field) for field in near[:1]]
    return fields


def _inside(name: str, last: str) -> tuple[Meant, ...]:
    aliases = BY_NAME.get(last, (Meant(name),))
    return tuple(one for one in aliases if one.field == name) or aliases[:1]


def suggestion(name: str, known: list[str], prefix: str = "") -> str:
    """What to add to the message of an unknown name. `prefix`: `--` for options, spelled as they are typed."""
    last = name.rpartition(".")[2]
    if last in TOLD:
        return f"; {TOLD[last]}"
    if last in ROW and "rows" in known:
        return f"; a backbone is a row: {prefix}rows.NAME.artifact{' ' if prefix else ': '}FOLDER"
    said = []
    for field, value, more in meant(name, known):
        where = prefix + "".join(re.findall(r"^\w+_with\.", field))
        more = re.sub(r"\b(schedule|scaling)\.", rf"{where}\1.", more)  # spelled as the field itself
        shown = field.replace("dry_run", "dry-run") if prefix else field
        shown += (f" {value}" if prefix else f": {value}") if value else ""
        said.append(f"{prefix}{shown}" + (f" ({more})" if more else ""))
    return f"; perhaps you meant {' or '.join(said)}" if said else ""


def spelling(value: str, known: list[str]) -> str:
    """What to add to the message of a value that is none of `known`."""
    near = difflib.get_close_matches(value.lower(), known, 1, 0.6)
    return f"; perhaps you meant {near[0]}" if near else ""
