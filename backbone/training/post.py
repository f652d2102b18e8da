"""Between a run's workers and its driver: records one way, the word to leave the other. One process of Ray's."""

import asyncio
import itertools
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from backbone.cluster import bundle, missing, words
from backbone.compute import Scaling
from backbone.errors import Lost
from backbone.training.display import Display

PATIENCE = 300
"""Seconds until a worker gives up telling. Ray finds a node that is cut off within a minute, and ends its workers."""

POLL = 0.5


class _Box:
    """What lies in the process."""

    def __init__(self) -> None:
        self.records: asyncio.Queue[Any] = asyncio.Queue()
        self.reason, self.failures = "", 0

    async def put(self, record: dict[str, Any] | None) -> None:
        self.failures += bool(record and record.get("failure"))
        self.records.put_nowait(record)

    async def get(self, timeout: float) -> list[Any]:
        try:
            return [await asyncio.wait_for(self.records.get(), timeout)]
        except TimeoutError:
            return []

    async def ask(self, reason: str) -> None:
        self.reason = reason

    async def asked(self) -> str:
        return self.reason

    async def failed(self) -> int:
        return self.failures


@dataclass(frozen=True)
class Post:
    """A hold on the process, which may be sent to others."""

    box: Any

    @staticmethod
    def begin(**options: Any) -> "Post":
        """Start the process, with Ray's `options` of an actor.

        A node short of memory may take it, as any process: it is started again, and what lay in it is not shown, nor
        are failures before that counted.
        """
        import ray

        return Post(ray.remote(_Box).options(max_restarts=-1, **options).remote())

    def put(self, record: dict[str, Any] | None) -> None:
        """Tell the driver; None is the last word. A record with a true `failure` counts as one (`failures`).

        Raises:
            Lost: the driver's node is not reached.
        """
        import ray

        until = time.monotonic() + PATIENCE
        while True:
            try:
                ray.get(self.box.put.remote(record), timeout=PATIENCE)
                return
            except _passing() as error:
                if time.monotonic() > until:
                    raise Lost(f"the node of the run's driver does not answer for {PATIENCE} s") from error
                time.sleep(POLL)

    def get(self, timeout: float) -> list[dict[str, Any] | None]:
        """The next record; none where no one comes in `timeout` seconds. RayError: the process is gone, or away."""
        import ray

        return ray.get(self.box.get.remote(timeout))

    def failures(self) -> int:
        """How many were told of."""
        import ray

        until = time.monotonic() + PATIENCE
        while True:
            try:
                return ray.get(self.box.failed.remote(), timeout=PATIENCE)
            except _passing() as error:
                if time.monotonic() > until:
                    raise Lost(f"the process that counts failures does not answer for {PATIENCE} s") from error
                time.sleep(POLL)

    def ask(self, reason: str) -> None:
        """Ask the workers to leave; with an empty reason no more. To be repeated until they have: the process that is
        told may be killed before they ask it."""
        self.box.ask.remote(reason)

    @contextmanager
    def listened(self) -> Generator[list[str]]:
        """A list whose last item is what the driver asks for, as of half a second ago.

        A thread asks for it: a network that is slow or cut must not hold up the loop.
        """
        import ray
        from ray.exceptions import RayError

        latest, over = [""], threading.Event()

        def listen() -> None:
            while not over.wait(POLL):
                try:
                    latest[:] = [ray.get(self.box.asked.remote(), timeout=PATIENCE)]
                except _passing():
                    continue
                except RayError:  # the run has ended
                    return

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield latest
        finally:
            over.set()

    def end(self) -> None:
        """End the process."""
        import ray

        ray.kill(self.box)


def _passing() -> tuple[type[Exception], ...]:
    """What may pass: a network that is slow or cut, the process being started again."""
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, OutOfMemoryError

    return GetTimeoutError, ActorUnavailableError, OutOfMemoryError


def listen(post: Post, display: Display, scaling: Scaling, in_vain: list[str | BrokenPipeError]) -> None:
    """Show what comes by the post until None does. A dead one means that the run has ended.

    `in_vain` gets a word where workers have been waited for too long, and the error where nobody reads what is shown.
    """
    try:
        _listen(post, display, scaling, in_vain)
    except BrokenPipeError as error:  # for the main thread, which ends the job
        in_vain.append(error)


def _listen(post: Post, display: Display, scaling: Scaling, in_vain: list[str | BrokenPipeError]) -> None:
    from ray.exceptions import RayError

    def patience() -> Iterator[int]:
        """Seconds from one line to the next while nothing comes."""
        return itertools.chain((10, 20), itertools.repeat(30))

    heard, pauses, since = False, patience(), time.monotonic()
    while True:
        try:
            records = post.get(60 if heard else next(pauses))
        except _passing():
            time.sleep(POLL)
            continue
        except RayError:
            return
        if not records and not heard:
            with suppress(RayError):  # one look at the cluster may fail
                asked_for = f"{scaling.num_workers} worker(s) of {words(bundle(scaling))} each"
                display.say(f"waiting for {asked_for}: {missing(scaling)}")
                if time.monotonic() - since > 3600 * scaling.wait_at_most:
                    hours = f"{scaling.wait_at_most:g} h (scaling.wait_at_most)"
                    in_vain.append(f"waited {hours} in vain for {asked_for}: {missing(scaling)}; submit again to go on")
        for record in records:
            if record is None:
                return
            heard = not record.get("restarts")
            pauses, since = patience(), time.monotonic()
            display.show(record)
