"""A sweep in words and rows, for the live page and the report."""

import time
from dataclasses import dataclass

from backbone.storage import join
from backbone.sweep import analysis
from backbone.sweep.record import Record, Trial
from backbone.sweep.standing import EXACT, has_best, interval, level, word
from backbone.sweep.view.wording import NONE, STATES, amount, duration, point, short_names, span, spelled_out

MARKS = {"finished": "●", "running": "▶", "stopped": "✕", "failed": "▼", "waiting": "○"}


STANDING = {"the best": " ★", "level at the top": " ≈"}
INTERVAL = "95 % interval"
"""Column of the first objective's."""


@dataclass(frozen=True)
class Cell:
    """What a cell is sorted by (None: last) and what it says."""

    key: float | str | None
    text: str


def state(record: Record) -> str:
    """running, finished, interrupted, or "no sign": its file says running, and nobody has written it for a while."""
    return "no sign" if record.state == "running" and not record.alive else record.state


def headline(record: Record) -> str:
    """What is known of the best so far: one trial where its interval excludes the second, else those that are level."""
    first = record.objectives[0]
    if not record.best:
        begun = any(trial.started for trial in record.trials)
        return "No trial has finished yet." if begun else "No trial has started yet."
    best = record.trial(record.best)
    noun = first.label.partition(" (")[0]
    reached = " ".join(
        filter(None, (amount(first.name, best.values.get(first.name)), span(first.name, interval(best, first.name))))
    )
    it = f"{best.net.replace('_', ' ')} with {reached} {noun}, trial {best.id}"
    so_far = "" if record.state == "finished" else " so far"
    if has_best(record):
        return f"Best{so_far}: {it}."
    others = [trial.id for trial in level(record)]
    if not others:
        return f"One trial has finished{so_far}: {it}."
    most = ", ".join(others[:4]) + (f" and {len(others) - 4} more" if len(others) > 4 else "")
    extreme = "Lowest" if first.mode == "min" else "Highest"
    return f"No trial is the best{so_far}. {extreme}: {it}, level with {most}."


def left(record: Record) -> str:
    """What a budget kept from being done, and how it goes on; empty where nothing was."""
    count = analysis.planned(record) - len(record.of_state("finished", "stopped", "failed"))
    if record.state != "finished" or not record.why or not count:
        return ""
    return f"{record.why}: {count} trial(s) are not done; a larger --{record.why.partition(' ')[0]} goes on with them"


def caveat(record: Record) -> str:
    """What the intervals hold and do not; empty where there is none."""
    first = record.objectives[0]
    done = record.of_state("finished")
    if not done or first.name in EXACT:
        return ""
    if any(interval(trial, first.name) is None for trial in done):
        return "How far other images would move what a trial reached is not known, so none is called the best."
    return (
        "Brackets: 95 % intervals, of other validation images alone; each trial was trained once, so what another "
        "seed would change is unknown. Level: on other images it might be the other way round."
    )


def progress(record: Record) -> str:
    """How many trials are done, and what became of them."""
    done = len(record.of_state("finished", "stopped", "failed"))
    counts = [(name, len(record.of_state(name))) for name in STATES]  # ty: ignore[invalid-argument-type]
    told = ", ".join(f"{n} {STATES[name]}" for name, n in counts if n)
    return f"{done} of {analysis.planned(record)} trials done" + (f"; {told}" if told else "")


def situation(record: Record) -> str:
    """Its state in a sentence, with what is to do."""
    again = f"Submit the sweep {record.name} again to go on with it."
    why = f" {record.why}" if record.why else ""
    if state(record) == "no sign":
        return f"Its file says it is running, but nothing was written for {_ago(record)}. {again}"
    if record.state == "interrupted":
        return f"Interrupted.{why} {again}"
    if record.state == "finished":
        return f"Finished in {duration(record.seconds)}.{why}"
    left = analysis.seconds_left(record)
    eta = f" About {duration(left)} to go, if the rest takes as long as what is done." if left is not None else ""
    return f"Running for {duration(record.seconds)}, {record.places} at a time, {record.devices}.{eta}"


