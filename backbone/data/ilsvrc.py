"""The official archives of ILSVRC 2012, read where they lie: images are ranges of bytes, nothing is unpacked."""

import io
import posixpath
import re
import tarfile
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from backbone.data.findings import Findings
from backbone.data.formats import FETCH, HEAD, is_hidden, is_image, some
from backbone.data.index import Arrays, IndexedSource, digest, is_fresh, pack, store, tabulate, tell
from backbone.data.listing import Listing, list_files
from backbone.data.tar import damaged, members_of, open_tar
from backbone.errors import UserError
from backbone.storage import filesystem

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META, TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"  # in the devkit
VAL = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG")


@dataclass
class Found:
    """Images of an archive, in its order."""

    names: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # bytes
    sizes: list[int] = field(default_factory=list)  # bytes
    findings: Findings = field(default_factory=Findings)

    def add_image(self, member: tarfile.TarInfo, name: str, start: int, shown: str) -> None:
        """An image, or another member, which is counted and not read. `start` is its first byte in the archive."""
        if member.isfile() and not member.issparse() and is_image(posixpath.basename(name)):
            self.names.append(name)
            self.starts.append(start)
            self.sizes.append(member.size)
        elif not member.isdir():
            self.findings.add("note", "members that are no images", "not read", f"{shown}:{member.name}")


def open_ilsvrc(location: str, cache: str | None = None) -> IndexedSource:
    """Open ILSVRC2012_img_train.tar, a tar of one tar a class, or ILSVRC2012_img_val.tar with the devkit beside it.

    Labels are places in the sorted WordNet ids, as in torchvision, timm and class folders, not the devkit's own ids.
    The index is kept in the cache.

    Args:
        location: the tar, local or a URL.
        cache: see `cache_directory`.

    Raises:
        UserError: neither of the two, cut off, or no devkit.
    """
    listing = list_files(location, ".tar")
    if len(listing.names) > 1:
        raise UserError(f"{location}: has {len(listing.names)} tars; name one, ILSVRC2012_img_train.tar or _val.tar")
    fs, _ = filesystem(listing.url)
    devkit = f"{listing.root}/{DEVKIT}"
    state = digest(listing.state, fs.size(devkit) if fs.exists(devkit) else "")
    path = listing.cached("ilsvrc", cache)
    if not is_fresh(path, state):
        store([path], state, _build(listing))
    remarks = listing.remarks(".tar")
    return IndexedSource(path, listing.url, listing.root, listing.shown, remarks=remarks, places=listing.files)


def _build(listing: Listing) -> Arrays:
    shown = f"{listing.shown}/{listing.names[0]}"
    found, classes = _scan(listing, shown)
    if classes and found.names:
        wnids = sorted(classes)
        places = {wnid: place for place, wnid in enumerate(wnids)}
        labels = [places[name.partition("/")[0]] for name in found.names]
    elif found.names and all(VAL.fullmatch(name) for name in found.names):
        wnids, truth = _devkit(listing)
        numbers = [int(name[15:23]) for name in found.names]
        if max(numbers) > len(truth) or min(numbers) < 1:
            raise UserError(f"{shown}: holds image {max(numbers)}, but {DEVKIT} has labels of {len(truth)} images")
        labels = [truth[number - 1] for number in numbers]
        if len(numbers) < len(truth):
            what, remedy = "validation images that the tar lacks", f"{DEVKIT} has labels of {len(truth)}"
            found.findings.add("warning", what, remedy, shown, len(truth) - len(numbers))
    else:
        raise UserError(
            f"{shown}: holds neither n01440764.tar and so on (ILSVRC2012_img_train.tar) nor "
            "ILSVRC2012_val_00000001.JPEG and so on (ILSVRC2012_img_val.tar)"
        )
    return (
        tabulate("ilsvrc", (f"{listing.names[0]}:{name}" for name in found.names), labels, found.sizes, wnids)
        | tell(found.findings)
        | pack("files", listing.names)
        | {"file_ids": np.zeros(len(labels), np.int32), "starts": np.asarray(found.starts, np.int64)}
    )


def _scan(listing: Listing, shown: str) -> tuple[Found, list[str]]:
    """The images of the archive, and the classes whose tars it holds: none of the validation archive."""
    found, classes = Found(), dict[str, None]()
    bar = tqdm(desc="indexing", total=listing.sizes[0], unit="B", unit_scale=True, disable=None)
    try:
        with open_tar(listing, 0) as file, bar:
            try:
                for tar, member in members_of(file):
                    name = posixpath.basename(member.name)
                    if member.isfile() and name.endswith(".tar") and not is_hidden(name):
                        wnid = name.removesuffix(".tar")
                        if wnid in classes:
                            raise UserError(f"{shown}: holds {member.name} twice; fetch it again")
                        classes[wnid] = None
                        _scan_class(tar, member, wnid, found)
                    else:
                        found.add_image(member, name, member.offset_data, shown)
                    bar.update(tar.offset - bar.n)
            except (tarfile.TarError, EOFError, ValueError, RecursionError) as error:
                if isinstance(error, UserError):
                    raise
                file.seek(0)
                raise UserError(damaged(shown, file.read(HEAD), error)) from error
    except OSError as error:
        raise UserError(f"{shown}: cannot be read ({error.strerror or error}); mend it") from error
    beside = [name for name in found.names if "/" not in name]
    if classes and beside:
        raise UserError(f"{shown}: holds {some(beside)} beside the tars of classes; they have no class, take them out")
    return found, list(classes)


def _scan_class(outer: tarfile.TarFile, member: tarfile.TarInfo, wnid: str, found: Found) -> None:
    file = outer.extractfile(member)
    assert file is not None  # it is a file
    for _, image in members_of(file):
        name = posixpath.basename(image.name)
        found.add_image(image, f"{wnid}/{name}", member.offset_data + image.offset_data, f"{wnid}.tar")


def _devkit(listing: Listing) -> tuple[list[str], list[int]]:
    """Sorted WordNet ids of the classes, and the label of each validation image, as a place among them."""
    fs, _ = filesystem(listing.url)
    path = f"{listing.root}/{DEVKIT}"
    if not fs.exists(path):
        raise UserError(f"{listing.shown}/{listing.names[0]}: its labels are in {DEVKIT}; put that beside it")
    from scipy.io import loadmat

    try:
        with tarfile.open(fileobj=io.BytesIO(fs.cat_file(path)), mode="r:gz") as tar:
            files = {}
            for member in tar.getmembers():
                for name in (META, TRUTH):
                    if member.name.endswith(name) and (file := tar.extractfile(member)):
                        files[name] = file.read()
        synsets = loadmat(io.BytesIO(files[META]), squeeze_me=True)["synsets"]
        # Inner nodes of the WordNet tree are listed, too; classes are the leaves.
        wnids = {int(one["ILSVRC2012_ID"]): str(one["WNID"]) for one in synsets if not one["num_children"]}
        order = sorted(wnids.values())
        places = {number: order.index(wnid) for number, wnid in wnids.items()}
        return order, [places[int(line)] for line in files[TRUTH].split()]
    except KeyError as error:
        raise UserError(
            f"{listing.shown}/{DEVKIT}: holds no {META} or no {TRUTH}, or a label without class ({error}); {FETCH}"
        ) from error
    except Exception as error:  # loadmat raises anything on damaged files
        raise UserError(f"{listing.shown}/{DEVKIT}: is damaged ({error}); {FETCH}") from error
