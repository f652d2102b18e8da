"""What lies in a storage: runs, how they stand, what they are worth, what came from what, and what they take.

    for run in read_storage("runs"):
        print(run.name, run.state, run.headline)

Everything is told from the runs' own files, as they lie there: `run.json` and `recipe.yaml` make a folder a training,
`sweep.json` a sweep, `report.json` a comparison, `table.json` an entry, an artifact alone an imported net.
"""

import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Literal

import yaml

from backbone.errors import StorageError, UserError
from backbone.lease import FILE as LEASE
from backbone.lease import at_work
from backbone.storage import filesystem, join
from backbone.sweep.record import QUIET_SECONDS

Kind = Literal["backbone", "detector", "localiser", "sweep", "comparison", "entry", "unknown"]
State = Literal["running", "stopped", "finished", "failed"]
MARKS = ("run.json", "sweep.json", "report.json", "table.json", LEASE, "artifact/config.json")
"""Files by which a folder is a run; what lies deeper in one belongs to it."""

TAIL = 1 << 16
"""Bytes of a log's end that are looked at: a traceback is some kilobytes."""

AT_ONCE = 8
"""Runs that are read at once: each is a few requests to an object store."""

STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


@dataclass(frozen=True)
class Origin:
    """What a run was made from."""

    place: str
    """As its recipe names it: a path or URL."""

    sha256: str | None = None
    """Of the weights it took; None where it took the net alone."""

    run: str | None = None
    """The run of the same storage that it is."""


@dataclass(frozen=True)
class Held:
    """A run of a storage."""

    name: str
    """Its folder below the storage; of a trial `SWEEP/trials/0003`."""

    url: str
    kind: Kind
    state: State
    why: str = ""
    """Who is at it, or what it failed of, one line."""

    best: dict[str, float] = field(default_factory=dict)
    """What it is worth: errors in percent, AP as in its own files."""

    headline: str = ""
    """The same for a table, short."""

    sha256: str | None = None
    """Of its artifact's weights."""

    origins: tuple[Origin, ...] = ()
    size: int = 0
    """Bytes of the whole folder, without other runs inside it."""

    checkpoints: int = 0
    """Bytes of it that only a resumption needs."""

    updated: float = 0.0
    """Unix time of its newest file."""

    files: Mapping[str, tuple[int, float]] = field(default_factory=dict, repr=False)
    """Its files below its folder -> bytes and Unix time of each."""

    def as_json(self) -> dict[str, Any]:
        """For `--json`: all but the files."""
        return {name: value for name, value in asdict(self).items() if name != "files"}


def read_storage(storage: str) -> list[Held]:
    """All runs of a storage, a local folder or URL, by name.

    Raises:
        UserError: it is not there, or is itself a run.
    """
    fs, root = filesystem(storage)
    root = root.rstrip("/")
    try:
        found = fs.find(root, detail=True)
    except OSError as error:
        raise UserError(f"storage {storage}: cannot be read ({error.strerror or error})") from error
    if not found and not fs.exists(root):
        raise UserError(f"storage {storage}: is not there; it is the folder or URL given as run.storage")
    below = {path[len(root) + 1 :]: info for path, info in found.items() if path.startswith(f"{root}/")}
    if {"run.json", "sweep.json"} & below.keys():
        parent, _, name = storage.rstrip("/").rpartition("/")
        raise UserError(f"storage {storage}: is the run {name} itself; give the folder it lies in: {parent or '.'}")
    folders = run_folders(below)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = list(pool.map(lambda one: _read(storage, one[0], one[1]), sorted(folders.items())))
    return linked(runs)


