"""Which point is tried next: random, grid, or Optuna's TPE. Knows neither Ray nor files."""

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

from backbone.sweep.options import OBJECTIVES, Distribution, Sweep
from backbone.sweep.record import Trial
from backbone.sweep.space import Point, grid, key, random_points, short, size

ASKS = 20
"""How often TPE may propose points that were tried before, until a random one is taken."""


class Search:
    """Proposes points. Made anew whenever a sweep goes on: what it knows comes from the trials it is given."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        self._points = grid(sweep.space) if sweep.search == "grid" else random_points(sweep.space, sweep.seed)
        self._tried = {key(trial.point) for trial in trials}
        self._most = min(sweep.budget.trials or size(sweep.space), size(sweep.space))
        self._tpe = _Tpe(sweep, trials) if sweep.search == "tpe" else None

    @property
    def exhausted(self) -> bool:
        """Whether the budget's number or the space is used up."""
        return len(self._tried) >= self._most

    def next(self) -> Point | None:
        """A point that was not tried yet, or None."""
        if self.exhausted:
            return None
        asked = itertools.islice(self._tpe.points(), ASKS) if self._tpe else ()
        point = next((p for p in itertools.chain(asked, self._points) if key(p) not in self._tried), None)
        if point is not None:
            self._tried.add(key(point))
        return point

    def learn(self, trial: Trial) -> None:
        """Take in a trial that has ended."""
        if self._tpe:
            self._tpe.learn(trial)


class _Tpe:
    """Optuna's Tree-structured Parzen Estimator over the first objectives that trials have values for."""

    def __init__(self, sweep: Sweep, trials: Sequence[Trial]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space = optuna, sweep.space
        self._objectives = [OBJECTIVES[name] for name in sweep.objectives]
        directions: list[Any] = ["minimize" if o.mode == "min" else "maximize" for o in self._objectives]
        # Trials of a sweep that goes on are no news: another seed, or it would propose the same again.
        sampler = optuna.samplers.TPESampler(seed=(sweep.seed + len(trials)) % 2**32, n_startup_trials=5)
        self._study = optuna.create_study(sampler=sampler, directions=directions)
        self._distributions = {field: self._distribution(d) for field, d in sweep.space.items()}
        for trial in trials:
            self.learn(trial)

    def points(self) -> Iterator[Point]:
        while True:
            asked = self._study.ask(self._distributions).params
            yield {field: _decoded(self._space[field], value) for field, value in asked.items()}

    def learn(self, trial: Trial) -> None:
        """A finished trial with its values; one stopped early with its errors: TPE ranks it by how far it got."""
        create, states = self._optuna.trial.create_trial, self._optuna.trial.TrialState
        told = {f: _encoded(self._space[f], value) for f, value in trial.point.items()}
        common: dict[str, Any] = {"params": told, "distributions": self._distributions}
        if trial.state == "finished":
            self._study.add_trial(create(values=[trial.values[o.name] for o in self._objectives], **common))
        elif trial.state == "stopped" and trial.history and len(self._objectives) == 1:
            # Of an error rate less is better, whatever is looked for.
            sign = 1 if self._objectives[0].mode == "min" else -1
            errors = {int(row["step"]): sign * row["val_error"] for row in trial.history}
            self._study.add_trial(create(state=states.PRUNED, intermediate_values=errors, **common))

    def _distribution(self, d: Distribution) -> Any:
        of = self._optuna.distributions
        if d.choice:
            return of.CategoricalDistribution([_encoded(d, value) for value in d.choice])
        if d.integers:
            low, high, step = (*d.integers, 1)[:3]
            return of.IntDistribution(low, low + (high - low) // step * step, step=step)
        low, high = d.uniform or d.loguniform
        return of.FloatDistribution(low, high, log=bool(d.loguniform))


def _encoded(d: Distribution, value: Any) -> Any:
    """Optuna's categories are plain: whole sections go in as JSON. A number that an earlier raybone rounded out of its
    range is put back into it."""
    if d.choice:
        return json.dumps(value, sort_keys=True)
    return value if d.integers else short(value, d.uniform or d.loguniform)


def _decoded(d: Distribution, value: Any) -> Any:
    if d.choice:
        return next(choice for choice in d.choice if _encoded(d, choice) == value)
    return value if d.integers else short(value, d.uniform or d.loguniform)
