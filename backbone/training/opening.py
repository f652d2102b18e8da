"""Data opened by all ranks together: listed once a node, and found to be the same on every one."""

import pickle
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from backbone.errors import UserError
from backbone.parallel import in_thread
from backbone.training.world import Report, World

FIELDS = ("data.train", "data.val")
LONGEST_PAUSE_S = 2.0  # between looks at whether all nodes are done
SAY_AFTER_S = 30.0  # and again as long after as it has taken until then


class Fingerprinted(Protocol):
    """Any source: pickles to a path, for processes of the same machine."""

    @property
    def fingerprint(self) -> str:
        """The same wherever the data set lies."""
        ...


S = TypeVar("S", bound=Fingerprinted)


@dataclass(frozen=True)
class _Failure:
    text: str
    is_users: bool

    def raised(self) -> Exception:
        return (UserError if self.is_users else RuntimeError)(self.text)


def open_together(
    opener: Callable[[], tuple[S, ...]], world: World, report: Report, expected: Sequence[str] = ()
) -> tuple[S, ...]:
    """The sources that `opener` opens, on every rank. A collective.

    The first rank of each node opens them, and the others of that node map the index which it made: a file server is
    asked for the names of a million images once a node, not once a GPU. A rank that cannot see what its node's first
    one made (another container of the same name) opens them itself.

    Args:
        opener: gives the training and the validation images, or the latter alone.
        world: all ranks.
        report: told, by the first rank, which nodes are still at it.
        expected: fingerprints that the job saw before its workers started; none are compared where none are given.

    Raises:
        UserError: on every rank, what `opener` raised on one; or a node sees other files than the others do.
    """
    here = platform.node()
    if world.size == 1:
        sources = opener()
    else:
        nodes = world.gather(here)
        first = nodes.index(here)
        opening = in_thread(opener) if first == world.rank else None
        _wait_for_all(opening, nodes, world, report)
        told = world.gather(_packed(opening) if opening else None)
        for node, one in zip(nodes, told, strict=True):
            if isinstance(one, _Failure):
                if opening and opening.exception():
                    opening.result()  # its own error, with its own traceback
                raise _Failure(f"{one.text} (on node {node})", one.is_users).raised()
        sources = opening.result() if opening else _unpacked(told[first], opener)
    _check_same(sources, here, world, expected)
    return sources


def _wait_for_all(opening: Future[Any] | None, nodes: list[str], world: World, report: Report) -> None:
    """Come back once every node's first rank is done. Each look is a collective of its own, for none may take long."""
    began, pause, say_at = time.monotonic(), 0.05, SAY_AFTER_S
    while True:
        is_done = opening is None or bool(wait([opening], timeout=pause).done)
        late = sorted({node for node, done in zip(nodes, world.gather(is_done), strict=True) if not done})
        if not late:
            return
        pause, taken = min(2 * pause, LONGEST_PAUSE_S), time.monotonic() - began
        if world.is_first and taken >= say_at:
            more = f" and {len(late) - 3} more" if len(late) > 3 else ""
            text = f"the data are still being listed after {taken:.0f} s, on {', '.join(late[:3])}{more}"
            report({"kind": "say", "text": text})
            say_at = 2 * taken


def _packed(opening: Future[tuple[S, ...]]) -> bytes | _Failure:
    error = opening.exception()
    if error is None:
        return pickle.dumps(opening.result())
    if not isinstance(error, Exception):  # somebody stopped it
        raise error
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return _Failure(text, isinstance(error, UserError))


def _unpacked(packed: bytes, opener: Callable[[], tuple[S, ...]]) -> tuple[S, ...]:
    try:
        return pickle.loads(packed)
    except (OSError, ValueError, EOFError, KeyError, UserError):
        return opener()


def _check_same(sources: Sequence[Fingerprinted], here: str, world: World, expected: Sequence[str]) -> None:
    mine = [source.fingerprint for source in sources]
    seen = world.gather((here, mine))
    who, right = ("the job's start", list(expected)) if expected else (f"node {seen[0][0]}", seen[0][1])
    for node, found in seen:
        if found != right:
            fields = FIELDS[-len(found) :]
            wrong = next(field for field, a, b in zip(fields, found, right, strict=True) if a != b)
            raise UserError(
                f"{wrong}: node {node} sees other files there than {who} (fingerprints differ); copy them anew, or "
                "name a shared folder or a URL that all nodes see"
            )
