"""Localisation: what the job prepares on the driver, what every worker runs, what comes out. The loop is
`backbone.training.engine`'s; its tasks are `task` and `refinement`.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from backbone import artifact as backbones
from backbone.data.sources import remarks
from backbone.job import Job
from backbone.nets.count import parameters
from backbone.provenance import code, environment
from backbone.storage import filesystem, join, write_folder
from backbone.training import engine, schedule
from backbone.training.curves import Measure, draw_curves
from backbone.training.memory import out_of_memory_is_final, smaller_micro_batch
from backbone.training.precision import settle
from backbone.training.recipe import recipe_hash
from backbone.training.run import open_run, results_of, run_url
from backbone.training.state import Progress, Store
from backbone.training.world import Payload, Report, World
from detection.localisation import artifact
from detection.localisation.judge import DENSE, ONE_CROP, Guess
from detection.localisation.net import Localiser
from detection.localisation.paper import beside
from detection.localisation.picture import draw_guesses
from detection.localisation.rcnn import RegionNet
from detection.localisation.recipe import Localise, LocaliserOptions, RegionOptions
from detection.localisation.refinement import Refinement, are_made, load_proposer, proposals_bytes
from detection.localisation.sources import open_located
from detection.localisation.task import Localisation, build_model, classes_of, loading
from detection.nets.policy import count_norms

CURVES = (
    Measure("val_error", "own class", "#08519c"),
    Measure("val_top5", "five predicted classes", "#a63603"),
)


@dataclass(frozen=True)
class Localising(Payload):
    """What `localise` needs."""

    recipe: Localise


def prepare(recipe: Localise, say: Callable[[str], None] = print) -> Localising:
    """Check everything that can be checked before workers start.

    Raises:
        UserError: a classifier that does not verify or lacks classes of the data, bad data, an impossible localiser or
            split, storage that cannot be used, another run under this name.
    """
    net, inputs, block = backbones.load(recipe.backbone)
    loading(recipe, inputs)
    train, val = open_located(recipe.data, inputs.size)
    classes_of((train, val), block["classes"], recipe)
    for split, source in (("train", train), ("val", val)):
        for line in remarks(source):
            say(f"data.{split}: {line}")
    model = build_model(recipe, net)
    proposer = load_proposer(recipe, inputs, block["classes"]) if isinstance(model, RegionNet) else None
    fingerprints = {
        "backbone": block["weights_sha256"],
        "train data": train.fingerprint,
        "val data": val.fingerprint,
        **({"proposals": proposer.block["weights_sha256"]} if proposer else {}),
    }
    to_make = isinstance(recipe.localiser, RegionOptions) and not are_made(run_url(recipe))
    kept = proposals_bytes(recipe.localiser, len(train)) if to_make else 0
    recipe = open_run(recipe, fingerprints, 4 * parameters(model) * recipe.optim.copies, kept)
    frozen, trained = count_norms(model)
    say(f"{titled(model)}: {parameters(model):,} parameters, {frozen} norms frozen, {trained} trained")
    return Localising(run_url(recipe), recipe, seen=(train.fingerprint, val.fingerprint))


def titled(model: Localiser | RegionNet) -> str:
    """What a net is, for people."""
    of = f"{model.body.options.name}, {model.classes:,} classes"
    if isinstance(model, RegionNet):
        return f"R-CNN of {of}, up to {model.options.proposals} proposals of a class"
    return f"localiser on {model.options.stage} of {of} x {model.each} anchors"


def finished(url: str) -> dict[str, Any] | None:
    """The results of a run that already ended; None while it has not."""
    return results_of(url, "results.json")


@out_of_memory_is_final(lambda payload: smaller_micro_batch(payload.recipe.optim))
def localise(payload: Localising, world: World, report: Report) -> dict[str, Any]:
    """What every worker runs: train, judge, and on the first rank write artifact and results, which come back."""
    recipe = settle(payload.recipe, payload.url, world, report)
    code()  # as it is now, and not when training has ended
    if isinstance(recipe.localiser, LocaliserOptions):
        task = Localisation(recipe, world, report, seen=payload.seen)
    else:
        task = Refinement(recipe, world, report, payload.url, seen=payload.seen)
    model, progress = engine.train(task, recipe, world, Store(join(payload.url, "checkpoints")), report)
    assert isinstance(model, Localiser | RegionNet)
    judged = [(name, *task.judge(model.eval(), name)) for name in (ONE_CROP, DENSE)]
    results: list[dict[str, Any]] = [{"protocol": name, **found} for name, found, _ in judged]
    for row in results:
        row["paper"] = beside(row["protocol"])
    record = {"results": results, "provenance": {}}
    guesses = [one for part in world.gather(judged[-1][2]) for one in part]
    if world.is_first:
        record["provenance"] = write_results(payload.url, recipe, task, model, progress, results, guesses)
    return world.gather(record)[0]


LOCALISE = Job(prepare, localise, finished, run_url)


def write_results(
    url: str,
    recipe: Localise,
    task: Localisation,
    model: Localiser | RegionNet,
    progress: Progress,
    results: list[dict[str, Any]],
    guesses: Sequence[Guess],
) -> dict[str, Any]:
    """Results with every guess of dense testing, pictures, curves, history, and last the artifact, which marks a
    finished run. Returns their provenance."""
    fs, path = filesystem(url)
    steps = schedule.in_steps(recipe.schedule, recipe.optim.batch, task.num_samples)
    exported = progress.best_step if recipe.run.export == "best" else progress.step
    provenance = {
        "recipe": recipe.model_dump(mode="json"),
        "recipe_hash": recipe_hash(recipe),
        "backbone": {"weights_sha256": task.about["weights_sha256"], "provenance": task.about["provenance"]},
        **task.origin,
        "data": {"train": task.train_source.fingerprint, "val": task.val_source.fingerprint},
        "train_images": task.num_samples,
        "steps": exported,
        "epochs": exported * steps.batch / steps.num_samples,
        "workers": task.world.size,
        "bad_images": progress.bad,
    }
    classes = task.about["classes"]
    told = [
        {
            "image": task.val_source.name(one.image),
            "class": classes[task.val_targets[one.image]],
            "truth": task.val_source.boxes(one.image).tolist(),
            "own_class_box": one.true_box.round(2).tolist(),
            "guesses": [
                {"class": classes[label], "probability": round(sure, 4), "box": box}
                for label, sure, box in zip(one.labels, one.probabilities, one.boxes.round(2).tolist(), strict=True)
            ],
        }
        for one in guesses
    ]
    record = {"results": results, "provenance": provenance | environment()}
    files = {
        "guesses.json": (json.dumps(told, indent=1) + "\n").encode(),
        "pictures.png": draw_guesses(guesses, task.val_source, task.val_targets, classes, recipe.pictures),
        "results.json": (json.dumps(record, indent=2) + "\n").encode(),
    }
    write_folder(join(url, "results"), files, "results")
    fs.pipe_file(join(path, "history.json"), json.dumps(progress.history).encode())
    curves = draw_curves(progress.history, recipe.run_name, CURVES, "localisation error, 1-crop (%)")
    fs.pipe_file(join(path, "curves.png"), curves)
    artifact.save(join(url, "artifact"), model, task.inputs, tuple(classes), {**provenance, "metrics": results})
    return record["provenance"]
