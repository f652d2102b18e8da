"""Whose turn it is: groups of one key, the longest wait first, nobody starved, faults to whom they belong."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from detection.serving.queue import Groups, Room


class Slow:
    """Computes once it is let to, and notes its groups."""

    def __init__(self) -> None:
        self.go, self.seen = threading.Event(), []

    def __call__(self, key: str, asked: Sequence[int]) -> list[int]:
        self.go.wait(10)
        self.seen.append((key, list(asked)))
        if -1 in asked:
            raise ValueError("minus one")
        return [10 * one for one in asked]


def test_those_of_one_key_go_together_and_the_longest_wait_is_next() -> None:
    async def main() -> None:
        compute = Slow()
        groups = Groups(compute, 2, ThreadPoolExecutor(1))
        first = asyncio.create_task(groups.ask("a", 0))
        await asyncio.sleep(0.05)  # it computes; the others wait
        others = [asyncio.create_task(groups.ask(key, k)) for k, key in enumerate("abaab", 1)]
        await asyncio.sleep(0.05)
        compute.go.set()
        assert await asyncio.gather(first, *others) == [0, 10, 20, 30, 40, 50]
        assert compute.seen == [("a", [0]), ("a", [1, 3]), ("b", [2, 5]), ("a", [4])]

    asyncio.run(main())


def test_who_gave_up_is_left_out_and_a_fault_is_the_groups_alone() -> None:
    async def main() -> None:
        compute = Slow()
        groups = Groups(compute, 4, ThreadPoolExecutor(1))
        first = asyncio.create_task(groups.ask("a", 0))
        await asyncio.sleep(0.05)
        gone, bad, good = (asyncio.create_task(groups.ask(key, k)) for key, k in (("a", 1), ("b", -1), ("c", 3)))
        await asyncio.sleep(0.05)
        gone.cancel()
        compute.go.set()
        assert await first == 0
        with pytest.raises(ValueError, match="minus one"):
            await bad
        assert await good == 30
        assert [key for key, _ in compute.seen] == ["a", "b", "c"]
        assert await groups.ask("d", 4) == 40  # and it goes on after standing still

    asyncio.run(main())


def test_a_room_holds_so_many_and_so_many_bytes_and_nobody_goes_in_before_another() -> None:
    async def main() -> None:
        room, inside, most, order = Room(3, 100), [0], [0], []

        async def one(number: int, size: int) -> None:
            async with room.of(size):
                order.append(number)
                inside.append(inside[-1] + size)
                most.append(max(most[-1], room.inside))
                await asyncio.sleep(0.001)
                inside.append(inside[-1] - size)

        sizes = [60, 60, 1, 1, 1, 1, 500, 20, 20, 90, 10, 1]
        await asyncio.gather(*(one(number, size) for number, size in enumerate(sizes)))
        assert order == list(range(len(sizes)))
        assert sorted({size for size in inside if size > 100}) == [500]  # alone, since it fits with nobody
        assert most[-1] == 3
        assert (room.inside, room.taken, len(room.waiting)) == (0, 0, 0)

    asyncio.run(main())


def test_who_gives_up_leaves_a_room_to_the_next() -> None:
    async def main() -> None:
        room, go = Room(9, 100), asyncio.Event()

        async def one(size: int) -> int:
            async with room.of(size):
                await go.wait()
            return size

        first, large, small = (asyncio.create_task(one(size)) for size in (70, 90, 20))
        await asyncio.sleep(0)
        assert room.taken == 70  # the small one has its turn after the large one
        large.cancel()
        await asyncio.sleep(0.01)
        assert room.taken == 90
        late = asyncio.create_task(one(30))
        await asyncio.sleep(0)
        first.cancel()  # one that was inside
        await asyncio.sleep(0)
        late.cancel()  # let in, and gone before it has noticed
        await asyncio.sleep(0.01)
        assert room.taken == 20
        go.set()
        assert await small == 20
        assert (room.inside, room.taken) == (0, 0)

    asyncio.run(main())
