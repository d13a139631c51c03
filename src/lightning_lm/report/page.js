// The page's data, as page.py wrote it: runs with their curves, the settings to filter by, and Optuna's pictures.
const page = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = () => (dark.matches ? "dark" : "light");
const config = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};
const value = id => document.getElementById(id)?.value;
const checked = id => document.getElementById(id)?.checked;
const radio = name => document.querySelector(`input[name=${name}]:checked`)?.value;

function frame(layout) {
  const ink = page.inks[theme()], line = dark.matches ? "#3d444d" : "#d0d7de", small = innerWidth < 700;
  const axis = {gridcolor: line, linecolor: line, zeroline: false, automargin: true};
  return {
    height: small ? 420 : 460, uirevision: "same",
    margin: {l: 50, r: small ? 10 : 30, t: 20, b: 45}, hovermode: "closest",
    legend: {uirevision: "same", ...(small ? {orientation: "h", y: -0.3, maxheight: 140} : {maxheight: 400})},
    ...layout, paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    modebar: {bgcolor: "transparent", color: line, activecolor: ink}, font: {color: ink, family: "system-ui, sans-serif", size: small ? 11 : 13},
    template: {layout: {xaxis: axis, yaxis: axis}},
  };
}

// ------------------------------------------------------------------------------------------------------------ curves

function smoothed(values, share) {  // an exponential mean, without the pull of its start
  let sum = 0, weight = 0;
  return values.map(v => ((sum = share * sum + (1 - share) * v), (weight = share * weight + 1 - share), sum / weight));
}

function visible(run) {
  return page.filters.every(({name}, n) => !value(`filter-${n}`) || run.settings[name] === value(`filter-${n}`))
    && (!value("filter-status") || run.status === value("filter-status"))
    && run.label.toLowerCase().includes((value("filter-text") ?? "").toLowerCase());
}

function traces(names, objective) {
  const over = radio("over"), share = 1 - 10 ** -value("smoothing"), drawn = [], alone = page.runs.length < 2;
  for (const run of page.runs.filter(run => visible(run) && (!objective || run.objective === objective))) {
    for (const name of names.filter(name => run.curves[name])) {
      const curve = run.curves[name], training = name !== "val/loss", last = curve.values.length - 1;
      const split = names.length < 2 ? "" : training ? "training" : "validation", group = alone ? name : run.name;
      const lost = ["diverged", "failed"].includes(run.status) && training;
      const dots = curve.values.length <= (training ? 2 : 30);  // every dot costs the browser time
      drawn.push({  // Plotly makes a selector of the uid
        uid: `curve-${page.runs.indexOf(run)}-${name.replace("/", "-")}`, name: (alone && split) || run.label,
        legendgroup: group, showlegend: !drawn.some(trace => trace.legendgroup === group),
        x: curve[over], y: training ? smoothed(curve.values, share) : curve.values,
        mode: dots || lost ? "lines+markers" : "lines",
        line: {color: run[theme()], dash: run.dash, width: (training && split ? 1 : 2) + (run.best ? 1 : 0)},
        marker: {size: lost ? curve.values.map((_, n) => (n === last ? 11 : 0)) : 6, symbol: lost ? "x" : "circle"},
        hovertemplate: `%{y:.5g} at %{x}<extra>${run.label.replaceAll("<", "&lt;")} ${split}</extra>`,
        visible: true, finished: run.status === "finished",
      });
    }
  }
  return drawn;
}

function usual(drawn) {  // so that a steep start or a run that diverged doesn't flatten the rest
  const seen = drawn.filter(t => t.finished).flatMap(t => t.y).sort((a, b) => a - b);
  if (seen.length < 3) return undefined;
  const low = seen[0], top = seen.at(-1), few = seen.length < 40;  // of few the highest 3 % may be a whole start
  const high = few ? top : Math.min(top, low + 1.5 * (seen[Math.floor(0.97 * (seen.length - 1))] - low));
  return high > low ? [low - 0.04 * (high - low), high + 0.04 * (high - low)] : undefined;
}

