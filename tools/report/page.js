// Shows what is in the block of JSON: charts, tables, and rollouts to look through.
// Text from a run goes into the page by textContent alone, so nothing of it is read as HTML.
const content = JSON.parse(document.getElementById("content").textContent);
const PAGE_SIZE = 25;

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return made;
}

function cell(value, isNumber = false, extra = "") {
  return element("td", { class: `${isNumber ? "number" : ""} ${extra}` }, value);
}

function number(value, digits = 2) {
  return value === null || value === undefined ? "-" : Number(value).toFixed(digits);
}

// --- charts ---

function rowsOf(columns) {
  const names = Object.keys(columns);
  return columns[names[0]].map((_, place) =>
    Object.fromEntries(names.map((name) => [name, columns[name][place]])));
}

function drawChart(place, chart) {
  const spec = { ...chart.spec, data: { values: rowsOf(chart.columns) } };
  const config = {
    font: "system-ui, sans-serif", view: { stroke: null },
    axis: { labelColor: "#5b6b7b", titleColor: "#5b6b7b", titleFontWeight: "normal", gridColor: "#e8edf2" },
  };
  return window.vegaEmbed(place, spec, {
    mode: "vega-lite", actions: false, renderer: "svg", config,
  });
}

async function drawSections() {
  const contents = document.getElementById("contents");
  const charts = document.getElementById("charts");
  const drawn = [];
  content.sections.forEach((section, index) => {
    contents.append(element("a", { href: `#section-${index}` }, section.title));
    const grid = element("div", { class: "charts" });
    for (const chart of section.charts) {
      const place = element("div", { class: "chart" });
      grid.append(element("figure", {}, element("figcaption", {}, chart.title), place));
      drawn.push([place, chart]);
    }
    charts.append(element("section", { id: `section-${index}` },
      element("h2", {}, section.title), grid));
  });
  contents.append(element("a", { href: "#rollouts" }, "What was written"));
  for (const [place, chart] of drawn) await drawChart(place, chart);
  document.body.dataset.charts = drawn.length;
}

function drawLegend() {
  const legend = document.getElementById("legend");
  content.colours.domain.forEach((label, place) => {
    const line = element("span", {}, label);
    line.style.setProperty("--colour", content.colours.range[place]);
    legend.append(line);
  });
}

function drawTables() {
  for (const table of content.tables) {
    const rows = table.rows.map((row) => element("tr", {}, ...row.map((value) => cell(value))));
    document.getElementById("tables").append(
      element("h2", {}, table.title),
      element("div", { class: "scroll" }, element("table", {},
        element("thead", {}, element("tr", {},
          ...table.columns.map((name) => element("th", {}, name)))),
        element("tbody", {}, ...rows))));
  }
}

// --- rollouts ---

const rollouts = content.groups.flatMap((group) =>
  group.completions.map((completion) => ({ group, completion })));

// A filter: what it is called, how it is entered, and which rollouts pass.
const FILTERS = [
  ["run", "select", (rollout, value) => content.runs[rollout.group.run] === value],
  ["step", "select", (rollout, value) => String(rollout.group.step) === value],
  ["language", "select", (rollout, value) => rollout.group.language === value],
  ["level", "select", (rollout, value) => String(rollout.group.level) === value],
  ["kept", "select", (rollout, value) => (rollout.group.kept ? "yes" : "no") === value],
  ["reward from", "number", (rollout, value) => rollout.completion.reward >= Number(value)],
  ["reward to", "number", (rollout, value) =>
    rollout.completion.reward !== null && rollout.completion.reward <= Number(value)],
  ["text", "search", (rollout, value) =>
    [...rollout.group.context.flatMap(({ pieces }) => [...pieces, " "]),
      ...rollout.group.prompt, " ", ...rollout.completion.pieces].join("").includes(value)],
];
const OPTIONS = {
  run: () => content.runs,
  step: () => distinct((group) => group.step),
  language: () => distinct((group) => group.language),
  level: () => distinct((group) => group.level),
  kept: () => ["yes", "no"],
};

function distinct(read) {
  const values = [...new Set(content.groups.map(read))];
  return values.sort((a, b) => (typeof a === "number" ? a - b : String(a).localeCompare(b)));
}

const chosen = new URLSearchParams(location.hash.slice(1));
let pageNumber = 0;

function drawFilters() {
  const form = document.getElementById("filters");
  for (const [name, kind] of FILTERS) {
    let input;
    if (kind === "select") {
      const options = ["", ...OPTIONS[name]()].map((value) =>
        element("option", { value }, value === "" ? "all" : value));
      input = element("select", { name }, ...options);
    } else {
      input = element("input", { name, type: kind, step: "any" });
    }
    input.value = chosen.get(name) ?? "";
    input.addEventListener("input", () => {
      if (input.value === "") chosen.delete(name);
      else chosen.set(name, input.value);
      // The address holds the choice, so that it can be passed on.
      history.replaceState(null, "", `#${chosen}`);
      pageNumber = 0;
      drawList();
    });
    if (name !== "run" || content.runs.length > 1) {
      form.append(element("label", {}, name, input));
    }
  }
  form.addEventListener("submit", (event) => event.preventDefault());
}

