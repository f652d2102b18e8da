"""A data set made into shards, on a Ray cluster or in this process, over as many runs as it takes.

A folder holds `shard-000000.tar` and so on, each with its record `shard-000000.tar.json`, and in the end `classes.txt`,
`report.json` and `index.json`. Until then `preparing.json` marks it as unfinished, and the reader refuses it.
"""

import functools
import json
import pickle
import re
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import cv2
import PIL
from PIL import features
from tqdm import tqdm

from backbone.data.ilsvrc import open_ilsvrc
from backbone.data.prepare.options import Prepare
from backbone.data.prepare.shards import EXAMPLES, STAYS, ShardRecord, count_shards, counts, make_shard
from backbone.data.sources import KINDS, Source, remarks
from backbone.data.synthetic import SyntheticSource
from backbone.data.tar import UNFINISHED
from backbone.errors import StorageError, UserError
from backbone.lease import lease
from backbone.stopping import Stopped
from backbone.storage import absolute, check_kept, filesystem, join, trouble, writing

FORMAT = 1  # of the folder
INDEX, CLASSES, REPORT = "index.json", "classes.txt", "report.json"
READERS = {**KINDS, "ilsvrc": open_ilsvrc}
HALF = re.compile(r"(shard-\d+\.tar(\.json)?|preparing\.json|index\.json|classes\.txt|report\.json)\.[0-9a-f]+\.tmp")
SHOWN = 20  # skipped images that the summary names


@dataclass(frozen=True)
class Prepared:
    """What `jobs/prepare.py` says in the end."""

    output: str
    shards: int
    images: int
    bytes: int
    changes: dict[str, dict[str, Any]]
    skipped: list[str]

    def as_text(self) -> str:
        lines = [f"shards    {self.shards} with {self.images} images, {self.bytes / 1e6:.1f} MB, in {self.output}"]
        for what, change in sorted(self.changes.items()):
            examples = f": {', '.join(change['examples'])}" if change["examples"] else ""
            more = ", ..." if examples and change["count"] > len(change["examples"]) else ""
            lines.append(f"{change['count']:>8}  {what}{examples}{more}")
        lines.append(f"{len(self.skipped):>8}  skipped")
        lines += [f"{'':>10}{one}" for one in self.skipped[:SHOWN]]
        if len(self.skipped) > SHOWN:
            lines.append(f"{'':>10}and {len(self.skipped) - SHOWN} more, see {join(self.output, REPORT)}")
        return "\n".join(lines)


def open_images(kind: str, location: str, cache: str | None = None) -> Source:
    """`sources.open_source` for the official ImageNet archives, too."""
    return READERS[kind](location, cache)


def open_options(options: Prepare) -> Source:
    """The images that `options` describe.

    Raises:
        UserError: there are none, see the readers.
    """
    if options.source == "synthetic":
        return SyntheticSource(options.seed, options.num_images, options.size, options.split)
    return open_images(options.source, options.images, options.cache or None)


def prepare(options: Prepare, say: Callable[[str], None] = print) -> Prepared:
    """Make the shards that are not there, verify those that are, and write the index.

    Raises:
        UserError: the folder holds other options or other files, or another process is at it; too many bad images; a
            full or read-only output.
    """
    check_kept(options.output, "output")
    options = options.model_copy(
        update={"output": absolute(options.output), "images": absolute(options.images) if options.images else ""}
    )
    source = open_options(options)
    odd = [name for name in source.classes if [name.strip()] != name.splitlines()]
    if odd:
        raise UserError(f"{options.images}: the class name {odd[0]!r} does not fit a line of {CLASSES}; rename it")
    for line in remarks(source):
        say(f"{options.source}: {line}")
    plan = _plan(options, source)
    with lease(options.output, "prepared", "--output", say=say) as held:
        _claim(options.output, plan, say)
        records, skipped = [], 0
        total = count_shards(len(source), options)
        try:
            with closing(_make(options, source, total, say)) as made:
                for record in made:
                    held.check()
                    records.append(record)
                    skipped += len(record.skipped)
                    if options.on_bad == "skip" and skipped > options.max_bad:
                        raise UserError(f"more than max_bad {options.max_bad} bad images: {record.skipped[-1]}")
        except KeyboardInterrupt:
            say(f"stopped at shard {len(records)} of {total}; submit again to go on")
            Stopped.told = True
            raise
        records.sort(key=lambda record: record.shard)
        return _finish(options, source, plan, records)


def _plan(options: Prepare, source: Source) -> dict[str, Any]:
    """All that the bytes of shards depend on."""
    return {
        "format": FORMAT,
        "source": {"kind": options.source, "fingerprint": source.fingerprint, "images": len(source)},
        "options": options.content,
        # Decoders and encoders of another version may round otherwise.
        "libraries": {
            "opencv": cv2.__version__,
            "pillow": PIL.__version__,
            "libjpeg": f"{features.version_feature('libjpeg_turbo') or features.version_codec('jpg')}",
        },
    }


