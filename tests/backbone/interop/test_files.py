"""Of a folder the weights are found whatever they are called, and all that was not read is said."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backbone.errors import UserError
from backbone.interop.files import read, weights_files


def sharded(folder: Path, form: str = "safetensors") -> dict[str, torch.Tensor]:
    """Two shards and their index, as huggingface_hub writes them."""
    tensors = {"a": torch.ones(2), "b": torch.zeros(3), "c": torch.ones(1)}
    stem = "model" if form == "safetensors" else "pytorch_model"
    places = {"a": 1, "b": 2, "c": 1}
    names = {key: f"{stem}-{i:05d}-of-00002.{form}" for key, i in places.items()}
    for name in set(names.values()):
        part = {key: t for key, t in tensors.items() if names[key] == name}
        save_file(part, folder / name) if form == "safetensors" else torch.save(part, folder / name)
    index = {"metadata": {"total_size": 24}, "weight_map": names}
    (folder / f"{stem}.{form}.index.json").write_text(json.dumps(index))
    return tensors


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_shards_by_their_folder_or_their_index(form: str, tmp_path: Path) -> None:
    sharded(tmp_path, form)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "training_args.bin").write_bytes(b"PK\x03\x04")
    (index,) = tmp_path.glob("*.index.json")
    for place in (tmp_path, index):
        files, _ = read(str(place))
        names = weights_files(files, str(place))
        assert names == sorted(names)
        assert len(names) == 2
        assert ("config.json" in files) == (place == tmp_path)


def test_shards_that_are_missing_or_given_alone(tmp_path: Path) -> None:
    sharded(tmp_path)
    first = tmp_path / "model-00001-of-00002.safetensors"
    with pytest.raises(UserError, match=rf"one of several shards; give all: --weights {tmp_path}$"):
        read(str(first))
    first.unlink()
    with pytest.raises(UserError, match=r"index.json: 1 of its 2 shards are missing: model-00001-of-00002.safetensors"):
        read(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    for text in ("{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../../etc/passwd"}}', '{"weight_map": ["a"]}'):
        index.write_text(text)
        with pytest.raises(UserError, match=r"model.safetensors.index.json: not an index of shards"):
            read(str(tmp_path))


def test_a_trainers_folder(tmp_path: Path) -> None:
    """What `transformers.Trainer` leaves: states beside the weights, in the same formats."""
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({}, tmp_path / name)
    files, notes = read(str(tmp_path))
    assert files.keys() == {"model.safetensors"}
    assert notes == ["not read, model.safetensors was: optimizer.pt, rng_state.pth, scheduler.pt, training_args.bin"]


@pytest.mark.parametrize("pointer", ["model_final.pth", "/home/me/work_dirs/model_final.pth"])
def test_of_several_checkpoints_the_one_that_the_framework_names(pointer: str, tmp_path: Path) -> None:
    for name in ("model_0004999.pth", "model_final.pth"):
        torch.save({"a": torch.ones(1)}, tmp_path / name)
    with pytest.raises(
        UserError, match=rf"give one: --weights {tmp_path}/model_0004999.pth or --weights {tmp_path}/mod"
    ):
        read(str(tmp_path))
    (tmp_path / "last_checkpoint").write_text(pointer)
    files, notes = read(str(tmp_path))
    assert list(files) == ["model_final.pth"]
    assert notes == ["not read, model_final.pth was: model_0004999.pth"]


def test_a_folder_without_weights_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "model.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    (tmp_path / "model.pth").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"no file with weights, looking at what is in them .*model.h5: HDF5.*; model.pth: a"
    ):
        read(str(tmp_path))
    with pytest.raises(UserError, match="nowhere: cannot be read"):
        read(str(tmp_path / "nowhere"))
