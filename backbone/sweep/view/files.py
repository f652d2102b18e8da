"""The texts that lie beside sweep.json, read as far as a page shows them."""

from dataclasses import dataclass

from backbone.storage import filesystem, join
from backbone.sweep.record import Record, Trial

TAIL = 16_000
"""Bytes of a log's end that are shown."""


@dataclass(frozen=True)
class Texts:
    """What there is to read of a trial; empty where there is nothing."""

    recipe: str = ""
    log: str = ""
    """The end of it."""


def of_trial(record: Record, trial: Trial) -> Texts:
    """Its recipe and the end of its log."""
    place = record.place(trial)
    return Texts(_text(join(place, "recipe.yaml")), _text(join(place, "log.txt"), TAIL))


def of_all(record: Record) -> dict[str, Texts]:
    """Those of every trial that has begun."""
    return {t.id: of_trial(record, t) for t in record.trials if t.started}


def best_recipe(record: Record) -> str:
    """best.yaml, which the sweep writes at its end."""
    return _text(join(record.url, "best.yaml"))


def _text(url: str, tail: int = 0) -> str:
    fs, path = filesystem(url)
    try:
        if not tail:
            return fs.cat_file(path).decode(errors="replace")
        size = fs.size(path)
        text = fs.cat_file(path, max(0, size - tail), size).decode(errors="replace")
    except OSError:  # not written yet, removed with its trial, or a store that is gone for a moment
        return ""
    return text if size <= tail else "…\n" + text.partition("\n")[2]
