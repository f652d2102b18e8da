"""Whose turn it is: questions of one kind that wait go through a net together, one group after the other."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
Q = TypeVar("Q")
A = TypeVar("A")


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
