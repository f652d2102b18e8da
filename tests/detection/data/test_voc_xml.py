"""Annotation files as tools write them: their encodings, and what in them is read and what is said not to be."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from backbone.errors import UserError
from detection.data.doctor import examine
from detection.data.sources import open_source
from detection.data.voc_xml import Annotation, NotText, annotation_of, parse
from tests.detection.data.making import VOC, make_voc, voc_xml

BODY = "<annotation><object><name>{}</name></object></annotation>"


def name_in(data: bytes) -> tuple[str | None, bool]:
    root, as_declared = parse(data)
    return root.findtext("object/name"), as_declared


def declared(encoding: str, name: str, codec: str | None = None) -> bytes:
    return f'<?xml version="1.0" encoding="{encoding}"?>\n{BODY.format(name)}'.encode(codec or encoding)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("UTF-8", "図"),
        ("utf8", "図"),  # Python's own name for it, which expat does not know
        ("UTF8", "Kätzchen"),
        ("utf_8", "図"),
        ("us-ascii", "cat"),
        ("ISO-8859-1", "Kätzchen"),
        ("latin-1", "Kätzchen"),
        ("windows-1251", "кошка"),
        ("gb2312", "猫"),  # two bytes that are UTF-8 too
        ("gb2312", "汽车"),
        ("GBK", "飛機"),
        ("gb18030", "😀车"),
        ("big5", "飛機"),
        ("Shift_JIS", "猫と犬"),
        ("euc-kr", "고양이"),
    ],
)
def test_encodings_that_are_as_declared(encoding: str, name: str) -> None:
    assert name_in(declared(encoding, name)) == (name, True)


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("gb2312", "汽车"),
        ("GBK", "汽车与行人"),
        ("ascii", "Kätzchen"),
        ("unicode", "汽车"),
        ("ANSI", "cat"),
        ("utf-16", "cat"),  # such as from a StringWriter of .NET
        ("UTF-16LE", "汽车"),
        ("cp037", "cat"),
        ("zlib", "cat"),
        ("latin-1", "汽车"),
    ],
)
def test_utf8_under_another_name(encoding: str, name: str) -> None:
    assert name_in(declared(encoding, name, "utf-8")) == (name, False)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_believed(codec: str) -> None:
    for text in (BODY.format("図"), '<?xml version="1.0" encoding="gb2312"?>' + BODY.format("図")):
        assert name_in(text.encode(codec)) == ("図", True)
    assert (
        name_in(BODY.format("図").encode("utf-16-le")) == name_in(BODY.format("図").encode("utf-16-be")) == ("図", True)
    )


def test_blanks_before_the_declaration() -> None:
    assert name_in(b"\r\n  " + declared("utf-8", "cat")) == ("cat", True)
    assert name_in(b'<?xml version="1.1"?>' + BODY.format("cat").encode()) == ("cat", True)


@pytest.mark.parametrize(
    "data",
    [
        BODY.format("Kätzchen").encode("latin-1"),
        declared("utf-8", "汽车", "gbk"),
        declared("unicode", "Kätzchen", "latin-1"),
        b"\xff\xfe<\0a\0\0",
    ],
)
def test_what_is_no_text_is_to_be_saved_again(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(NotText, match="save it as UTF-8"):
        parse(data)
    root = make_voc(tmp_path)
    (root / "Annotations/000005.xml").write_bytes(data)
    with pytest.raises(UserError, match=r"000005.xml: .*save it as UTF-8"):
        open_source("voc", f"{root}:trainval")
    text = examine("voc", f"{root}:trainval").as_text()
    assert "restore the file" not in text
    assert "save it as UTF-8" in text


def test_another_encoding_than_declared_is_said(tmp_path: Path) -> None:
    root = make_voc(tmp_path)
    text = voc_xml("000005", (50, 30), [("汽车", (1, 1, 9, 9), 0)])
    (root / "Annotations/000005.xml").write_text(f'<?xml version="1.0" encoding="gb2312"?>{text}', "utf-8")
    source = open_source("voc", f"{root}:trainval")
    assert source.categories.names[-1] == "汽车"
    assert source.findings[0].what == "annotations in another encoding than they declare"


def annotation(text: str, measured: tuple[int, int] | None = None) -> Annotation:
    return annotation_of(ElementTree.fromstring(text), "a.xml", lambda file: measured)


def said(one: Annotation) -> dict[str, tuple[str, int]]:
    return {finding.what: (finding.severity, finding.count) for finding in one.findings.sorted()}


def test_parts_are_not_taken_for_objects() -> None:
    """They have names and boxes of their own, before the object's or after."""
    box = "<bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20.5</ymax></bndbox>"
    part = "<part><name>head</name><difficult>1</difficult>" + box.format(9) + "</part>"
    whole = f"<object>{part * 2}<name> dog </name>{box.format(1.5)}{part}</object>"
    text = f"<annotation><size><width>60</width><height>40</height></size>{whole}</annotation>"
    one = annotation(text)
    assert (one.classes, one.boxes, one.difficult) == (["dog"], [(1.5, 2, 30, 20.5)], [False])
    assert said(one) == {"parts of objects, such as heads and hands": ("note", 3)}


