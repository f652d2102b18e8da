"""The learning rate: a pure function of the recipe, the step, and two facts a run may learn on its way (`Events`)."""

import math
from dataclasses import dataclass, replace

from backbone.training.recipe import (
    ConstantSchedule,
    CosineSchedule,
    Optim,
    PiecesSchedule,
    PlateauSchedule,
    Schedule,
    StepsSchedule,
)


@dataclass(frozen=True)
class Events:
    """What a schedule that watches the run has decided so far. Plain integers, kept in the train state."""

    hold_end: int = -1
    """Step from which `hold_lr` no longer applies; -1 while it holds."""

    drops: tuple[int, ...] = ()
    """plateau: steps from which the rate is another gamma lower."""

    best_error: float = math.inf
    """plateau: lowest validation error, percent."""

    waited: int = 0
    """plateau: evaluations since the best or the last drop."""


@dataclass(frozen=True)
class Steps:
    """A schedule in steps. One epoch is `num_samples / batch` steps, which need not be whole."""

    total: int
    milestones: tuple[int, ...]
    warmup: int
    hold: int
    """Step from which `hold_lr` no longer applies, whatever the training error."""
    batch: int
    num_samples: int

    @property
    def epochs(self) -> float:
        """The schedule's length in epochs."""
        return self.total * self.batch / self.num_samples

    def epochs_done(self, step: int) -> int:
        """Whole epochs consumed once `step` steps are done."""
        return step * self.batch // self.num_samples

    def ends_epoch(self, step: int) -> bool:
        """True where the step numbered `step` (from 1) consumed the last sample of an epoch."""
        return self.epochs_done(step) > self.epochs_done(step - 1)


def in_steps(schedule: Schedule, batch: int, num_samples: int) -> Steps:
    """Convert a schedule to steps; a part of a step at the end is a whole one."""
    # Multiplied before divided: 30 epochs of 50 samples by 3 are 500 steps, not 501.
    samples, each = (num_samples, batch) if schedule.unit == "epochs" else (1, 1)
    milestones = schedule.milestones if isinstance(schedule, StepsSchedule | PiecesSchedule) else ()
    held = min(schedule.hold_at_most or schedule.total, *milestones[:1], schedule.total)
    return Steps(
        total=math.ceil(schedule.total * samples / each),
        milestones=tuple(round(milestone * samples / each) for milestone in milestones),
        hold=round(held * samples / each),
        warmup=round(schedule.warmup * samples / each),
        batch=batch,
        num_samples=num_samples,
    )


def learning_rate(schedule: Schedule, optim: Optim, steps: Steps, step: int, events: Events) -> float:
    """The learning rate of the step numbered `step`, counted from 0."""
    if schedule.hold_lr and step < steps.hold and (events.hold_end < 0 or step < events.hold_end):
        return schedule.hold_lr
    if step < steps.warmup:
        return optim.peak_lr * (step + 1) / steps.warmup
    match schedule:
        case CosineSchedule():
            done = (step - steps.warmup) / (steps.total - steps.warmup)
            return optim.peak_lr * 0.5 * (1 + math.cos(math.pi * done))
        case PiecesSchedule():
            return optim.scaled((optim.lr, *schedule.rates)[_passed(steps.milestones, step)])
        case StepsSchedule():
            return optim.peak_lr * schedule.gamma ** _passed(steps.milestones, step)
        case PlateauSchedule():
            return optim.peak_lr * schedule.gamma ** _passed(events.drops, step)
        case ConstantSchedule():
            return optim.peak_lr


def _passed(marks: tuple[int, ...], step: int) -> int:
    return sum(step >= mark for mark in marks)


def curve(schedule: Schedule, optim: Optim, steps: Steps, points: int = 100) -> list[tuple[float, float]]:
    """(epoch, learning rate) over the whole schedule, to be joined by lines, drops upright.

    What depends on the run is drawn as if it never happened: a plateau does not drop, a rate is held for no time.
    """
    at = {i * steps.total // points for i in range(points)} | {steps.total - 1, max(0, steps.warmup - 1)}
    at |= {mark - before for mark in steps.milestones for before in (0, 1)}
    rates = {step: learning_rate(schedule, optim, steps, step, Events(hold_end=0)) for step in sorted(at)}
    return [(step * steps.batch / steps.num_samples, rate) for step, rate in rates.items()]


def after_log(schedule: Schedule, events: Events, step: int, train_error: float) -> Events:
    """End the holding phase once training error (percent, since the last record) is below the mark (section 4.2)."""
    if schedule.hold_lr and events.hold_end < 0 and train_error < schedule.hold_until_error:
        return replace(events, hold_end=step)
    return events


def after_evaluation(schedule: Schedule, events: Events, step: int, val_error: float) -> Events:
    """Lower the rate when validation error (percent) has stood still for `patience` evaluations (section 3.4)."""
    if not isinstance(schedule, PlateauSchedule):
        return events
    if val_error < events.best_error:
        return replace(events, best_error=val_error, waited=0)
    if events.waited + 1 < schedule.patience:
        return replace(events, waited=events.waited + 1)
    return replace(events, drops=(*events.drops, step), waited=0)
