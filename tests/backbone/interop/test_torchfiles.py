"""Tensors of torch's files come out as torch itself reads them, whatever lies beside them."""

import argparse
import collections
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from backbone.errors import UserError
from backbone.interop import weights
from backbone.interop.torchfiles import LEGACY_HEAD, Content, Storage, Stored


def saved(tree: object, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    found = {str(d): (base * 9).to(d) for d in (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8)}
    found |= {str(d): (base * 9).to(d) for d in (torch.int32, torch.int16, torch.int8, torch.bool)}
    found |= {"transposed": base.t(), "part": base[2:4, 1:3], "same storage": base, "one": torch.tensor(3.5)}
    return found | {
        "nothing": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(2, 2)),
        "strided": base[::2, ::3],
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_kind_of_tensor_is_as_torch_reads_it(zipped: bool) -> None:
    data = saved(tensors(), zipped)
    expected = torch.load(io.BytesIO(data), weights_only=True)
    found = weights.read("x", data)
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name
        assert not found[name].requires_grad


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_what_training_code_leaves_beside_them_does_no_harm(zipped: bool) -> None:
    """Things that `weights_only=True` refuses, each by itself."""
    net = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    beside = {
        "args": argparse.Namespace(lr=0.1, path=Path("runs")),
        "counts": collections.Counter("abc"),
        "default": collections.defaultdict(list, {"a": [1]}),
        "best": np.float64(0.3),
        "rng": np.random.get_state(),
        "names": np.array(["cat", "dog"]),
        "optimizer": optimizer.state_dict(),
        "set": {1, 2},
        "module": net,
        "sparse": torch.eye(3).to_sparse(),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    refused = []
    for name, value in beside.items():
        data = saved({"state_dict": net.state_dict(), name: value}, zipped)
        assert torch.equal(weights.read("x", data, "state_dict")["weight"], net.weight), name
        try:
            torch.load(io.BytesIO(data), weights_only=True)
        except pickle.UnpicklingError:
            refused.append(name)
    assert {"args", "best", "module"} <= set(refused), "else this shows little"
    whole = weights.tree("x", saved({"state_dict": net.state_dict(), **beside}, zipped))
    assert {"argparse.Namespace", "collections.Counter", "torch.nn.modules.linear.Linear"} <= set(weights.unmade(whole))
    assert whole["best"] == 0.3
    assert whole["default"] == {"a": [1]}


def test_tensors_of_a_gpu_come_out_on_cpu() -> None:
    for zipped in (True, False):
        data = saved({"w": torch.arange(3.0)}, zipped)
        assert data.count(b"X\x03\x00\x00\x00cpu") == 1
        moved = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00gpu")  # no such place here
        if zipped:  # the pickle within has a checksum
            import zipfile

            buffer, old = io.BytesIO(), zipfile.ZipFile(io.BytesIO(data))
            with zipfile.ZipFile(buffer, "w") as archive:
                for name in old.namelist():
                    archive.writestr(name, old.read(name).replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:7"))
            moved = buffer.getvalue()
        assert weights.read("x", moved)["w"].tolist() == [0, 1, 2]


def test_the_mark_of_the_older_form() -> None:
    assert saved({}, zipped=False).startswith(LEGACY_HEAD)
    assert not saved({}, zipped=True).startswith(LEGACY_HEAD)


def test_a_tensor_that_was_pickled_alone() -> None:
    """`pickle.dump(state_dict)`, as some converters write for detectron2: torch puts a file of its own in for each."""
    data = pickle.dumps({"model": {"w": torch.arange(6.0).reshape(2, 3)}})
    assert weights.read("x.pkl", data, "model")["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def stored(count: int, *rest: object) -> Stored:
    return Stored(Storage(Content(lambda: bytes(4 * count)), torch.float32, count), *rest)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (2, 3), (3, 1)),  # 6 of 5
        (4, (2,), (1,)),
        (0, (10**12,), (0,)),  # one number as often as memory lasts
        (0, (2, 2), (10**13, 1)),
    ],
)
def test_no_tensor_reaches_beyond_its_storage_or_repeats_it(offset: int, size: tuple, stride: tuple) -> None:
    with pytest.raises(ValueError, match="numbers do not hold"):
        stored(5, offset, size, stride).tensor()


@pytest.mark.parametrize(
    ("offset", "size", "stride"), [(-1, (1,), (1,)), (0, (-1,), (1,)), (0, (1,), ()), ("0", (1,), (1,))]
)
def test_no_tensor_has_an_impossible_shape(offset: object, size: tuple, stride: tuple) -> None:
    with pytest.raises(ValueError, match="no shape of a tensor"):
        stored(5, offset, size, stride)


def test_a_storage_shorter_than_it_says(tmp_path: Path) -> None:
    data = saved({"w": torch.arange(300.0)}, zipped=False)
    with pytest.raises(UserError, match="x: damaged: it ends within its tensors"):
        weights.read("x", data[:-4])
    assert weights.read("x", data)["w"].shape == (300,)
