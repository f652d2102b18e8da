"""What a sweep will take, before it takes it: `jobs/sweep.py --dry-run`."""

from collections import Counter
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from backbone.storage import filesystem, join
from backbone.sweep.ahead import Ahead
from backbone.sweep.options import Asha, Sweep
from backbone.sweep.record import FILE, read
from backbone.sweep.space import recipe_at, size
from backbone.training import cost
from backbone.training.plan import HOW_TO_MEASURE, shape_of
from backbone.training.run import run_place


class Work(NamedTuple):
    """Of one trial, or of many together."""

    epochs: float
    multiply_adds: float
    """Of training, forward and backward."""

    seconds: float
    """By the rates; 0 without any."""

    device_hours: float

    def times(self, share: float) -> "Work":
        """The first part of it."""
        return Work(*(share * value for value in self))


def describe(sweep: Sweep, rates: cost.Rates | None = None) -> str:
    """Trials, epochs by rungs, with `rates` hours, and disk; as text.

    Raises:
        UserError: as a sweep does before its first trial, but for the storage.
    """
    ahead = Ahead(sweep)
    recipes = [recipe_at(sweep, ahead.tree, point) for point in ahead.points()]
    costs = {recipe.model.model_dump_json(): ahead.cost(recipe) for recipe in recipes}
    works, nets = list[Work](), Counter[str]()
    for recipe in recipes:
        net, (num_train, num_val) = costs[recipe.model.model_dump_json()], ahead.images(recipe)
        steps = ahead.steps(recipe)
        asked = int(net["macs"]), int(net["params"]), recipe.data.workers
        one = cost.predict(shape_of(recipe, *asked, num_train, num_val), rates) if rates else None
        trained = 3 * net["macs"] * recipe.optim.batch * steps.total
        works.append(Work(steps.epochs, trained, one.total if one else 0, one.device_hours if one else 0))
        nets[recipe.model.name] += 1
    url, rungs = run_place(sweep.storage, sweep.name), ahead.rungs()
    ends = list(pairwise([0.0, *rungs, 1.0]))
    reduction = sweep.scheduler.reduction if isinstance(sweep.scheduler, Asha) else 1
    begun = reached(len(works), len(rungs), reduction)
    whole = together(works)
    parts = [whole.times((end - begin) * n / len(works)) for (begin, end), n in zip(ends, begun, strict=True)]
    space = f"{size(sweep.space):,.0f} points" if size(sweep.space) < float("inf") else "endlessly many points"
    lines = [
        ("sweep", url),
        ("space", f"{', '.join(sweep.space)}: {space}"),
        ("trials", f"{len(works)}, search {sweep.search}: {', '.join(f'{n} of {name}' for name, n in nets.items())}"),
        ("in full", _told(whole, rates)),
    ]
    for (_, end), trials, part in zip(ends, begun, parts, strict=True) if rungs else ():
        about = f"about {trials:.2g} trials" if end > rungs[0] else f"{trials:g} trials"
        lines.append(("rung", f"up to {100 * end:.3g} % of its schedule: {about}, {part.epochs:.3g} epochs"))
    if rungs:
        lines.append(("likely", f"{_told(together(parts), rates)}; were each trial as likely as any to be the best"))
    if sweep.search == "tpe":
        lines.append(("tpe", "chooses as it goes; counted are as many random points"))
    if sweep.finetune:
        lines.append(("detector", f"each trial that finishes goes through {sweep.finetune}; that is not counted"))
    if rates:
        lines.append(("rates", f"{rates.measured}; scaled by multiply-adds"))
    else:
        lines.append(("time", HOW_TO_MEASURE))
    budget = sweep.budget.model_dump()
    limits = [f"{budget[name]:g} {name}" for name in ("device_hours", "hours") if budget[name]]
    lines += [("budget", f"ends it after {' or '.join(limits)}")] if limits else []
    at_a_time = sweep.parallel or 1
    lines.append(("disk", f"at most {ahead.disk_bytes(at_a_time) / 2**30:.2f} GiB with {at_a_time} trial(s) at a time"))
    fs, path = filesystem(url)
    if fs.exists(join(path, FILE)):
        states = Counter(trial.state for trial in read(url).trials)
        lines.append(("there", f"{', '.join(f'{n} {state}' for state, n in states.items())}; counted above as well"))
    return "\n".join(f"{label:<11}{text}" for label, text in lines)


def reached(trials: int, rungs: int, reduction: int, orders: int = 500) -> list[float]:
    """How many trials begin each of the rungs + 1 parts of a schedule, on average, by the rule of Ray's ASHA: at a rung
    a trial goes on where it is not below the percentile 1 - 1 / reduction of those that came before it.

    As if trials came one after another in any of so many random orders, and the better one at a rung were so at the
    next. The first to come always goes on, so that of few trials more do than one of `reduction`.
    """
    rng, begun = np.random.default_rng(0), np.zeros(rungs + 1)
    for _ in range(orders):
        seen: list[list[float]] = [[] for _ in range(rungs)]
        for quality in rng.random(trials):
            begun[0] += 1
            for rung in range(rungs):
                goes_on = not seen[rung] or quality >= np.percentile(seen[rung], 100 * (1 - 1 / reduction))
                seen[rung].append(quality)
                if not goes_on:
                    break
                begun[rung + 1] += 1
    return [float(count) for count in begun / orders]


def together(works: list[Work]) -> Work:
    """Their sum."""
    return Work(*(sum(values) for values in zip(*works, strict=True)))


def _told(work: Work, rates: cost.Rates | None) -> str:
    text = f"{work.epochs:.3g} epochs, {work.multiply_adds:.3g} multiply-adds"
    if rates:
        text += f", {work.seconds / 3600:.3g} h one trial after another, {work.device_hours:.3g} device-hours"
    return text
