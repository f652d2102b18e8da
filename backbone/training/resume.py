"""Which checkpoint all ranks go on from. The first rank chooses; each one's view of a shared file system may lag."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from backbone.training.state import Progress, Store
from backbone.training.world import World

Say = Callable[[str], None]


def newest(store: Store, world: World, say: Say) -> dict[str, Any] | None:
    """The newest state that verifies, the same on all ranks; None where there is none.

    Raises:
        RuntimeError: on every rank, if one of them cannot load it.
    """

    def newest_first() -> list[int]:
        store.clear_unfinished(say)
        return store.steps()[::-1]

    return _agreed(store, newest_first, world, say)


def take_best(model: nn.Module, progress: Progress, store: Store, world: World, say: Say) -> int:
    """Put the weights of the lowest validation error into `model`, which holds the last ones; returns their step.

    A checkpoint that is damaged by now gives way to the next best.
    """
    if progress.best_step in (-1, progress.step):
        return progress.step

    def error_of(step: int) -> float | None:
        try:
            return store.manifest(step).get("val_error")
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            say(f"checkpoint step-{step:08d} is damaged: its manifest cannot be read ({error}); passing it over")
            return None

    def best_first() -> list[int]:
        errors = {step: error_of(step) for step in store.steps() if step != progress.step}
        last = next((one["val_error"] for one in reversed(progress.history) if "val_error" in one), None)
        better = {step: error for step, error in errors.items() if error is not None and (last is None or error < last)}
        return sorted(better, key=lambda step: better[step])

    state = _agreed(store, best_first, world, say)
    if state is None:
        say(f"no better checkpoint than the last can be read; the weights of step {progress.step} are exported")
        return progress.step
    model.load_state_dict(state["average"] or state["model"])
    return state["progress"]["step"]


def _agreed(store: Store, candidates: Callable[[], Sequence[int]], world: World, say: Say) -> dict[str, Any] | None:
    """The first of `candidates` (steps) that the first rank can verify: it names step and hash, all load just that."""
    state, chosen, fault = None, None, ""
    if world.is_first:
        try:
            state = store.first_intact(candidates(), say)
            step = state["progress"]["step"] if state else 0
            chosen = (step, store.manifest(step)["sha256"]) if state else None
        except OSError as error:
            fault = str(error)
    chosen, fault = world.gather((chosen, fault))[0]
    if chosen and not world.is_first:
        try:
            state = store.load(*chosen)
        except (ValueError, OSError) as error:
            fault = str(error)
    # Nobody goes on before all can: one alone would wait for the others, or train from elsewhere.
    faults = [f"rank {rank}: {fault}" for rank, fault in enumerate(world.gather(fault)) if fault]
    if faults:
        raise RuntimeError(f"{store.url}: not all workers can load the checkpoint to go on from: {'; '.join(faults)}")
    return state
