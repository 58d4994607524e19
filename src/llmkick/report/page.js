"use strict";
// Draws the figures and the browser of answers. Data reach the page as text only, never as markup.
(() => {
  const PAGE = 10;
  const AXES = 62;
  const GAP = 22;
  const byId = (id) => document.getElementById(id);

  function element(tag, className, text) {
    const made = document.createElement(tag);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  // Text that a model wrote may run from right to left; it must not turn its neighbours round.
  function foreign(tag, className, text) {
    const made = element(tag, className, text);
    made.dir = "auto";
    return made;
  }

  async function load(name) {
    const value = JSON.parse(byId(`data-${name}`).textContent);
    if (typeof value.deflated !== "string") return value;
    const bytes = Uint8Array.from(atob(value.deflated), (sign) => sign.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).json();
  }

  // ---- Figures

  // As many columns as leave each panel its least width, rows as even as can be.
  function fitted(spec, width) {
    const panels = spec.concat;
    const { minimum = 170, axes = AXES } = spec.usermeta || {};
    const room = (columns) => Math.floor((width - 24 - columns * axes - (columns - 1) * GAP) / columns);
    let columns = Math.min(spec.columns || panels.length, panels.length);
    while (columns > 1 && room(columns) < minimum) columns -= 1;
    columns = Math.ceil(panels.length / Math.ceil(panels.length / columns));
    const panel = Math.min(room(columns), 460);
    // The ink of the files in figures/ becomes the page's own, so that dark mode and print need no second drawing.
    const config = JSON.parse(
      JSON.stringify(spec.config).replaceAll("#333333", "currentColor").replaceAll("#ffffff", "transparent"),
    );
    if (width < 560) config.legend = { ...config.legend, columns: 3 };
    return { ...spec, config, columns, concat: panels.map((one) => ({ ...one, width: panel })) };
  }

  async function draw(target, spec, name) {
    const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
    const drawn = await window.vegaEmbed(target, fitted(spec, target.clientWidth), {
      mode: "vega-lite",
      renderer: "svg",
      ast: true,
      actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
      downloadFileName: name,
      tooltip: { theme: dark ? "dark" : "light" },
    });
    target.classList.add("drawn");
    return drawn;
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
    const specs = await load("figures");
    const charts = [...document.querySelectorAll(".chart[data-figure]")];
    const redraw = async () => {
      for (const chart of charts) await draw(chart, specs[chart.dataset.figure], chart.dataset.figure);
    };
    redrawOnResize(redraw);
    await redraw();
  }

  async function layers() {
    const select = byId("layers-model");
    if (!select) return;
    const data = await load("layers");
    data.models.forEach((model, i) => select.append(new Option(model.label, i)));
    const redraw = () => {
      const model = data.models[select.value];
      const values = data.layers.map(([kind, depth], i) => ({
        kind,
        depth,
        relative_output_error: model.error[i],
        realised_sparsity: model.zeros[i],
      }));
      const panels = data.spec.concat.map((panel) => ({ ...panel, data: { values } }));
      const spec = { ...data.spec, usermeta: { ...data.spec.usermeta, axes: 110 }, concat: panels };
      return draw(byId("layers-chart"), spec, `output-error-${model.label.replace(/[^\w.-]+/g, "-")}`);
    };
    select.addEventListener("change", redraw);
    redrawOnResize(redraw);
    if (data.models.length) await redraw();
  }

  // ---- Answers

  const OUTCOMES = [
    ["lost", "✗ lost", (dense, other) => other < dense],
    ["gained", "✓ gained", (dense, other) => other > dense],
    ["right", "both right", (dense, other) => dense === other && dense === 1],
    ["wrong", "both wrong", (dense, other) => dense === other && dense === 0],
    ["same", "same score", (dense, other) => dense === other && dense !== 0 && dense !== 1],
    ["unscored", "… unscored", () => false],
  ];

  function outcomeOf(dense, other) {
    if (dense === null || other === null) return "unscored";
    return OUTCOMES.find(([, , holds]) => holds(dense, other))[0];
  }

  function judged(score) {
    if (score === null) return "… no score";
    if (score === 1) return "✓ right";
    return score === 0 ? "✗ wrong" : `score ${score.toFixed(2)}`;
  }

  async function answers() {
    const data = await load("answers");
    const form = byId("answers-form");
    const task = byId("answers-task");
    const variant = byId("answers-variant");
    const search = byId("answers-search");
    const list = byId("answers-list");
    const status = byId("answers-status");
    if (!data.tasks.length || data.variants.length < 2) {
      form.hidden = true;
      status.textContent = "This study asked no questions of a compressed model.";
      return;
    }
    let page = 0;
    data.tasks.forEach((one, i) => task.append(new Option(one.name, i)));
    data.variants.forEach((one, i) => i && variant.append(new Option(one.label, i)));
    const text = (place) => (place < 0 ? "" : data.texts[place]);

    function rows() {
      const chosen = data.tasks[task.value];
      const dense = chosen.answers[0];
      const other = chosen.answers[variant.value];
      if (!dense || !other) return [];
      return chosen.items.map((item, i) => ({
        item,
        outcome: outcomeOf(dense[1][i], other[1][i]),
        dense: { text: text(dense[0][i]), score: dense[1][i], reason: text(dense[2][i]), cut: dense[3].includes(i) },
        other: { text: text(other[0][i]), score: other[1][i], reason: text(other[2][i]), cut: other[3].includes(i) },
      }));
    }

    function outcome() {
      const checked = form.querySelector("input[name=outcome]:checked");
      return checked ? checked.value : "lost";
    }

    function offerOutcomes(all, wanted) {
      const box = byId("answers-outcome");
      const count = Object.fromEntries(OUTCOMES.map(([name]) => [name, all.filter((row) => row.outcome === name).length]));
      const offered = [...OUTCOMES.filter(([name]) => count[name]).map(([name, title]) => [name, title, count[name]]), ["all", "all", all.length]];
      const chosen = offered.some(([name]) => name === wanted) ? wanted : "all";
      box.replaceChildren(box.firstElementChild);
      for (const [name, title, number] of offered) {
        const label = element("label", "choice");
        const input = element("input");
        Object.assign(input, { type: "radio", name: "outcome", value: name, checked: name === chosen });
        label.append(input, ` ${title} ${number}`);
        box.append(label);
      }
    }

    function show(refresh) {
      const all = rows();
      if (refresh) offerOutcomes(all, outcome());
      const wanted = outcome();
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const found = all.filter((row) => wanted === "all" || row.outcome === wanted).filter((row) => {
        if (!words.length) return true;
        const [id, cluster, question, , references, choices] = row.item;
        const hay = [id, text(cluster), text(question), ...[...references, ...choices].map(text), row.dense.text, row.other.text];
        const joined = hay.join("\n").toLowerCase();
        return words.every((word) => joined.includes(word));
      });
      const pages = Math.max(1, Math.ceil(found.length / PAGE));
      page = Math.min(Math.max(page, 0), pages - 1);
      list.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map(shown));
      status.textContent = found.length ? `${found.length} of ${all.length} questions` : "No question fits these filters.";
      byId("answers-pages").hidden = pages === 1;
      byId("answers-page").textContent = `page ${page + 1} of ${pages}`;
      byId("answers-previous").disabled = page === 0;
      byId("answers-next").disabled = page === pages - 1;
    }

    function shown(row) {
      const [id, cluster, question, context, references, choices] = row.item;
      const entry = element("li");
      const head = element("div", "item-head");
      head.append(
        element("span", `tag ${row.outcome}`, OUTCOMES.find(([name]) => name === row.outcome)[1]),
        foreign("span", "", text(cluster)),
        element("code", "", id),
      );
      entry.append(head, foreign("p", "question", text(question)));
      const right = references.map(text);
      if (choices.length) {
        const options = element("ul", "choices");
        choices.forEach((place, i) => {
          const isRight = right.includes(text(place));
          const option = element("li", isRight ? "right" : "", `${String.fromCharCode(65 + i)}. `);
          option.append(foreign("bdi", "", text(place)), isRight ? " ✓ reference" : "");
          options.append(option);
        });
        entry.append(options);
      } else if (right.length) {
        const reference = element("p", "reference", "Reference: ");
        right.forEach((one, i) => reference.append(i ? ", or " : "", foreign("bdi", "", one)));
        entry.append(reference);
      }
      if (text(context)) {
        const passage = element("details");
        passage.append(element("summary", "", "Passage"), foreign("p", "passage", text(context)));
        entry.append(passage);
      }
      const pair = element("div", "pair");
      pair.append(answer("dense", row.dense), answer(data.variants[variant.value].label, row.other));
      entry.append(pair);
      return entry;
    }

    function answer(name, given) {
      const box = element("div", `answer ${given.score === 1 ? "right" : given.score === 0 ? "wrong" : ""}`);
      const head = element("h4", "", name);
      head.append(element("span", "", judged(given.score)));
      box.append(head);
      if (given.reason) box.append(foreign("p", "answer-text empty", given.reason));
      else if (given.text) box.append(foreign("p", "answer-text", given.text));
      else box.append(element("p", "answer-text empty", "(nothing)"));
      if (given.cut) box.append(element("p", "small", "cut at the limit of new tokens"));
      return box;
    }

    function choose(recipe, name) {
      const wanted = data.tasks.findIndex((one) => one.name === name);
      const model = data.variants.findIndex((one) => one.recipe === recipe);
      if (wanted >= 0) task.value = wanted;
      if (model > 0) variant.value = model;
    }

    choose(data.start.recipe, data.start.task);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", (event) => {
      page = 0;
      show(event.target === task || event.target === variant);
    });
    const turn = (step) => () => {
      page += step;
      show(false);
      byId("answers-title").scrollIntoView();
    };
    byId("answers-previous").addEventListener("click", turn(-1));
    byId("answers-next").addEventListener("click", turn(1));
    for (const link of document.querySelectorAll("a[data-task]")) {
      link.addEventListener("click", () => {
        page = 0;
        search.value = "";
        choose(link.dataset.recipe, link.dataset.task);
        show(true);
      });
    }
    show(true);
  }

  function failed(place) {
    return (error) => {
      byId(place).prepend(element("p", "warning", `This part of the page could not be drawn: ${error.message}`));
      console.error(error);
    };
  }

  const parts = [
    figures().catch(failed("figures")),
    layers().catch(failed("compression")),
    answers().catch(failed("answers")),
  ];
  Promise.all(parts).then(() => document.documentElement.setAttribute("data-ready", ""));
})();
