"""Files are known by what is in them, and what is no file of weights is called by its name, with what to do."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_safetensors
from torch import nn

from backbone.errors import UserError
from backbone.interop import kinds, weights
from backbone.interop.files import read

TENSORS = {"w": torch.ones(2)}


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer)
    return buffer.getvalue()


def zip_of(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def tar_of(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("model.pth")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:`torch.jit:FutureWarning")
def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "name", ["a.th", "a.tar", "a.pth.tar", "a.ckpt", "a.model", "checkpoint", "a.pkl", "a.npz", "a.txt"]
)
@pytest.mark.parametrize("form", ["zip", "safetensors", "npz"])
def test_names_say_nothing(name: str, form: str, tmp_path: Path) -> None:
    numpy = io.BytesIO()
    np.savez(numpy, w=np.ones(2, "f4"))
    data = {"zip": torch_file(), "safetensors": save_safetensors(TENSORS), "npz": numpy.getvalue()}[form]
    (tmp_path / name).write_bytes(data)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("(draft) cat\ndog\n")
    files, _ = read(str(tmp_path))
    assert files.keys() == {name, "config.json"}
    assert weights.read(name, files[name])["w"].tolist() == [1, 1]


OTHERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "script": (script, r"a TorchScript archive, which is a program. .*torch.jit.load\(\"x\", \"cpu\"\).state_dict\(\)"),
    "hdf5": (
        lambda: b"\x89HDF\r\n\x1a\n" + bytes(99),
        "HDF5, of Keras or h5py: .* save the arrays by their names as .npz",
    ),
    "pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
        "a Git LFS pointer, .*git lfs pull",
    ),
    "page": (lambda: b"\n<!DOCTYPE html><html>quota exceeded", "a web page, not weights"),
    "gzip": (lambda: gzip.compress(torch_file()), "compressed with gzip: gunzip it"),
    "tar": (lambda: tar_of(torch_file()), "a tar archive: unpack it with tar -xf"),
    "zip of files": (lambda: zip_of(folder__model="x"), "a zip of folder/model: unpack it"),
    "keras": (lambda: zip_of(**{"config.json": "{}", "model.weights.h5": "x"}), "a Keras model"),
    "export": (lambda: zip_of(a__archive_format=b"pt2", a__models__model="{}"), "a program of torch.export"),
    "npy": (lambda: b"\x93NUMPY\x01\x00", "one array of numpy"),
    "onnx": (lambda: b"\x08\x0a\x12\x07pytorch", "ONNX, whose graph has lost"),
    "empty": (lambda: b"", "empty, a download that failed"),
    "text": (lambda: b"cat\ndog\nelk\n", "no weights, by content"),
    "half a zip": (lambda: torch_file()[:-40], "damaged, or cut off"),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_named_with_what_to_do(kind: str) -> None:
    make, says = OTHERS[kind]
    with pytest.raises(UserError, match=rf"^x: {says}"):
        weights.tree("x", make())


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_is_said_of_torchscript_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    monkeypatch.chdir(tmp_path)
    Path("net.pt").write_bytes(script())
    with pytest.raises(UserError) as error:
        weights.tree("net.pt", Path("net.pt").read_bytes())
    command = shlex.split(str(error.value).partition("trust it: ")[2])
    assert command[:2] == ["python", "-c"]
    exec(command[2])
    assert weights.read("weights.pth", Path("weights.pth").read_bytes()).keys() == {"weight", "bias"}


def test_a_distributed_checkpoint_and_what_is_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder = tmp_path / "dcp"
    dcp.save({"model": TENSORS}, checkpoint_id=folder, no_dist=True)
    with pytest.raises(UserError, match=rf"a distributed checkpoint \(DCP\).*dcp_to_torch {folder} weights.pth"):
        read(str(folder))
    monkeypatch.chdir(tmp_path)
    dcp_to_torch_save(folder, "weights.pth")  # what the command runs
    assert weights.read("weights.pth", Path("weights.pth").read_bytes(), "model")["w"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["zero_to_fp32.py", "latest"], r"of DeepSpeed.*python zero_to_fp32.py \. weights"),
        (["zero_pp_rank_0_mp_rank_00_optim_states.pt"], "of DeepSpeed"),
        (["data.pkl", "data", "version"], r"an unpacked torch file.*zip -0 -r \.\./weights.pth \."),
        (["saved_model.pb", "variables"], "of TensorFlow"),
    ],
)
def test_folders_that_are_checkpoints_as_a_whole(names: list[str], says: str) -> None:
    with pytest.raises(UserError, match=f"^runs/x: .*{says}"):
        kinds.check_folder("runs/x", names)


def test_an_unpacked_file_is_packed_again_as_is_said(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(torch_file())) as archive:
        archive.extractall(tmp_path / "unpacked")
    (folder,) = (tmp_path / "unpacked").iterdir()
    with pytest.raises(UserError, match="an unpacked torch file"):
        read(str(folder))
    with pytest.raises(UserError, match=r"data.pkl: its tensors lie outside of it"):
        weights.tree("data.pkl", (folder / "data.pkl").read_bytes())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # as `zip -r` packs it, without the folder that torch wants
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    assert weights.read("weights.pth", buffer.getvalue())["w"].tolist() == [1, 1]
