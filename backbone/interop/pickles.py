"""Pickles, read without running anything that lies in them.

A pickle is a program that may call whatever it can name. Here a name finds one of a few stand-ins that make dicts and
numeric arrays; whatever else it names becomes an `Inert`, which keeps what it was given and does nothing. So a
checkpoint that carries its options, its logger's history or a whole model is read for its tensors.
"""

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np

from backbone.errors import UserError

MOST_NAMES = 10_000  # a checkpoint has dozens; each becomes a class here
MOST_USES = 8  # times a file's length that calls in it may be given; arrays take 2 or 3, a bomb any number


class Filled:
    """What a pickle may give a state after it was made; nothing else takes any."""

    def fill(self, state: Any) -> None:
        """Take what the object of that class would have had in it; here nothing."""


class Inert(Filled):
    """What a pickle asked for and did not get: an object of the class, or the outcome of the function, `what`."""

    what = ""
    items: dict[Any, Any]
    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> "Inert":
        made = object.__new__(cls)
        made.items = {}
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any) -> "Inert":
        return type(self)()

    def fill(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, *_: Any) -> None:
        """Nothing, as for the other ways in which a pickle fills what it made."""

    extend = add = update = append


class Array(Filled):
    """Stands for an ndarray, whose own state could be anything; without an `array` where it is not of numbers."""

    def __init__(self, array: np.ndarray | None = None) -> None:
        self.array = array

    def fill(self, state: Any) -> None:
        self.array = None
        try:
            _, shape, dtype, fortran, data = state
            self.array = np.frombuffer(_bytes(data), numeric(dtype)).reshape(shape, order="F" if fortran else "C")
        except (TypeError, ValueError, AttributeError):
            pass  # of objects, texts or dates


def unpickle(name: str, file: io.BytesIO, globals_: Mapping[tuple[str, str], Any], persistent: Any = None) -> Any:
    """One pickle of `file`, which then stands behind it.

    `globals_` are stand-ins beyond those for dicts and arrays: functions, or values. `persistent` is given what the
    pickle says of things outside of itself.

    Raises:
        UserError: it is damaged, or does what no checkpoint does.
    """
    try:
        return _Reader(file, name, globals_, persistent).load()
    except UserError:
        raise
    except Exception as error:  # a pickle can make its machine fail in every way there is
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{name}: damaged, or no pickle of weights: {text}") from error


def pickled(tree: Mapping[str, Any]) -> bytes:
    """A pickle of dicts, strings and arrays that numpy of any version opens, 1.x too, which detectron2 often has."""
    buffer = io.BytesIO()
    _AnyNumpy(buffer, protocol=4).dump(tree)
    return buffer.getvalue()


class _AnyNumpy(pickle.Pickler):
    """Writes arrays as `numpy.ndarray(shape, dtype, bytearray)`; numpy 2's own way names modules that 1.x lacks."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            obj = np.asarray(obj, order="C")  # ascontiguousarray would give a number an axis
            return np.ndarray, (obj.shape, obj.dtype.str, bytearray(obj.tobytes()))
        return NotImplemented


class _Tuple(tuple):
    """A tuple whose hash ends with an error where it is nested without end; Python's own then ends the process."""

    __slots__ = ()

    def __hash__(self) -> int:
        return tuple.__hash__(self)


# The one in Python: the one in C grows its memo to any index that a file names, which takes a machine down.
class _Reader(pickle._Unpickler):
    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # these are its own, which type checkers do not know
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    load_reduce: Callable[[], None]

    def __init__(self, file: io.BytesIO, name: str, globals_: Mapping[tuple[str, str], Any], persistent: Any) -> None:
        super().__init__(file, encoding="latin1")  # as Python 2 wrote the older ones
        self.name, self.globals, self.persistent = name, globals_, persistent
        self.inert: dict[tuple[str, str], type[Inert]] = {}
        self.uses = MOST_USES * file.getbuffer().nbytes + (1 << 20)

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may call: a stand-in, or the class of what is not made. Nothing is looked up or imported."""
        known = (module, name)
        found = self.globals.get(known, MAKERS.get(known))
        if found is not None:
            return Maker(found, f"{module}.{name}", self.use) if callable(found) else found
        if known not in self.inert:
            if len(self.inert) == MOST_NAMES:
                raise ValueError(f"it names more than {MOST_NAMES} classes and functions")
            self.inert[known] = _inert(f"{module}.{name}")
        return self.inert[known]

    def persistent_load(self, pid: Any) -> Any:
        """What lies outside; plain pickles have nothing there."""
        if self.persistent is None:
            raise UserError(
                f"{self.name}: its tensors lie outside of it, as do those of an unpacked torch file's `data.pkl`. Pack "
                "the folder that holds it again, and give that: zip -0 -r ../weights.pth . (inside the folder)"
            )
        return self.persistent(pid)

    def use(self, values: Any) -> None:
        """ValueError where calls are given more than MOST_USES times the file, so the same bytes again and again."""
        values = values if isinstance(values, tuple) else (values,)
        self.uses -= sum(len(v) if isinstance(v, bytes | bytearray | str | tuple | list | dict) else 1 for v in values)
        if self.uses < 0:
            raise ValueError("it unpacks the same bytes again and again")

    def reduce(self) -> None:
        """As it is; what makes nothing is given no more than what makes something."""
        if not isinstance(self.stack[-2], Maker):
            self.use(self.stack[-1])
        self.load_reduce()

    def build(self) -> None:
        """Give a state to the stand-ins that take one, instead of to any object by its attributes."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], Filled):
            raise ValueError("it alters what it may only call")
        self.use(state)
        self.stack[-1].fill(state)

    def bytearray8(self) -> None:
        """The bytes that are there, instead of memory of the length that the file says."""
        self.append(bytearray(self.read(int.from_bytes(self.read(8), "little"))))

    dispatch[pickle.REDUCE[0]] = reduce
    dispatch[pickle.BUILD[0]] = build
    dispatch[pickle.BYTEARRAY8[0]] = bytearray8


