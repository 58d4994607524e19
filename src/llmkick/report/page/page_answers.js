// ---- Answers: questions with what both models said, filtered, from this page or from the files beside it.
const PAGE = 10;
const OUTCOMES = [
  ["lost", "✗ lost", (dense, other) => other < dense],
  ["gained", "✓ gained", (dense, other) => other > dense],
  ["right", "both right", (dense, other) => dense === other && dense === 1],
  ["wrong", "both wrong", (dense, other) => dense === other && dense === 0],
  ["same", "same score", (dense, other) => dense === other && dense !== 0 && dense !== 1],
  ["unscored", "… unscored", () => false],
];

// Of a recovered model, beside its base: what compression lost may have returned.
const WAYS = [
  ["returned", "↩ returned", (dense, base, other) => base < dense && other > base],
  ["newly", "✗ newly lost", (dense, base, other) => base >= dense && other < dense],
  ["still", "✗ still lost", (dense, base, other) => base < dense && other < dense],
];
const KINDS = [...WAYS, ...OUTCOMES];

function outcomeOf(dense, base, other) {
  if (dense === null || base === null || other === null) return "unscored";
  const way = base !== undefined && WAYS.find(([, , holds]) => holds(dense, base, other));
  return (way || OUTCOMES.find(([, , holds]) => holds(dense, other)))[0];
}

function judged(score) {
  if (score === null) return "… no score";
  if (score === 1) return "✓ right";
  return score === 0 ? "✗ wrong" : `score ${score.toFixed(2)}`;
}

// Files beside the page are scripts that call this: a page opened from a disk may read nothing else.
const awaited = new Map();
window.kickItems = (build, name, content) => {
  awaited.get(name)?.(build, content);
  awaited.delete(name);
};

async function isWhole(content, expected) {
  if (!window.crypto?.subtle) return true;
  const hash = await window.crypto.subtle.digest("SHA-256", new TextEncoder().encode(content));
  return btoa(String.fromCharCode(...new Uint8Array(hash))) === expected;
}

function fromBeside(beside, name) {
  return new Promise((resolve, reject) => {
    const script = element("script");
    awaited.set(name, async (build, content) => {
      if (build !== beside.build) reject(new Error(`${beside.folder} belongs to another report`));
      else if (!(await isWhole(content, beside.files[name]))) reject(new Error(`${name}.js is damaged`));
      else resolve(inflated(content));
    });
    script.nonce = beside.build;
    script.src = `${beside.folder}/${name}.js`;
    script.onload = () => awaited.delete(name) && reject(new Error(`${beside.folder}/${name}.js is empty`));
    script.onerror = () => reject(new Error(`${beside.folder}/${name}.js is not beside this page`));
    document.body.append(script);
  });
}

// The questions of a task and the answers of the dense model and one other, each with its table of texts.
function sourceOf(data) {
  const cache = new Map();
  const beside = (name) => {
    if (!cache.has(name)) {
      if (cache.size > 12) cache.delete(cache.keys().next().value);
      cache.set(name, fromBeside(data.beside, name));
    }
    return cache.get(name);
  };
  const inside = (number, variant) => {
    const task = data.tasks[number];
    const part = (answers) => answers && { answers, texts: data.texts };
    return {
      items: { items: task.items, texts: data.texts },
      dense: part(task.answers[0]),
      base: part(task.answers[data.variants[variant].base]),
      other: part(task.answers[variant]),
      total: task.total,
      problem: "",
    };
  };
  return {
    async parts(number, variant) {
      const here = inside(number, variant);
      if (!data.beside || !here.dense || !here.other) return here;
      try {
        const names = [`${number}-items`, `${number}-0`, `${number}-${variant}`];
        if (here.base) names.push(`${number}-${data.variants[variant].base}`);
        const [items, dense, other, base] = await Promise.all(names.map(beside));
        return { ...here, items, dense, base, other };
      } catch (error) {
        return { ...here, problem: error.message };
      }
    },
    async prompt(number, id) {
      let held = data.tasks[number].prompts;
      const name = `${number}-prompts`;
      if (!held.of[id] && data.beside && data.beside.files[name]) held = await beside(name);
      const found = held.of[id];
      if (!found) return null;
      const [base, head, tail, middle] = found;
      if (base < 0) return JSON.parse(held.texts[middle]);
      const whole = held.texts[base];
      return JSON.parse(whole.slice(0, head) + held.texts[middle] + whole.slice(whole.length - tail));
    },
  };
}

