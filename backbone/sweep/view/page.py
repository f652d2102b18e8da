"""The sweep as one HTML page that needs nothing else: no server, no network, light or dark, wide or narrow."""

import base64
import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files as resources
from string import Template
from typing import Any

from plotly.offline import get_plotlyjs

from backbone.pages import style
from backbone.storage import join
from backbone.sweep import analysis
from backbone.sweep.record import Record, Trial
from backbone.sweep.standing import word
from backbone.sweep.view import compare, summary
from backbone.sweep.view.files import Texts, best_recipe, of_all
from backbone.sweep.view.grid import grid
from backbone.sweep.view.panels import left_of_budget, missing, panels, said_of_costs
from backbone.sweep.view.summary import Cell
from backbone.sweep.view.wording import STATES, point, short_names

FILE = "report.html"
LONG = 30
"""Letters of a cell above which its words may wrap."""


def report(record: Record) -> str:
    """The page with the recipes and logs that lie in the sweep's folder."""
    return to_html(record, of_all(record), best_recipe(record))


def to_html(record: Record, texts: Mapping[str, Texts], best: str = "") -> str:
    """The page. `texts` are those of the trials by id, `best` is best.yaml. All text in it is escaped."""
    return Template(resources("backbone.sweep.view").joinpath("page.html").read_text("utf-8")).substitute(
        style=style(),
        title=escape(record.name),
        headline=escape(summary.headline(record)),
        state=escape(summary.state(record)),
        situation=escape(summary.situation(record)),
        facts=_facts(record),
        best=_best(record, texts, best),
        panels=_panels(record),
        compare=_compare(record),
        pareto=_pareto(record),
        trials=_csv(record) + _table("A column's name sorts by it.", *summary.table(record), _best_line(record)),
        failed=_failed(record, texts),
        details="".join(_detail(record, t, texts.get(t.id, Texts())) for t in record.trials),
        provenance=_provenance(record),
        plotly=get_plotlyjs(),
    )


def _facts(record: Record) -> str:
    facts = [summary.caveat(record), summary.progress(record) + ".", said_of_costs(record)]
    return "".join(f"<li>{escape(fact)}</li>" for fact in facts if fact)


def _best(record: Record, texts: Mapping[str, Texts], best: str) -> str:
    if not record.best:
        return ""
    trial = record.trial(record.best)
    recipe = best or texts.get(trial.id, Texts()).recipe
    command = f"python jobs/pretrain.py --config {join(record.url, 'best.yaml')}"
    title = f"{word(record, trial)}: trial {trial.id}"
    shown = f"<details><summary>Its recipe</summary>{_pre(recipe, 'recipe-best')}</details>" if recipe else ""
    return (
        f'<section class="card" aria-label="What to train"><h3>{escape(title[0].upper() + title[1:])}</h3>'
        f'<p class="soft">{escape(point(trial.point))}</p><p>To train it again, or at full length, with other data:</p>'
        f"<pre>{escape(command)}</pre>{_copy('recipe-best', 'Copy its recipe') if recipe else ''}{shown}</section>"
    )


def _panels(record: Record) -> str:
    cards = []
    for panel in panels(record):
        figure = panel.draw(record)
        said = escape(panel.said(record))
        why = missing(record, panel)
        chart = f'<p class="none">{escape(why)}</p>' if why else ""
        if figure is not None:
            drawing = _json(json.loads(figure.to_json()))
            height = figure.layout.height
            chart = (
                f'<div class="scroll"><div class="figure {panel.key}" id="figure-{panel.key}" role="img" '
                f'aria-label="{escape(panel.title)}. {said}" style="height:{height}px"></div></div>'
                f'<script type="application/json" id="data-{panel.key}">{drawing}</script>'
            )
        if panel.key == "grid" and figure is not None:
            chart = _grid_axes(record) + chart
        title = escape(panel.title)
        cards.append(
            f'<figure class="card" id="{panel.key}"><h3>{title}</h3><figcaption>{said}</figcaption>{chart}</figure>'
        )
    return "".join(cards)


def _json(tree: Any) -> str:
    """For a script element, which no text of the sweep can end: "<" is spelled out."""
    return json.dumps(tree).replace("<", "\\u003c")


