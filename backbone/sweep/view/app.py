"""The live page of a sweep: `streamlit run backbone/sweep/app.py -- FOLDER`, which jobs/dashboard.py does.

It reads the sweep's folder again every few seconds. What a person chose (view, trial, sorting, zoom) is kept by keys
that never change, and by `uirevision` in the figures.
"""

import sys
from html import escape
from typing import Any

import streamlit as st

from backbone.errors import UserError
from backbone.storage import is_local
from backbone.sweep.analysis import grid_fields, planned
from backbone.sweep.record import Record, Trial, read
from backbone.sweep.standing import leading
from backbone.sweep.view import chart, compare, figures, files, summary
from backbone.sweep.view.grid import grid
from backbone.sweep.view.panels import Panel, alone, left_of_budget, missing, panels
from backbone.sweep.view.wording import NONE, amount, duration, short_names

# Between two readings: of a running sweep on this machine, and of any other.
SECONDS, SLOW_SECONDS = 2, 15

STYLE = """<style>
.block-container, .stMainBlockContainer { max-width: 1400px; padding: 2.2rem 2rem 4rem; }
.st-key-plotly { display: none; }
.sweep { opacity: .68; font-weight: 600; margin: 0 0 .4rem; }
.sweep b { padding: .1rem .55rem; border-radius: 1rem; border: 1px solid currentColor; margin-left: .4rem; }
.lead { font-size: clamp(1.3rem, 3.4vw, 1.75rem); line-height: 1.35; font-weight: 600; margin: 0 0 .5rem; }
.more { margin: 0; max-width: 46em; } .more span { display: block; margin: .15rem 0; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem; font-size: .9rem; }
.facts { margin: 0 !important; padding: 0 !important; }
.stMainBlockContainer [data-testid="stVerticalBlock"] { gap: .8rem; }
[data-testid="stMetric"] > div { padding: .5rem .9rem; } [data-testid="stMetricValue"] { font-size: 1.4rem; }
.stMainBlockContainer h3 { font-size: 1.2rem; padding: .6rem 0 .5rem; }
.facts dt { opacity: .68; font-weight: 400; } .facts dd { margin: 0; overflow-wrap: anywhere; }
.figure .parcoords .axis path, .figure .parcoords .axis line { stroke: #8b8f96 !important; }
[class*="st-key-scroll-"], .scroll { overflow-x: auto; }
.differences { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
.differences th, .differences td { text-align: left; padding: .4rem .7rem; border: 0; }
.differences tr { border-bottom: 1px solid rgba(128,128,128,.3); } .differences td { min-width: 7rem; }
.differences th:first-child { padding-left: 0; min-width: 7rem; max-width: 10rem; overflow-wrap: anywhere; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
@media (max-width: 560px) {
  .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .5rem; }
  .block-container, .stMainBlockContainer { padding-left: 1rem; padding-right: 1rem; }
}
</style>"""


def show(url: str) -> None:
    """The whole page of the sweep in this folder."""
    st.set_page_config(page_title=f"{url.rstrip('/').rpartition('/')[2]}, sweep", layout="wide")
    st.html(STYLE)
    chart.load()
    try:
        first = read(url)
    except UserError as error:
        st.error(str(error), icon=":material/error:")
        st.stop()
    seconds = SECONDS if first.alive and is_local(url) else SLOW_SECONDS

    @st.fragment(run_every=seconds)
    def live() -> None:
        record = _read_again(url, first)
        if record.alive != first.alive:
            st.rerun()  # to read it oftener, or less
        page(record)

    live()


def page(record: Record) -> None:
    """Head and the chosen panel."""
    header(record)
    found = {panel.key: panel for panel in panels(record)}
    tabs = {"trials": "Trials", "compare": "Compare", **{key: panel.tab for key, panel in found.items()}}
    if st.session_state.get("view") not in tabs:  # a click on the chosen one takes it back
        st.session_state["view"] = st.session_state.get("last_view", "trials")
    chosen = st.pills("View", list(tabs), format_func=tabs.__getitem__, key="view", label_visibility="collapsed")
    st.session_state["last_view"] = chosen or "trials"
    if chosen in found:
        draw(found[chosen], record)
    elif chosen == "compare":
        side_by_side(record)
    else:
        trials(record)