function rowsOf({ items, dense, base, other }) {
  if (!dense || !other) return [];
  const text = (part, place) => (place < 0 ? "" : part.texts[place]);
  const cut = [dense, other, ...(base ? [base] : [])].map((part) => new Set(part.answers[3]));
  const given = (part, i, which) => ({
    text: text(part, part.answers[0][i]),
    score: part.answers[1][i],
    reason: text(part, part.answers[2][i]),
    cut: cut[which].has(i),
  });
  return items.items.map(([id, cluster, question, context, references, choices], i) => ({
    id,
    cluster: text(items, cluster),
    question: text(items, question),
    context: text(items, context),
    references: references.map((place) => text(items, place)),
    choices: choices.map((place) => text(items, place)),
    outcome: outcomeOf(dense.answers[1][i], base?.answers[1][i], other.answers[1][i]),
    dense: given(dense, i, 0),
    base: base && given(base, i, 2),
    other: given(other, i, 1),
  }));
}

// Which words of two texts are not in the other: the longest common subsequence, of texts that are not too long.
function differing(one, two) {
  const words = [one, two].map((text) => text.match(/\s+|[\p{L}\p{N}]+|[^\s\p{L}\p{N}]/gu) || []);
  const [a, b] = words;
  if (a.length > 700 || b.length > 700) return words.map((list) => list.map((word) => [word, false]));
  const width = b.length + 1;
  const best = new Uint16Array((a.length + 1) * width);
  for (let i = a.length - 1; i >= 0; i -= 1) {
    for (let j = b.length - 1; j >= 0; j -= 1) {
      best[i * width + j] =
        a[i] === b[j] ? best[(i + 1) * width + j + 1] + 1 : Math.max(best[(i + 1) * width + j], best[i * width + j + 1]);
    }
  }
  const marked = words.map((list) => list.map((word) => [word, word.trim() !== ""]));
  for (let i = 0, j = 0; i < a.length && j < b.length; ) {
    if (a[i] === b[j]) {
      marked[0][i][1] = marked[1][j][1] = false;
      i += 1;
      j += 1;
    } else if (best[(i + 1) * width + j] >= best[i * width + j + 1]) i += 1;
    else j += 1;
  }
  return marked;
}

function withMarks(target, pieces) {
  for (let i = 0; i < pieces.length; ) {
    const [, isMarked] = pieces[i];
    let end = i;
    // White space between two marked words belongs to the mark.
    while (end < pieces.length && (pieces[end][1] === isMarked || (isMarked && pieces[end][0].trim() === "" && pieces[end + 1]?.[1]))) end += 1;
    const text = pieces.slice(i, end).map(([word]) => word).join("");
    target.append(isMarked ? element("mark", "", text) : text);
    i = end;
  }
}

function answerBox(name, given, pieces) {
  const box = element("div", `answer ${given.score === 1 ? "right" : given.score === 0 ? "wrong" : ""}`);
  const head = element("h4", "", name);
  head.append(element("span", "", judged(given.score)));
  box.append(head);
  const text = foreign("p", "answer-text", "");
  if (given.text) {
    if (pieces) withMarks(text, pieces);
    else text.textContent = given.text;
    box.append(text);
  } else if (!given.reason) box.append(element("p", "answer-text empty", "(nothing)"));
  if (given.reason) box.append(foreign("p", "answer-text empty", given.reason));
  if (given.cut) box.append(element("p", "small", "cut at the limit of new tokens"));
  return box;
}

