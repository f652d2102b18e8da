"""Data opened by all ranks together: listed once a node, and of the same fingerprint on every one.

Of annotated images that is the fingerprint of their annotations: an image that one node lacks is found by who opens
them there.
"""

import pickle
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from backbone.errors import Lost, UserError
from backbone.parallel import in_thread
from backbone.training.world import Report, World

FIELDS = ("data.train", "data.val")
LONGEST_PAUSE_S = 2.0  # between looks at whether all nodes are done
SAY_AFTER_S = 30.0  # and again as long after as it has taken until then
LONGEST_S = 48 * 3600.0  # a copy of Parquet's images may take a day; beyond that a disk hangs


class Fingerprinted(Protocol):
    """Any source: pickles to a path, for processes of the same machine."""

    @property
    def fingerprint(self) -> str:
        """The same wherever the data set lies."""
        ...


S = TypeVar("S", bound=Fingerprinted)


@dataclass(frozen=True)
class _Failure:
    kind: type[Exception]
    text: str


def open_together(
    opener: Callable[[], tuple[S, ...]], world: World, report: Report, expected: Sequence[str] = ()
) -> tuple[S, ...]:
    """The sources that `opener` opens, on every rank. A collective.

    The first rank of each node opens them, and the others of that node map the index which it made: a file server is
    asked for the names of a million images once a node, not once a GPU. A rank that cannot see what its node's first
    one made opens them itself.

    Args:
        opener: gives the training and the validation images, or the latter alone.
        world: all ranks.
        report: told, by the first rank, which nodes are still at it.
        expected: fingerprints that the job saw before its workers started; none are compared where none are given.

    Raises:
        UserError: on every rank, what `opener` raised on one; or a node sees other files than the others do.
        Lost: on every rank, a node has not opened them for `LONGEST_S`; or as `opener`.
    """
    if world.size == 1:
        sources = opener()
        _check_same(sources, world, expected)
        return sources
    here = _place()
    places = world.gather(here)
    first, found = places.index(here), None
    opens = first == world.rank
    while True:
        opening = in_thread(opener) if opens and found is None else None
        _wait_for_all(opening, [name for name, _ in places], world, report)
        told = world.gather(_packed(opening) if opening else None)
        for (name, _), one in zip(places, told, strict=True):
            if isinstance(one, _Failure):
                if opening and opening.done():
                    opening.result()  # its own error, with its own traceback
                raise one.kind(f"{one.text} (on node {name})")
        if opening:
            found = opening.result()
        elif found is None:
            found = _unpacked(told[first])
        if all(world.gather(found is not None)):
            break
        opens = True  # who did not see what the first one of its node made
    assert found is not None
    _check_same(found, world, expected)
    return found


def _place() -> tuple[str, str]:
    """The machine's name, for people, and what tells it from others of that name, and containers from each other."""
    told = []
    with suppress(OSError):
        told.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        told.append(str(Path("/proc/self/ns/mnt").stat().st_ino))
    return platform.node(), " ".join(told)


def _wait_for_all(opening: Future[Any] | None, nodes: list[str], world: World, report: Report) -> None:
    """Come back once all that open are done, or one has failed. Each look is a collective, of which none may take long.

    Raises:
        Lost: one is not done after `LONGEST_S`.
    """
    began, pause, say_at = time.monotonic(), 0.05, SAY_AFTER_S
    while True:
        is_done = opening is None or bool(wait([opening], timeout=pause).done)
        has_failed = is_done and opening is not None and opening.exception() is not None
        states = world.gather((is_done, has_failed))
        late = sorted({node for node, (done, _) in zip(nodes, states, strict=True) if not done})
        if not late or any(failed for _, failed in states):
            return
        # The first rank's clock counts, or some would leave and others wait for them.
        pause, taken = min(2 * pause, LONGEST_PAUSE_S), world.gather(time.monotonic() - began)[0]
        named = ", ".join(late[:3]) + (f" and {len(late) - 3} more" if len(late) > 3 else "")
        if taken >= LONGEST_S:
            raise Lost(f"the data were not listed within {taken / 3600:.1f} h on {named}; look at the disks there")
        if world.is_first and taken >= say_at:
            report({"kind": "say", "text": f"the data are still being listed after {taken:.0f} s, on {named}"})
            say_at = 2 * taken


def _packed(opening: Future[tuple[S, ...]]) -> bytes | _Failure | None:
    if not opening.done():  # another one has failed
        return None
    error = opening.exception()
    if error is None:
        return pickle.dumps(opening.result())
    if not isinstance(error, Exception):  # somebody stopped it
        raise error
    if isinstance(error, UserError):
        return _Failure(type(error), str(error))
    return _Failure(RuntimeError, f"{type(error).__name__}: {error}")


def _unpacked(packed: bytes) -> Any:
    """None where the index is not there."""
    try:
        return pickle.loads(packed)
    except (OSError, ValueError, EOFError, KeyError):  # a UserError is a ValueError
        return None


def _check_same(sources: Sequence[Fingerprinted], world: World, expected: Sequence[str]) -> None:
    seen = world.gather((platform.node(), [source.fingerprint for source in sources]))
    who, right = ("the job's start", list(expected)) if expected else (f"node {seen[0][0]}", seen[0][1])
    for node, found in seen:
        if found != right:
            fields = FIELDS[-len(found) :]
            wrong = next(field for field, a, b in zip(fields, found, right, strict=True) if a != b)
            raise UserError(
                f"{wrong}: node {node} sees other files there than {who} (fingerprints differ); copy them anew, or "
                "name a shared folder or a URL that all nodes see"
            )
