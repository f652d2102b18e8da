"""Weight files give tensors or an error, and nothing in them is ever run."""

import argparse
import collections
import io
import pickle
import pickletools
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from backbone.errors import UserError
from backbone.interop import weights
from backbone.interop.pickles import pickled

ARRAYS = {
    "a": np.arange(6, dtype="f4").reshape(2, 3).T,
    "b": np.array(7),
    "c": np.zeros((0, 3), ">f8"),
    "d": np.arange(4, dtype=">f4"),
    "e": np.array([True, False]),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_pickled_by_any_protocol_come_back(protocol: int) -> None:
    found = weights.read("x.pkl", pickle.dumps(collections.OrderedDict(ARRAYS), protocol=protocol))
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].numpy().tolist() == array.tolist()
        assert tuple(found[name].shape) == array.shape


def test_a_scalar_and_a_nested_entry() -> None:
    data = pickle.dumps({"model": {"a": np.ones(2, "f4")}, "epoch": np.float64(3), "a.b": {"c.d": {"w": np.ones(1)}}})
    assert weights.tree("x.pkl", data)["epoch"] == 3
    assert weights.read("x.pkl", data, "model")["a"].tolist() == [1, 1]
    assert weights.read("x.pkl", data, "a.b.c.d")["w"].tolist() == [1]
    assert list(weights.branches(weights.tree("x.pkl", data))) == ["model", "a.b.c.d"]
    with pytest.raises(UserError, match=r"holds more than tensors: model, epoch, a\.b$"):
        weights.read("x.pkl", data)
    with pytest.raises(UserError, match=r"entry state_dict: there is no state_dict; it has model, epoch, a\.b"):
        weights.read("x.pkl", data, "state_dict")


def test_ours_are_pickles_that_any_numpy_opens() -> None:
    data = pickled({"model": ARRAYS, "__author__": "raybone"})
    loaded = pickle.loads(data)
    assert all(np.array_equal(loaded["model"][name], array) for name, array in ARRAYS.items())
    assert loaded["model"]["a"].flags.writeable
    strings = [arg for op, arg, _ in pickletools.genops(data) if op.name == "SHORT_BINUNICODE"]
    assert "numpy" in strings
    assert not [text for text in strings if str(text).startswith("numpy.")], "modules that numpy 1 or 2 lacks"
    assert weights.read("x.pkl", data, "model")["a"].shape == (3, 2)


@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy", "pickle", "npz"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    tensors = {"a": torch.ones(1000), "b": torch.zeros(1000)}
    arrays = {name: t.numpy() for name, t in tensors.items()}
    zipped, legacy, numpy_buffer = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(tensors, zipped)
    torch.save(tensors, legacy, _use_new_zipfile_serialization=False)
    np.savez(numpy_buffer, **arrays)
    data = {
        "safetensors": save_safetensors(tensors),
        "zip": zipped.getvalue(),
        "legacy": legacy.getvalue(),
        "pickle": pickle.dumps(arrays),
        "npz": numpy_buffer.getvalue(),
    }[kind]
    assert weights.read("x", data)["a"].sum() == 1000
    for keep in (len(data) - 10, len(data) // 2, 20):
        with pytest.raises(UserError, match=r"^x: (damaged|no weights)"):
            weights.read("x", data[:keep])
    with pytest.raises(UserError, match=r"^x: empty"):
        weights.read("x", b"")


def test_a_changed_tensor_is_noticed_in_a_zip() -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.full((1000,), 3.0)}, buffer)
    data = buffer.getvalue()
    with pytest.raises(UserError, match="x: a: damaged: Bad CRC-32"):
        weights.read("x", data.replace(torch.full((9,), 3.0).numpy().tobytes(), bytes(36), 1))


def test_other_trees_are_no_weights() -> None:
    with pytest.raises(UserError, match="holds no tensors"):
        weights.read("x.pkl", pickle.dumps({}))
    with pytest.raises(UserError, match="holds a list, not named tensors"):
        weights.read("x.pkl", pickle.dumps([1]))
    with pytest.raises(UserError, match=r"holds argparse\.Namespace \(not run\), not named tensors"):
        weights.read("x.pkl", pickle.dumps(argparse.Namespace(a=1)))


def test_a_whole_module_is_its_state_dict() -> None:
    """`torch.save(model)` pickles classes by name; its parameters and buffers are read, no class is made."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(2, 2, bias=False)))
    model.register_buffer("scratch", None)
    for form in (True, False):
        buffer = io.BytesIO()
        torch.save({"ema": model, "epoch": 1}, buffer, _use_new_zipfile_serialization=form)
        tree = weights.tree("x", buffer.getvalue())
        found = weights.tensors("x", weights.part("x", tree, "ema"))
        assert found.keys() == model.state_dict().keys()
        assert all(torch.equal(found[name], t) for name, t in model.state_dict().items())
        assert weights.unmade(tree) == ["torch.nn.modules.container.Sequential"]


def test_a_compressed_bomb_of_arrays_is_not_unpacked() -> None:
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as f,
    ):
        np.lib.format.write_array_header_1_0(f, {"descr": "<f4", "fortran_order": False, "shape": (10**9,)})
        f.write(bytes(1 << 20))
    data = bytearray(buffer.getvalue())
    at = data.rindex(b"PK\x01\x02")  # the directory's entry: its size of the unpacked file
    data[at + 24 : at + 28] = (0xFFFFFFFE).to_bytes(4, "little")
    bomb = bytes(data)
    with pytest.raises(UserError, match=r"x\.npz: damaged"):
        weights.read("x.npz", bomb)