function promptBox(asked) {
  const box = element("div", "passage");
  if (!asked) {
    box.textContent = "This run's journal does not hold its prompts.";
    return box;
  }
  const turns = typeof asked.prompt === "string" ? [["raw text", asked.prompt]] : asked.prompt;
  for (const [role, text] of turns) box.append(element("p", "role", role), foreign("p", "turn", text));
  if (asked.continuations) {
    box.append(element("p", "role", "scored, each on its own"));
    const list = element("ul", "continuations");
    for (const one of asked.continuations) list.append(foreign("li", "", JSON.stringify(one)));
    box.append(list);
  } else {
    const stops = asked.stops.length ? `, stopped by ${asked.stops.map((one) => JSON.stringify(one)).join(", ")}` : "";
    box.append(element("p", "role", `generated: at most ${asked.max_new_tokens} tokens${stops}`));
  }
  return box;
}

function shownItem(row, [name, base], marksWanted, promptOf) {
  const entry = element("li");
  const head = element("div", "item-head");
  const title = KINDS.find(([outcome]) => outcome === row.outcome)[1];
  head.append(element("span", `tag ${row.outcome}`, title), foreign("span", "", row.cluster), element("code", "", row.id));
  entry.append(head, foreign("p", "question", row.question));
  if (row.choices.length) {
    const options = element("ul", "choices");
    row.choices.forEach((choice, i) => {
      const isRight = row.references.includes(choice);
      const option = element("li", isRight ? "right" : "", `${String.fromCharCode(65 + i)}. `);
      option.append(foreign("bdi", "", choice), isRight ? " ✓ reference" : "");
      options.append(option);
    });
    entry.append(options);
  } else if (row.references.length) {
    const reference = element("p", "reference", "Reference: ");
    row.references.forEach((one, i) => reference.append(i ? ", or " : "", foreign("bdi", "", one)));
    entry.append(reference);
  }
  const more = element("div", "more-of-item");
  if (row.context) {
    const passage = element("details");
    passage.append(element("summary", "", "Passage"), foreign("p", "passage", row.context));
    more.append(passage);
  }
  const prompt = element("details", "prompt");
  prompt.append(element("summary", "", "Prompt"));
  prompt.addEventListener("toggle", async () => {
    if (prompt.open && !prompt.querySelector(".passage")) prompt.append(promptBox(await promptOf(row.id).catch(() => null)));
  });
  more.append(prompt);
  const pieces = marksWanted && row.dense.text && row.other.text ? differing(row.dense.text, row.other.text) : [];
  const pair = element("div", row.base ? "pair three" : "pair");
  pair.append(answerBox("dense", row.dense, pieces[0]));
  if (row.base) pair.append(answerBox(base, row.base));
  pair.append(answerBox(name, row.other, pieces[1]));
  entry.append(pair, more);
  return entry;
}

function offerOutcomes(box, all, wanted) {
  const count = Object.fromEntries(KINDS.map(([name]) => [name, all.filter((row) => row.outcome === name).length]));
  const offered = [
    ...KINDS.filter(([name]) => count[name]).map(([name, title]) => [name, title, count[name]]),
    ["all", "all", all.length],
  ];
  const chosen = offered.some(([name]) => name === wanted) ? wanted : "all";
  box.replaceChildren(box.firstElementChild);
  for (const [name, title, number] of offered) {
    const label = element("label", "choice");
    const input = element("input");
    Object.assign(input, { type: "radio", name: "outcome", value: name, checked: name === chosen });
    label.append(input, ` ${title} ${number.toLocaleString("en")}`);
    box.append(label);
  }
}

