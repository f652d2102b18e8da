"""Nothing in a pickle is ever run, found or imported, and what it may call stays as it is."""

import argparse
import contextlib
import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from backbone.errors import UserError
from backbone.interop import pickles, weights

ARRAYS = {"a": np.arange(6, dtype="f4").reshape(2, 3)}


class Bomb:
    """Says `ran` in a file when it is unpickled by a reader that trusts it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return os.system, (f"echo ran > {self.file}",)


def forms(tree: object) -> dict[str, bytes]:
    """The same tree in every form of file that has a pickle."""
    found = {f"pickle{protocol}": pickle.dumps(tree, protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)}
    for name, zipped in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save(tree, buffer, _use_new_zipfile_serialization=zipped)
        found[name] = buffer.getvalue()
    return found


def test_a_bomb_beside_weights_does_not_go_off_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "fired"
    for name, data in forms({"model": ARRAYS, "args": Bomb(file)}).items():
        assert weights.read(name, data, "model")["a"].shape == (2, 3)
        assert "posix.system" in weights.unmade(weights.tree(name, data)), name
    assert not file.exists()
    pickle.loads(forms({"args": Bomb(file)})["pickle2"])
    assert file.exists(), "a reader that trusts it sets it off"


def test_a_bomb_among_weights_is_refused_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "fired"
    for name, data in forms({"a": ARRAYS["a"], "conv1.weight": Bomb(file)}).items():
        with pytest.raises(
            UserError, match=rf"^{name}: holds more than tensors: conv1.weight \(posix.system, not run\)$"
        ):
            weights.read(name, data)
    for name, data in forms(Bomb(file)).items():
        if name not in ("pickle0", "pickle1"):  # which begin as nothing that weights begin with
            with pytest.raises(UserError, match=f"^{name}: holds posix.system .not run., not named"):
                weights.read(name, data)
    assert not file.exists()


def test_nothing_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing a module runs it, so not even that is done to find out what a name means."""
    module = tmp_path / "not_there_before.py"
    module.write_text("class Config:\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import not_there_before  # ty: ignore[unresolved-import]

    made = not_there_before.Config()
    made.lr = 0.1
    data = forms({"model": ARRAYS, "config": made, "list": [made, (made, {"k": made})]})
    monkeypatch.delitem(sys.modules, "not_there_before")
    module.write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    for name, content in data.items():
        tree = weights.tree(name, content)
        assert (tree["config"].what, tree["config"].state) == ("not_there_before.Config", {"lr": 0.1}), name
        assert weights.unmade(tree) == ["not_there_before.Config"]
    assert "not_there_before" not in sys.modules
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    "call",
    [
        (np.ndarray, ((1,), "O", bytearray(8))),  # numpy itself would take these bytes for a pointer
        (np.ndarray, ((10**12,), "f4")),  # memory without content
        (bytearray, (10**12,)),
        (bytes, (10**12,)),
        (np.load, ("/etc/passwd",)),
        (eval, ("1 + 1",)),
        (getattr, (argparse.Namespace, "__init__")),
        (torch.load, ("x",)),
    ],
    ids=["pointers", "no data", "huge", "huge bytes", "file", "eval", "getattr", "torch"],
)
def test_calls_that_are_not_arrays_with_their_data_make_nothing(call: tuple) -> None:
    class Evil:
        def __reduce__(self):
            return call

    data = pickle.dumps({"a": Evil()}, 2)
    assert isinstance(weights.tree("x.pkl", data)["a"], pickles.Inert)
    with pytest.raises(UserError, match=r"x\.pkl: holds more than tensors: a \("):
        weights.read("x.pkl", data)