def header(record: Record) -> None:
    """State, the best so far, and how far it is."""
    state = summary.state(record)
    left = f" Left: {escape(', '.join(left_of_budget(record)))}." if record.state == "running" else ""
    st.html(
        f'<p class="sweep">Sweep {escape(record.name)} <b>{state}</b></p>'
        f'<p class="lead">{escape(summary.headline(record))}</p>'
        f'<p class="more"><span>{escape(summary.situation(record))}</span>'
        f"<span>{escape(summary.progress(record))}.{left}</span><span>{escape(summary.caveat(record))}</span></p>"
    )
    first = record.objectives[0]
    best = record.trial(record.best) if record.best else None
    done = len(record.of_state("finished", "stopped", "failed"))
    with st.container(horizontal=True):
        st.metric("Trials done", f"{done} of {planned(record)}", border=True)
        label = f"{first.label[0].upper()}{first.label[1:]}, {leading(record)}"
        st.metric(label, amount(first.name, best.values.get(first.name) if best else None), border=True)
        st.metric("Device time", duration(3600 * record.device_hours), border=True)
        st.metric("Wall time", duration(record.seconds), border=True)


def draw(panel: Panel, record: Record) -> None:
    """One panel: caption and figure."""
    st.subheader(panel.title, anchor=False)
    st.caption(panel.said(record))
    axes = grid_axes(record) if panel.key == "grid" else None
    figure = grid(record, axes) if axes else panel.draw(record)
    if figure is None:
        if why := missing(record, panel):
            st.info(why, icon=":material/hourglass_empty:")
    else:
        wide = 640 if panel.key == "parallel" else 0
        chart.show(figure, f"figure-{panel.key}", f"{panel.title}. {panel.said(record)}", wide)


def grid_axes(record: Record) -> tuple[str, str] | None:
    """The two fields that were chosen for the grid; None where there is no choice."""
    fields = grid_fields(record)
    if len(fields) < 2:
        return None
    names = short_names(fields)
    with st.container(horizontal=True):
        down = _one("Down", "grid-down", fields, names)
        across = _one("Across", "grid-across", [field for field in fields if field != down], names)
    return down, across


def _one(label: str, key: str, options: list[str], names: dict[str, str]) -> str:
    """A choice of one that outlives its widget, as `_several`."""
    if st.session_state.get(key) not in options:
        before = st.session_state.get(f"last-{key}")
        st.session_state[key] = before if before in options else options[0]
    st.session_state[f"last-{key}"] = st.selectbox(label, options, format_func=names.__getitem__, key=key)
    return st.session_state[f"last-{key}"]


def filtered(record: Record) -> list[Trial]:
    """The trials that pass what was chosen by field."""
    names, chosen = compare.labels(record), {}
    every = compare.filters(record)
    closed = not any(st.session_state.get(f"last-filter-{field}") for field in every)
    with st.expander("Filter by field", expanded=not closed), st.container(horizontal=True):
        for field, values in every.items():
            chosen[field] = _several(names[field], f"filter-{field}", list(values), [], format_func=values.__getitem__)
    return compare.passing(record, chosen)


def _several(label: str, key: str, options: list[str], first: list[str], **more: Any) -> list[str]:
    """A choice of several that outlives its widget, which is dropped while another view is shown."""
    if key not in st.session_state:
        st.session_state[key] = [one for one in st.session_state.get(f"last-{key}", first) if one in options]
    st.session_state[f"last-{key}"] = st.multiselect(label, options, key=key, **more)
    return st.session_state[f"last-{key}"]


def side_by_side(record: Record) -> None:
    """Chosen trials: their curves in a colour each, and what differs."""
    st.subheader("Compare trials", anchor=False)
    begun = [trial for trial in filtered(record) if trial.history]
    first = compare.first_choice(record, begun)
    before = st.session_state.get("last-compared", first)
    ids = list(dict.fromkeys([*before, *(trial.id for trial in begun)]))  # what is compared stays, filtered or not
    if not ids:
        st.info("No trial has been evaluated yet.", icon=":material/hourglass_empty:")
        return
    most = len(compare.COLOURS)
    words = {i: f"{i} {record.trial(i).net}" for i in ids}
    label = f"Trials, up to {most}"
    chosen = _several(label, "compared", ids, first, format_func=words.__getitem__, max_selections=most)
    figure = compare.curves(record, chosen)
    if figure is not None:
        chart.show(figure, "figure-compare", f"Validation error of trials {', '.join(chosen)}")
    heads = "".join(
        f'<th><span class="swatch" style="background: {colour}"></span>{escape(i)}</th>'
        for i, colour in zip(chosen, compare.COLOURS, strict=False)
    )
    rows = [
        f"<tr><th>{escape(label)}</th>{''.join(f'<td>{escape(text)}</td>' for text in values)}</tr>"
        for label, values in compare.differences(record, chosen)
    ]
    table = f"<thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    st.html(f'<div class="scroll"><table class="differences">{table}</table></div>')