function passing() {
  const used = FILTERS.filter(([name]) => chosen.get(name));
  return rollouts.filter((rollout) =>
    used.every(([name, , passes]) => passes(rollout, chosen.get(name))));
}

function drawList() {
  const found = passing();
  const shown = found.slice(pageNumber * PAGE_SIZE, (pageNumber + 1) * PAGE_SIZE);
  const left = content.written > content.groups.length
    ? ` The page has room for ${content.groups.length} of the ${content.written} groups.` : "";
  document.getElementById("count").textContent =
    `${found.length} of ${rollouts.length} completions.${left}`;
  const manyRuns = content.runs.length > 1;
  const head = element("tr", {},
    element("th", {}, "step"), ...(manyRuns ? [element("th", { class: "wide" }, "run")] : []),
    element("th", {}, "language"), element("th", { class: "number wide" }, "level"),
    element("th", {}, "kept"), element("th", { class: "number" }, "reward"),
    element("th", { class: "number wide" }, "advantage"),
    element("th", { class: "number wide" }, "tokens"), element("th", {}, "completion"));
  document.querySelector("#list thead").replaceChildren(head);
  document.querySelector("#list tbody").replaceChildren(
    ...shown.map((rollout) => row(rollout, manyRuns)));
  drawPages(found.length);
}

function row({ group, completion }, manyRuns) {
  const text = completion.pieces.join("").slice(0, 160);
  const open = element("button", { type: "button", "aria-expanded": "false" }, group.step);
  const made = element("tr", { class: "row" }, cell(open),
    ...(manyRuns ? [cell(content.runs[group.run], false, "wide")] : []),
    cell(group.language), cell(group.level || "-", true, "wide"), cell(group.kept ? "yes" : "no"),
    cell(number(completion.reward), true), cell(number(completion.advantage), true, "wide"),
    cell(completion.tokens ?? "-", true, "wide"),
    element("td", { class: "start" }, element("div", {}, text)));
  made.addEventListener("click", () => {
    const isOpen = open.getAttribute("aria-expanded") === "true";
    open.setAttribute("aria-expanded", String(!isOpen));
    if (isOpen) made.nextElementSibling.remove();
    else {
      const place = element("td", { colspan: made.children.length });
      showDetail(place, group, completion);
      made.after(element("tr", {}, place));
    }
  });
  return made;
}

// Pieces are in turn words of the language and foreign ones.
function marked(pieces) {
  return element("pre", { dir: "auto" },
    ...pieces.map((piece, place) => (place % 2 ? element("mark", {}, piece) : piece)));
}

function showDetail(place, group, completion) {
  const facts = {
    problem: group.id, "pass rate": `${group.solved}/${group.judged}`,
    answer: group.answer, read: completion.read ?? "-", reward: number(completion.reward, 3),
    advantage: number(completion.advantage, 3), tokens: completion.tokens ?? "-",
    ended: completion.finished === undefined ? "-" : completion.finished ? "by itself" : "cut off",
  };
  for (const [name, value] of Object.entries(completion.rewards ?? {})) {
    facts[`reward ${name}`] = number(value, 3);
  }
  const list = element("dl", {}, ...Object.entries(facts).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  const samples = element("p", { class: "samples" }, ...group.completions.map((other, index) => {
    const button = element("button",
      { type: "button", "aria-current": String(other === completion) },
      `${(other.sample ?? index) + 1}: ${number(other.reward)}`);
    button.addEventListener("click", () => showDetail(place, group, other));
    return button;
  }));
  place.replaceChildren(element("div", { class: "detail" },
    ...group.context.flatMap(({ role, pieces }) => [element("h3", {}, role), marked(pieces)]),
    element("h3", {}, "prompt"), marked(group.prompt), element("h3", {}, "completion"),
    marked(completion.pieces), list,
    element("h3", {}, "completions of this prompt, and their rewards"), samples));
}

function drawPages(count) {
  const last = Math.max(0, Math.ceil(count / PAGE_SIZE) - 1);
  const go = (label, to) => {
    const button = element("button", { type: "button" }, label);
    button.disabled = to < 0 || to > last;
    button.addEventListener("click", () => { pageNumber = to; drawList(); });
    return button;
  };
  document.getElementById("pages").replaceChildren(
    go("back", pageNumber - 1), go("on", pageNumber + 1), `page ${pageNumber + 1} of ${last + 1}`);
}

document.getElementById("title").textContent = content.title;
drawLegend();
drawTables();
if (rollouts.length) {
  drawFilters();
  drawList();
  if (chosen.has("open")) document.querySelector("#list tr.row")?.click();
} else {
  document.getElementById("rollouts").textContent = "No completions were written.";
}
drawSections();
