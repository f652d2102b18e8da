"""Notice to leave: a node that will be taken away, a job that was stopped. All ranks look at the same steps, save the
state and go.

How a rank learns of it is the world's business (`World.notice`); the loop sees a callable. Looking is a collective: a
rank that looked alone would wait for the others, and one that left alone would leave them in the next step.
"""

import time

import torch

from backbone.training.world import World

LEAVE = 0.0
"""What a rank with a notice proposes for the number of steps to the next look; the least of all is taken."""

GROWTH = 4
"""How many times as many steps may lie before a look as before the last one: the first steps of a process are slow."""


class Leaving(Exception):
    """The run was asked to go, and its state is saved. The message says why and at which step."""


class Lookout:
    """Looks for a notice about every so many seconds, which it counts in steps."""

    def __init__(self, world: World, seconds: float, step: int) -> None:
        """`step` are done. With 0 `seconds` nobody ever looks."""
        self.world, self.seconds = world, seconds
        self._last, self._next = step, step + 1
        self._began = time.perf_counter()

    def look(self, step: int) -> str:
        """Why to leave, after `step`; empty: go on, or it is not yet time to look. All ranks call it after each step.

        The ranks agree on the step of the next look in the same message: clocks and speeds of machines differ.
        """
        if not self.seconds or step < self._next:
            return ""
        told = self.world.notice()
        now, steps = time.perf_counter(), step - self._last
        pace = (now - self._began) / steps
        ours = LEAVE if told else max(1.0, min(self.seconds // pace, GROWTH * steps))
        wait = self.world.min(torch.tensor(ours, dtype=torch.float64, device=self.world.device)).item()
        if wait == LEAVE:
            return told or "another worker was told to leave"
        self._last, self._next, self._began = step, step + int(wait), now
        return ""
