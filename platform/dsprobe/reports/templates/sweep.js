"use strict";
// Explorer of the sweep's front. All text is inserted with textContent; the data is the JSON block #sweep-data.
(() => {
  const host = document.getElementById("sweep-explorer");
  if (!host) return;
  const data = JSON.parse(document.getElementById("sweep-data").textContent);
  if (data.points.length === 0 || data.objectives.length < 2) return;
  const $ = (name) => host.querySelector(`[data-role="${name}"]`);
  const SVG = "http://www.w3.org/2000/svg";
  const BOX = { w: 760, h: 470, left: 64, right: 16, top: 14, bottom: 48 }; // w and h follow the page
  const marks = [...data.points, data.baseline]; // what can be focused, in order of the data
  const knee = Math.max(0, data.points.findIndex((point) => point.knee));
  const state = { x: 1, y: 0, chosen: knee };

  // ---- elements ------------------------------------------------------------------------------

  function shape(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function node(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // ---- numbers -------------------------------------------------------------------------------

  function shown(value) {
    if (value === null) return "–";
    if (value !== 0 && Math.abs(value) < 0.0005) return value.toExponential(1);
    return Math.abs(value) < 100 ? value.toFixed(3) : value.toFixed(1);
  }

  const words = ([value, low, high]) => `${shown(value)} [${shown(low)}, ${shown(high)}]`;
  const defined = (entry) => entry.values[state.x][0] !== null && entry.values[state.y][0] !== null;

  function steps(low, high) {
    // Round numbers for about five ticks.
    const raw = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= raw);
    const ticks = [];
    for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) ticks.push(Number((k * step).toPrecision(12)));
    return ticks;
  }

  function range(objective) {
    // Everything about the front and the unguarded model; other trials as far as once that extent beyond.
    const ends = $("bars").checked ? 3 : 1, seen = $("unseen").checked;
    const known = marks.flatMap((m) => [...m.values[objective].slice(0, ends), ...(seen && m.unseen ? m.unseen[objective].slice(0, 1) : [])]);
    const finite = known.filter((v) => v !== null);
    let low = Math.min(...finite), high = Math.max(...finite);
    const span = high - low || 1, near = data.others.map((t) => t.values[objective][0]);
    for (const v of near) if (v !== null && v >= low - span && v <= high + span && $("others").checked) { low = Math.min(low, v); high = Math.max(high, v); }
    const pad = 0.06 * (high - low || 1);
    return [low - pad, high + pad];
  }

  // ---- plot ----------------------------------------------------------------------------------

  function draw() {
    const svg = $("plot"), [x0, x1] = range(state.x), [y0, y1] = range(state.y);
    const focused = svg.contains(document.activeElement);
    BOX.w = Math.max(300, Math.min(900, svg.parentElement.clientWidth - (innerWidth > 900 ? 328 : 0)));
    BOX.h = Math.max(320, 0.62 * BOX.w);
    const px = (v) => BOX.left + ((BOX.w - BOX.left - BOX.right) * (v - x0)) / (x1 - x0);
    const py = (v) => BOX.h - BOX.bottom - ((BOX.h - BOX.top - BOX.bottom) * (v - y0)) / (y1 - y0);
    svg.setAttribute("viewBox", `0 0 ${BOX.w} ${BOX.h}`);
    svg.replaceChildren();
    for (const v of steps(x0, x1)) {
      svg.append(shape("line", { x1: px(v), x2: px(v), y1: BOX.top, y2: BOX.h - BOX.bottom, class: "rule" }));
      svg.append(shape("text", { x: px(v), y: BOX.h - BOX.bottom + 17, class: "tick middle" }, v));
    }
    for (const v of steps(y0, y1)) {
      svg.append(shape("line", { x1: BOX.left, x2: BOX.w - BOX.right, y1: py(v), y2: py(v), class: "rule" }));
      svg.append(shape("text", { x: BOX.left - 8, y: py(v) + 4, class: "tick end" }, v));
    }
    const middle = (BOX.top + BOX.h - BOX.bottom) / 2;
    svg.append(shape("text", { x: (BOX.left + BOX.w - BOX.right) / 2, y: BOX.h - 8, class: "name middle" }, data.objectives[state.x]));
    svg.append(shape("text", { x: 14, y: middle, class: "name middle", transform: `rotate(-90 14 ${middle})` }, data.objectives[state.y]));
    if ($("others").checked) for (const trial of data.others) drawOther(svg, trial, px, py, [x0, x1, y0, y1]);
    if ($("unseen").checked) for (const mark of marks) drawUnseen(svg, mark, px, py);
    marks.forEach((mark, i) => drawMark(svg, mark, i, px, py));
    for (const mark of [...data.points.filter((point) => point.knee), data.baseline]) if (defined(mark)) nameMark(svg, mark, px, py);
    show(state.chosen);
    if (focused) host.querySelector('.hit[tabindex="0"]').focus({ preventScroll: true });
  }

  function drawOther(svg, trial, px, py, [x0, x1, y0, y1]) {
    const [x, y] = [trial.values[state.x][0], trial.values[state.y][0]];
    if (x === null || y === null || x < x0 || x > x1 || y < y0 || y > y1) return;
    const dot = shape("circle", { cx: px(x), cy: py(y), r: 4.5, class: trial.stopped ? "other stopped" : "other" });
    dot.append(shape("title", {}, `${trial.label}, ${trial.facts}`));
    dot.addEventListener("pointerenter", () => describe(trial));
    dot.addEventListener("pointerleave", () => describe(marks[state.chosen]));
    svg.append(dot);
  }

  function drawUnseen(svg, mark, px, py) {
    if (!mark.unseen || !defined(mark) || mark.unseen[state.x][0] === null || mark.unseen[state.y][0] === null) return;
    const [x, y] = [px(mark.unseen[state.x][0]), py(mark.unseen[state.y][0])];
    svg.append(shape("line", { x1: px(mark.values[state.x][0]), y1: py(mark.values[state.y][0]), x2: x, y2: y, class: "thread" }));
    svg.append(shape("circle", { cx: x, cy: y, r: 4.5, class: "hollow" }));
  }

  function drawMark(svg, mark, i, px, py) {
    if (!defined(mark)) return;
    const [x, xl, xh] = mark.values[state.x], [y, yl, yh] = mark.values[state.y];
    const group = shape("g", { class: `hit${mark.knee ? " knee" : ""}${mark === data.baseline ? " baseline" : ""}`, role: "img", "data-index": i, "aria-label": label(mark) });
    group.append(shape("title", {}, label(mark)));
    if ($("bars").checked) {
      if (xl !== null && xh !== null) group.append(shape("line", { x1: px(xl), x2: px(xh), y1: py(y), y2: py(y), class: "bar" }));
      if (yl !== null && yh !== null) group.append(shape("line", { x1: px(x), x2: px(x), y1: py(yl), y2: py(yh), class: "bar" }));
    }
    group.append(shape("circle", { cx: px(x), cy: py(y), r: 14, class: "halo" }));
    group.append(mark === data.baseline
      ? shape("path", { d: `M${px(x)} ${py(y) - 8}l8 8l-8 8l-8 -8z`, class: "point" })
      : shape("circle", { cx: px(x), cy: py(y), r: 7, class: "point" }));
    group.addEventListener("pointerenter", () => light(i));
    group.addEventListener("pointerleave", () => light(state.chosen));
    group.addEventListener("focus", () => show(i));
    group.addEventListener("click", () => { show(i); group.focus({ preventScroll: true }); });
    svg.append(group);
  }

  function nameMark(svg, mark, px, py) {
    // Beside its marker, where the name covers no other marker; without such a place, above to the right.
    const x = px(mark.values[state.x][0]), y = py(mark.values[state.y][0]), wide = 7.5 * mark.label.length;
    const spots = [[13, -9, 1], [-13, -9, -1], [13, 19, 1], [-13, 19, -1]];
    const dots = [...svg.querySelectorAll(".halo, .hollow")].map((c) => [Number(c.getAttribute("cx")), Number(c.getAttribute("cy"))]);
    const free = ([dx, dy, way]) => {
      const left = way > 0 ? x + dx : x + dx - wide, base = y + dy;
      return left > BOX.left && left + wide < BOX.w && dots.every(([cx, cy]) => cx < left - 6 || cx > left + wide + 6 || cy < base - 16 || cy > base + 6);
    };
    const [dx, dy, way] = spots.find(free) || spots[0];
    svg.append(shape("text", { x: x + dx, y: y + dy, class: way > 0 ? "mark" : "mark end" }, mark.label));
  }

  const label = (mark) => `${mark.label}: ${data.objectives.map((name, k) => `${name} ${words(mark.values[k])}`).join(", ")}`;

  // ---- the setting on show -------------------------------------------------------------------

  function describe(entry) {
    const box = $("detail"), table = node("table"), unseen = $("unseen").checked ? entry.unseen : null;
    box.replaceChildren(node("strong", "", entry.label), node("p", "", entry.facts || "no guardrail"));
    data.objectives.forEach((name, k) => {
      const row = node("tr"), cell = node("td", "", words(entry.values[k]));
      if (unseen) cell.append(node("small", "", `unseen ${words(unseen[k])}`));
      const head = node("th", "", name);
      head.scope = "row";
      row.append(head, cell);
      table.append(row);
    });
    const list = node("div", "settings");
    for (const [name, value] of entry.settings) {
      const item = node("span", "", `${name} `);
      item.append(node("b", "", value));
      list.append(item);
    }
    box.append(table, list);
  }

  function light(i) {
    for (const group of host.querySelectorAll(".hit")) {
      const on = Number(group.dataset.index) === i;
      group.classList.toggle("on", on);
      for (const bar of group.querySelectorAll(".bar")) bar.classList.toggle("on", on);
    }
    describe(marks[i]);
    trace(i);
  }

  function show(i) {
    state.chosen = i;
    host.dataset.chosen = marks[i].label;
    for (const group of host.querySelectorAll(".hit")) group.setAttribute("tabindex", Number(group.dataset.index) === i ? "0" : "-1");
    light(i);
  }

  function move(event) {
    // Roving focus: one tab stop; the arrows go from point to point along the abscissa.
    const groups = [...host.querySelectorAll(".hit")].sort((a, b) => marks[a.dataset.index].values[state.x][0] - marks[b.dataset.index].values[state.x][0]);
    const at = groups.indexOf(document.activeElement), last = groups.length - 1;
    const next = { ArrowRight: Math.min(last, at + 1), ArrowLeft: Math.max(0, at - 1), Home: 0, End: last }[event.key];
    if (at < 0 || next === undefined) return;
    event.preventDefault();
    groups[next].focus();
  }

  // ---- the same setting among the parallel coordinates ----------------------------------------

  const parallel = document.getElementById("sweep-parallel"), chips = document.getElementById("sweep-chips");
  let traced = null;

  function trace(i) {
    if (traced === null) return;
    for (const group of parallel.querySelectorAll('g[id^="sweep-parallel-front-"]')) {
      group.classList.toggle("on", group.id.startsWith(`sweep-parallel-front-${i}-`));
    }
    parallel.classList.toggle("focused", i < data.points.length);
    for (const [k, button] of [...chips.children].entries()) button.setAttribute("aria-pressed", String(k - 1 === i));
  }

  function fillChips() {
    const choose = (i, text) => {
      const button = node("button", "", text);
      button.type = "button";
      button.setAttribute("aria-pressed", String(i < 0));
      button.addEventListener("click", () => {
        traced = i < 0 ? null : i;
        if (i >= 0) return show(i);
        parallel.classList.remove("focused");
        for (const [k, other] of [...chips.children].entries()) other.setAttribute("aria-pressed", String(k === 0));
        return undefined;
      });
      chips.append(button);
    };
    choose(-1, "all");
    data.points.forEach((point, i) => choose(i, point.label));
    chips.hidden = false;
  }

  // ---- start ---------------------------------------------------------------------------------

  for (const axis of ["x", "y"]) {
    data.objectives.forEach((name, k) => {
      const option = node("option", "", name);
      option.value = String(k);
      $(axis).append(option);
    });
    $(axis).value = String(state[axis]);
    $(axis).addEventListener("change", (event) => {
      const other = axis === "x" ? "y" : "x", value = Number(event.target.value);
      if (value === state[other]) { state[other] = state[axis]; $(other).value = String(state[other]); }
      state[axis] = value;
      draw();
    });
  }
  for (const name of ["bars", "unseen", "others"]) $(name).addEventListener("change", draw);
  if (!marks.some((mark) => mark.unseen)) $("unseen").parentElement.hidden = true;
  host.addEventListener("keydown", move);
  addEventListener("resize", draw);
  const still = document.getElementById("sweep-static");
  addEventListener("beforeprint", () => { still.open = true; });
  host.hidden = false;
  still.open = false;
  if (parallel && chips) fillChips();
  draw();
})();
