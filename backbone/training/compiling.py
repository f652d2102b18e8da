"""compute.compile: a compiler is looked for first, and the steps that compile the net are known beforehand."""

import os
import shutil
import socket
from dataclasses import dataclass, field

from backbone.data.stream import share
from backbone.errors import UserError
from backbone.training.recipe import Recipe, TrainingRecipe
from backbone.training.world import World


@dataclass
class Compiling:
    """Which steps compile the net: the first, and where images grow the first of each size, on whatever rank. It is
    asked before each step; all ranks find the same, as those that have compiled wait for the others."""

    recipe: TrainingRecipe
    world: World
    num_samples: int
    """Of one epoch."""
    _met: set[tuple[int, int]] = field(default_factory=set)  # (rank, side)
    _everywhere: set[int] = field(default_factory=set)  # sides that every rank has met

    def due(self, step: int) -> str:
        """What to say before this step; empty where nothing is compiled in it."""
        mode, optim = self.recipe.compute.compile, self.recipe.optim
        if mode == "none":
            return ""
        begins = range(step * optim.batch, (step + 1) * optim.batch, optim.micro_batch)
        least, most = self._side(begins[0]), self._side(begins[-1])
        if least == most in self._everywhere:
            return ""
        ranks = ((rank, share(len(begins), rank, self.world.size)) for rank in range(self.world.size))
        met = {(rank, self._side(begins[unit])) for rank, units in ranks for unit in units}
        first, new = not self._met, sorted({side for _, side in met - self._met})
        self._met |= met
        if least == most:
            self._everywhere.add(least)
        if not new:
            return ""
        what = "in the first step" if first else f"for images of {' and '.join(map(str, new))} px in step {step}"
        return f"compiling the net {what} (compute.compile {mode}), which may take minutes"

    def _side(self, position: int) -> int:
        """Of the images of the micro-batch that begins there, pixels; 0 where that does not change."""
        return self.recipe.data.trained_at(position // self.num_samples) if isinstance(self.recipe, Recipe) else 0


def check_compiler(world: World) -> None:
    """torch.compile writes code that another program translates, also for GPUs; slim images have none.

    Raises:
        UserError: a worker's machine has none.
    """
    named = "CXX" if world.device.type == "cpu" else "CC"
    found = os.environ.get(named) or any(map(shutil.which, ("g++", "clang++") if named == "CXX" else ("gcc", "clang")))
    without = sorted({host for ok, host in world.gather((bool(found), socket.gethostname())) if not ok})
    if without:
        raise UserError(
            f"compute.compile: no C++ compiler on {', '.join(without)}; install one there (apt-get install g++), name "
            f"it by the variable {named}, or train without: --compute.compile none"
        )
