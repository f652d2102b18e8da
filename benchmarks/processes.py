"""Runs of jobs/ as processes of their own, one thread each, and what they cost."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import yaml

from backbone.errors import UserError
from backbone.parallel import Task
from backbone.training.pretrain import PRETRAIN
from backbone.training.recipe import TrainingRecipe
from backbone.training.run import run_url
from detection.finetune import FINETUNE
from detection.gains import Plan
from detection.recipe import Finetune

JOBS = Path(__file__).parents[1] / "jobs"


class Processes:
    """Starts jobs and adds up what they cost. `seconds` is the processor time of all that have ended."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds, self._lock = folder, 0.0, threading.Lock()
        self._running, self._closed = dict[int, subprocess.Popen[bytes]](), False
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, job: str, name: str, words: list[str]) -> None:
        """Run `python jobs/<job>.py *words` to its end; what it says goes to `<folder>/<name>.log`.

        Raises:
            UserError: it failed.
        """
        log = self.folder / f"{name}.log"
        with log.open("w") as file:
            with self._lock:
                if self._closed:
                    raise UserError(f"{name} was not begun: the time was over")
                started = subprocess.Popen(
                    [sys.executable, str(JOBS / f"{job}.py"), *words],
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
                self._running[started.pid] = started
            os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)  # its number stays its own until it is taken out
        with self._lock:
            _, status, used = os.wait4(started.pid, 0)
            del self._running[started.pid]
            self.seconds += used.ru_utime + used.ru_stime
        if status:
            said = log.read_text()[-500:]
            raise UserError(
                (said.strip().splitlines() or ["stopped"])[-1] if self._closed else f"{name} failed: {said}"
            )

    def close(self) -> None:
        """Stop what runs, so that it can go on later, and begin nothing more."""
        with self._lock:
            self._closed = True
            for started in self._running.values():
                os.kill(started.pid, signal.SIGTERM)


def recipes(todo: Plan) -> list[TrainingRecipe]:
    """All of a comparison."""
    return [*todo.pretrainings.values(), *todo.finetunings.values()]


def tasks_of(todo: Plan, cost: Processes) -> dict[str, Task]:
    """The runs of a comparison that are to do, by name, each fine-tuning after the backbone it starts from."""
    left = [
        one for one in recipes(todo) if not (FINETUNE if isinstance(one, Finetune) else PRETRAIN).finished(run_url(one))
    ]
    made = {f"{run_url(recipe)}/artifact": recipe.run_name for recipe in left if not isinstance(recipe, Finetune)}
    tasks = {}
    for recipe in left:
        name, job = recipe.run_name, "finetune" if isinstance(recipe, Finetune) else "pretrain"
        file = cost.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
        after = [made[recipe.backbone]] if isinstance(recipe, Finetune) and recipe.backbone in made else []
        tasks[name] = Task(partial(cost.run, job, name, ["--config", str(file)]), after)
    return tasks
