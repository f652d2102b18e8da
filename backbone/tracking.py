"""What a run's display shows, sent to MLflow or Weights & Biases as well (`run.track`).

Only the driver sends, from a thread of its own: a server that does not answer holds up no training, and what goes wrong
is said once. `tracking.json` in the folder names the tracked run, so that a resumption goes on in it; what it does
over, bit for bit, is not sent again.
"""

import json
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Literal, Protocol

from backbone.errors import UserError, last_line
from backbone.extras import how_to_install
from backbone.stopping import stop_of
from backbone.storage import filesystem, is_local, join, replace_file
from backbone.training.recipe import TrainingRecipe, flat, recipe_hash

FILE = "tracking.json"
PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}
"""Of each extra, what is imported."""

LEAVING_S: dict[str, float] = {"finished": 60.0, "failed": 60.0, "stopped": 10.0}
"""How long the end of a run waits for what is still to be sent: a pod that ends is killed soon."""

# Neither tells its makers of our users unless these ask for it.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}
End = Literal["finished", "failed", "stopped"]
Values = dict[str, float]


class Service(Protocol):
    """One tracked run of one service."""

    def log(self, step: int, values: Values) -> None: ...

    def end(self, how: End, values: Values) -> None:
        """`values` are the final numbers of a run that finished."""


def check(recipe: Any) -> None:
    """UserError where a recipe is to be tracked and cannot be: before anything is trained. Anything else than a
    training has nothing to track."""
    if not isinstance(recipe, TrainingRecipe) or recipe.run.track == "none":
        return
    kind, url = recipe.run.track, recipe.run.storage
    if find_spec(PACKAGES[kind]) is None:
        raise UserError(f"run.track {kind}: the package is not installed: {how_to_install(kind)}")
    if is_local(url):
        return
    if kind == "mlflow" and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            f"run.track mlflow: its database cannot lie in {url}: export MLFLOW_TRACKING_URI=http://SERVER:5000"
        )
    if kind == "wandb" and os.environ.get("WANDB_MODE") == "offline" and not os.environ.get("WANDB_DIR"):
        raise UserError(f"run.track wandb: offline files cannot lie in {url}: export WANDB_DIR=/a/folder/that/stays")


class Tracker:
    """Takes a run's records, as `watch` of `launch`; a context that is left when the run ends."""

    def __init__(self, recipe: Any, url: str, say: Callable[[str], None]) -> None:
        """`recipe` is the run's, with `run.track`; what is no training's is not tracked."""
        self.on = isinstance(recipe, TrainingRecipe) and recipe.run.track != "none"
        self._recipe, self._url, self._say = recipe, url, say
        self._records: SimpleQueue[dict[str, Any] | tuple[End, Values]] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracking")
        self._values: Values = {}

    def show(self, record: dict[str, Any]) -> None:
        """One record of the run; returns at once."""
        if self.on and record["kind"] != "say":
            self._records.put(record)

    def finished(self, metrics: Any) -> None:
        """The results of the run, which has ended well."""
        from backbone.lineage import worth

        self._values = {f"final/{name}": value for name, value in worth(metrics)[0].items()}

    def __enter__(self) -> "Tracker":
        if self.on:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self.on:
            return
        how: End = "finished" if error is None else "stopped" if stop_of(error) else "failed"
        self._records.put((how, self._values))
        self._thread.join(LEAVING_S[how])
        if self._thread.is_alive():
            self._say(f"run.track {self._recipe.run.track}: does not answer; what was not sent is left behind")

    def _work(self) -> None:
        """The thread: whatever goes wrong out there, the run goes on."""
        kind = self._recipe.run.track
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            memory = Memory(self._url, kind)
            service = SERVICES[kind](self._recipe, self._url, memory)
            while not isinstance(record := self._records.get(), tuple):
                split = "train" if record["kind"] == "log" else "val"
                if record["step"] > memory.steps.get(split, -1):
                    service.log(record["step"], values_of(record, split))
                    memory.logged(split, record["step"])
            service.end(*record)
            memory.write()
        except Exception as error:  # of the service's any kind: none is worth a training
            self._say(f"run.track {kind}: {type(error).__name__}: {last_line(error)}; the run goes on untracked")


def values_of(record: dict[str, Any], split: str) -> Values:
    """Numbers of a record, under the names TensorBoard's files have."""
    told = {name.removeprefix("val_"): value for name, value in record.items() if name not in ("kind", "step", "total")}
    return {f"{split}/{name}": float(value) for name, value in told.items() if isinstance(value, int | float)}


