"""What a resume needs, and the store it lives in. Stop anywhere and resume equals never stopped, bit for bit on CPU.

Order, augmentation, dropout and learning rate are functions of integers (seed, step), so no generator is saved: the
state is the weights, the optimizer's, and `Progress`. It does not depend on the number of workers.
"""

import hashlib
import io
import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbone.data import pinned
from backbone.errors import StorageError, UserError
from backbone.storage import filesystem, is_local, join
from backbone.training.schedule import Events

VERSION = 1


@dataclass
class Progress:
    """Where a run stands. Plain numbers and strings only, so that it loads with `weights_only=True`."""

    step: int = 0
    """Optimizer steps done; `step * batch` samples have been consumed."""

    events: Events = field(default_factory=Events)
    history: list[dict[str, Any]] = field(default_factory=list)
    """Every log record and evaluation so far, in order, as they were reported."""

    best: float = math.inf
    """Lowest validation error, percent, and `best_step` where it was."""

    best_step: int = -1
    bad: dict[str, int] = field(default_factory=dict)
    """Images skipped as unreadable, each with the step it was first met at."""

    def as_dict(self) -> dict[str, Any]:
        # Not `asdict(self)`: it would copy every record of a long history, in the training loop.
        return {**vars(self), "events": asdict(self.events), "history": list(self.history), "bad": dict(self.bad)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Progress":
        events: dict[str, Any] = {**values["events"], "drops": tuple(values["events"]["drops"])}
        fields: dict[str, Any] = {**values, "events": Events(**events)}
        return Progress(**fields)


def training_seconds(history: list[dict[str, Any]], batch: int) -> float:
    """Time a run spent in training steps, from its history's speeds; evaluations and waiting left out."""
    seconds, before = 0.0, 0.0
    for record in history:
        if "images_per_second" in record:
            seconds += (record["step"] - before) * batch / record["images_per_second"]
            before = record["step"]
    return seconds


class Store:
    """Checkpoints of one run: `<url>/step-00001234/{state.pt, manifest.json}`, local or remote.

    A checkpoint exists once its manifest does. Locally it is written aside and renamed; remotely, where nothing can be
    renamed at once, the manifest is written last.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.fs, self.path = filesystem(url)
        self.local = is_local(url)

    def save(self, step: int, state: dict[str, Any], metrics: dict[str, float]) -> None:
        """Write one checkpoint, durable and complete or not at all.

        Raises:
            UserError: the storage is full or not writable; checkpoints already there are untouched.
        """
        buffer = io.BytesIO()
        torch.save({"version": VERSION, **state}, buffer)
        data = buffer.getvalue()  # no copy
        digest = hashlib.sha256(data).hexdigest()
        manifest = json.dumps({"version": VERSION, "step": step, "bytes": len(data), "sha256": digest, **metrics})
        final = join(self.path, f"step-{step:08d}")
        aside = join(self.path, f".step-{step:08d}.{os.getpid()}") if self.local else final
        contents = {"state.pt": data, "manifest.json": manifest.encode()}
        try:
            if self.local:
                _write_durably(Path(aside), contents)
                shutil.rmtree(final, ignore_errors=True)  # a damaged one, or the same step before a fallback
                Path(aside).rename(final)
            else:
                self.fs.makedirs(final, exist_ok=True)
                if self.fs.exists(join(final, "manifest.json")):  # likewise: it would speak for another state
                    self.fs.rm_file(join(final, "manifest.json"))
                for name, content in contents.items():
                    self.fs.pipe_file(
                        join(final, name), content
                    )  # of a large one, parts at a time; whole or not at all
        except OSError as error:
            if self.local:
                shutil.rmtree(aside, ignore_errors=True)
            what = f"cannot write checkpoint {self.url}/step-{step:08d} ({len(data) / 2**20:.0f} MiB): {error}"
            if isinstance(error, StorageError):  # it says what to do
                raise type(error)(f"{what}; the run goes on from the checkpoint before") from error
            raise UserError(
                f"{what}; free space or choose another run.storage, then submit again: the run goes on from the one "
                "before"
            ) from error

    def steps(self) -> list[int]:
        """Steps of all complete checkpoints, rising."""
        if not self.fs.exists(self.path):
            return []
        names = [str(entry).rstrip("/").split("/")[-1] for entry in self.fs.ls(self.path, detail=False)]
        steps = [int(name.removeprefix("step-")) for name in names if name.startswith("step-")]
        return sorted(step for step in steps if self.fs.exists(self._file(step, "manifest.json")))

    def load(self, step: int, sha256: str = "") -> dict[str, Any]:
        """The state of one checkpoint, on CPU; with `sha256` only if it is that very one.

        Raises:
            ValueError: it is damaged or of another version; the message says which.
        """
        try:
            manifest = self.manifest(step)
            data = self.fs.cat_file(self._file(step, "state.pt"))
        except StorageError:
            raise  # of the store, not of this checkpoint
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"step-{step:08d} cannot be read: {error}") from error
        if hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
            raise ValueError(f"step-{step:08d} is damaged: its SHA-256 is not the manifest's")
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        if sha256 not in ("", manifest["sha256"]):
            raise ValueError(f"step-{step:08d} is another one than the first worker has loaded")
        if state["version"] != VERSION:
            raise ValueError(f"step-{step:08d} has state version {state['version']}; this raybone reads {VERSION}")
        return state

    def clear_unfinished(self, say: Callable[[str], None]) -> None:
        """Remove what a killed writer left of checkpoints, and name each through `say`. For the only one who writes."""
        found = set()
        if self.local:
            for left in Path(self.path).glob(".step-*"):
                found.add(left.name.split(".")[1])
                shutil.rmtree(left, ignore_errors=True)
        elif self.fs.exists(self.path):
            whole = set(self.steps())
            names = {str(entry).rstrip("/").split("/")[-1] for entry in self.fs.ls(self.path, detail=False)}
            for name in names:
                step = name.removeprefix("step-")
                if step == name or not step.isdecimal() or int(step) in whole:
                    continue
                if not self.fs.exists(join(self.path, name, "manifest.json")):  # a listing before may have been older
                    found.add(name)
                    self.fs.rm(join(self.path, name), recursive=True)
        abandon: Callable[[str], list[str]] = getattr(self.fs, "abandon", lambda path: [])
        # An upload that has not come to its end is no file yet.
        found |= {path.removeprefix(self.path).split("/")[1] for path in abandon(self.path)}
        for name in sorted(found):
            say(f"checkpoint {name} was not written to its end; going on from the one before")

    def first_intact(self, steps: Iterable[int], say: Callable[[str], None]) -> dict[str, Any] | None:
        """The state of the first of `steps` that verifies; each one passed over is named through `say`."""
        for step in steps:
            try:
                return self.load(step)
            except StorageError:
                raise  # to fall back would throw away what is sound
            except ValueError as error:
                say(f"checkpoint {error}; falling back to the one before")
        return None

    def newest(self, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The newest state that verifies."""
        return self.first_intact(reversed(self.steps()), say)

    def manifest(self, step: int) -> dict[str, Any]:
        """Size, checksum and metrics of one checkpoint."""
        return json.loads(self.fs.cat_file(self._file(step, "manifest.json")))

    def prune(self, keep: int, best_step: int) -> None:
        """Remove all but the newest `keep` and the best, and what a killed writer left behind."""
        for step in self.steps()[:-keep]:
            if step != best_step:
                self.fs.rm(join(self.path, f"step-{step:08d}"), recursive=True)
        if self.local:
            for left in Path(self.path).glob(".step-*"):
                shutil.rmtree(left, ignore_errors=True)

    def _file(self, step: int, name: str) -> str:
        return join(self.path, f"step-{step:08d}", name)


def _write_durably(folder: Path, contents: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


class Checkpointer:
    """Saves without holding up the loop: it waits for a copy to host memory, a thread does the rest."""

    def __init__(self, store: Store, keep: int) -> None:
        self.store, self.keep = store, keep
        self._copy: Any = None
        self._held: threading.Thread | None = None
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def hold(self, state: dict[str, Any], progress: Progress, metrics: dict[str, float]) -> None:
        """Copy `state` (a tree of dicts, lists, tensors), to be written by `commit`.

        Raises:
            UserError: the write before this one failed.
        """
        self.wait()
        self._copy = _copy_to_host(state, self._copy)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        tree = {**self._copy, "progress": progress.as_dict()}
        self._held = threading.Thread(target=self._write, args=(replace(progress), tree, metrics), daemon=True)

    def commit(self) -> None:
        """Write what is held, if anything is, behind the loop's back."""
        if self._held:
            self._writer, self._held = self._held, None
            self._writer.start()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """What is being written is written to its end, also when the loop was broken off: then without complaint."""
        if kind is None:
            self.wait()
        elif self._writer:
            self._writer.join()

    def wait(self) -> None:
        """Until the last write is on disk. Raises what went wrong with it."""
        if self._writer:
            self._writer.join()
            self._writer = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _write(self, progress: Progress, tree: dict[str, Any], metrics: dict[str, float]) -> None:
        try:
            self.store.save(progress.step, tree, metrics)
            self.store.prune(self.keep, progress.best_step)
        except BaseException as error:  # raised again in the loop, by wait()
            self._error = error


def _copy_to_host(tree: Any, into: Any) -> Any:
    """Deep copy with every tensor in host memory, reusing the buffers of the copy before where shapes agree."""
    if isinstance(tree, Tensor):
        if not isinstance(into, Tensor) or into.shape != tree.shape or into.dtype != tree.dtype:
            into = pinned.empty_like(tree, tree.is_cuda)
        return into.copy_(tree.detach(), non_blocking=True)
    if isinstance(tree, dict):
        old = into if isinstance(into, dict) else {}
        return {key: _copy_to_host(value, old.get(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        old = into if isinstance(into, list) and len(into) == len(tree) else [None] * len(tree)
        return [_copy_to_host(value, slot) for value, slot in zip(tree, old, strict=True)]
    return tree
