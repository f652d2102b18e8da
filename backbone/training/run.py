"""A run is its name: the folder `<storage>/<name>`, and what may be submitted under it."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, TypeVar

import yaml

from backbone.cli import fields
from backbone.errors import StorageError, UserError
from backbone.storage import check_kept, filesystem, is_local, join, replace_file
from backbone.training.recipe import TrainingRecipe, identity, recipe_hash

R = TypeVar("R", bound=TrainingRecipe)
HANDLING = ("data.on_bad", "data.max_bad")
"""What a run that a bad image stopped may go on with otherwise: up to that image, all of these train the same."""


def run_url(recipe: TrainingRecipe) -> str:
    """Absolute place of the recipe's run; UserError as `run_place`."""
    return run_place(recipe.run.storage, recipe.run_name, "run.storage")


def run_place(storage: str, name: str, field: str = "storage") -> str:
    """Absolute place of what is called `name` in a storage.

    Raises:
        UserError: the storage is relative in a submitted job, whose working directory is a copy thrown away after it;
            calls it `field`.
    """
    check_kept(storage, field)
    if "://" not in storage:
        storage = str(Path(storage).expanduser().resolve())
    return join(storage, name)


def open_run(recipe: R, fingerprints: dict[str, str], num_bytes: int, beside: int = 0) -> R:
    """Create the run's folder, or check that this recipe may go on in it; returns the recipe with its micro-batch.

    `fingerprints` identify what the run is given, such as {"train data": ...}; `num_bytes` is the size of one
    checkpoint, by which free space is judged, and `beside` that of what the run has still to write beside them.

    Raises:
        UserError: the storage cannot be written or is too full, the batch does not split over the workers, or another
            recipe or other data live under this name; the message shows the differences.
    """
    url = run_url(recipe)
    fs, path = filesystem(url)
    record = join(path, "run.json")
    try:
        old = json.loads(fs.cat_file(record)) if fs.exists(record) else None
    except StorageError:
        raise
    except ValueError as error:
        raise UserError(f"{url}/run.json is damaged ({error}); restore it or take another --name") from error
    if not recipe.optim.micro_batch:
        micro_batch = old["identity"]["optim.micro_batch"] if old else first_micro_batch(recipe)
        optim = recipe.optim.model_copy(update={"micro_batch": micro_batch})
        recipe = recipe.model_copy(update={"optim": optim, "name": recipe.run_name})
    if recipe.compute.precision == "auto" and old:  # what it came out as at the first start
        recipe = recipe.with_precision(old["identity"]["compute.precision"])
    finished = fs.exists(join(path, "artifact", "config.json"))  # no step is done any more, no checkpoint written
    began = (old or {}).get("processes", recipe.scaling.processes)
    if recipe.equal_shares and began != recipe.scaling.processes and not finished:
        raise UserError(
            f"{url}: norm sync takes statistics over all workers, and this run has {began}: go on with "
            f"--scaling.num_workers {began} (as many processes under torchrun), or give this one another --name"
        )
    check_split(recipe)
    if old:
        _check_same(url, old, {"identity": identity(recipe), "data": fingerprints}, recipe)
    if not finished:
        _check_writable(url, num_bytes * (recipe.run.keep + 2), beside)
    if not old:
        _write(url, recipe, fingerprints)
    return recipe


def recorded_precision(url: str) -> str | None:
    """The precision that the run at `url` computes in; None where that is still to be found out by its workers."""
    fs, path = filesystem(url)
    record = join(path, "run.json")
    if not fs.exists(record):
        return None
    precision = json.loads(fs.cat_file(record))["identity"]["compute.precision"]
    return None if precision == "auto" else precision


def record_precision(url: str, recipe: TrainingRecipe) -> None:
    """Write down what the workers of an opened run have found out: `recipe` is the run's from now on."""
    fs, path = filesystem(url)
    _write(url, recipe, json.loads(fs.cat_file(join(path, "run.json")))["data"])


def _write(url: str, recipe: TrainingRecipe, fingerprints: dict[str, str]) -> None:
    """Recipe and record, by which the run is known, of a run."""
    new: dict[str, Any] = {"identity": identity(recipe), "data": fingerprints, "recipe_hash": recipe_hash(recipe)}
    if recipe.equal_shares:  # over how many workers the statistics are
        new["processes"] = recipe.scaling.processes
    replace_file(join(url, "recipe.yaml"), yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False).encode())
    replace_file(join(url, "run.json"), json.dumps(new, indent=2).encode())