def _grid_axes(record: Record) -> str:
    """The choice of the grid's two fields, with the figure of each pair."""
    fields = analysis.grid_fields(record)
    names = short_names(fields)
    pairs = [(down, across) for down in fields for across in fields if down != across]
    drawn = {f"{down}|{across}": grid(record, (down, across)) for down, across in pairs}
    figures = {pair: json.loads(figure.to_json()) for pair, figure in drawn.items() if figure is not None}
    first = {"down": fields[0], "across": fields[1]}
    selects = [_select(axis, f"grid-{axis}", {f: names[f] for f in fields}, first[axis]) for axis in first]
    return (
        f'<p class="filters">{"".join(selects)}</p>'
        f'<script type="application/json" id="grid-figures">{_json(figures)}</script>'
    )


def _select(label: str, name: str, options: Mapping[str, str], chosen: str = "") -> str:
    listed = "".join(
        f'<option value="{escape(v)}"{" selected" if v == chosen else ""}>{escape(text)}</option>'
        for v, text in options.items()
    )
    return f'<label>{escape(label)} <select data-name="{escape(name)}">{listed}</select></label>'


def _compare(record: Record) -> str:
    """Filters, trials to tick, and places for their curves and differences, which the page's script fills."""
    trials = [t for t in record.trials if t.history]
    if not trials:
        return '<p class="soft">No trial has been evaluated yet.</p>'
    fields = compare.fields_of(record)
    figure = compare.curves(record, [trials[0].id])
    told = {
        "colours": compare.COLOURS,
        "chosen": compare.first_choice(record, trials),
        "layout": json.loads(figure.to_json())["layout"] if figure else {},
        "trials": {
            t.id: {
                "name": escape(f"{t.id} {t.net}"),
                "dash": "solid" if t.state in ("finished", "running") else "dash",
                "x": [row["epoch"] for row in t.history],
                "y": [row["val_error"] for row in t.history],
                "outcome": compare.outcome(record, t),
                "recipe": compare.recipe_words(record, t, fields),
            }
            for t in trials
        },
        "passing": {
            field: {key: [t.id for t in compare.passing(record, {field: [key]})] for key in values}
            for field, values in compare.filters(record).items()
        },
    }
    names = compare.labels(record)
    selects = "".join(
        _select(names[field], field, {"": "all", **values}) for field, values in compare.filters(record).items()
    )
    boxes = "".join(
        f'<label title="{escape(point(t.point))}"><input type="checkbox" value="{escape(t.id)}"> {escape(t.id)}</label>'
        for t in trials
    )
    return (
        f'<p class="soft">Tick up to {len(compare.COLOURS)} trials. Filters narrow these and the table of trials.</p>'
        f'<p class="filters" id="filters">{selects}</p><p class="chips" id="chips">{boxes}</p>'
        '<div id="figure-compare"></div><div class="scroll" tabindex="0" role="region" aria-label="What differs">'
        '<table id="differences"></table></div>'
        f'<script type="application/json" id="compare-trials">{_json(told)}</script>'
    )


def _csv(record: Record) -> str:
    text = base64.b64encode(compare.as_csv(record).encode()).decode()
    name = escape(f"{record.name}.csv")
    return f'<p><a class="copy" download="{name}" href="data:text/csv;base64,{text}">Table as CSV</a></p>'


def _pareto(record: Record) -> str:
    if not record.pareto:
        return '<p class="soft">No trial has finished yet.</p>'
    ids = set(record.pareto)
    chosen = [t for t in record.trials if t.id in ids]
    first = record.objectives[0]
    other = "multiply-adds" if first.name != "macs" else "validation error"  # as board._against
    both = f"in both {first.label.partition(' (')[0]} and {other}"
    against = "in every objective" if len(record.objectives) > 1 else both
    said = f"Finished trials that no other is better than {against}. Trials stopped early are not compared."
    head, lines = summary.table(record, chosen)
    best = next((i for i, t in enumerate(chosen) if t.id == record.best), None)
    return _table(said, head, lines, best)