def table(record: Record, trials: list[Trial] | None = None) -> tuple[list[str], list[list[Cell]]]:
    """Head and lines of the trials table.

    The objective is that of finished trials alone; the lowest error so far, which all have, is a column of its own.
    """
    fields = list(dict.fromkeys(field for t in record.trials for field in t.point))
    names = short_names(fields)
    shown = [o for o in record.objectives if o.name not in ("macs", "device_hours")]
    words = {f: _words(record, f) for f in fields}
    head = ["trial", "state", *(o.label for o in shown), INTERVAL, "lowest error so far (%)"]
    head += [names[f] for f in fields]
    head += ["epoch", "rung", "multiply-adds", "cost", "net", "why it ended"]
    first, standing, lines = record.objectives[0].name, {t.id: word(record, t) for t in record.trials}, []
    for t in record.trials if trials is None else trials:
        line = [Cell(t.id, t.id + STANDING.get(standing.get(t.id, ""), ""))]
        line.append(Cell(t.state, f"{MARKS[t.state]} {STATES[t.state]}"))
        line += [_number(o.name, t.values.get(o.name) if t.state == "finished" else None) for o in shown]
        ends = interval(t, first)
        line.append(Cell(ends and ends[0], span(first, ends) or NONE))
        errors = [row["val_error"] for row in t.history if row.get("val_error") is not None]
        line.append(_number("val_error", min(errors, default=None)))
        line += [words[f].get(analysis.key(t.point.get(f)), Cell(None, NONE)) for f in fields]
        line.append(Cell(t.epoch, f"{t.epoch:.3g} of {t.epochs:g}"))
        line.append(Cell(t.rung + 1, f"{t.rung + 1} of {len(record.rungs)}" if record.rungs else NONE))
        line += [_number(name, t.values.get(name)) for name in ("macs", "device_hours")]
        line += [Cell(t.net, t.net or NONE), Cell(t.why, t.why or NONE)]
        lines.append(line)
    return head, lines


def commands(record: Record, trial: Trial | None = None) -> dict[str, str]:
    """What to type next -> for what."""
    if trial:
        return {"In TensorBoard": f"tensorboard --logdir {join(record.place(trial), 'tensorboard')}"}
    found = {"All trials in TensorBoard": f"tensorboard --logdir {record.url}"}
    if record.best:
        found["Train the best" if has_best(record) else f"Train trial {record.best}"] = (
            f"python jobs/pretrain.py --config {join(record.url, 'best.yaml')}"
        )
    return found


def facts(record: Record, trial: Trial) -> dict[str, str]:
    """What there is to know of a trial beside its numbers, where it has it."""
    folder = record.place(trial)
    found = {"Point": point(trial.point), "Folder": folder}
    if trial.state == "finished":
        found["Artifact"] = join(folder, "artifact")
    if trial.why:
        found["Error" if trial.state == "failed" else "Why it stopped"] = trial.why
    found |= {f"Epoch {x['epoch']:g}": f"took the weights of {x['from']}" for x in trial.lineage}
    return found


def told(record: Record, trial: Trial) -> str:
    """A trial in one line."""
    return f"{called(record, trial)} · {point(trial.point)}"


def called(record: Record, trial: Trial) -> str:
    """A trial in a few words, to choose it by, on a phone too."""
    known = word(record, trial)
    return f"{trial.id} · {STATES[trial.state]}{known and f', {known}'}"


def front(record: Record) -> list[str]:
    """The trials of the Pareto front, cheapest first, a line each."""
    names = dict.fromkeys([*(objective.name for objective in record.objectives), "macs"])
    trials = sorted((record.trial(trial_id) for trial_id in record.pareto), key=lambda trial: trial.values["macs"])
    values = [", ".join(f"{amount(name, trial.values[name])} {name}" for name in names) for trial in trials]
    return [f"  {told(record, trial)}: {costs}" for trial, costs in zip(trials, values, strict=True)]


def _words(record: Record, field: str) -> dict[str, Cell]:
    """The cells of a field's values, by `analysis.key`."""
    values = analysis.ordered(record, field)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    pairs = zip(values, spelled_out(values), strict=True)
    return {analysis.key(v): Cell(float(v) if numbers else text, text) for v, text in pairs}


def _number(name: str, given: float | None) -> Cell:
    return Cell(given, amount(name, given))


def _ago(record: Record) -> str:
    return duration(max(0.0, time.time() - record.updated))