function offerClusters(select, all) {
  const wanted = select.value;
  const names = [...new Set(all.map((row) => row.cluster))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  select.replaceChildren(new Option("all", ""), ...names.map((name) => new Option(name, name)));
  select.value = names.includes(wanted) ? wanted : "";
  select.closest("label").hidden = names.length < 2;
}

function fits(row, words) {
  if (!words.length) return true;
  const hay = [row.id, row.cluster, row.question, ...row.references, ...row.choices, row.dense.text, row.other.text];
  if (row.base) hay.push(row.base.text);
  const joined = hay.join("\n").toLowerCase();
  return words.every((word) => joined.includes(word));
}

async function answers() {
  const data = await load("answers");
  const [form, list, status] = ["answers-form", "answers-list", "answers-status"].map(byId);
  const [task, variant, cluster, search, marks] = ["task", "variant", "cluster", "search", "marks"].map((name) => byId(`answers-${name}`));
  if (!data.tasks.length || data.variants.length < 2) {
    form.hidden = true;
    status.textContent = "This study asked no questions of a compressed model, or they could not be read.";
    return;
  }
  data.tasks.forEach((one, i) => task.append(new Option(one.name, i)));
  data.variants.forEach((one, i) => i && variant.append(new Option(one.label, i)));
  const source = sourceOf(data);
  let page = 0;
  let shown = { all: [], problem: "", total: 0 };
  let turn = 0;

  async function choosePair(wanted) {
    turn += 1;
    const mine = turn;
    if (data.beside) status.textContent = "Reading the answers …";
    const parts = await source.parts(Number(task.value), Number(variant.value));
    if (mine !== turn) return;
    shown = { all: rowsOf(parts), problem: parts.problem, total: parts.total };
    const checked = form.querySelector("input[name=outcome]:checked");
    // A filter of recovered models says nothing of others, and the other way round.
    const isRecovered = data.variants[variant.value].base !== undefined;
    const stays = checked && (isRecovered ? checked.value !== "lost" : WAYS.every(([name]) => name !== checked.value));
    offerOutcomes(byId("answers-outcome"), shown.all, wanted || (stays ? checked.value : isRecovered ? "returned" : "lost"));
    offerClusters(cluster, shown.all);
    show();
  }

  function show() {
    const { all, problem, total } = shown;
    const wanted = form.querySelector("input[name=outcome]:checked").value;
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = all.filter(
      (row) => (wanted === "all" || row.outcome === wanted) && (!cluster.value || row.cluster === cluster.value) && fits(row, words),
    );
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const chosen = data.variants[variant.value];
    const names = [chosen.label, data.variants[chosen.base]?.label];
    const promptOf = (id) => source.prompt(Number(task.value), id);
    list.replaceChildren(...found.slice(page * PAGE, (page + 1) * PAGE).map((row) => shownItem(row, names, marks.checked, promptOf)));
    const part = all.length < total ? ` (a sample of ${total.toLocaleString("en")}${problem ? `: ${problem}` : ""})` : "";
    const asked = `${all.length.toLocaleString("en")} questions${part}`;
    status.textContent = found.length ? `${found.length.toLocaleString("en")} of ${asked}` : `No question fits these filters, of ${asked}.`;
    byId("answers-pages").hidden = pages === 1;
    byId("answers-page").textContent = `page ${page + 1} of ${pages}`;
    byId("answers-previous").disabled = page === 0;
    byId("answers-next").disabled = page === pages - 1;
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
    if (event.target === task || event.target === variant) choosePair();
    else show();
  });
  const step = (by) => () => {
    page += by;
    show();
    byId("answers-title").scrollIntoView();
  };
  byId("answers-previous").addEventListener("click", step(-1));
  byId("answers-next").addEventListener("click", step(1));
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-task]");
    if (!link) return;
    page = 0;
    search.value = "";
    cluster.value = "";
    choose(link.dataset.recipe, link.dataset.task);
    choosePair(link.dataset.outcome);
  });
  await choosePair();
}
