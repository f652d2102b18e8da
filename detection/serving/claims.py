"""Whose an application is, where several jobs put theirs in the same place one after the other.

Each job claims the place by the next number before it puts anything there, and says of its claim what becomes of it.
Numbers and states lie on the cluster, written by one process: who writes before reading is seen by all that write
later, or sees them. So a job that ends takes down what it put there, and not what another is putting in its place; and
what a job leaves half done, when its predecessor has left already, that job takes down.

A claim says whose it is. A job that was killed says nothing: what it was about to do counts as `failed` once the
cluster knows that it is gone, and what it served stays. What it left there is taken down by who ends or fails next.
"""

from collections.abc import Callable, Mapping
from typing import Literal, Protocol, get_args
from urllib.parse import quote

State = Literal["deploys", "serves", "stays", "left", "failed", "ends", "ended"]
"""A job puts its application there; serves it until it ends; has returned and left it to run (`--detach`); has ended;
was refused. The last two are no job's: whoever could write `ends` takes the application down, and then says `ended`."""

ALIVE: tuple[State, ...] = ("deploys", "serves", "stays")


class Store(Protocol):
    """Words by name, the same for everybody on the cluster, and its jobs."""

    job: str
    """The caller's."""

    def put(self, key: str, value: str) -> None:
        """Write, whether there was one or not."""

    def add(self, key: str, value: str) -> bool:
        """Write where there was none; returns whether it did."""

    def read(self, start: str) -> dict[str, str]:
        """All whose names begin so."""

    def gone(self) -> set[str]:
        """Jobs that have ended, or were killed: they write nothing more."""


def told(store: Store, start: str) -> dict[str, State]:
    """What became of the claims whose names begin so. What a job that is gone was about to do has `failed`."""
    gone = store.gone()  # first: what they said is then their last word
    found: dict[str, State] = {}
    for key, value in store.read(start).items():
        word, _, job = value.partition(" ")
        for state in get_args(State):
            if state == word:
                found[key] = "failed" if job in gone and state in ("deploys", "ends") else state
    return found


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
    end = max(states, default=0)
    # Not where the last claim failed: what is there may be what that job, which was killed, left half done.
    if there and states.get(end, "ended") == "ended":
        return "stays"
    return "ended" if not there and _last(states, end + 1) in ("serves", "stays") else ""


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
        found = {int(key.removeprefix(self.start)): state for key, state in told(self.store, self.start).items()}
        return dict(sorted(found.items()))

    def claim(self, state: State) -> int:
        """The number of a new claim, the last one for now."""
        while True:
            number = max(self.states(), default=0) + 1
            if self._add(number, state):
                return number

    def catch_up(self, there: Callable[[], bool]) -> None:
        """Claim for those who claim nothing, see `untold`; `there` looks whether the application is."""
        while True:
            states = self.states()
            state = untold(states, there())
            if not state or (self.states() == states and self._add(max(states, default=0) + 1, state)):
                return

    def say(self, mine: int, state: State) -> None:
        """What became of a claim."""
        self.store.put(f"{self.start}{mine}", f"{state} {self.store.job}")

    def give_up(self, mine: int, state: Literal["left", "failed"]) -> int:
        """Say so of a claim. Returns 0, or, where it falls to the caller to take the application down, and to nobody
        else, the number of the claim that is to be `ended` then."""
        self.say(mine, state)
        while not is_others(states := self.states(), mine):
            if self._add(max(states) + 1, "ends"):
                return max(states) + 1
        return 0

    def _add(self, number: int, state: State) -> bool:
        """A claim, unless somebody else has that number."""
        return self.store.add(f"{self.start}{number}", f"{state} {self.store.job}")
