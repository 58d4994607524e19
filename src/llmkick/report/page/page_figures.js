// ---- Figures: drawn to the width of the window, saved as SVG, PNG and CSV.
const AXES = 62;
const GAP = 22;

// As many columns as leave each panel its least width, rows as even as can be.
function fitted(spec, width, asPage) {
  const panels = spec.concat;
  const { minimum = 170, widest = 460, axes = AXES, rooms = [] } = spec.usermeta || {};
  const room = (columns) => Math.floor((width - 24 - columns * axes - (columns - 1) * GAP) / columns);
  let columns = Math.min(spec.columns || panels.length, panels.length);
  while (columns > 1 && room(columns) < minimum) columns -= 1;
  columns = Math.ceil(panels.length / Math.ceil(panels.length / columns));
  const panel = Math.min(room(columns), widest);
  // The ink of the files in figures/ becomes the page's own, so that dark mode and print need no second drawing.
  const text = JSON.stringify({ config: spec.config, concat: panels.map((one) => ({ ...one, width: panel })) });
  const inked = asPage ? text.replaceAll("#333333", "currentColor").replaceAll('"#ffffff"', '"transparent"') : text;
  const { config, concat } = JSON.parse(inked);
  if (width < 560) config.legend = { ...config.legend, columns: 3 };
  // Names of points are placed for a few widths beforehand; the widest that fits is shown.
  const params = (spec.params || []).map((one) => (one.name === "room" ? { ...one, value: rooms.findLast((width) => width <= panel) || 0 } : one));
  return { ...spec, config, columns, concat, ...(params.length ? { params } : {}) };
}

async function draw(target, spec) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  await window.vegaEmbed(target, fitted(spec, target.clientWidth, true), {
    mode: "vega-lite",
    renderer: "svg",
    ast: true,
    actions: false,
    tooltip: { theme: dark ? "dark" : "light" },
  });
  target.classList.add("drawn");
}

// A file is drawn anew in dark ink on white, whatever the page looks like.
async function saveFigure(target, spec, name, kind) {
  const aside = element("div");
  const width = Math.max(target.clientWidth, 700);
  const { view, finalize } = await window.vegaEmbed(aside, fitted(spec, width, false), {
    mode: "vega-lite",
    renderer: "svg",
    ast: true,
    actions: false,
  });
  if (kind === "svg") save(await view.toSVG(), "image/svg+xml", `${name}.svg`);
  else save(await view.toImageURL("png", 2), "image/png", `${name}.png`);
  finalize();
}

// `now` gives what is shown at the moment: name, title, spec, numbers.
function savers(target, now) {
  const bar = element("div", "savers");
  const act = (kind) => async () => {
    const { name, spec, numbers } = now();
    if (kind === "csv") save(csv(numbers), "text/csv", `${name}.csv`);
    else await saveFigure(target, spec, name, kind);
    document.documentElement.dataset.saved = `${name}.${kind}`;
  };
  for (const kind of ["svg", "png", "csv"]) {
    bar.append(button(kind.toUpperCase(), `Save ${now().title} as ${kind.toUpperCase()}`, act(kind)));
  }
  const numbers = element("details", "numbers");
  numbers.append(element("summary", "", "Numbers"));
  numbers.addEventListener("toggle", () => {
    numbers.querySelector(".scroll")?.remove();
    if (!numbers.open) return;
    const box = element("div", "scroll");
    box.tabIndex = 0;
    box.append(tableOf(now().numbers, now().title));
    numbers.append(box);
  });
  bar.append(numbers);
  target.after(bar);
}

function redrawOnResize(redraw) {
  let width = document.documentElement.clientWidth;
  let waiting = 0;
  window.addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      const now = document.documentElement.clientWidth;
      if (Math.abs(now - width) > 16) {
        width = now;
        redraw();
      }
    }, 200);
  });
}

async function figures() {
  const drawn = await load("figures");
  const charts = [...document.querySelectorAll(".chart[data-figure]")];
  const redraw = async () => {
    for (const chart of charts) await draw(chart, drawn[chart.dataset.figure].spec);
  };
  redrawOnResize(redraw);
  await redraw();
  for (const chart of charts) {
    const name = chart.dataset.figure;
    savers(chart, () => ({ name, ...drawn[name] }));
  }
}

async function layers() {
  const select = byId("layers-model");
  if (!select) return;
  const data = await load("layers");
  data.models.forEach((model, i) => select.append(new Option(model.label, i)));
  if (!data.models.length) return;
  const chart = byId("layers-chart");
  const columns = ["layer", "block", "output_error", "zeros", "damping"];
  const now = () => {
    const model = data.models[select.value];
    const rows = data.layers.map(([kind, depth], i) => [kind, depth, model.error[i], model.zeros[i], model.damping[i]]);
    const values = rows.map(([kind, depth, error, zeros, damping]) => ({
      kind,
      depth,
      relative_output_error: error,
      realised_sparsity: zeros,
      damping,
    }));
    // A method that damps nothing has no map of it.
    const damped = model.damping.some((value) => value !== null);
    const concat = data.spec.concat
      .filter((panel) => damped || panel.encoding.color.field !== "damping")
      .map((panel) => ({ ...panel, data: { values } }));
    const spec = { ...data.spec, usermeta: { ...data.spec.usermeta, axes: 110 }, concat };
    const name = `layers-${model.label.replace(/[^\w.-]+/g, "-")}`;
    return { name, title: `the layers of ${model.label}`, spec, numbers: { columns, rows } };
  };
  const redraw = () => draw(chart, now().spec);
  select.addEventListener("change", redraw);
  redrawOnResize(redraw);
  await redraw();
  savers(chart, now);
}

async function tables() {
  const held = await load("tables");
  for (const place of document.querySelectorAll("[data-table]")) {
    const { title, numbers } = held[place.dataset.table];
    place.append(
      button("CSV", `Save ${title} as CSV`, () => save(csv(numbers), "text/csv", `${place.dataset.table}.csv`)),
    );
  }
}