def _as_tuple(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def loads(reader: Any) -> None:
        load(reader)
        reader.stack[-1] = _Tuple(reader.stack[-1])

    return loads


for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _Reader.dispatch[_code[0]] = _as_tuple(_Reader.dispatch[_code[0]])


class Maker:
    """Something that a pickle may call and not alter, as it could a function or a class by setting its attributes.

    What it cannot make of its arguments is an `Inert`.
    """

    __slots__ = ("_make", "_use", "what")

    def __init__(self, make: Callable[..., Any], what: str, use: Callable[[Any], None]) -> None:
        self._make, self.what, self._use = make, what, use

    def __call__(self, *args: Any) -> Any:
        self._use(args)
        try:
            return self._make(*args)
        except (TypeError, ValueError, AttributeError, IndexError, LookupError, OverflowError):
            return _inert(self.what)()


class _Dict(dict, Filled):
    """An OrderedDict or a defaultdict, whose own attributes are left out."""


class _Dtype(Filled):
    """Stand-in for numpy.dtype, whose own state may describe anything."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = str(code), "<"

    def fill(self, state: Any) -> None:
        self.order = state[1]


def _inert(what: str) -> type[Inert]:
    return type("Inert", (Inert,), {"what": escaped(what)})


def _array(shape: Any, dtype: Any = "f8", buffer: Any = None, *rest: Any) -> Array:
    if rest or not isinstance(buffer, bytes | bytearray):
        raise ValueError("an array without its data")
    return Array(np.frombuffer(buffer, numeric(dtype)).reshape(shape))


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: str) -> Array:
    return Array(np.frombuffer(buffer, numeric(dtype)).reshape(shape, order="F" if order == "F" else "C"))


def _scalar(dtype: Any, data: Any) -> Any:
    return np.frombuffer(_bytes(data), numeric(dtype))[0].item()


def _bytes(data: Any) -> bytes:
    """The content of an array; a Python 2 string was read as latin1."""
    if isinstance(data, str):
        return data.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise ValueError("an array of objects")
    return bytes(data)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes as protocol 2 writes them."""
    return text.encode("latin1" if encoding == "latin1" else "utf-8")


def _bytearray(content: Any = b"", encoding: str = "latin1") -> bytearray:
    """A bytearray of given bytes, not of a given length, which could be any."""
    if isinstance(content, int):
        raise ValueError("a buffer without its data")
    return bytearray(content.encode(encoding) if isinstance(content, str) else content)


def escaped(text: str) -> str:
    """A name out of a file as it can be shown and typed: without line ends, codes of a terminal, half characters."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def numeric(dtype: Any) -> np.dtype:
    """A dtype of numbers or truth values; ValueError for any other."""
    code = dtype.code if isinstance(dtype, _Dtype) else str(dtype)
    kind = np.dtype(dtype.order + code if isinstance(dtype, _Dtype) and dtype.order in "<>" else code)
    if kind.kind not in "fiub":
        raise ValueError(f"an array of {kind}")
    return kind


def _rebuilt(kind: Any, *_: Any) -> Any:
    """An object as protocols 0 and 1 write it, whose state follows."""
    if not (isinstance(kind, type) and issubclass(kind, Inert)):
        raise TypeError("not an object")
    return kind()


MAKERS: dict[tuple[str, str], Callable[..., Any]] = {
    ("collections", "OrderedDict"): _Dict,
    ("collections", "defaultdict"): lambda *_: _Dict(),
    **{(m, "_reconstructor"): _rebuilt for m in ("copyreg", "copy_reg")},
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): _array,
    ("numpy", "dtype"): _Dtype,
    **{(m, kind): _bytearray for m in ("builtins", "__builtin__") for kind in ("bytearray", "bytes")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *_: Array() for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}
