"""Files made to harm: each ends in one line that names it, whatever numbers and loops it holds, and takes no memory."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from backbone.errors import UserError
from backbone.interop import importing, weights
from backbone.interop.facts import said_beside
from backbone.interop.layouts import Layout
from backbone.interop.options import Import

MIB = 1 << 20
ONE = struct.pack("<f", 1.0)


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(16, "little")
    return b"\x8a\x10" + data


def storage(count: int, then: bytes = b"") -> bytes:
    """A persistent id as torch writes it, and opcodes that do something to what it stands for."""
    return b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + number(count) + b"tQ" + then


def tensor(of: bytes, offset: int = 0, size: tuple[int, ...] = (1,), stride: tuple[int, ...] = (1,)) -> bytes:
    numbers = [b"(" + b"".join(map(number, values)) + b"t" for values in (size, stride)]
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (of + number(offset) + b"".join(numbers))
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def torch_file(items: bytes, content: bytes = ONE, form: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", form) as archive:
        archive.writestr("archive/data.pkl", program(b"}(" + items + b"u"))
        archive.writestr("archive/data/0", content)
    return buffer.getvalue()


def npz(shape: tuple[int, ...], content: bytes, form: int = zipfile.ZIP_STORED) -> bytes:
    buffer, header = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(buffer, "w", form) as archive:
        archive.writestr("a.npy", header.getvalue() + content)
    return buffer.getvalue()


def shrunk(data: bytes) -> bytes:
    """A zip whose directory says four bytes of its last file, which unpacks to many more."""
    changed = bytearray(data)
    at = changed.rindex(b"PK\x01\x02")
    changed[at + 24 : at + 28] = (4).to_bytes(4, "little")
    return bytes(changed)


def safetensors(header: bytes, content: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + content


DEEP = b"\x85" * 300_000  # tuples within each other; what computes their hash in C overflows its stack
REPEATED = text("x" * MIB)
PARTS = b"".join(text(f"t{i}") + tensor(storage(MIB), 0, (MIB // 2, 2), (1, MIB // 2)) for i in range(2000))
CASES: dict[str, tuple[bytes, str]] = {
    "a key nested without end": (program(b"}K\x01" + DEEP + b"K\x01s"), "damaged, or no pickle"),
    "a set of it": (b"\x80\x04}" + text("a") + b"(K\x01" + DEEP + b"\x91s.", "damaged, or no pickle"),
    "values nested without end": (program(b"}" + text("a") + b"K\x01" + DEEP + b"s"), "more than tensors: a"),
    "lists nested without end": (program(b"}" + text("a") + b"]" * 9999 + b"a" * 9998 + b"s"), "more than tensors: a"),
    "buffer of 2**60": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b".", "no pickle of weights: EOFError"),
    "a text encoded over and over": (
        program(b"](c_codecs\nencode\nq\x01" + REPEATED + text("latin1") + b"\x86q\x02" + b"h\x01h\x02R" * 99 + b"e"),
        "the same bytes again and again",
    ),
    "and by another opcode": (
        program(b"](" + REPEATED + b"q\x020(" + (b"(c_codecs\nencode\nh\x02" + text("latin1") + b"o") * 99 + b"e"),
        "the same bytes again and again",
    ),
    "a dict copied over and over": (
        program(
            b"}("
            + b"".join(text(str(i)) + b"N" for i in range(99999))
            + b"uq\x020](ccollections\nOrderedDict\nq\x01"
            + b"h\x01h\x02\x85R" * 99
            + b"e"
        ),
        "the same bytes again and again",
    ),
    "a call of what is not made over and over": (
        program(b"](ca\nb\nq\x01(" + b"N" * (MIB // 8) + b"tq\x02" + b"h\x01h\x02R" * 99 + b"e"),
        "the same bytes again and again",
    ),
    "the class of a storage altered": (
        torch_file(text("a") + tensor(storage(1, b"}" + text("read") + b"Nsb"))),
        "alters",
    ),
    "a storage altered": (torch_file(text("a") + tensor(storage(1, b"}" + text("content") + b"Nsb"))), "alters"),
    "an array altered": (
        program(
            b"}"
            + text("a")
            + b"cnumpy\nndarray\n(K\x01\x85"
            + text("f4")
            + b"c__builtin__\nbytearray\n"
            + text("abcd")
            + b"\x85RtR(K\x01K\x05\x85cnumpy\ndtype\n"
            + text("O8")
            + b"K\x00K\x01\x87R\x89"
            + text("abcdefgh")
            + b"tbs"
        ),
        "more than tensors: a",
    ),
    "tensors that share numbers": (torch_file(PARTS, bytes(4 * MIB)), "its tensors would be 8388608000 bytes"),
    "an offset of 2**100": (torch_file(text("a") + tensor(storage(1), 1 << 100)), "more than tensors: a"),
    "a storage of 2**100": (torch_file(text("a") + tensor(storage(1 << 100))), "of an unknown kind"),
    "a storage of 2**40": (torch_file(text("a") + tensor(storage(1 << 40))), "4 bytes where"),
    "a shape of many axes": (
        torch_file(text("a") + tensor(storage(1), 0, (1,) * 999, (1,) * 999)),
        "more than tensors",
    ),
    "a zip bomb": (
        torch_file(text("a") + tensor(storage(1)), bytes(64 * MIB), zipfile.ZIP_DEFLATED),
        "unpacked it would",
    ),
    "a zip bomb that lies": (
        shrunk(torch_file(text("a") + tensor(storage(1)), bytes(64 * MIB), zipfile.ZIP_DEFLATED)),
        "damaged",
    ),
    "an npz of 2**40 numbers": (npz((1 << 40,), ONE), "damaged"),
    "an npz bomb that lies": (shrunk(npz((16 * MIB,), bytes(64 * MIB), zipfile.ZIP_DEFLATED)), "damaged"),
    "safetensors of 2**40 numbers": (
        safetensors(b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}', ONE),
        "damaged",
    ),
    "safetensors of a kind that torch has not": (
        safetensors(b'{"a":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', b"1"),
        "damaged",
    ),
    "a header of 2**31 bytes": (struct.pack("<Q", 1 << 31) + b"{}", "damaged"),
}


@pytest.mark.parametrize("case", CASES)
def test_it_ends_in_one_line(case: str) -> None:
    data, says = CASES[case]
    with pytest.raises(UserError, match=rf"^x: .*({says})") as error:
        weights.read("x", data)
    assert "MemoryError" not in str(error.value), "memory was asked for by a number in the file"


def test_names_are_shown_without_codes_of_a_terminal() -> None:
    data = pickle.dumps({"a\x1b[2J\nerror: all is well": 1, "\ud800": 2, (1, 2): 3, 1: 4, "1": 5})
    with pytest.raises(UserError, match=r"a\\x1b\[2J\\nerror: all is well, \\ud800, \(no text\), 1 and 1 more"):
        weights.read("x", data)
    assert list(weights.read("x", pickle.dumps({10**6000: np.ones(2)}))) == ["(no text)"]
    assert list(weights.named(pickle.loads(pickle.dumps({1: 4, "1": 5}))) or {}) == ["1", "1 (1)"]


SHAPES = {
    "nothing in the stem": {"conv1.weight": torch.zeros(0, 3, 7, 7)},
    "a number for a stem": {"conv1.weight": torch.tensor(1.0)},
    "no groups": {"layer1.0.conv2.weight": torch.zeros(64, 0, 3, 3)},
    "a number for a head": {"fc.weight": torch.tensor(1.0)},
    "half a head": {"fc.weight": None},
    "a stem without end": {"conv1.weight": torch.zeros(1 << 22, 1, 1, 1, dtype=torch.int8)},
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("source", ["torchvision", "cifar", "caffe", "mmdetection"])
def test_shapes_of_no_net(case: str, source: str, tmp_path) -> None:
    import torchvision

    state = {**torchvision.models.resnet18(num_classes=3).state_dict(), **SHAPES[case]}
    torch.save({name: t for name, t in state.items() if t is not None}, tmp_path / "net.pth")
    with pytest.raises(UserError, match=r"net\.pth"):
        importing.run(Import.model_validate({"source": source, "weights": str(tmp_path / "net.pth"), "output": "a"}))


CONFIGS = {
    "timm": ("config.json", b'{"mean": [NaN, 0, 0], "std": [1, 1, 1], "input_size": [3, 64, 64], "crop_pct": 0.9}'),
    "transformers": (
        "preprocessor_config.json",
        b'{"size": 1000000000000, "image_mean": [0,0,0], "image_std": [1,1,1]}',
    ),
    "detectron2": ("c.yaml", b"MODEL: {PIXEL_MEAN: [0, 0, 0], PIXEL_STD: [0, 0, 0]}\nINPUT: {FORMAT: RGB}"),
    "mmdetection": ("c.py", b"model = " + b"(" * 99999),
}


@pytest.mark.parametrize("source", CONFIGS)
def test_configs_that_no_image_fits(source: str) -> None:
    name, data = CONFIGS[source]
    with pytest.raises(UserError, match=r"^x: the config beside the weights cannot be read"):
        said_beside(Layout(source), {}, {name: data}, "x")


def test_bytes_changed_or_cut_off_in_every_form(tmp_path) -> None:
    """By a fixed seed: tensors or an error that names the file, in the directories of zips too."""
    tree = {"w": torch.arange(4.0), "n": torch.ones(3, 2)}
    zipped, legacy, arrays = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save(tree, zipped)
    torch.save(tree, legacy, _use_new_zipfile_serialization=False)
    np.savez_compressed(arrays, **{name: t.numpy() for name, t in tree.items()})
    random = np.random.default_rng(0)
    for whole in (zipped.getvalue(), legacy.getvalue(), arrays.getvalue(), pickle.dumps({"w": np.ones((2, 3))}, 2)):
        for _ in range(150):
            data = bytearray(whole[: random.integers(1, len(whole))] if random.random() < 0.2 else whole)
            for place in random.integers(0, len(data), random.integers(1, 4)):
                data[place] = random.integers(0, 256)
            message = ""
            try:
                weights.read("x", bytes(data))
            except UserError as error:
                message = str(error)
            assert message[:3] in ("", "x: ")
