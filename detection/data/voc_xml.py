"""One annotation file of Pascal VOC, whoever wrote it."""

import codecs
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from xml.etree.ElementTree import Element

from backbone.data.findings import Findings
from detection.data.json_values import FARTHEST
from detection.data.settle import flag

DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?\bencoding\s*=\s*["']([^"']+)["']""")
DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
LARGER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949"}  # as people write them
LONG = re.compile(rb"[\xe0-\xf4][\x80-\xbf]{2}")  # three bytes and more of UTF-8: hardly any other text has them

UNDEFINED_ENTITY = 11  # expat's code, as of HTML's &nbsp;
# A & that begins no reference, with what stands around it.
BARE = re.compile(r"[^\s<>&]{0,40}&(?!(?:#\d+|#x[0-9a-fA-F]+|[A-Za-z_][\w.-]*);)[^\s<>]*")

ESCAPE = (
    "annotations with & where XML has &amp;, or an entity of HTML's",
    "write &amp; for &, and letters themselves in place of &nbsp; and the like",
)
SAVE = "save it as UTF-8"
SIZELESS = "annotations without the image's size", "taken from the image"
UNCLEAR = "difficult marks that are neither 0 nor 1", "write 0 or 1"
PARTS = "parts of objects, such as heads and hands", "not read: only whole objects are"
NESTED = "objects inside of other elements", "not read: put them directly into <annotation>"
TWICE_SAID = "objects with several boxes, names or marks", "only the first of each is read: make an object of each box"
TAGS = "annotations whose tags are in capitals or in a namespace", "read so; most tools look for <object> alone"
ONCE = {"object": ("name", "bndbox", "difficult"), "bndbox": ("xmin", "ymin", "xmax", "ymax")}  # what each has once
OTHERWISE = "annotations in another encoding than they declare", "read by what their bytes are; " + SAVE


class Unescaped(ValueError):
    """Names hold characters that XML has for itself."""


class NotText(ValueError):
    """Bytes that are not in the encoding they should be in."""


@dataclass(frozen=True)
class Annotation:
    """One image with its annotations; K objects."""

    size: tuple[int, int]  # height, width
    classes: list[str]  # K
    boxes: list[tuple[float, float, float, float]]  # K: xmin, ymin, xmax, ymax, as written
    difficult: list[bool]  # K
    file: str = ""  # what it calls the image's file
    findings: Findings = field(default_factory=Findings)


def parse(data: bytes) -> tuple[Element, bool]:
    """The root element, and whether the text was in the encoding it declares.

    The parser fetches nothing: external entities are errors, and expat bounds the others.

    Raises:
        NotText: see `text_of`.
        ValueError: not well-formed.
    """
    text, as_declared = text_of(data)
    try:
        return ElementTree.fromstring(DECLARATION.sub("", text).strip()), as_declared
    except ElementTree.ParseError as error:
        bare = BARE.search(text)  # only now: within <![CDATA[...]]> it is right
        if bare or error.code == UNDEFINED_ENTITY:
            line = text[: bare.start()].count("\n") + 1 if bare else error.position[0]
            raise Unescaped(f"{bare[0][:40]!r} in line {line}" if bare else f"{error}") from error
        raise ValueError(f"damaged XML: {error}") from error


def text_of(data: bytes) -> tuple[str, bool]:
    """The text of a file, and whether it is in the encoding that an XML declaration in it names, if there is one.

    A byte order mark is believed first. Then what is declared, unless the bytes are not that and are UTF-8, or are
    UTF-8 of three and more bytes a letter, which no other text is by chance. Nothing declared is UTF-8.

    Raises:
        NotText: neither fits. Says what to do.
    """
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], encoding), True
    if data[:2] in (b"<\0", b"\0<"):
        return _decoded(data, "utf-16-le" if data[0] else "utf-16-be"), True
    match = DECLARED.match(data)
    declared = match[1].decode("ascii", "replace") if match else "utf-8"
    try:
        codec = codecs.lookup(declared).name
    except LookupError:
        codec = ""
    if codec == "utf-8":
        return _decoded(data, codec), True
    theirs, ours = _text(data, LARGER.get(codec, codec)), _text(data, "utf-8")
    if theirs is not None and not (LONG.search(data) and ours is not None):
        return theirs, True
    if ours is None:
        raise NotText(f"is neither {declared}, as it declares, nor UTF-8; {SAVE}")
    return ours, False


def _text(data: bytes, encoding: str) -> str | None:
    """The text of an XML file that declares an encoding, if it can be this one: the declaration must be read by it."""
    try:
        text = data.decode(encoding)
    except (ValueError, LookupError):  # no such encoding, or one such as zlib that is none of text
        return None
    return text if text.lstrip().startswith("<?xml") else None


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise NotText(f"is not {encoding.upper()} at byte {error.start}; {SAVE}") from error


def annotation_of(root: Element, name: str, measure: Callable[[str], tuple[int, int] | None]) -> Annotation:
    """The parts of an annotation that are read. Numbers may have a fraction, as some tools write them.

    Args:
        root: by `parse`.
        name: of the annotation, for findings.
        measure: asked where there is no size above 0: height and width of the image, given what the annotation calls
            its file; None: it cannot be read.

    Raises:
        ValueError: a part is missing or no number. Names it.
    """
    findings = Findings()
    if _plain_tags(root):
        findings.add("warning", *TAGS, name)
    objects = root.findall("object")
    nested = sum(1 for _ in root.iter("object")) - len(objects)
    if root.find("size") is None and not objects and not nested:
        raise ValueError(
            f"holds neither size nor object, and begins with <{root.tag}>: not an annotation of Pascal VOC"
        )
    if nested:
        findings.add("error", *NESTED, name, nested)
    names = [(one.findtext("name") or "").strip() for one in objects]
    if not all(names):
        raise ValueError("an object has no name")
    file = (root.findtext("filename") or "").strip()
    if several := sum(map(_says_twice, objects)):
        findings.add("error", *TWICE_SAID, name, several)
    parts = sum(len(one.findall("part")) for one in objects)
    if parts:
        findings.add("note", *PARTS, name, parts)
    return Annotation(
        _size(root, name, file, measure, findings),
        names,
        [(_side(one, "xmin"), _side(one, "ymin"), _side(one, "xmax"), _side(one, "ymax")) for one in objects],
        [_difficult(one, name, findings) for one in objects],
        file,
        findings,
    )


def _plain_tags(root: Element) -> int:
    """Call elements as Pascal VOC does, without namespace and in small letters; how many were called otherwise."""
    changed = 0
    for element in root.iter():
        plain = element.tag.rpartition("}")[2].lower()
        if plain != element.tag:
            element.tag = plain
            changed += 1
    return changed


def _says_twice(element: Element) -> bool:
    """Whether an object has several of what each has once: the others would be lost."""
    for one in (element, *element.findall("bndbox")):
        tags = [child.tag for child in one]
        if any(tags.count(tag) > 1 for tag in ONCE.get(one.tag, ())):
            return True
    return False


def _size(
    root: Element, name: str, file: str, measure: Callable[[str], tuple[int, int] | None], findings: Findings
) -> tuple[int, int]:
    written = [(root.findtext(f"size/{key}") or "").strip() for key in ("height", "width")]
    height, width = (
        0.0 if text == "" else _number(root, f"size/{key}")
        for text, key in zip(written, ("height", "width"), strict=True)
    )
    if not height or not width:
        found = measure(file)
        if found is None:
            raise ValueError("size/width and size/height are missing or 0, and the image is not there to tell them")
        findings.add("warning", *SIZELESS, name)
        return found
    if not (1 <= height <= FARTHEST and 1 <= width <= FARTHEST):
        raise ValueError(f"size/width and size/height are {width:g} and {height:g}")
    return int(height), int(width)


def _difficult(element: Element, name: str, findings: Findings) -> bool:
    text = (element.findtext("difficult") or "").strip()
    mark = flag(text)
    if mark is None:
        findings.add("error", *UNCLEAR, f"{name}: {text!r:.40}")
    elif text not in ("", "0", "1"):
        kind = f"difficult marks written otherwise, taken as {int(mark)}"
        findings.add("warning", kind, "write 0 or 1", f"{name}: {text!r:.40}")
    return bool(mark)


def _side(element: Element, key: str) -> float:
    return _number(element, f"bndbox/{key}")


def _number(element: Element, path: str) -> float:
    text = element.findtext(path)
    try:
        return float(text or "")
    except ValueError as error:
        raise ValueError(f"{path} is {'missing' if text is None else repr(text)}") from error
