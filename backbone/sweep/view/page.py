"""The sweep as one HTML page that needs nothing else: no server, no network, light or dark, wide or narrow."""

import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files as resources
from string import Template

from plotly.offline import get_plotlyjs

from backbone.storage import join
from backbone.sweep.record import Record, Trial
from backbone.sweep.standing import word
from backbone.sweep.view import summary
from backbone.sweep.view.files import Texts, best_recipe, of_all
from backbone.sweep.view.panels import left_of_budget, panels, said_of_costs
from backbone.sweep.view.summary import Cell
from backbone.sweep.view.wording import STATES, point

FILE = "report.html"


def report(record: Record) -> str:
    """The page with the recipes and logs that lie in the sweep's folder."""
    return to_html(record, of_all(record), best_recipe(record))


def to_html(record: Record, texts: Mapping[str, Texts], best: str = "") -> str:
    """The page. `texts` are those of the trials by id, `best` is best.yaml. All text in it is escaped."""
    return Template(resources("backbone.sweep.view").joinpath("page.html").read_text("utf-8")).substitute(
        title=escape(record.name),
        headline=escape(summary.headline(record)),
        state=escape(summary.state(record)),
        situation=escape(summary.situation(record)),
        facts=_facts(record),
        best=_best(record, texts, best),
        panels=_panels(record),
        pareto=_pareto(record),
        trials=_table("A column's name sorts by it.", *summary.table(record), _best_line(record)),
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
        chart = '<p class="none">Nothing to draw yet.</p>'
        if figure is not None:
            # "<" is spelled out so that no text of the sweep can end the script element.
            drawing = json.dumps(json.loads(figure.to_json())).replace("<", "\\u003c")
            height = figure.layout.height
            chart = (
                f'<div class="scroll"><div class="figure {panel.key}" id="figure-{panel.key}" role="img" '
                f'aria-label="{escape(panel.title)}. {said}" style="height:{height}px"></div></div>'
                f'<script type="application/json" id="data-{panel.key}">{drawing}</script>'
            )
        title = escape(panel.title)
        cards.append(
            f'<figure class="card" id="{panel.key}"><h3>{title}</h3><figcaption>{said}</figcaption>{chart}</figure>'
        )
    return "".join(cards)


def _pareto(record: Record) -> str:
    if not record.pareto:
        return '<p class="soft">No trial has finished yet.</p>'
    ids = set(record.pareto)
    chosen = [t for t in record.trials if t.id in ids]
    against = "in every objective" if len(record.objectives) > 1 else "in both error and multiply-adds"
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
            f"<td{_class(words)}{_key(c)}>{_stated(c)}</td>" for c, words in zip(rest, text[1:], strict=True)
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


def _class(words: bool) -> str:
    return ' class="text"' if words else ""
