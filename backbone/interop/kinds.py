"""What a file or folder is, by its content; how a name ends says little (`.th`, `.tar`, `.ckpt`, nothing)."""

import io
import re
import zipfile
from collections.abc import Sequence

from backbone.errors import UserError
from backbone.interop.torchfiles import LEGACY_HEAD

HEAD = 512  # bytes that tell

# Of other things, by how they begin: what they are and what to do.
OTHERS: tuple[tuple[bytes, str], ...] = (
    (b"\x89HDF\r\n\x1a\n", "HDF5, of Keras or h5py: load it there, and save the arrays by their names as .npz"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file: git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip: gunzip it, and give what comes out"),
    (b"\xfd7zXZ\x00", "compressed with xz: unxz it, and give what comes out"),
    (b"BZh", "compressed with bzip2: bunzip2 it, and give what comes out"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unzstd it, and give what comes out"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive: unpack it, and give the file of weights in it"),
    (b"Rar!", "a RAR archive: unpack it, and give the file of weights in it"),
    (b"\x93NUMPY", "one array of numpy; save all of them by their names with numpy.savez"),
    (b"GGUF", "GGUF, of language models"),
)
SHARD = re.compile(r"-\d{5}-of-\d{5}\.\w+$")
# Of protocols 0 and 1, which have no mark, those that begin as dicts and lists do.
PICKLE = re.compile(
    rb"\x80[\x02-\x05]|\([dl]p\d+\n|[}\]][q.]|c(collections|copy_?reg|__builtin__|builtins|numpy[\w.]*|torch[\w.]*)\n"
)
PAGE = re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE)
ONNX = re.compile(rb"\x08[\x01-\x20](\x12|\x1a|:|B|\x3a)")
SCRIPT = 'python -c \'import torch; torch.save(torch.jit.load("{}", "cpu").state_dict(), "weights.pth")\''


def kind(name: str, data: bytes) -> str:
    """`safetensors`, `zip` or `legacy` (both of torch.save), `npz` or `pickle`; the whole of `data`, or its head alone.

    Raises:
        UserError: it is something else; says what, and what to do.
    """
    if not data:
        raise UserError(f"{name}: empty, a download that failed?")
    for head, what in OTHERS:
        if data.startswith(head):
            raise UserError(f"{name}: {what}")
    if PAGE.match(data):
        raise UserError(f"{name}: a web page, not weights; download the file itself")
    if data.startswith(b"PK\x03\x04"):
        return _zip(name, data)
    if data.startswith(LEGACY_HEAD):
        return "legacy"
    if data[257:262] == b"ustar":
        raise UserError(
            f"{name}: a tar archive: unpack it with tar -xf and give the file of weights in it (or, from torch before "
            "0.1.10, load it there and save it again)"
        )
    if len(data) > 9 and data[8:9] == b"{" and int.from_bytes(data[:8], "little") < 1 << 32:
        return "safetensors"
    if PICKLE.match(data):
        return "pickle"
    if ONNX.match(data):
        raise UserError(f"{name}: ONNX, whose graph has lost the net's structure; give the checkpoint it was made of")
    raise UserError(
        f"{name}: no weights, by content: those are safetensors, files of torch.save, numpy's .npz, pickles of arrays"
    )


def _zip(name: str, data: bytes) -> str:
    try:
        members = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:  # also of a version or names that no zip has
        raise UserError(f"{name}: damaged, or cut off: a zip, as torch.save writes it, without its end") from error
    leaves = {member.partition("/")[2] or member for member in members}
    if "constants.pkl" in leaves or any(leaf.startswith("code/") for leaf in leaves):
        raise UserError(f"{name}: a TorchScript archive, which is a program. Where you trust it: {SCRIPT.format(name)}")
    if "data.pkl" in leaves:
        return "zip"
    if "archive_format" in leaves or any(leaf.startswith("models/") for leaf in leaves):
        raise UserError(f"{name}: a program of torch.export; save the state_dict of the model it was made of")
    if members and all(member.endswith(".npy") for member in members):
        return "npz"
    if any(member.endswith(".weights.h5") for member in members):
        raise UserError(f"{name}: a Keras model: load it there, and save the arrays by their names as .npz")
    raise UserError(f"{name}: a zip of {', '.join(members[:3]) or 'nothing'}: unpack it, and give the file of weights")


def is_weights(name: str, head: bytes) -> bool:
    """Whether a file of a folder is one to read, by its first `HEAD` bytes; a zip may turn out to be something else."""
    if head.startswith(b"PK\x03\x04"):
        return True
    try:
        kind(name, head)
    except UserError:
        return False
    return True


def check_folder(where: str, names: Sequence[str]) -> None:
    """UserError for a folder that is a checkpoint as a whole, in a form that a tool of its makers turns into a file."""
    there = set(names)
    if ".metadata" in there and any(name.endswith(".distcp") for name in names):
        raise UserError(
            f"{where}: a distributed checkpoint (DCP) of torch. Make one file of it, and give that: python -m "
            f"torch.distributed.checkpoint.format_utils dcp_to_torch {where} weights.pth"
        )
    if "zero_to_fp32.py" in there or any(re.fullmatch(r"(bf16_)?zero_pp_rank_\d+.*", name) for name in names):
        raise UserError(
            f"{where}: a checkpoint of DeepSpeed. Make one file of it with the script that DeepSpeed puts into the "
            "folder, and give that: python zero_to_fp32.py . weights"
        )
    if "data.pkl" in there and "data" in there:
        raise UserError(
            f"{where}: an unpacked torch file. Pack it again, and give that: (cd {where} && zip -0 -r ../weights.pth .)"
        )
    if "saved_model.pb" in there or any(name.endswith(".data-00000-of-00001") for name in names):
        raise UserError(f"{where}: of TensorFlow: load it there, and save the arrays by their names as .npz")
