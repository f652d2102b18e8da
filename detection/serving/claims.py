"""Whose an application is, where several jobs put theirs in the same place one after the other.

Each job claims the place by the next number before it puts anything there, and says of its claim what becomes of it.
Numbers and states lie on the cluster, written by one process: who writes before reading is seen by all that write
later, or sees them. So a job that ends takes down what it put there, and not what another is putting in its place; and
what a job leaves half done, when its predecessor has left already, that job takes down.
"""

from collections.abc import Mapping
from typing import Literal, Protocol, get_args
from urllib.parse import quote

State = Literal["deploys", "serves", "stays", "left", "failed", "ends", "ended"]
"""A job puts its application there; serves it until it ends; has returned and left it to run (`--detach`); has ended;
was refused. The last two are no job's: whoever could write `ends` takes the application down, and then says `ended`."""

ALIVE: tuple[State, ...] = ("deploys", "serves", "stays")


class Store(Protocol):
    """Words by name, the same for everybody on the cluster."""

    def put(self, key: str, value: str) -> None:
        """Write, whether there was one or not."""

    def add(self, key: str, value: str) -> bool:
        """Write where there was none; returns whether it did."""

    def read(self, start: str) -> dict[str, str]:
        """All whose names begin so."""


def is_others(states: Mapping[int, State], mine: int) -> bool:
    """Whether the application is not this job's to take down, which has said that it `left` or `failed`."""
    if any(state in (*ALIVE, "ends", "ended") for number, state in states.items() if number > mine):
        return True
    if states[mine] == "left":  # it had served, and so taken the place of all before it
        return False
    return _last(states, mine) in ALIVE


def untold(states: Mapping[int, State], there: bool) -> Literal["stays", "ended", ""]:
    """What is to be claimed for those who claim nothing, so that the last claim tells whether an application is there:
    a configuration file put one there; somebody took one down by hand."""
    last = _last(states, max(states, default=0) + 1)
    if there and last in ("", "ended"):
        return "stays"
    return "ended" if not there and last in ("serves", "stays") else ""


def must_wait(states: Mapping[int, State], mine: int) -> bool:
    """Whether another puts something there now, or takes it down: what is put there last is to be the last claim's."""
    return _last(states, mine) in ("deploys", "ends")


def _last(states: Mapping[int, State], before: int) -> State | Literal[""]:
    """The state of the last claim before a number that did not fail."""
    told = [states[number] for number in sorted(states, reverse=True) if number < before]
    return next((state for state in told if state != "failed"), "")


class Claims:
    """The claims of one application's name."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.start = store, f"{quote(name, safe='')}/"

    def states(self) -> dict[int, State]:
        """Number -> what became of that claim."""
        found = {int(key.removeprefix(self.start)): value for key, value in self.store.read(self.start).items()}
        return {number: state for number in sorted(found) for state in get_args(State) if state == found[number]}

    def claim(self, state: State) -> int:
        """The number of a new claim, the last one for now."""
        while True:
            number = max(self.states(), default=0) + 1
            if self.store.add(f"{self.start}{number}", state):
                return number

    def say(self, mine: int, state: State) -> None:
        """What became of a claim."""
        self.store.put(f"{self.start}{mine}", state)

    def give_up(self, mine: int, state: Literal["left", "failed"]) -> int:
        """Say so of a claim. Returns 0, or, where it falls to the caller to take the application down, and to nobody
        else, the number of the claim that is to be `ended` then."""
        self.say(mine, state)
        while not is_others(states := self.states(), mine):
            if self.store.add(f"{self.start}{max(states) + 1}", "ends"):
                return max(states) + 1
        return 0
