"""What a trial trains with one setting. There is one a trial, but with PBT, which changes the rate on the way.

Every segment is a run of its own, because a run is its recipe. One that takes over another's weights begins with that
run's checkpoint, which Tune hands from trial to trial.
"""

import json
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backbone.storage import join
from backbone.training.recipe import Recipe
from backbone.training.state import Store

STATE = ("state.pt", "manifest.json")
"""Of a checkpoint, in the order of writing: the manifest marks a whole one."""


@dataclass
class Segment:
    """One run of a trial."""

    recipe: Recipe
    trial: str
    passes_on: bool = False
    """With PBT: evaluations come with the checkpoint, for other trials to take over."""

    lineage: list[dict[str, Any]] = field(default_factory=list)
    donor: Any = None
    """Tune's checkpoint that it begins with."""

    @property
    def url(self) -> str:
        return join(self.recipe.run.storage, self.recipe.run_name)

    @property
    def store(self) -> Store:
        return Store(join(self.url, "checkpoints"))

    @property
    def about(self) -> dict[str, Any]:
        """What every report says: `run`, its name below trials/, and `lineage` as JSON, see `record.Trial`."""
        return {"run": self.recipe.run_name, "lineage": json.dumps(self.lineage)}

    @staticmethod
    def of(trial: str, recipe: Recipe, config: dict[str, Any], given: Any) -> "Segment":
        """The trial's own run; with PBT the one its checkpoint is of, or a new one with the rate it was given.

        `config` is what Tune has for it, with PBT perhaps taken over from another trial; `given` Tune's checkpoint or
        None.
        """
        if "optim.lr" not in config:
            return Segment(recipe, trial)
        lr = config["optim.lr"]
        before: dict[str, Any] = {"id": trial, "run": recipe.name, "lr": lr, "lineage": config["lineage"]}
        if given:
            with given.as_directory() as folder:
                before = json.loads(Path(folder, "segment.json").read_text())
        name, lineage, donor = before["run"], before["lineage"], None
        if before["id"] != trial or before["lr"] != lr:
            name, donor = f"{trial}-{before['step']}-{before['id']}-{lr:g}", given
            change = {"from": before["id"], "lr_before": before["lr"], "lr": lr}
            lineage = [*lineage, {"epoch": before["epoch"], "step": before["step"], **change}]
        optim = recipe.optim.model_copy(update={"lr": lr})
        return Segment(recipe.model_copy(update={"name": name, "optim": optim}), trial, True, lineage, donor)

    def adopt(self) -> None:
        """Begin with the weights, momentum and step of the checkpoint it was given; nothing where it has begun."""
        store = self.store
        if self.donor and not store.steps():
            with self.donor.as_directory() as folder:
                step = json.loads(Path(folder, STATE[1]).read_text())["step"]
                place = join(store.path, f"step-{step:08d}")
                store.fs.makedirs(place, exist_ok=True)
                for name in STATE:
                    store.fs.put_file(str(Path(folder, name)), join(place, name))

    @contextmanager
    def passed_on(self, step: int, epoch: float, alive: Callable[[], bool]) -> Generator[Any]:
        """Its checkpoint of this step for Tune to keep; None where none is asked for, or the run has ended before."""
        from ray.tune import Checkpoint

        store = self.store
        while self.passes_on and step not in store.steps():  # it is written behind the evaluation's back
            if not alive():
                break
            time.sleep(0.05)
        if not self.passes_on or step not in store.steps():
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="raybone-") as folder:
            for name in STATE:
                store.fs.get_file(join(store.path, f"step-{step:08d}", name), str(Path(folder, name)))
            about = {"id": self.trial, "run": self.recipe.name, "lr": self.recipe.optim.lr, "lineage": self.lineage}
            Path(folder, "segment.json").write_text(json.dumps({**about, "step": step, "epoch": epoch}))
            yield Checkpoint.from_directory(folder)