function drawCurves() {
  if (!document.getElementById("curves")) return;
  const figure = radio("figure"), [kind, objective] = figure.split(" "), loss = kind === "loss";
  const drawn = traces(loss ? ["train/loss", "val/loss"] : [figure], objective), log = checked("log-y");
  const range = log || !loss ? undefined : usual(drawn);
  document.getElementById("cut").hidden = !range || drawn.every(t => t.y.every(height => height <= range[1]));
  const axes = {
    xaxis: {title: {text: page.over[radio("over")]}, type: checked("log-x") ? "log" : "linear"},
    yaxis: {title: {text: page.figures[figure]}, type: log ? "log" : "linear", ...(range ? {range} : {autorange: true})},
  };
  const view = [radio("over"), figure, checked("log-x"), log].join();
  Plotly.react("curves", drawn, frame({...axes, uirevision: view, showlegend: true}), config);
}

function filterRows() {
  const shown = new Set(page.runs.filter(visible).map(run => run.name));
  for (const row of document.querySelectorAll("tr[data-run]")) row.hidden = !shown.has(row.dataset.run);
  const count = document.getElementById("filter-count");
  if (count) count.textContent = `${shown.size} of ${page.runs.length} runs`;
}

// ------------------------------------------------------------------------------------------------------------ search

function drawSearch() {
  if (!document.getElementById("search")) return;
  const {data, layout} = structuredClone(page.search[radio("search")]);
  for (const bar of data.flatMap(t => [t.colorbar, t.marker?.colorbar, t.line?.colorbar]).filter(Boolean))
    Object.assign(bar, {thickness: 12, title: {...bar.title, side: "right"}});
  const framed = frame(layout), ours = ["map", "averaging time"].includes(radio("search"));
  if (dark.matches && !ours) {  // Optuna's colours are those of a light page
    framed.plot_bgcolor = page.inks.dark;
    framed.template.layout.xaxis.gridcolor = framed.template.layout.yaxis.gridcolor = "#d0d7de";
  }
  Plotly.newPlot("search", data, framed, config);  // anew, since a picture must not take over the axes of another
}

// ------------------------------------------------------------------------------------------------------------ tables

for (const table of document.querySelectorAll("table.sortable"))
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.innerHTML = `<button>${head.innerHTML}</button>`;
    head.firstChild.onclick = () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.querySelectorAll("th").forEach(th => th.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const cell = row => row.cells[column].dataset.value;
      const compare = (a, b) => a - b || (isNaN(a - b) ? a.localeCompare(b, "en", {numeric: true}) : 0);
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {  // what is missing stays last
        const [x, y] = [cell(a), cell(b)];
        return x === "" || y === "" ? (x === "") - (y === "") : (up ? 1 : -1) * compare(x, y);
      });
      table.tBodies[0].append(...rows);
    };
  });

// ------------------------------------------------------------------------------------- a page that loads itself again

const controls = () => [...document.querySelectorAll("input, select")];
const key = control => (control.type === "radio" ? `${control.name} ${control.value}` : control.id);
const state = control => (["radio", "checkbox"].includes(control.type) ? "checked" : "value");
const heads = () => [...document.querySelectorAll("table.sortable")].flatMap((table, n) =>
  [...table.querySelectorAll("thead th")].map(head => [`${n} ${head.textContent}`, head]));

function keepChoices() {
  const chosen = Object.fromEntries(controls().map(control => [key(control), control[state(control)]]));
  const sorted = Object.fromEntries(heads().map(([name, head]) => [name, head.getAttribute("aria-sort")]));
  const open = [...document.querySelectorAll("details")].map(details => details.open);
  history.replaceState({chosen, sorted, open}, "");
}

function restoreChoices({chosen, sorted, open}) {
  for (const control of controls()) if (key(control) in chosen) control[state(control)] = chosen[key(control)];
  for (const select of document.querySelectorAll("select")) if (select.selectedIndex < 0) select.selectedIndex = 0;
  for (const [name, head] of heads())
    for (let click = 0; click < {ascending: 1, descending: 2}[sorted[name]]; click++) head.firstChild.click();
  document.querySelectorAll("details").forEach((details, n) => { details.open = open[n]; });
  history.replaceState(null, "");
}

if (page.refresh) {
  let timer;
  const later = () => {  // nobody is interrupted in the middle of what they do
    clearTimeout(timer);
    timer = setTimeout(() => { keepChoices(); location.reload(); }, page.refresh * 1000);
  };
  for (const kind of ["input", "keydown", "pointerdown", "focusin"]) document.addEventListener(kind, later);
  later();
}
if (history.state) restoreChoices(history.state);

function draw() { drawSearch(); drawCurves(); filterRows(); }
document.addEventListener("input", event => (event.target.name === "search" ? drawSearch() : (drawCurves(), filterRows())));
dark.addEventListener("change", draw);
draw();