class Memory:
    """`tracking.json`: which run of the service this one is, and how far it was sent."""

    def __init__(self, url: str, kind: str) -> None:
        self.url, self.kind = url, kind
        fs, path = filesystem(join(url, FILE))
        self._all: dict[str, Any] = json.loads(fs.cat_file(path)) if fs.exists(path) else {}
        known = self._all.get(kind, {})
        self.id: str = known.get("id", "")
        self.where: str = known.get("where", "")
        self.steps: dict[str, int] = known.get("steps", {})

    def begin(self, run_id: str, where: str = "") -> None:
        """This is a new run of the service."""
        self.id, self.where, self.steps = run_id, where, {}
        self.write()

    def logged(self, split: str, step: int) -> None:
        """Remember what was sent: in an object store with each evaluation."""
        self.steps[split] = step
        if split == "val" or is_local(self.url):
            self.write()

    def write(self) -> None:
        """Replace the file."""
        told = self._all | {self.kind: {"id": self.id, "where": self.where, "steps": self.steps}}
        replace_file(join(self.url, FILE), json.dumps(told, indent=1).encode())


STATUS: dict[End, str] = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""What MLflow calls it."""


class Mlflow:
    """At MLFLOW_TRACKING_URI; without it in the file mlflow.db of a local storage. MLFLOW_EXPERIMENT_NAME: raybone."""

    def __init__(self, recipe: TrainingRecipe, url: str, memory: Memory) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        self._metric = Metric
        local = f"sqlite:///{join(filesystem(recipe.run.storage)[1], 'mlflow.db')}"
        where = os.environ.get("MLFLOW_TRACKING_URI") or local
        self._client = MlflowClient(tracking_uri=where)
        if memory.id and memory.where == where:
            try:
                self._client.update_run(memory.id, status="RUNNING")
                self._id = memory.id
                # What was sent after the file was last written.
                for split, name in (("train", "train/loss"), ("val", "val/error")):
                    sent = [one.step for one in self._client.get_metric_history(memory.id, name)]
                    memory.steps[split] = max(sent, default=-1)
                return
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        tags = {"raybone.url": url, "raybone.recipe_hash": recipe_hash(recipe)}
        run = self._client.create_run(self._experiment(), run_name=recipe.run_name, tags=tags)
        self._id = run.info.run_id
        memory.begin(self._id, where)
        params = [Param(key, str(value)) for key, value in flat(recipe.model_dump(mode="json")).items()]
        for first in range(0, len(params), 100):  # more in one request are refused
            self._client.log_batch(self._id, params=params[first : first + 100])

    def _experiment(self) -> str:
        """Its id; made where it is not there."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "raybone"
        if found := self._client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except MlflowException:
            if found := self._client.get_experiment_by_name(name):  # another run of the same moment was faster
                return found.experiment_id
            raise

    def log(self, step: int, values: Values) -> None:
        """See `Service`."""
        now = int(1000 * time.time())
        self._client.log_batch(self._id, metrics=[self._metric(key, v, now, step) for key, v in values.items()])

    def end(self, how: End, values: Values) -> None:
        """See `Service`."""
        if values:
            self.log(0, values)
        self._client.set_terminated(self._id, STATUS[how])


class Wandb:
    """As its environment says (WANDB_API_KEY, WANDB_MODE, ...). WANDB_PROJECT: raybone; offline files lie in the run's
    folder unless WANDB_DIR names another."""

    def __init__(self, recipe: TrainingRecipe, url: str, memory: Memory) -> None:
        import wandb

        if not memory.id:
            memory.begin(uuid.uuid4().hex[:16])
        folder = os.environ.get("WANDB_DIR") or (filesystem(url)[1] if is_local(url) else tempfile.mkdtemp())
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            id=memory.id,
            resume="allow",
            reinit="create_new",  # a comparison tracks several at once
            name=recipe.run_name,
            project=os.environ.get("WANDB_PROJECT") or "raybone",
            config={**recipe.model_dump(mode="json"), "url": url, "recipe_hash": recipe_hash(recipe)},
            dir=folder,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        # Its own count of steps only rises, and is lost offline.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: Values) -> None:
        """See `Service`."""
        self._run.log({"step": step, **values})

    def end(self, how: End, values: Values) -> None:
        """See `Service`."""
        self._run.summary.update({"state": how, **values})
        self._run.finish(exit_code=0 if how == "finished" else 1)


SERVICES: dict[str, Callable[[TrainingRecipe, str, Memory], Service]] = {"mlflow": Mlflow, "wandb": Wandb}
