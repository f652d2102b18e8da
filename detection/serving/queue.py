"""Whose turn it is: questions of one kind that wait go through a net together, one group after the other."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Hashable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Q = TypeVar("Q")
A = TypeVar("A")


class Room:
    """Holds so many at a time, and so many bytes; who comes first goes in first.

    One that is larger than the whole room goes in alone.
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.inside = self.taken = 0
        self.waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def of(self, size: int) -> AsyncGenerator[None]:
        """Wait for room for that many bytes, and take it meanwhile."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((size, turn))
        self._let_in()
        try:
            await turn
            yield
        finally:
            if turn.cancelled():  # it gave up before it was let in, and may have kept others from it
                self._let_in()
            else:
                self.inside -= 1
                self.taken -= size
                self._let_in()

    def _let_in(self) -> None:
        while self.waiting:
            size, turn = self.waiting[0]
            if not turn.done():
                if self.inside and (self.inside >= self.count or self.taken + size > self.size):
                    return
                self.inside += 1
                self.taken += size
                turn.set_result(None)
            self.waiting.popleft()


class Groups(Generic[K, Q, A]):
    """Groups of at most `most` questions of one key, one group at a time in `executor`.

    Nobody waits for others to come: a group is who waits when the one before it is done. The key of who has waited
    longest is next. Who has given up in the meantime is left out.
    """

    def __init__(self, compute: Callable[[K, Sequence[Q]], Sequence[A]], most: int, executor: Executor) -> None:
        self.compute, self.most, self.executor = compute, most, executor
        self.waiting: deque[tuple[K, Q, asyncio.Future[A]]] = deque()
        self.worker: asyncio.Task[None] | None = None

    async def ask(self, key: K, question: Q) -> A:
        """The answer to a question, when its group has had its turn; raises what `compute` raised."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self.waiting.append((key, question, future))
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while group := self._next():
            (key, _, _), *_ = group
            asked, futures = [question for _, question, _ in group], [future for _, _, future in group]
            loop = asyncio.get_running_loop()
            try:
                found = await loop.run_in_executor(self.executor, self.compute, key, asked)
            except Exception as error:  # it is theirs who asked, and the next group's turn comes all the same
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, answer in zip(futures, found, strict=True):
                if not future.done():
                    future.set_result(answer)

    def _next(self) -> list[tuple[K, Q, asyncio.Future[A]]]:
        """Those whose turn it is, taken out; none where nobody waits."""
        alive = [one for one in self.waiting if not one[2].done()]
        group = [one for one in alive if one[0] == alive[0][0]][: self.most] if alive else []
        taken = {id(one) for one in group}
        self.waiting = deque(one for one in alive if id(one) not in taken)
        return group
