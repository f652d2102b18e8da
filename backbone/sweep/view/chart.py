"""Plotly figures in the live page.

`st.plotly_chart` builds a chart anew when its data change, by which a zoom is lost every few seconds
(streamlit/streamlit#5107, and still in 1.67: its element's identity holds the figure). These are updated in place.
"""

import json
from importlib.resources import files

import plotly.graph_objects as go
import streamlit as st
from plotly.offline import get_plotlyjs


def load() -> None:
    """Send plotly.js to the browser. Outside of fragments: what one shows is sent again with each of its runs."""
    st.components.v2.component("plotly", js=f"{get_plotlyjs()}\nexport default () => {{}};")(key="plotly")


def show(figure: go.Figure, key: str, label: str, narrowest: int = 0) -> None:
    """Draw or update the figure `key`; `label` says in words what it shows. Scrolls where there are fewer pixels."""
    js = files("backbone.sweep.view").joinpath("chart.js").read_text("utf-8")
    chart = st.components.v2.component("chart", js=js, isolate_styles=False)
    with st.container(key=f"scroll-{key}"):
        chart(key=key, data={"figure": json.loads(figure.to_json()), "label": label, "narrowest": narrowest})
