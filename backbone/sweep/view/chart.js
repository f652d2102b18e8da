// A Plotly figure in the live page. Unlike Streamlit's own, it is updated in place: zoom, hidden traces and selections
// on axes survive new data (uirevision).
const CONFIG = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};

const plotly = async () => {
  while (!window.Plotly) await new Promise(resolve => setTimeout(resolve, 50));  // 5 MB, which may come over a tunnel
  return window.Plotly;
};

const draw = async place => {
  const {data, layout} = structuredClone(place.figure);
  const style = getComputedStyle(place), rule = name => style.getPropertyValue(name).trim();
  layout.font = {color: rule("--st-text-color"), family: style.fontFamily, size: 12.5};
  layout.hoverlabel = {
    ...layout.hoverlabel, bgcolor: rule("--st-background-color"), bordercolor: "#8b8f96", font: {color: layout.font.color},
  };
  await (await plotly()).react(place, data, layout, CONFIG);
};

export default function ({parentElement, data}) {
  let place = parentElement.querySelector(".figure");
  if (!place) {
    place = document.createElement("div");
    place.className = "figure";
    place.setAttribute("role", "img");
    parentElement.append(place);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(() => {
      if (place.isConnected) draw(place);
    }, 300));
  }
  place.setAttribute("aria-label", data.label);
  place.style.height = `${data.figure.layout.height}px`;
  place.style.minWidth = `${data.narrowest}px`;
  place.figure = data.figure;
  draw(place);
}
