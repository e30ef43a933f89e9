"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const PAGE = 700; // pixels of a printed page, A4 or letter
  const printing = () => document.documentElement.classList.contains("printing");
  const wide = () => printing() ? PAGE : innerWidth;
  const narrow = () => wide() < 600;
  const config = { displayModeBar: false, responsive: true, scrollZoom: false };
  const scale = () => [[0, colour("map-low")], [0.5, colour("map-mid")], [1, colour("map-high")]];
  const ORDER = ["accent", "bad", "good", "other", "gold", "soft", "ink"];
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const webgl = (() => {
    try { return !!document.createElement("canvas").getContext("webgl"); } catch { return false; }
  })();
  const metric = data.metric, percent = metric.unit === "percent", maximize = metric.direction === "maximize";
  const unit = percent || !metric.unit ? "" : ` ${metric.unit}`;
  const shown = (value) => value === null || value === undefined ? "" :
    percent ? `${(100 * value).toFixed(2)}%` : `${+value.toPrecision(5)}${unit}`;
  // Plotly takes signs of markup in labels for markup.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const label = (what = "") => plain(`${what} ${percent ? metric.name : metric.axis}`.trim());
  // Of a narrow range whole tenths would be said twice.
  const ticks = (range = 1) => percent ? { tickformat: range < 0.01 ? ".2%" : ".1%" } : { exponentformat: "power" };

  function layout(more) {
    const axis = { gridcolor: colour("line"), zeroline: false, linecolor: colour("line"), ticks: "", automargin: true };
    const made = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: narrow() ? false : "zoom",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: colour("soft") },
      margin: { l: 52, r: 12, t: 12, b: 44 }, hovermode: "closest",
      hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12.5 } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: colour("ink") } },
    };
    for (const [key, value] of Object.entries(more)) {
      if (/^[xy]axis/.test(key)) made[key] = { ...axis, ...value, title: { font: { size: 12.5 }, ...value.title } };
      else made[key] = Array.isArray(value) ? value : { ...made[key], ...value };
    }
    return made;
  }
  const drawn = [];
  function chart(id, make) {
    const place = at(id);
    if (!place) return;
    const draw = () => { 
      const [traces, rest] = make(), made = layout(rest);
      const size = printing() ? { width: PAGE, height: place.clientHeight } : { autosize: true };
      return Plotly.react(place, traces, { ...made, ...size }, config);
    };
    drawn.push(draw);
    return draw();
  }
  // Values beyond an axis stand at its edge.
  const clamp = (value, from) => value === null || from === null ? value :
    maximize ? Math.max(value, from) : Math.min(value, from);
  function span(values, from) {
    const all = values.filter((v) => v !== null && v !== undefined);
    if (!all.length) return undefined;
    const ends = [Math.min(...all, from ?? Infinity), Math.max(...all, from ?? -Infinity)];
    const room = 0.06 * (ends[1] - ends[0] || 0.01 * Math.abs(ends[0]) || 0.01);
    return [ends[0] - room, ends[1] + room];
  }

  // --- progress
  const P = data.progress;
  const KINDS = [["acquisition", "circle", "accent"], ["strategy", "circle", "accent"], ["baseline", "diamond", "gold"],
    ["random", "square", "other"], ["enqueued", "star", "good"]];
  if (P) chart("chart-progress", () => {
    const traces = [];
    const point = (pick, more, value) => {
      const where = P.number.map((_, i) => i).filter(pick);
      if (!where.length) return;
      traces.push({ type: "scatter", mode: "markers", x: where.map((i) => P.number[i]), y: where.map(value),
        text: where.map((i) => `trial ${P.number[i]}: ${P.text[i] || "no function"}<br>${shown(P.value[i]) || shown(P.last[i])} ${P.state[i]}`),
        hoverinfo: "text", ...more });
    };
    for (const [by, symbol, name] of KINDS) {
      point((i) => P.state[i] === "complete" && P.by[i] === by, { name: by, marker: { symbol, size: 8, color: colour(name) } },
        (i) => clamp(P.value[i], P.from));
    }
    point((i) => P.state[i] === "diverged", { name: "diverged", marker: { symbol: "x", size: 8, color: colour("bad") } },
      (i) => P.from ?? P.value[i]);
    point((i) => P.state[i] === "pruned", { name: "pruned", marker: { symbol: "triangle-down-open", size: 8, color: colour("soft") } },
      (i) => clamp(P.last[i], P.from) ?? P.from);
    traces.push({ type: "scatter", mode: "lines", name: "best so far", x: P.number, y: P.best, hoverinfo: "skip",
      line: { shape: "hv", color: colour("ink"), width: 1.6 } });
    Object.entries(P.lines).forEach(([text, value], k) => traces.push({ type: "scatter", mode: "lines", name: text,
      x: [P.number[0], P.number[P.number.length - 1]], y: [value, value], hoverinfo: "name",
      line: { color: colour("soft"), width: 1.2, dash: DASHES[k + 1] } }));
    const values = P.value.map((v, i) => P.state[i] === "complete" ? clamp(v, P.from) : null);
    return [traces, { xaxis: { title: { text: "trial" }, showgrid: false },
      yaxis: { title: { text: label() }, range: span(values, P.from), ...ticks() } }];
  });

  // --- map
  const M = data.map;
  if (M && at("chart-map")) {
    const bytes = Uint8Array.from(atob(M.curves), (c) => c.charCodeAt(0));
    const lower = M.text.map((text) => text.replace(/\s/g, "").toLowerCase());
    const state = { colour: at("map-colour").value, place: 0, until: Infinity, found: [], pinned: null };
    const plain = webgl ? "scattergl" : "scatter";

    function graph(i, width = 200, height = 130) {
      const row = bytes.subarray(i * M.points, (i + 1) * M.points);
      const [low, high] = [M.low[i], M.high[i]];
      const y = (v) => 6 + (height - 12) * (1 - v / 250);
      let path = "", pen = false, last = null;
      row.forEach((code, k) => {
        if (code === 255) { pen = false; return; }
        const v = code === 251 ? -60 : code === 252 ? 310 : code;
        if (last !== null && ((last === 251 && code === 252) || (last === 252 && code === 251))) pen = false;
        path += `${pen ? "L" : "M"}${(width * k / (M.points - 1)).toFixed(1)} ${y(v).toFixed(1)}`;
        pen = true; last = code;
      });
      const zero = low < 0 && high > 0 ? `M0 ${y(250 * -low / (high - low)).toFixed(1)}H${width}` : "";
      return `<svg class="graph" viewBox="0 0 ${width} ${height}"><path d="M${width / 2} 0V${height}${zero}" fill="none" stroke="currentColor" stroke-opacity=".25"/><path class="curve" d="${path}" fill="none" stroke-width="2" stroke-linejoin="round"/></svg>`;
    }
    function card(i) {
      const tried = M.trials[state.place].filter(([, position]) => position === i);
      const rows = [];
      for (const [number, , value, how] of tried) rows.push([`trial ${number}`, how === "complete" ? shown(value) : how]);
      const row = (list) => list[state.place] ?? null;
      if (row(M.median)) rows.push(["predicted", shown(M.median[state.place][i])]);
      if (row(M.deviation)) rows.push(["uncertainty", "±" + (M.unit !== "objective" ? M.deviation[state.place][i] :
        percent ? `${(100 * M.deviation[state.place][i]).toFixed(2)} points` : shown(M.deviation[state.place][i]))]);
      rows.push(["from, to", `${M.low[i]}, ${M.high[i]}`]);
      const side = document.createElement("div");
      const text = document.createElement("code");
      text.textContent = M.text[i];
      const list = document.createElement("dl");
      for (const [name, value] of rows) {
        const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
        dt.textContent = name; dd.textContent = value; list.append(dt, dd);
      }
      side.append(text, list);
      const box = at("map-card");
      box.innerHTML = graph(i);
      box.append(side);
      box.dataset.index = i;
    }
    function bounds(values) {
      const all = values.filter((v) => v !== null).sort((a, b) => a - b);
      return all.length ? [all[0], all[all.length - 1]] : [0, 1];
    }
    chart("chart-map", () => {
      const evaluated = M.trials[state.place].filter(([number]) => number <= state.until);
      const latest = new Map(evaluated.map((one) => [one[1], one]));
      const spots = [...latest.values()];
      const values = state.colour === "measured" ? null : M[state.colour][state.place];
      const measured = spots.map(([, , value, how]) => how === "complete" ? clamp(value, M.from) : M.from);
      const sure = state.colour === "deviation";
      const [cmin, cmax] = bounds(values ? (sure ? values : values.map((v) => clamp(v, M.from))) : measured);
      const bar = { thickness: 10, outlinewidth: 0, len: 0.9, tickfont: { color: colour("soft") },
        title: { text: sure ? "uncertainty" : label(state.colour === "median" ? "predicted" : "measured"), side: "right" },
        ...(sure && M.unit !== "objective" ? {} : ticks(cmax - cmin)) };
      const tone = sure || maximize ? scale() : scale().map(([v], i, all) => [v, all[all.length - 1 - i][1]]);
      const traces = [{ type: plain, mode: "markers", x: M.x, y: M.y, customdata: M.x.map((_, i) => i), text: M.text, hoverinfo: "text",
        showlegend: false, marker: values ? { size: narrow() ? 4 : 5.5, opacity: 0.85, color: sure ? values : values.map((v) => clamp(v, M.from)), cmin, cmax,
          colorscale: tone, showscale: true, colorbar: bar } : { size: narrow() ? 3.5 : 4.5, opacity: 0.55, color: colour("rest") } }];
      if (state.found.length) traces.push({ type: "scatter", mode: "markers", x: state.found.map((i) => M.x[i]), y: state.found.map((i) => M.y[i]),
        customdata: state.found, text: state.found.map((i) => M.text[i]), hoverinfo: "text", showlegend: false,
        marker: { size: 12, symbol: "circle-open", color: colour("bad"), line: { width: 2 } } });
      const known = sure ? spots.map(([, i]) => values[i]) : measured;
      traces.push({ type: "scatter", mode: spots.length <= 60 && !narrow() ? "markers+text" : "markers", x: spots.map(([, i]) => M.x[i]), y: spots.map(([, i]) => M.y[i]),
        customdata: spots.map(([, i]) => i), text: spots.map(([number]) => `${number}`), hovertext: spots.map(([number, i]) => `trial ${number}: ${M.text[i]}`),
        hoverinfo: "text", textposition: "top center", textfont: { size: 10.5, color: colour("ink") }, showlegend: false,
        marker: { size: 10, symbol: "square", color: known.some((v) => v !== null) ? known : colour("soft"), cmin, cmax, colorscale: tone,
          showscale: !values && known.some((v) => v !== null), colorbar: bar, line: { width: 1.5, color: colour("ink") } } });
      const blank = { showticklabels: false, showgrid: false, zeroline: false };
      return [traces, { margin: { l: 22, r: 8, t: 8, b: 24 }, xaxis: { ...blank, title: { text: "component 1", font: { size: 11 } } },
        yaxis: { ...blank, title: { text: "component 2", font: { size: 11 } } } }];
    }).then(() => {
      const place = at("chart-map");
      const of = (event) => event.points[0].customdata;
      place.on("plotly_hover", (event) => { if (state.pinned === null) card(of(event)); });
      place.on("plotly_click", (event) => { const i = of(event); state.pinned = state.pinned === i ? null : i; card(i); });
    });
    const again = drawn[drawn.length - 1];
    at("map-colour").addEventListener("change", (event) => { state.colour = event.target.value; again(); });
    at("map-place")?.addEventListener("change", (event) => { state.place = +event.target.value; again(); });
    const until = at("map-until");
    const tell = () => { at("map-until-shown").textContent = until.value; };
    until.addEventListener("input", () => { state.until = +until.value; tell(); again(); });
    tell();
    at("map-search").addEventListener("input", (event) => {
      const asked = event.target.value.replace(/\s/g, "").toLowerCase();
      state.found = asked ? lower.map((_, i) => i).filter((i) => lower[i].includes(asked)) : [];
      const line = at("map-found");
      const among = M.text.length < M.total ? `the ${M.text.length.toLocaleString("en")} functions shown` : `${M.total.toLocaleString("en")} functions`;
      line.textContent = asked ? `${state.found.length.toLocaleString("en")} of ${among}. ` : "";
      const order = [...state.found].sort((a, b) => M.text[a].length - M.text[b].length);
      for (const i of order.slice(0, 8)) {
        const button = document.createElement("button");
        button.textContent = M.text[i];
        button.addEventListener("click", () => { state.pinned = i; state.found = [i]; card(i); again(); });
        line.append(button);
      }
      again();
    });
  }

  // --- calibration
  const C = data.calibration;
  if (C) chart("chart-calibration", () => {
    const cut = (list) => list.map((v) => clamp(v, C.from));
    const [x, y, low, high] = [cut(C.measured), cut(C.predicted), cut(C.low), cut(C.high)];
    const range = span([...x, ...y, ...low, ...high], C.from);
    return [[
      { type: "scatter", mode: "lines", x: range, y: range, hoverinfo: "skip", showlegend: false, line: { color: colour("soft"), dash: "dot", width: 1.2 } },
      { type: "scatter", mode: "markers", x, y, showlegend: false, marker: { size: 7, color: colour("accent") },
        error_y: { type: "data", symmetric: false, array: high.map((v, i) => v - y[i]), arrayminus: low.map((v, i) => y[i] - v),
          color: colour("accent"), thickness: 1, width: 0 },
        hovertext: x.map((_, i) => `measured ${shown(C.measured[i])}, predicted ${shown(C.predicted[i])}`), hoverinfo: "text" }],
      { xaxis: { title: { text: label("measured") }, range, ...ticks() }, yaxis: { title: { text: "predicted without it" }, range, ...ticks() } }];
  });

  // --- spectra
  const S = data.spectra;
  if (S && S.length) {
    const place = at("chart-spectra");
    chart("chart-spectra", () => {
      const columns = wide() < 700 ? 1 : S.length === 4 ? 2 : Math.min(S.length, 3);
      const rows = Math.ceil(S.length / columns);
      place.style.height = `${rows * 250 + 90}px`;
      const traces = [], rest = { margin: { l: 46, r: 12, t: 64, b: 44 }, grid: { rows, columns, pattern: "independent", xgap: 0.12, ygap: 0.32 },
        legend: { y: 1 + 44 / (rows * 250) }, annotations: [] };
      const names = [...new Set(S.flatMap((one) => one.curves.map((c) => c.text)))];
      S.forEach((one, k) => {
        const end = k ? String(k + 1) : "";
        rest[`xaxis${end}`] = { title: { text: k >= S.length - columns ? "log10 of the eigenvalue" : "", font: { size: 11 } } };
        rest[`yaxis${end}`] = { range: [0, 1.02], tickformat: ".0%" };
        rest.annotations.push({ text: `layer ${one.layer}`, xref: `x${end} domain`, yref: `y${end} domain`, x: 0, y: 1, xanchor: "left", yanchor: "bottom", showarrow: false, font: { color: colour("ink"), size: 12.5 } });
        for (const curve of one.curves) {
          const i = names.indexOf(curve.text), relu = curve.text === "relu(x)";
          const n = curve.x.length;
          traces.push({ type: "scatter", mode: "lines", name: curve.text, legendgroup: curve.text, showlegend: k === S.findIndex((s) => s.curves.some((c) => c.text === curve.text)),
            x: curve.x, y: curve.x.map((_, j) => curve.null + (1 - curve.null) * (n > 1 ? j / (n - 1) : 1)), xaxis: `x${end}`, yaxis: `y${end}`,
            hovertemplate: `${curve.text}: %{y:.0%} up to 10^%{x:.2f}<extra></extra>`,
            line: { width: relu ? 1.8 : 2.2, color: relu ? colour("soft") : colour(ORDER[i % ORDER.length]), dash: relu ? "dash" : DASHES[i % 4 === 1 ? 0 : i % 4 === 2 ? 3 : 0] } });
        }
      });
      return [traces, rest];
    });
  }

  // --- importances
  const I = Object.entries(data.importances || {}).slice(0, 15);
  if (I.length && at("chart-importances")) {
    at("chart-importances").style.height = `${60 + 34 * I.length}px`;
    chart("chart-importances", () => [[{ type: "bar", orientation: "h", y: I.map(([name]) => name.replace(/^(training|model\.options)\./, "")), x: I.map(([, v]) => v),
      marker: { color: colour("accent") }, text: I.map(([, v]) => `${Math.round(100 * v)}%`), textposition: "outside", cliponaxis: false, hoverinfo: "skip", width: 0.6 }],
      { margin: { r: 44, t: 4 }, xaxis: { tickformat: ".0%", rangemode: "tozero" }, yaxis: { autorange: "reversed", showgrid: false, tickfont: { color: colour("ink") } } }]);
  }

  // --- regret of comparisons
  for (const [n, panel] of (data.panels || []).entries()) {
    chart(`chart-panel-${n}`, () => {
      const traces = panel.lines.flatMap((line, k) => {
        const style = { color: colour(ORDER[k % ORDER.length]), dash: DASHES[Math.floor(k / ORDER.length) % 4], width: 2 };
        const x = line.mean.map((_, i) => i + 1);
        const area = { type: "scatter", mode: "lines", x, line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: line.name };
        return [{ ...area, y: line.low }, { ...area, y: line.high, fill: "tonexty", fillcolor: style.color + "22" },
          { type: "scatter", mode: "lines", name: line.name, legendgroup: line.name, x, y: line.mean, line: style,
            hovertemplate: `${line.name}: %{y:.3g} after %{x}<extra></extra>` }];
      });
      return [traces, { xaxis: { title: { text: "evaluations" }, showgrid: false }, yaxis: { title: { text: panel.label }, type: panel.log ? "log" : "linear", ...(panel.reversed ? { autorange: "reversed" } : {}),
        exponentformat: "power", dtick: panel.log ? 1 : undefined } }];
    });
  }

  // --- tables
  function sortable(table) {
    const body = table.tBodies[0];
    table.querySelectorAll("th[data-sort]").forEach((head) => {
      head.tabIndex = 0;
      const sort = () => {
        const column = head.cellIndex;
        const up = head.getAttribute("aria-sort") !== "ascending";
        table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const key = (row) => { const cell = row.cells[column]; return cell.dataset.value ?? cell.textContent.trim(); };
        const number = head.dataset.sort === "number";
        const rows = [...body.rows].sort((a, b) => {
          const [x, y] = [key(a), key(b)];
          if (x === "" || y === "") return (x === "") - (y === ""); // what is missing comes last
          return (up ? 1 : -1) * (number ? parseFloat(x) - parseFloat(y) : x.localeCompare(y));
        });
        body.append(...rows);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
    });
  }
  document.querySelectorAll("table").forEach((table) => { if (table.querySelector("th[data-sort]")) sortable(table); });
  const table = at("trials-table");
  if (table) {
    const filter = () => {
      const asked = at("trials-search").value.replace(/\s/g, "").toLowerCase();
      const state = at("trials-state").value;
      let count = 0;
      for (const row of table.tBodies[0].rows) {
        const fits = (!state || row.dataset.state === state) && row.textContent.replace(/\s/g, "").toLowerCase().includes(asked);
        row.hidden = !fits;
        count += fits;
      }
      at("trials-count").textContent = `${count} of ${table.tBodies[0].rows.length}`;
    };
    at("trials-search").addEventListener("input", filter);
    at("trials-state").addEventListener("change", filter);
    filter();
  }

  const redraw = () => drawn.forEach((draw) => draw());
  dark.addEventListener("change", redraw);
  let before = innerWidth;
  addEventListener("resize", () => { if (!printing() && Math.abs(innerWidth - before) > 40) { before = innerWidth; redraw(); } });
  const print = (on) => () => { document.documentElement.classList.toggle("printing", on); redraw(); };
  addEventListener("beforeprint", print(true));
  addEventListener("afterprint", print(false));
})();