def first_micro_batch(recipe: TrainingRecipe) -> int:
    """The share of the batch of each of the most workers the recipe asks for; UserError where it does not split."""
    batch, workers = recipe.optim.batch, recipe.scaling.processes
    if batch % workers:
        sizes = [w for w in range(1, batch + 1) if batch % w == 0]
        raise UserError(
            f"optim.batch {batch} does not split over {_processes(recipe)}: take one of {sizes} workers, or "
            f"batch {batch // workers * workers or workers} or {(batch // workers + 1) * workers}"
        )
    return batch // workers


def check_split(recipe: TrainingRecipe) -> None:
    """UserError unless micro-batch x accumulation x workers equals the batch (elastic ranges may deal unevenly)."""
    optim, scaling = recipe.optim, recipe.scaling
    units, workers = optim.batch // optim.micro_batch, scaling.processes
    sizes = [w for w in range(1, units + 1) if units % w == 0]
    uneven = units % workers if not scaling.min_workers else 0
    if workers > units or uneven:
        raise UserError(
            f"optim.batch {optim.batch} is {units} micro-batches of {optim.micro_batch}, which do not split over "
            f"{_processes(recipe)}: take one of {sizes} workers, or a smaller optim.micro_batch for a new run"
        )
    if scaling.min_workers and recipe.equal_shares:
        raise UserError("norm sync needs equal shares: an elastic range (scaling.min_workers) may deal unevenly")
    try:
        recipe.check_micro_batch(optim.micro_batch)
    except ValueError as error:
        raise UserError(str(error)) from error


def _processes(recipe: TrainingRecipe) -> str:
    scaling = recipe.scaling
    return f"scaling.num_workers {scaling.num_workers}" if scaling.num_workers else f"{scaling.processes} processes"


def _check_same(url: str, old: dict[str, Any], new: dict[str, Any], recipe: TrainingRecipe) -> None:
    was, now, known = recipe.LATER | old["identity"], recipe.LATER | new["identity"], fields(type(recipe))
    lines = [
        f"  {field}: the run has {before!r}, this recipe {now.get(field)!r}"
        for field, before in was.items()
        # A field of another kind of section is told by that kind, and says nothing where the kind is the same.
        if before != now.get(field)
        and field not in HANDLING
        and (field in now or field not in known)
        # Not found out yet, so nothing has been trained: the recipe may still say it.
        and (field, before) != ("compute.precision", "auto")
    ]
    lines += [
        f"  {what}: another one (fingerprint {before[:12]}, now {new['data'].get(what, 'none')[:12]})"
        for what, before in old["data"].items()
        if before != new["data"].get(what)
    ]
    if lines:
        raise UserError(
            "\n".join(
                [f"{url} is another run:", *lines, "give this one another --name, or resume with its recipe.yaml"]
            )
        )


def _check_writable(url: str, num_bytes: int, beside: int) -> None:
    fs, path = filesystem(url)
    try:
        fs.makedirs(path, exist_ok=True)
        if is_local(url):
            with tempfile.TemporaryFile(dir=path):
                free = shutil.disk_usage(path).free
            # What earlier attempts have written is room that is taken already.
            num_bytes -= sum(file.stat().st_size for file in Path(path, "checkpoints").glob("step-*/state.pt"))
            num_bytes = max(0, num_bytes)
            if free < num_bytes + beside:
                more = f" and what the run makes besides {beside / 2**20:.0f} MiB" if beside else ""
                raise UserError(
                    f"run.storage {path}: {free / 2**20:.0f} MiB free, but checkpoints take {num_bytes / 2**20:.0f} "
                    f"MiB{more}; free some, lower run.keep, or choose another storage"
                )
    except StorageError:
        raise
    except OSError as error:
        raise UserError(f"run.storage {url} cannot be written: {error}; name another: --run.storage FOLDER") from error


def results_of(url: str, file: str) -> dict[str, Any] | None:
    """The results of a run that already ended in an artifact, the JSON `results/<file>`; None while it has not."""
    fs, path = filesystem(url)
    places = [join(path, "artifact", "config.json"), join(path, "results", file)]
    return json.loads(fs.cat_file(places[1])) if all(fs.exists(place) for place in places) else None