def run_folders(below: dict[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Files of a storage by the run they belong to: the innermost folder with one of `MARKS`.

    Args:
        below: path below the storage -> what the file system says of the file.
    """
    marked = set[str]()
    for path in below:
        for mark in MARKS:
            if path.endswith(f"/{mark}"):
                marked.add(path.removesuffix(f"/{mark}"))
    # A comparison's blocks are folders with a report of their own, and results lie below their run.
    inside = {f for f in marked if _above(f, marked) and not any(f"{f}/{m}" in below for m in ("recipe.yaml", LEASE))}
    marked -= inside
    runs: dict[str, dict[str, dict[str, Any]]] = {folder: {} for folder in marked}
    for path, info in below.items():
        owner = path if path in marked else _above(path, marked)
        if owner:
            runs[owner][path[len(owner) + 1 :]] = info
    return runs


def _above(path: str, folders: set[str]) -> str:
    """The innermost of `folders` that a path lies in; empty: none."""
    while path := path.rpartition("/")[0]:
        if path in folders:
            return path
    return ""


def linked(runs: list[Held]) -> list[Held]:
    """With the runs that each came from named, by the weights' hash, or where none were taken by the place."""
    by_hash = {run.sha256: run.name for run in runs if run.sha256}
    hashes = {run.name: run.sha256 for run in runs}
    by_end = {f"/{run.name}/artifact": run.name for run in runs} | {f"/{run.name}/results": run.name for run in runs}

    def of(origin: Origin) -> Origin:
        place = origin.place.partition("?")[0] if "://" in origin.place else origin.place  # ?region=... and the like
        ends = (name for end, name in by_end.items() if f"/{place.rstrip('/')}".endswith(end))
        run = by_hash.get(origin.sha256) or next(ends, None)
        # A comparison judges a detector's results, which lie beside its weights; others took these or did not.
        judged = hashes.get(run or "") if place.endswith("/results") else origin.sha256
        return replace(origin, run=run, sha256=judged)

    return [replace(run, origins=tuple(map(of, run.origins))) for run in runs]


def _read(storage: str, name: str, files: dict[str, dict[str, Any]]) -> Held:
    """One run from its files."""
    url = join(storage, name)
    looks = {path: look(info) for path, info in sorted(files.items())}
    common: dict[str, Any] = {
        "name": name,
        "url": url,
        "size": sum(size for size, _ in looks.values()),
        "checkpoints": sum(size for path, (size, _) in looks.items() if is_train_state(path)),
        "updated": max((time for _, time in looks.values()), default=0.0),
        "files": looks,
    }
    holder = at_work(url) if LEASE in files else None
    try:
        told = _told(url, files)
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # half written, or damaged
        told = {"kind": "unknown", "state": "failed", "why": f"its files cannot be read: {error}"}
    if holder:
        told |= {"state": "running", "why": holder.who}
    return Held(**common, **told)


def _told(url: str, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Kind, state, worth and origins of a run."""
    if {"run.json", "recipe.yaml"} <= files.keys():
        return _training(url, files)
    if "sweep.json" in files:
        return _sweep(url)
    if "report.json" in files:
        return _comparison(url)
    if "table.json" in files:
        return {"kind": "entry", "state": "finished"}
    if "artifact/config.json" in files:
        block, kind = _artifact(url)
        best, headline = worth(block["provenance"].get("metrics"))
        return {
            "kind": kind,
            "state": "finished",
            "best": best,
            "headline": headline,
            "sha256": block["weights_sha256"],
        }
    if "run.json" in files:  # of an evaluation or a submission in a folder of its own
        done = {"results.json", "metrics.json", "predictions.txt"} & files.keys()
        return {"kind": "unknown", "state": "finished" if done else "stopped"}
    return {"kind": "unknown", "state": "stopped"}


def _training(url: str, files: dict[str, dict[str, Any]]) -> dict[str, Any]:
    recipe = yaml.load(_bytes(url, "recipe.yaml"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    known = json.loads(_bytes(url, "run.json"))
    kind = next((kind for kind in ("detector", "localiser") if kind in recipe), "backbone")
    place = recipe.get("backbone") or recipe.get("from_detector") or ""
    took = None if recipe.get("from_scratch") else known["data"].get("backbone")
    origins = [Origin(place, took)] if place else []
    if recipe.get("proposals"):
        origins.append(Origin(recipe["proposals"], known["data"].get("proposals")))
    told: dict[str, Any] = {"kind": kind, "origins": tuple(origins)}
    if "artifact/config.json" in files and (kind == "backbone" or any(path.startswith("results/") for path in files)):
        block, _ = _artifact(url)
        best, headline = worth(block["provenance"]["metrics"])
        return told | {"state": "finished", "best": best, "headline": headline, "sha256": block["weights_sha256"]}
    best, headline = _best_so_far(url, files)
    state, why = how_it_ended(_log_end(url, files))
    return told | {"state": state, "why": why, "best": best, "headline": headline}


def how_it_ended(log: str) -> tuple[State, str]:
    """What the end of a `log.txt` says of a run that nobody is at and that is not finished: state, and why."""
    lines = log.rstrip().splitlines()
    last = next((i for i in reversed(range(len(lines))) if STAMP.match(lines[i])), None)
    if last is None:
        return "stopped", ""
    said = STAMP.sub("", lines[last])
    if not said.startswith("Traceback (most recent call last)"):
        return "stopped", said if said.startswith("stopped") else f"without a word, after: {said}"
    error = next((line for line in reversed(lines[last:]) if re.match(r"[\w.]+(: |$)", line)), lines[-1])
    kind, _, what = error.partition(": ")
    # Submitted again it goes on.
    lost = kind.endswith(("errors.Lost", "errors.StorageLost", "KeyboardInterrupt", "BrokenPipeError"))
    return "stopped" if lost else "failed", f"{kind.rpartition('.')[2]}: {what}" if what else kind


def _best_so_far(url: str, files: Iterable[str]) -> tuple[dict[str, float], str]:
    """Of the checkpoints that are there."""
    manifests = [path for path in files if re.fullmatch(r"checkpoints/step-\d+/manifest.json", path)]
    told = [json.loads(_bytes(url, path)) for path in manifests]
    judged = [one for one in told if one.get("val_error") is not None]
    if not judged:
        step = max((one["step"] for one in told), default=None)
        return {}, "" if step is None else f"step {step}"
    best = min(judged, key=lambda one: one["val_error"])
    found, headline = worth(best)
    return found, f"{headline} at step {best['step']}"


def worth(metrics: Any) -> tuple[dict[str, float], str]:
    """Numbers of a run's metrics, flat, and the one to go by in words.

    Args:
        metrics: of an artifact or a checkpoint: of a backbone `val_error`, percent; of a detector `bbox`, `segm` and
            `semantic`, fractions, or `val_AP`, percent; of a localiser a list of protocols.
    """
    if isinstance(metrics, list):
        errors = {f"{row['protocol']} {k}": v for row in metrics for k, v in row.items() if isinstance(v, int | float)}
        return errors, next((f"{name} {value:.2f}" for name, value in errors.items() if "error" in name), "")
    if not isinstance(metrics, dict):
        return {}, ""
    parts = (("AP", "bbox", "AP"), ("AP masks", "segm", "AP"), ("mIoU", "semantic", "mIoU"))
    # -1 is COCO's word for none.
    found = {name: part[measure] for name, of, measure in parts if (part := metrics.get(of))}
    if found:
        return found, ", ".join(f"{name} {100 * value:.1f}" for name, value in found.items())
    found = {k: float(v) for k, v in metrics.items() if k.startswith("val_") and isinstance(v, int | float)}
    if "val_AP" in found:
        return found, f"AP {found['val_AP']:.1f}"
    return found, f"top-1 {100 - found['val_error']:.2f} %" if "val_error" in found else ""


def _sweep(url: str) -> dict[str, Any]:
    from backbone.sweep.record import read

    record = read(url)
    first, done = record.objectives[0], record.of_state("finished")
    # A driver that was killed leaves "running"; whether one is at it the lease says, elsewhere.
    state: State = "finished" if record.state == "finished" else "stopped"
    if record.alive:
        state = "running"
    best = {}
    text = f"{len(done)} of {len(record.trials)} trials"
    if record.best:
        best = {first.name: record.trial(record.best).values[first.name]}
        text = f"{first.name} {best[first.name]:.4g} (trial {record.best}), {text}"
    why = record.why or (f"wrote within the last {QUIET_SECONDS} s" if state == "running" else "")
    return {"kind": "sweep", "state": state, "why": why, "best": best, "headline": text}


def _comparison(url: str) -> dict[str, Any]:
    report = json.loads(_bytes(url, "report.json"))
    reports = report.get("blocks", {"": report})
    best, origins, measures = {}, dict[str, Origin](), {}
    for block, one in reports.items():
        main = one["parts"][0]["main"]
        for row in one["rows"]:
            label = f"{block} {row['label']}".strip()
            best[label], measures[label] = row[main]["value"], main
            origins |= {training["results"]: Origin(training["results"]) for training in row["trainings"]}
    known = {label: value for label, value in best.items() if value is not None}
    top = max(known, key=lambda label: known[label], default="")
    text = f"{measures[top]} {100 * known[top]:.1f} ({top}), " if top else ""
    text += f"{len(best)} rows"
    missing = sum(len(one.get("missing", ())) for one in reports.values())
    why = f"{missing} run(s) failed" if missing else ""
    told = {"best": known, "headline": text, "why": why, "origins": tuple(origins.values())}
    return {"kind": "comparison", "state": "finished", **told}


def _artifact(url: str) -> tuple[dict[str, Any], Kind]:
    config = json.loads(_bytes(url, "artifact/config.json"))
    for block, kind in (("raybone", "backbone"), ("raybone_detector", "detector"), ("raybone_localiser", "localiser")):
        if block in config:
            return config[block], kind
    raise KeyError("artifact/config.json is of no artifact")


def is_train_state(path: str) -> bool:
    """Whether a file below a run's folder is read by a resumption alone: checkpoints, and Ray's records of attempts."""
    return path.startswith(("checkpoints/", "ray/"))


def _log_end(url: str, files: dict[str, dict[str, Any]]) -> str:
    if "log.txt" not in files:
        return ""
    fs, path = filesystem(url)
    size = files["log.txt"].get("size") or 0
    return fs.cat_file(join(path, "log.txt"), start=max(0, size - TAIL)).decode(errors="replace")


def _bytes(url: str, file: str) -> bytes:
    fs, path = filesystem(url)
    return fs.cat_file(join(path, file))


def look(info: dict[str, Any]) -> tuple[int, float]:
    """Of a file, as its file system tells it: bytes, and the Unix time it was last written; 0: it does not tell."""
    return info.get("size") or 0, _time(info)


def _time(info: dict[str, Any]) -> float:
    told = next(
        (info[key] for key in ("mtime", "LastModified", "last_modified", "updated", "created") if info.get(key)), 0
    )
    if isinstance(told, datetime):
        return told.timestamp()
    return float(told) if isinstance(told, int | float) else 0.0
