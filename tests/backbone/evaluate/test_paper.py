"""The paper's numbers, by sums over its tables, and which of ours stand beside them."""

from backbone.evaluate.paper import PUBLISHED, beside, markdown


def ours(net: str, shortcut: str, protocol: str, classes: int = 1000, nets: int = 1) -> dict:
    what = {"of": f"runs/{net}", "data": "val", "trained": "5 steps", "top1_error": 50.0, "top5_error": 20.0}
    return {"net": net, "shortcut": shortcut, "protocol": protocol, "classes": classes, "nets": nets, **what}


def test_sums_of_the_tables() -> None:
    """Column sums, added up elsewhere from the printed tables: a digit mistyped would show."""
    sums = {
        table: (
            round(sum(row.top1 or 0 for row in PUBLISHED if row.table == table), 2),
            round(sum(row.top5 or 0 for row in PUBLISHED if row.table == table), 2),
        )
        for table in range(2, 7)
    }
    assert sums == {2: (109.39, 0), 3: (220.65, 76.97), 4: (171.34, 60.59), 5: (0, 34.11), 6: (95.9, 0)}


def test_each_stands_beside_its_own() -> None:
    rows = beside([ours("resnet34", "A", "10-crop"), ours("resnet34", "B", "multi-scale")])
    assert [(r["table"], r["paper"]["net"]) for r in rows if r["ours"]] == [
        (2, "ResNet-34 A"),
        (3, "ResNet-34 A"),
        (4, "ResNet-34 B"),
    ]
    assert {r["table"] for r in rows} == {2, 3, 4}
    text = " ".join(markdown(rows).split())  # without the padding
    assert "| ResNet-34 A | ImageNet val | 25.03 | 7.76 | 50.00 | 20.00 | runs/resnet34 | val | 5 steps |" in text
    lines = [line for line in markdown(rows).splitlines() if line.startswith("|")]
    assert {len(line) for line in lines[:6]} == {len(lines[0])}, "Table 2 is aligned as it stands"


def test_what_is_not_the_papers_stands_nowhere() -> None:
    assert beside([ours("resnet34", "A", "1-crop"), ours("resnet34", "A", "10-crop", classes=10)]) == []
    assert beside([ours("resnet152", "A", "multi-scale")]) == []
    only = [r for r in beside([ours("", "", "multi-scale", nets=6)]) if r["ours"]]
    assert [(r["table"], r["paper"]["top5_error"]) for r in only] == [(5, 3.57)]
    assert markdown([]) == ""
