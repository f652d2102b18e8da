"""Weight files give tensors or an error, and nothing in them is ever run."""

import collections
import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors

from backbone.errors import UserError
from backbone.interop import weights

ARRAYS = {
    "a": np.arange(6, dtype="f4").reshape(2, 3).T,
    "b": np.array(7),
    "c": np.zeros((0, 3), ">f8"),
    "d": np.arange(4, dtype=">f4"),
    "e": np.array([True, False]),
}


class Bomb:
    """Says `ran` in a file when it is unpickled by a reader that trusts it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"echo ran > {self.file}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_pickled_by_any_protocol_come_back(protocol: int) -> None:
    found = weights.read("x.pkl", pickle.dumps(collections.OrderedDict(ARRAYS), protocol=protocol))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].numpy().tolist() == array.tolist()
        assert tuple(found[name].shape) == array.shape


def test_a_scalar_and_a_nested_entry() -> None:
    data = pickle.dumps({"model": {"a": np.ones(2, "f4")}, "epoch": np.float64(3)})
    assert weights.unpickle("x.pkl", data)["epoch"] == 3
    assert weights.read("x.pkl", data, "model")["a"].tolist() == [1, 1]
    with pytest.raises(UserError, match=r"holds more than tensors: model, epoch; --entry .*: model$"):
        weights.read("x.pkl", data)
    with pytest.raises(UserError, match=r"entry state_dict: there is no state_dict; it has model, epoch"):
        weights.read("x.pkl", data, "state_dict")


def test_ours_are_pickles_that_any_numpy_opens() -> None:
    data = weights.pickled({"model": ARRAYS, "__author__": "raybone"})
    loaded = pickle.loads(data)
    assert all(np.array_equal(loaded["model"][name], array) for name, array in ARRAYS.items())
    assert loaded["model"]["a"].flags.writeable
    strings = [arg for op, arg, _ in pickletools.genops(data) if op.name == "SHORT_BINUNICODE"]
    assert "numpy" in strings
    assert not [text for text in strings if str(text).startswith("numpy.")], "modules that numpy 1 or 2 lacks"
    assert weights.read("x.pkl", data, "model")["a"].shape == (3, 2)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("suffix", ["pkl", "pth", "bin"])
def test_a_pickle_bomb_is_named_and_not_run(tmp_path: Path, suffix: str, protocol: int) -> None:
    bomb = {"conv1.weight": Bomb(tmp_path / "fired")}
    buffer = io.BytesIO()
    torch.save(bomb, buffer)
    data = buffer.getvalue() if suffix == "pth" else pickle.dumps(bomb, protocol=protocol)
    if suffix == "bin" and protocol != 2:  # torch writes protocol 2, and stops at others before it reads a name
        with pytest.raises(UserError, match=r"x\.bin: refused, nothing of it was run"):
            weights.read("x.bin", data)
        return
    with pytest.raises(UserError, match=rf"x\.{suffix}: refused, nothing of it was run: it asks for posix.system"):
        weights.read(f"x.{suffix}", data)
    assert not (tmp_path / "fired").exists()


@pytest.mark.parametrize(
    "call",
    [
        (np.ndarray, ((1,), "O", bytearray(8))),  # numpy itself would take these bytes for a pointer
        (np.ndarray, ((10**12,), "f4")),  # memory without content
        (bytearray, (10**12,)),
        (np.load, ("/etc/passwd",)),
        (eval, ("1 + 1",)),
        (torch.load, ("x",)),
    ],
    ids=["pointers", "no data", "huge", "file", "eval", "torch"],
)
def test_calls_that_are_not_arrays_with_their_data_are_refused(call: tuple) -> None:
    class Evil:
        def __reduce__(self):
            return call

    with pytest.raises(UserError, match=r"x\.pkl"):
        weights.read("x.pkl", pickle.dumps({"a": Evil()}))


@pytest.mark.parametrize("what", [b"numpy\nndarray", b"numpy\ndtype", b"collections\nOrderedDict", b"_codecs\nencode"])
@pytest.mark.parametrize("state", [b"(dS'x'\nI1\ns", b"(N(dS'__defaults__'\n(I1\ntst"], ids=["dict", "slots"])
def test_what_may_be_called_cannot_be_altered(what: bytes, state: bytes) -> None:
    with pytest.raises(UserError, match=r"x\.pkl: damaged or not a pickle of arrays: it alters"):
        weights.read("x.pkl", b"c" + what + b"\n" + state + b"b.")
    assert weights.read("x.pkl", pickle.dumps(ARRAYS))["a"].shape == (3, 2)


def test_an_array_of_objects_is_refused() -> None:
    with pytest.raises(UserError, match=r"x\.pkl"):
        weights.read("x.pkl", pickle.dumps({"a": np.array([print, eval], dtype=object)}))
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="damaged or not what its name says"):
        weights.read("x.npz", buffer.getvalue())


@pytest.mark.parametrize("suffix", ["safetensors", "pth", "pkl", "npz"])
def test_a_truncated_file_is_refused(suffix: str) -> None:
    tensors = {"a": torch.ones(1000), "b": torch.zeros(1000)}
    arrays = {name: t.numpy() for name, t in tensors.items()}
    torch_buffer, numpy_buffer = io.BytesIO(), io.BytesIO()
    torch.save(tensors, torch_buffer)
    np.savez(numpy_buffer, **arrays)
    data = {
        "safetensors": save_safetensors(tensors),
        "pth": torch_buffer.getvalue(),
        "pkl": pickle.dumps(arrays),
        "npz": numpy_buffer.getvalue(),
    }[suffix]
    assert weights.read(f"x.{suffix}", data)["a"].sum() == 1000
    for keep in (len(data) - 10, len(data) // 2, 20, 0):
        with pytest.raises(UserError, match=rf"x\.{suffix}: (damaged|refused)"):
            weights.read(f"x.{suffix}", data[:keep])


def test_other_files_are_no_weights() -> None:
    with pytest.raises(UserError, match=r"x.h5: not a weights file; these are: .safetensors"):
        weights.read("x.h5", b"")
    with pytest.raises(UserError, match="holds no tensors"):
        weights.read("x.pkl", pickle.dumps({}))
    with pytest.raises(UserError, match="holds a list, not named tensors"):
        weights.read("x.pkl", pickle.dumps([1]))