def _claim(output: str, plan: dict[str, Any], say: Callable[[str], None]) -> None:
    """Mark the folder as this plan's.

    Raises:
        UserError: it is another's, or cannot be written.
    """
    fs, path = filesystem(output)
    try:
        fs.makedirs(path, exist_ok=True)
        found = [name.rpartition("/")[2] for name in fs.ls(path, detail=False)]
        for name in filter(HALF.fullmatch, found):  # what a killed run left; one job at a time has a folder
            fs.rm_file(join(path, name))
        marks = [name for name in (INDEX, UNFINISHED) if name in found]
        if not marks:
            others = [name for name in found if name.endswith(".tar")]
            if others:
                raise UserError(f"{output}: holds {others[0]}, which is not of this job; name another output")
            with writing(output, UNFINISHED, STAYS) as file:
                file.write(_json({"plan": plan}))
            return
        try:
            there = json.loads(fs.cat_file(join(path, marks[0])))["plan"]
        except StorageError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{output}/{marks[0]}: is damaged; remove it and the shards, or name another") from error
        if there != plan:
            raise UserError(
                f"{output}: holds shards made otherwise; name another output, or remove it. " + _difference(there, plan)
            )
        shards = sum(name.endswith(".tar.json") for name in found)
        say(f"{output}: {'is complete' if INDEX in found else 'goes on'}; verifying {shards} shards that are there")
    except StorageError:
        raise
    except OSError as error:
        raise UserError(trouble(error, output, STAYS)) from error


def _difference(there: dict[str, Any], plan: dict[str, Any]) -> str:
    def flat(tree: dict[str, Any]) -> dict[str, Any]:
        return {
            f"{key} {name}" if key != "options" else name: one
            for key, value in tree.items()
            for name, one in (value.items() if isinstance(value, dict) else [("", value)])
        }

    old, new = flat(there), flat(plan)
    keys = [key for key in old | new if old.get(key) != new.get(key)]
    return "; ".join(f"{key.strip()}: {old.get(key)} there, {new.get(key)} now" for key in keys)


def _make(options: Prepare, source: Source, total: int, say: Callable[[str], None]) -> Generator[ShardRecord]:
    """The records of all shards, as they are done."""
    with tqdm(total=len(source), desc="preparing", unit="image", disable=None) as bar:
        if options.num_workers == 0:
            cv2.setNumThreads(0)
            for number in range(total):
                yield make_shard(source, options, number, bar.update)
            return
        for record in _on_ray(options, source, total, say):
            bar.update(len(record.samples) + len(record.skipped))
            yield record


def _on_ray(options: Prepare, source: Source, total: int, say: Callable[[str], None]) -> Generator[ShardRecord]:
    from backbone.cluster import connect, each

    ray, started = connect(say)
    try:
        shared = (pickle.dumps(source), source.fingerprint, options.model_dump())
        yield from each(_task, shared, range(total), options.num_workers, {"num_cpus": 1})
    finally:
        if started:
            ray.shutdown()


def _task(shared: tuple[bytes, str, dict[str, Any]], number: int) -> tuple[ShardRecord | None, str]:
    """Runs on the cluster: one shard, or what the user must mend."""
    cv2.setNumThreads(0)
    pickled, fingerprint, tree = shared
    options = Prepare(**tree)
    try:
        fs, path = filesystem(options.output)
        if not any(fs.exists(join(path, mark)) for mark in (UNFINISHED, INDEX)):
            raise UserError(f"{options.output}: not every node sees it; name a shared folder or a URL")
        return make_shard(_reopened(pickled, fingerprint, options), options, number), ""
    except UserError as error:
        return None, str(error)


@functools.lru_cache(maxsize=1)
def _reopened(pickled: bytes, fingerprint: str, options: Prepare) -> Source:
    try:
        return pickle.loads(pickled)
    except (OSError, UserError):  # another machine than the driver's: its index is not here
        source = open_options(options)
    if source.fingerprint != fingerprint:
        raise UserError(f"{options.images}: nodes see different images there")
    return source


def _finish(options: Prepare, source: Source, plan: dict[str, Any], records: list[ShardRecord]) -> Prepared:
    changes: dict[str, dict[str, Any]] = {}
    for record in records:
        for what, change in record.changes.items():
            sum_ = changes.setdefault(what, {"count": 0, "examples": []})
            sum_["count"] += change["count"]
            sum_["examples"] = (sum_["examples"] + change["examples"])[:EXAMPLES]
    skipped = [one for record in records for one in record.skipped]
    per_class = counts(records, source.labels, len(source.classes))
    found = Prepared(
        output=options.output,
        shards=len(records),
        images=sum(record.images for record in records),
        bytes=sum(record.bytes for record in records),
        changes=changes,
        skipped=skipped,
    )
    reasons = Counter(one.rpartition(": ")[2] for one in skipped)
    index = {
        "plan": plan,
        "location": options.images,
        "images": found.images,
        "bytes": found.bytes,
        "classes": [{"name": name, "images": count} for name, count in zip(source.classes, per_class, strict=True)],
        "shards": [
            {"name": one.shard, "sha256": one.sha256, "bytes": one.bytes, "images": one.images} for one in records
        ],
    }
    files = {
        CLASSES: "".join(f"{name}\n" for name in source.classes).encode(),
        REPORT: _json({"remarks": remarks(source), "changes": changes, "skipped": skipped, "reasons": reasons}),
        INDEX: _json(index),
    }
    for name, data in files.items():
        with writing(options.output, name, STAYS) as file:
            file.write(data)
    fs, path = filesystem(options.output)
    try:
        if fs.exists(join(path, UNFINISHED)):
            fs.rm_file(join(path, UNFINISHED))
    except StorageError:
        raise
    except OSError as error:
        raise UserError(trouble(error, options.output, STAYS)) from error
    return found


def _json(tree: dict[str, Any]) -> bytes:
    return (json.dumps(tree, indent=1) + "\n").encode()