def _failed(record: Record, texts: Mapping[str, Texts]) -> str:
    failed = record.of_state("failed")
    if not failed:
        return ""
    items = []
    for t in failed:
        log = texts.get(t.id, Texts()).log
        shown = f"<details><summary>The end of its log</summary><pre>{escape(log)}</pre></details>" if log else ""
        items.append(
            f'<li><a href="#trial-{escape(t.id)}">{escape(t.id)}</a> <span class="soft">{escape(point(t.point))}</span>'
            f'<br><code class="why">{escape(t.why or "no error was recorded")}</code>{shown}</li>'
        )
    return (
        f'<section aria-labelledby="failed"><h2 id="failed">What failed</h2><ul class="failed">{"".join(items)}</ul>'
        "</section>"
    )


def _detail(record: Record, trial: Trial, texts: Texts) -> str:
    name = escape(trial.id)
    facts = summary.facts(record, trial) | summary.commands(record, trial)
    copy = _copy(f"recipe-{name}", f"Copy recipe of {name}") if texts.recipe else ""
    parts = [f"<dl>{_listed(facts)}</dl>", copy]
    if texts.recipe:
        parts.append(f"<details><summary>Recipe</summary>{_pre(texts.recipe, f'recipe-{name}')}</details>")
    if texts.log:
        parts.append(f"<details><summary>The end of its log</summary><pre>{escape(texts.log)}</pre></details>")
    mark = f'<span class="state {trial.state}">{summary.MARKS[trial.state]} {STATES[trial.state]}</span>'
    known = word(record, trial)
    best = f' <span class="soft">{summary.STANDING.get(known, "")} {known}</span>' if known else ""
    return (
        f'<details class="trial" id="trial-{name}"><summary>{name} {mark}{best} '
        f'<span class="soft">{escape(trial.net)}</span></summary>{"".join(parts)}</details>'
    )


def _provenance(record: Record) -> str:
    facts = {"Sweep": record.url, "Computed on": record.devices, "Ray dashboard": record.dashboard}
    facts |= {"Left of the budget": ", ".join(left_of_budget(record))}
    facts |= {name: str(number) for name, number in record.versions.items()}
    facts["Written"] = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.updated))
    facts |= summary.commands(record)
    both = [("Sweep, resolved", record.sweep), ("Base recipe, resolved", record.base)]
    trees = [
        f"<details><summary>{name}</summary><pre>{escape(json.dumps(tree, indent=2))}</pre></details>"
        for name, tree in both
    ]
    return f"<dl>{_listed({k: v for k, v in facts.items() if v})}</dl>{''.join(trees)}"


def _listed(facts: Mapping[str, str]) -> str:
    return "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())


def _pre(text: str, name: str) -> str:
    return f'<pre id="{name}" tabindex="0">{escape(text)}</pre>'


def _copy(source: str, label: str) -> str:
    return f'<button type="button" class="copy" data-copy="{source}">{label}</button>'


def _best_line(record: Record) -> int | None:
    return next((i for i, t in enumerate(record.trials) if t.id == record.best), None)


def _table(caption: str, head: Sequence[str], lines: Sequence[Sequence[Cell]], base: int | None) -> str:
    """The first cell of a line is its header and leads to the trial. Line `base` is tinted."""
    text = [all(isinstance(line[i].key, str | None) for line in lines) for i in range(len(head))]
    top = "".join(
        f'<th scope="col"{_class(words)}><button type="button">{escape(h)}</button></th>'
        for h, words in zip(head, text, strict=True)
    )
    body = []
    for i, (first, *rest) in enumerate(lines):
        link = f'<a href="#trial-{escape(str(first.key))}">{escape(first.text)}</a>'
        cells = "".join(
            f"<td{_class(words, len(cell.text) > LONG)}{_key(cell)}>{_stated(cell)}</td>"
            for cell, words in zip(rest, text[1:], strict=True)
        )
        body.append(f'<tr{" class=base" if i == base else ""}><th scope="row"{_key(first)}>{link}</th>{cells}</tr>')
    title = escape(caption)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}"><table class="sortable">'
        f"<caption><span>{title}</span></caption><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _stated(cell: Cell) -> str:
    kind = cell.key if cell.key in STATES and cell.text.endswith(STATES[str(cell.key)]) else ""
    text = escape(cell.text)
    return f'<span class="state {kind}">{text}</span>' if kind else text


def _key(cell: Cell) -> str:
    return "" if cell.key is None else f' data-key="{escape(str(cell.key))}"'


def _class(words: bool, long: bool = False) -> str:
    return f' class="text{" long" if long else ""}"' if words else ""