def trials(record: Record) -> None:
    """The table of all trials, and one of them in full."""
    if not record.trials:
        st.info("The first trial has not been proposed yet.", icon=":material/hourglass_empty:")
        return
    shown = filtered(record)
    if not shown:
        st.info("No trial passes the filters.", icon=":material/filter_alt:")
        return
    head, lines = summary.table(record, shown)
    columns: dict[str, list[Any]] = {name: [line[i].key for line in lines] for i, name in enumerate(head)}
    columns["state"] = [line[1].text for line in lines]
    interval = head.index(summary.INTERVAL)
    columns[summary.INTERVAL] = [line[interval].text for line in lines]
    columns["trial"] = [line[0].text for line in lines]
    number = st.column_config.NumberColumn
    formats: dict[str, Any] = {name: number(format="%.2f") for name in head if name.endswith("(%)")}
    formats["epoch"] = st.column_config.ProgressColumn(
        format="%.3g", min_value=0, max_value=max(t.epochs for t in record.trials) or 1, width="small"
    )
    formats |= {"multiply-adds": number(format="compact"), "cost": number("cost (device-hours)", format="%.3g")}
    formats["why it ended"] = None  # the trial in full, below, says it
    formats["rung"] = number(f"rung of {len(record.rungs)}") if record.rungs else None
    ids = [t.id for t in shown]
    st.dataframe(
        columns,
        column_config=formats,
        hide_index=True,
        height=min(38 + 35 * len(ids), 423),
        key="table",
        on_select=lambda: _select(ids),
        selection_mode="single-row",
        placeholder=NONE,
    )
    st.caption("A column's name sorts by it; the box left of a trial, or the list below, opens it.")
    name = f"{record.name}.csv"
    st.download_button("Table as CSV", compare.as_csv(record, shown), name, "text/csv", on_click="ignore")
    if st.session_state.get("trial") not in ids:
        running = [t.id for t in shown if t.state == "running"]
        wanted = [st.session_state.get("last_trial"), record.best, *running, *ids]
        st.session_state["trial"] = next(i for i in wanted if i in ids)
    chosen = st.selectbox("Trial", ids, format_func=lambda i: summary.called(record, record.trial(i)), key="trial")
    st.session_state["last_trial"] = chosen
    detail(record, record.trial(chosen))


def detail(record: Record, trial: Trial) -> None:
    """Curves, facts, recipe and log of one trial."""
    if trial.state == "failed":
        st.error(trial.why or "It failed and left no error.", icon=":material/error:")
    only = alone(record, trial)
    drawn = {"curve": figures.curves(only), "rate": figures.rates(only)}
    for column, (name, figure) in zip(st.columns(2), drawn.items(), strict=True):
        if figure is not None:
            figure.update_layout(height=300, showlegend=False)
            with column:
                chart.show(figure, f"trial-{name}", f"The {name} of trial {trial.id}")
    listed = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in summary.facts(record, trial).items())
    st.html(f'<dl class="facts">{listed}</dl>')
    texts = files.of_trial(record, trial)
    if texts.recipe:
        with st.expander("Copy recipe: the trial's whole recipe, for jobs/pretrain.py"):
            st.code(texts.recipe, language="yaml")
    if texts.log:
        with st.expander("The end of its log", expanded=trial.state == "failed"):
            st.code(texts.log, language=None, height=320)
    for purpose, command in {**summary.commands(record, trial), **summary.commands(record)}.items():
        st.caption(purpose)
        st.code(command, language="bash", wrap_lines=True)
    if record.dashboard.startswith(("http://", "https://")):
        st.link_button("The cluster's Ray dashboard", record.dashboard)


def _select(ids: list[str]) -> None:
    """A line chosen in the table is the trial below it."""
    rows = st.session_state["table"].selection.rows
    if rows:
        st.session_state["trial"] = ids[rows[0]]


def _read_again(url: str, first: Record) -> Record:
    """The sweep as it is now, or as it was when it was last to be read."""
    try:
        st.session_state["record"] = read(url)
    except UserError as error:
        st.warning(f"{error}. Shown is what it was before.", icon=":material/cloud_off:")
    return st.session_state.get("record", first)


if __name__ == "__main__":
    show(sys.argv[1])
