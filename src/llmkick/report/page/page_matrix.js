// ---- The matrix: sorted by a title, filtered by method, in two groups of columns if there is room, with the details
// of a cell beside it when it is pointed at, tapped or reached with the arrow keys.
const SPLIT_FROM = 20;
const MATRIX_GAP = 24;

async function matrices() {
  const place = byId("matrices");
  if (!place) return;
  details(place);
  if (place.querySelector(".sort")) arrange(place);
}

function arrange(place) {
  const first = place.querySelector(".scroll");
  const second = first.cloneNode(true);
  second.querySelectorAll("tr.row").forEach((row) => row.remove());
  second.querySelector("caption").remove();
  second.setAttribute("aria-label", "Verdicts, continued");
  second.removeAttribute("aria-labelledby");
  second.hidden = true;
  first.after(second);
  const groups = [first, second];
  const rows = [...first.querySelectorAll("tr.row")];
  const hidden = new Set();
  const sorted = { by: "method", down: true };
  const order = ["✗", "…", "?", "∅", "✓"];

  // What a row is sorted by; null comes last either way.
  function key(row) {
    if (sorted.by === "all") {
      const found = order.indexOf(row.querySelector(".overall .mark")?.textContent);
      return found < 0 ? null : -found;
    }
    const value = row.cells[Number(sorted.by) + 2].dataset.value;
    return value === undefined ? null : Number(value);
  }

  function inOrder() {
    const shown = rows.filter((row) => !hidden.has(row.dataset.method));
    if (sorted.by === "method") return sorted.down ? shown : shown.reverse();
    const by = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return sorted.down ? y - x : x - y;
    };
    return shown.sort(by);
  }

  // Where the second group begins: at a change of method near the middle, otherwise in the middle.
  function middle(shown) {
    const half = Math.ceil(shown.length / 2);
    if (sorted.by !== "method") return half;
    const changes = shown.map((row, i) => i).filter((i) => i > 0 && shown[i].dataset.method !== shown[i - 1].dataset.method);
    const near = changes.filter((i) => Math.abs(i - half) <= 1);
    return near.sort((a, b) => Math.abs(a - half) - Math.abs(b - half))[0] ?? half;
  }

  function lay() {
    const shown = inOrder();
    second.hidden = true;
    place.classList.toggle("split", shown.length > SPLIT_FROM);
    first.querySelector("tbody").append(...shown);
    rows.filter((row) => hidden.has(row.dataset.method)).forEach((row) => row.remove());
    shown.forEach((row, i) => row.classList.toggle("first", sorted.by === "method" && i > 0 && row.dataset.method !== shown[i - 1].dataset.method));
    const wide = first.querySelector("table").offsetWidth;
    if (shown.length > SPLIT_FROM && 2 * wide + MATRIX_GAP <= place.clientWidth) {
      second.hidden = false;
      second.querySelector("tbody").append(...shown.slice(middle(shown)));
    } else place.classList.remove("split");
    for (const title of place.querySelectorAll(".sort")) {
      const on = title.dataset.sort === sorted.by;
      title.closest("th").setAttribute("aria-sort", !on ? "none" : sorted.down === (sorted.by === "method") ? "ascending" : "descending");
    }
    if (!place.querySelector('td[tabindex="0"]')) cellsOf(place)[0]?.setAttribute("tabindex", "0");
  }

  for (const group of groups) {
    group.querySelector("thead").addEventListener("click", (event) => {
      const title = event.target.closest(".sort");
      if (!title) return;
      sorted.down = sorted.by === title.dataset.sort ? !sorted.down : true;
      sorted.by = title.dataset.sort;
      lay();
    });
  }
  const chips = [...document.querySelectorAll("#matrix-methods .chip")];
  for (const chip of chips) {
    chip.addEventListener("click", () => {
      // The first choice shows one method alone; more can be added, and without any all are shown.
      if (hidden.size === 0) chips.forEach((one) => hidden.add(one.dataset.method));
      if (!hidden.delete(chip.dataset.method)) hidden.add(chip.dataset.method);
      if (hidden.size === chips.length) hidden.clear();
      chips.forEach((one) => one.setAttribute("aria-pressed", String(!hidden.has(one.dataset.method))));
      lay();
    });
  }
  let width = document.documentElement.clientWidth;
  window.addEventListener("resize", () => {
    if (document.documentElement.clientWidth === width) return;
    width = document.documentElement.clientWidth;
    lay();
  });
  lay();
}