@pytest.mark.parametrize("what", [b"numpy\nndarray", b"numpy\ndtype", b"collections\nOrderedDict", b"_codecs\nencode"])
@pytest.mark.parametrize("state", [b"(dS'x'\nI1\ns", b"(N(dS'__defaults__'\n(I1\ntst"], ids=["dict", "slots"])
def test_what_may_be_called_cannot_be_altered(what: bytes, state: bytes) -> None:
    with pytest.raises(UserError, match=r"x\.pkl: damaged, or no pickle of weights: "):
        weights.read("x.pkl", b"\x80\x02c" + what + b"\n" + state + b"b.")
    assert weights.read("x.pkl", pickle.dumps(ARRAYS))["a"].shape == (2, 3)


@pytest.mark.parametrize("what", [b"torch\nFloatStorage", b"torch._utils\n_rebuild_tensor_v2", b"argparse\nNamespace"])
def test_neither_can_classes_of_torch_nor_what_stands_in_for_the_unknown(what: bytes) -> None:
    with pytest.raises(UserError, match="damaged, or no pickle of weights"):
        weights.tree("x.pkl", b"\x80\x02c" + what + b"\n}U\x07__new__U\x01xsb.")
    spaces = pickle.dumps({"a": argparse.Namespace(b=1)})
    assert weights.tree("x.pkl", spaces)["a"].state == {"b": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02r\xff\xff\xff\x7f.",  # a memo of 2**31 places
        b"\x80\x04j\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00.",  # bytes of 2**56
        b"\x80\x04\x95" + b"\xff" * 7 + b"\x00.",  # a frame of 2**56
        b"\x80\x02\x8b\xff\xff\xff\x7f.",
        b"\x80\x02(\x81.",
        b"\x80\x02]]\x86R.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02\x82\x01.",  # of copyreg's registry
        b"\x80\x02Q.",
    ],
)
def test_broken_programs_fail_and_take_no_memory(data: bytes) -> None:
    with pytest.raises(UserError, match=r"^x\.pkl: "):
        weights.read("x.pkl", data)


def test_names_without_end_are_not_all_made() -> None:
    data = b"\x80\x02]" + b"".join(b"cm\nn%d\na" % i for i in range(pickles.MOST_NAMES + 1)) + b"."
    with pytest.raises(UserError, match="names more than 10000"):
        weights.tree("x.pkl", data)


def test_arrays_of_objects_and_texts_are_no_weights() -> None:
    tree = {
        "objects": np.array([print, {}], dtype=object),
        "names": np.array(["a", "b"]),
        "days": np.array(["2020"], "M8"),
    }
    for name, array in tree.items():
        data = pickle.dumps({"a": np.ones(2), name: array})
        with pytest.raises(UserError, match=f"holds more than tensors: {name}$"):
            weights.read("x.pkl", data)
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([{}], dtype=object))
    with pytest.raises(UserError, match=r"x\.npz: holds more than tensors: a$"):
        weights.read("x.npz", buffer.getvalue())


def test_a_mutated_checkpoint_gives_tensors_or_an_error(tmp_path: Path) -> None:
    """Bytes changed at random, by a fixed seed: never another error, and nothing run."""
    file = tmp_path / "fired"
    tree = {"model": {"w": torch.arange(4.0)}, "args": argparse.Namespace(a=1), "bomb": Bomb(file), "n": np.ones(3)}
    random = np.random.default_rng(0)
    for name, data in forms(tree).items():
        if name == "zip":
            with zipfile.ZipFile(
                io.BytesIO(data)
            ) as archive:  # its bytes have a checksum; the pickle within is mutated
                inner = {member: archive.read(member) for member in archive.namelist()}
        for _ in range(30):
            mutated = bytearray(next(v for k, v in inner.items() if k.endswith("data.pkl")) if name == "zip" else data)
            for place in random.integers(0, len(mutated), random.integers(1, 4)):
                mutated[place] = random.integers(0, 256)
            content = bytes(mutated)
            if name == "zip":
                buffer = io.BytesIO()
                with zipfile.ZipFile(buffer, "w") as archive:
                    for member, old in inner.items():
                        archive.writestr(member, content if member.endswith("data.pkl") else old)
                content = buffer.getvalue()
            with contextlib.suppress(UserError):
                weights.read(name, content, "model")
    assert not file.exists()