def test_objects_elsewhere_are_not_passed_over_in_silence() -> None:
    whole = voc_xml("000012", (40, 60), VOC["000012"])
    nested = whole.replace("</size>", "</size><objects>", 1).replace("</annotation>", "</objects></annotation>")
    assert said(annotation(nested))["objects inside of other elements"] == ("error", 2)


@pytest.mark.parametrize(
    "second",
    [
        "<bndbox><xmin>31</xmin><ymin>2</ymin><xmax>50</xmax><ymax>20</ymax></bndbox>",
        "<name>wolf</name>",
        "<difficult>1</difficult>",
    ],
)
def test_what_an_object_says_twice_is_an_error(second: str) -> None:
    """Were the first taken in silence, a box, a class or a mark would be lost."""
    box = "<bndbox><xmin>3</xmin><ymin>2</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
    whole = f"<object><name>dog</name>{box}<difficult>0</difficult>{second}</object>"
    text = f"<annotation><size><width>60</width><height>40</height></size>{whole}</annotation>"
    assert said(annotation(text)) == {"objects with several boxes, names or marks": ("error", 1)}


@pytest.mark.parametrize("turn", [str.upper, str.title])
def test_tags_in_capitals_and_namespaces_are_read(turn: Any) -> None:
    """An <Object> that is not seen would make its image one of background."""
    plain = voc_xml("000012", (40, 60), VOC["000012"])
    wanted = annotation(plain)
    capital = re.sub(r"</?\w+", lambda tag: turn(tag[0]), plain)
    spaced = plain.replace("<annotation>", '<annotation xmlns="http://example.org/voc">')
    prefixed = re.sub("(</?)object", r"\1v:object", plain).replace("<annotation>", '<annotation xmlns:v="urn:voc">')
    for text in (capital, spaced, prefixed):
        one = annotation(text)
        assert (one.classes, one.boxes, one.size) == (wanted.classes, wanted.boxes, wanted.size)
        assert said(one)["annotations whose tags are in capitals or in a namespace"] == ("warning", 1)
    assert not any("tags" in what for what in said(wanted))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<annotations><version>1.1</version><image/></annotations>", "begins with <annotations>: not an annotation"),
        ("<html/>", "begins with <html>"),
        ("<annotation><size><width>6</width><height>1,5</height></size></annotation>", "size/height is '1,5'"),
        ("<annotation><size><width>6</width></size></annotation>", "missing or 0, and the image is not there"),
    ],
)
def test_what_is_no_annotation(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        annotation(text)


def test_the_size_is_asked_of_the_image() -> None:
    text: Any = "<annotation><filename>b.png</filename><size/></annotation>"
    asked: list[str] = []
    one = annotation_of(ElementTree.fromstring(text), "a.xml", lambda file: (asked.append(file), (3, 4))[1])
    assert (one.size, asked) == ((3, 4), ["b.png"])