function cellsOf(place) {
  return [...place.querySelectorAll("td[data-tip]")].filter((cell) => cell.checkVisibility());
}

function details(place) {
  const tip = byId("tip");
  let pinned = null;
  let shown = null;
  for (const cell of place.querySelectorAll("td[title]")) {
    cell.dataset.tip = cell.title;
    cell.removeAttribute("title");
    cell.tabIndex = -1;
  }
  cellsOf(place)[0]?.setAttribute("tabindex", "0");

  function hide() {
    shown?.removeAttribute("aria-describedby");
    shown?.classList.remove("at");
    tip.hidden = true;
    shown = pinned = null;
  }

  function show(cell, pin) {
    if (shown !== cell) hide();
    const [head, ...lines] = cell.dataset.tip.split("\n");
    tip.replaceChildren(element("p", "tip-head", head), ...lines.map((line) => element("p", "", line)));
    if (cell.dataset.task && byId("answers")) {
      const link = element("a", "", "The answers behind it");
      link.href = "#answers";
      link.dataset.recipe = cell.dataset.recipe;
      link.dataset.task = cell.dataset.task;
      tip.append(link);
    }
    shown = cell;
    pinned = pin ? cell : null;
    tip.hidden = false;
    cell.classList.add("at");
    cell.setAttribute("aria-describedby", "tip");
    beside(cell);
  }

  // Below the cell, or above it; on a narrow screen the style sheet puts it at the lower edge.
  function beside(cell) {
    const box = cell.getBoundingClientRect();
    const { offsetWidth: wide, offsetHeight: high } = tip;
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - wide - 8));
    const below = box.bottom + 6 + high <= window.innerHeight;
    tip.style.left = `${left + window.scrollX}px`;
    tip.style.top = `${(below ? box.bottom + 6 : Math.max(8, box.top - high - 6)) + window.scrollY}px`;
  }

  const cellAt = (event) => event.target.closest?.("td[data-tip]");
  place.addEventListener("pointerover", (event) => {
    const cell = cellAt(event);
    if (event.pointerType === "mouse" && !pinned) cell ? show(cell, false) : hide();
  });
  place.addEventListener("pointerleave", () => {
    if (!pinned) hide();
  });
  place.addEventListener("focusin", (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    place.querySelectorAll('td[tabindex="0"]').forEach((one) => (one.tabIndex = -1));
    cell.tabIndex = 0;
    show(cell, true);
  });
  place.addEventListener("click", (event) => {
    if (cellAt(event)) show(cellAt(event), true);
  });
  document.addEventListener("pointerdown", (event) => {
    if (pinned && !cellAt(event) && !tip.contains(event.target)) hide();
  });
  place.addEventListener("focusout", (event) => {
    if (!tip.contains(event.relatedTarget)) hide();
  });
  tip.addEventListener("click", (event) => {
    if (event.target.closest("a")) hide();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && shown) hide();
  });
  place.addEventListener("keydown", (event) => {
    const cell = cellAt(event);
    if (!cell) return;
    const to = reached(place, cell, event.key);
    if (to) {
      event.preventDefault();
      to.focus();
    } else if (event.key === "Enter") tip.querySelector("a")?.click();
  });
}

// The cell that a key leads to: left and right in its row, up and down through all rows of both groups.
function reached(place, cell, key) {
  const ofRow = (row) => [...row.cells].filter((one) => one.dataset.tip);
  const row = ofRow(cell.parentElement);
  const at = row.indexOf(cell);
  if (key === "ArrowLeft") return row[at - 1];
  if (key === "ArrowRight") return row[at + 1];
  if (key === "Home") return row[0];
  if (key === "End") return row.at(-1);
  if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
  const rows = [...place.querySelectorAll("tr.row")].filter((one) => ofRow(one).length);
  const next = rows[rows.indexOf(cell.parentElement) + (key === "ArrowDown" ? 1 : -1)];
  // Counted from the right: a name at the left may span several rows.
  const fromRight = (one) => one.parentElement.cells.length - one.cellIndex;
  return next && (ofRow(next).find((one) => fromRight(one) === fromRight(cell)) || ofRow(next)[0]);
}
