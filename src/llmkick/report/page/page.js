// What the other parts share. Data reach the page as text only, never as markup.
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

async function inflated(base64) {
  const signs = atob(base64);
  const bytes = new Uint8Array(signs.length);
  for (let i = 0; i < signs.length; i += 1) bytes[i] = signs.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).json();
}

async function load(name) {
  const value = JSON.parse(byId(`data-${name}`).textContent);
  return typeof value.deflated === "string" ? inflated(value.deflated) : value;
}

function save(content, type, name) {
  const link = element("a");
  link.href = typeof content === "string" && content.startsWith("data:") ? content : URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  if (link.href.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// A field that a spreadsheet would take for a formula is left as text.
function csvField(value) {
  if (value === null || value === undefined) return "";
  const text = String(value);
  const safe = typeof value === "string" && /^[=+@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function csv({ columns, rows }) {
  return [columns, ...rows].map((row) => row.map(csvField).join(",")).join("\n") + "\n";
}

function shownNumber(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toPrecision(4))) : String(value);
}

// The numbers of a figure as a table: for a screen reader, a phone, or whoever wants to copy them.
function tableOf({ columns, rows }, title) {
  const table = element("table", "plain");
  const head = element("tr");
  for (const column of columns) {
    const cell = element("th", "", column.replaceAll("_", " "));
    cell.scope = "col";
    head.append(cell);
  }
  table.append(element("caption", "hidden", title), element("thead"), element("tbody"));
  table.tHead.append(head);
  for (const row of rows) {
    const line = element("tr");
    row.forEach((value) => line.append(foreign("td", typeof value === "number" ? "num" : "", shownNumber(value))));
    table.tBodies[0].append(line);
  }
  return table;
}

function button(text, label, act) {
  const made = element("button", "small-button", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}

function failed(place) {
  return (error) => {
    byId(place).prepend(element("p", "warning", `This part of the page could not be drawn: ${error.message}`));
    console.error(error);
  };
}
