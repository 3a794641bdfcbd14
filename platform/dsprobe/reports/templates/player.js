"use strict";
// Step player. All text is inserted with textContent; the data is the JSON block #player-data.
(() => {
  const host = document.getElementById("player");
  if (!host) return;
  const data = JSON.parse(document.getElementById("player-data").textContent);
  if (data.trajectories.length === 0) return;
  const $ = (name) => host.querySelector(`[data-role="${name}"]`);
  const SVG = "http://www.w3.org/2000/svg";
  const UNDEFINED = 255, LEVELS = 250, FRAME_MS = 260;
  const state = { index: 0, step: 0, view: "predicted", colour: "attribution", timer: null };
  let track = null; // the unpacked trajectory on show
  let cells = []; // one DOM node per response position

  // ---- unpacking -----------------------------------------------------------------------------

  function unpackGrid(grid) {
    const raw = atob(grid.bytes);
    const values = new Float32Array(raw.length);
    for (let i = 0; i < raw.length; i++) {
      const code = raw.charCodeAt(i);
      values[i] = code === UNDEFINED ? NaN : grid.max * (code / LEVELS) ** 2;
    }
    return values;
  }

  function expand(changes, steps, start) {
    const values = new Array(steps + 1).fill(start);
    let next = 0, current = start;
    for (let s = 1; s <= steps; s++) {
      if (next < changes.length && changes[next] === s) { current = changes[next + 1]; next += 2; }
      values[s] = current;
    }
    return values;
  }

  function unpack(raw) {
    const grids = {};
    for (const [name, grid] of Object.entries(raw.grids)) grids[name] = unpackGrid(grid);
    const inCanvas = raw.canvas.map((c, p) => expand(c, raw.steps, raw.given[p] < 0 ? 0 : 1));
    return {
      ...raw, grids, inCanvas,
      token: raw.tokens.map((c, p) => expand(c, raw.steps, raw.given[p])),
      since: inCanvas.map((row, p) => commitSteps(row, raw, p)),
      acts: new Map(raw.interventions.map((act) => [act.step, { ...act, back: new Map(act.back), over: new Map(act.over) }])),
    };
  }

  function commitSteps(row, raw, p) {
    // Per step: the step that wrote the token in the canvas, 0 where it was given. Guardrails take back and rewrite.
    const rewritten = new Set(raw.interventions.filter((act) => act.over.some(([q]) => q === p)).map((act) => act.step));
    const since = new Array(row.length).fill(0);
    for (let s = 1; s < row.length; s++) since[s] = row[s] && (!row[s - 1] || rewritten.has(s)) ? s : since[s - 1];
    return since;
  }

  const at = (name, s, p) => (s < 1 ? NaN : track.grids[name][(s - 1) * track.length + p]);

  // ---- colours -------------------------------------------------------------------------------

  const css = (name) => getComputedStyle(host).getPropertyValue(name).trim();

  function strength(s, p) {
    // Share in [0, 1] of the colour scale at a cell, or NaN where there is nothing to colour.
    if (state.colour === "attribution") return at("attribution", s, p);
    if (state.colour === "entropy") return at("entropy", s, p) / track.topEntropy;
    const commit = track.since[p][s];
    return commit < 1 || !track.inCanvas[p][s] ? NaN : (commit - 1) / Math.max(1, track.steps - 1);
  }

  function paint(share, fade = 1) {
    if (Number.isNaN(share)) return "transparent";
    if (state.colour === "commit") {
      const low = css("--scale-low").split(" "), high = css("--scale-high").split(" ");
      const mix = low.map((v, i) => Math.round(Number(v) + (Number(high[i]) - Number(v)) * share));
      return `rgb(${mix.join(" ")} / ${0.5 * fade})`;
    }
    const base = css(state.colour === "entropy" ? "--scale-entropy" : "--scale-risk");
    return `rgb(${base} / ${(fade * (0.03 + 0.77 * Math.min(1, share))).toFixed(3)})`;
  }

  // ---- canvas of tokens ----------------------------------------------------------------------

  function node(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function buildCells() {
    const canvas = $("canvas");
    canvas.replaceChildren();
    canvas.classList.toggle("dense", track.length > 96);
    cells = [];
    for (let p = 0; p < track.length; p++) {
      const cell = node("span", "tok");
      cell.dataset.position = String(p);
      cell.setAttribute("role", "listitem");
      canvas.append(cell);
      cells.push(cell);
    }
  }

  function drawCells() {
    const s = state.step, act = track.acts.get(s);
    for (let p = 0; p < track.length; p++) {
      const cell = cells[p], settled = Boolean(track.inCanvas[p][s]), given = settled && track.since[p][s] === 0;
      const taken = act?.back.get(p) ?? -1;
      const visible = taken < 0 && (settled || (state.view === "predicted" && s > 0 && track.token[p][s] >= 0));
      const text = visible ? data.texts[track.token[p][s]] : taken >= 0 ? data.texts[taken] : "";
      cell.textContent = text;
      cell.classList.toggle("masked", !visible);
      cell.classList.toggle("guess", visible && !settled);
      cell.classList.toggle("given", given);
      cell.classList.toggle("fresh", settled && s > 0 && track.since[p][s] === s);
      cell.classList.toggle("taken", taken >= 0);
      cell.style.backgroundColor = visible ? paint(strength(s, p), settled ? 1 : 0.62) : "";
      cell.setAttribute("aria-label", visible ? text : taken >= 0 ? `taken back: ${text}` : "undecided");
    }
  }

  function drawAct() {
    const line = $("act"), act = track.acts.get(state.step);
    line.hidden = track.acts.size === 0;
    line.classList.toggle("acting", Boolean(act));
    line.textContent = act ? `Guardrail in this step: ${act.text}` : "Guardrail in this step: no intervention";
    $("legend-act").hidden = track.acts.size === 0;
  }

  function drawOutside() {
    for (const [role, tokens] of [["before", track.before], ["after", track.after]]) {
      const box = $(role);
      box.replaceChildren();
      box.parentElement.hidden = tokens.length === 0;
      for (const [text, commit] of tokens) {
        const known = commit < 0 || state.step >= commit;
        box.append(node("span", known ? (commit < 0 ? "" : "filled") : "hole", known ? data.texts[text] : "▢"), " ");
      }
    }
  }

  // ---- risk of both views over steps ---------------------------------------------------------

  const PLOT = { w: 360, h: 132, left: 28, right: 8, top: 10, bottom: 20 };
  const xOf = (s) => PLOT.left + ((PLOT.w - PLOT.left - PLOT.right) * (s - 1)) / Math.max(1, track.steps - 1);
  const yOf = (r) => PLOT.top + (PLOT.h - PLOT.top - PLOT.bottom) * (1 - r);

  function shape(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function drawSpark() {
    const svg = $("spark");
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${PLOT.w} ${PLOT.h}`);
    for (const r of [0, 0.5, 1]) {
      svg.append(shape("line", { x1: PLOT.left, x2: PLOT.w - PLOT.right, y1: yOf(r), y2: yOf(r), class: "rule" }));
      svg.append(shape("text", { x: PLOT.left - 6, y: yOf(r) + 3, class: "tick end" }, r));
    }
    svg.append(shape("text", { x: PLOT.left, y: PLOT.h - 5, class: "tick" }, "step 1"));
    svg.append(shape("text", { x: PLOT.w - PLOT.right, y: PLOT.h - 5, class: "tick end" }, track.steps));
    svg.append(shape("line", { x1: PLOT.left, x2: PLOT.w - PLOT.right, y1: yOf(data.theta), y2: yOf(data.theta), class: "theta" }));
    svg.append(shape("text", { x: PLOT.w - PLOT.right, y: yOf(data.theta) - 4, class: "tick end" }, `θ = ${data.theta}`));
    for (const s of track.acts.keys()) {
      const x = xOf(s), y = PLOT.h - PLOT.bottom;
      svg.append(shape("path", { d: `M${x - 3.5} ${y + 7}h7l-3.5 -6z`, class: "act" }));
    }
    for (const view of ["predicted", "committed"]) {
      const points = track.risk[view].slice(0, track.steps).map((r, i) => `${xOf(i + 1).toFixed(1)},${yOf(r).toFixed(1)}`);
      svg.append(shape("polyline", { points: points.join(" "), class: `curve ${view}` }));
      const first = track.facts.fhs[view];
      if (first !== null) svg.append(shape("circle", { cx: xOf(first), cy: yOf(track.risk[view][first - 1]), r: 4, class: `first ${view}` }));
    }
    svg.append(shape("line", { y1: PLOT.top, y2: PLOT.h - PLOT.bottom, class: "cursor", "data-role": "cursor" }));
  }

  function moveCursor() {
    const cursor = $("cursor"), x = xOf(Math.max(1, state.step));
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    for (const view of ["committed", "predicted"]) {
      const risk = state.step > 0 ? track.risk[view][state.step - 1] : NaN;
      $(`risk-${view}`).textContent = Number.isNaN(risk) ? "–" : risk.toFixed(2);
    }
  }

  // ---- map: every step of every position -----------------------------------------------------

  function drawMap() {
    const map = $("map"), scale = Math.max(2, Math.ceil(360 / track.length));
    const tall = Math.max(2, Math.ceil(190 / track.steps));
    map.width = track.length * scale;
    map.height = track.steps * tall;
    const pen = map.getContext("2d");
    for (let s = 1; s <= track.steps; s++) {
      for (let p = 0; p < track.length; p++) {
        if (!track.inCanvas[p][s] && (state.view === "committed" || track.token[p][s] < 0)) continue;
        pen.fillStyle = paint(strength(s, p), track.inCanvas[p][s] ? 1 : 0.62);
        pen.fillRect(p * scale, (s - 1) * tall, scale, tall);
      }
    }
    pen.fillStyle = css("--bad");
    for (const act of track.acts.values()) {
      for (const p of act.back.keys()) pen.fillRect(p * scale, (act.step - 0.75) * tall, scale, Math.max(1, tall / 2));
    }
    pen.fillStyle = css("--ink");
    for (let p = 0; p < track.length; p++) {
      // A tick where the position was committed: the shape of the decode order.
      if (track.commit[p] > 0) pen.fillRect(p * scale, track.commit[p] * tall - 1.5, scale, 1.5);
    }
  }

  function moveMapCursor() {
    $("map-cursor").style.top = `${(100 * (Math.max(1, state.step) - 0.5)) / track.steps}%`;
  }

  // ---- words around it -----------------------------------------------------------------------

  const LEGENDS = {
    attribution: ["no risk", "carries the risk", "risk attribution of the token, 0 to 1"],
    entropy: ["certain", "uncertain", "entropy in nats, where still masked before the step"],
    commit: ["early", "late", "step that committed the position"],
  };

  function drawLegend() {
    const [low, high, meaning] = LEGENDS[state.colour];
    $("legend-low").textContent = low;
    $("legend-high").textContent = high;
    $("legend-meaning").textContent = meaning;
    const stops = [0, 0.25, 0.5, 0.75, 1].map((share) => paint(share));
    $("legend-bar").style.backgroundImage = `linear-gradient(90deg, ${stops.join(", ")})`;
  }

  function drawFacts() {
    const box = $("facts"), facts = track.facts;
    box.replaceChildren();
    const badge = (text, tone) => box.append(node("span", `badge ${tone}`, text));
    badge(facts.harmful ? "harmful request" : "benign request", "");
    if (facts.empty) badge("empty reply", "warn");
    if (track.acts.size) badge(track.acts.size === 1 ? "1 intervention" : `${track.acts.size} interventions`, "warn");
    for (const [judge, decides, verdict] of facts.verdicts) {
      if (verdict === null) continue;
      const words = { harm: ["judged harmful", "judged harmless"], refusal: ["refused", "not refused"], utility: ["answered correctly", "not answered correctly"], validity: ["well-formed", "not well-formed"] }[decides];
      const bad = decides === "harm" ? verdict : decides === "utility" || decides === "validity" ? !verdict : facts.harmful !== verdict;
      badge(`${words[verdict ? 0 : 1]} (${judge})`, bad ? "bad" : "good");
    }
    for (const view of ["committed", "predicted"]) {
      const first = facts.fhs[view], tri = facts.tri[view];
      const when = first === null ? "never harmful" : `harmful from step ${first}`;
      $(`facts-${view}`).textContent = tri === null ? when : `${when}, integral ${tri.toFixed(2)}`;
    }
    $("group").textContent = data.groups[track.group].label;
    $("notice").hidden = data.groups[track.group].textShown;
  }

  // ---- hover ---------------------------------------------------------------------------------

  function describe(p) {
    const s = state.step, rows = [], settled = Boolean(track.inCanvas[p][s]), commit = track.since[p][s];
    // A committed token keeps the numbers of the step that committed it.
    const moment = settled && commit > 0 ? commit : s;
    const number = (name, unit) => {
      const value = at(name, name === "attribution" ? s : moment, p);
      rows.push([name, Number.isNaN(value) ? "–" : value.toFixed(value < 0.1 ? 3 : 2) + unit]);
    };
    rows.push(["position", String(p)]);
    const later = track.inCanvas[p].indexOf(1, s);
    rows.push(["committed", settled ? (commit ? `step ${commit}` : "given") : later < 0 ? "never" : `step ${later}`]);
    number("probability", "");
    number("entropy", " nats");
    number("kl", " nats");
    number("attribution", "");
    return rows;
  }

  function showTip(cell) {
    const tip = $("tip"), p = Number(cell.dataset.position);
    tip.replaceChildren(node("strong", "", cell.getAttribute("aria-label")));
    const list = node("dl");
    for (const [name, value] of describe(p)) list.append(node("dt", "", name === "kl" ? "KL to last step" : name), node("dd", "", value));
    tip.append(list);
    tip.hidden = false;
    const box = cell.getBoundingClientRect(), width = tip.offsetWidth, below = box.bottom + tip.offsetHeight + 12 < innerHeight;
    tip.style.left = `${Math.max(8, Math.min(innerWidth - width - 8, box.left + box.width / 2 - width / 2))}px`;
    tip.style.top = `${below ? box.bottom + 8 : box.top - tip.offsetHeight - 8}px`;
  }

  // ---- state ---------------------------------------------------------------------------------

  function draw(everything) {
    host.dataset.step = String(state.step);
    host.dataset.view = state.view;
    host.dataset.colour = state.colour;
    $("slider").value = String(state.step);
    $("slider").setAttribute("aria-valuetext", `step ${state.step} of ${track.steps}`);
    const open = track.inCanvas.reduce((count, row) => count + (row[state.step] ? 0 : 1), 0);
    $("step").textContent = String(state.step);
    $("steps").textContent = String(track.steps);
    $("open").textContent = `${open} of ${track.length} positions undecided`;
    for (const button of host.querySelectorAll("[data-set]")) {
      button.setAttribute("aria-pressed", String(state[button.dataset.set] === button.dataset.value));
    }
    drawCells();
    drawAct();
    drawOutside();
    moveCursor();
    moveMapCursor();
    if (everything) { drawMap(); drawLegend(); }
    $("tip").hidden = true;
  }

  function seek(step) {
    state.step = Math.max(0, Math.min(track.steps, step));
    draw(false);
  }

  function pause() {
    clearInterval(state.timer);
    state.timer = null;
    $("play").textContent = "▶";
    $("play").setAttribute("aria-label", "Play");
  }

  function play() {
    if (state.timer !== null) return pause();
    if (state.step >= track.steps) seek(0);
    $("play").textContent = "❚❚";
    $("play").setAttribute("aria-label", "Pause");
    state.timer = setInterval(() => { seek(state.step + 1); if (state.step >= track.steps) pause(); }, FRAME_MS);
    return undefined;
  }

  function load(index) {
    pause();
    state.index = (index + data.trajectories.length) % data.trajectories.length;
    track = unpack(data.trajectories[state.index]);
    track.topEntropy = data.trajectories[state.index].grids.entropy.max;
    $("select").value = String(state.index);
    $("slider").max = String(track.steps);
    state.step = Math.max(1, Math.round(track.steps * 0.4));
    buildCells();
    drawSpark();
    drawFacts();
    draw(true);
  }

  function fillSelect() {
    const select = $("select"), groups = data.groups.map((group) => {
      const box = document.createElement("optgroup");
      box.label = group.label;
      return box;
    });
    data.trajectories.forEach((t, i) => {
      const option = node("option", "", `${t.id}${t.sample ? ` #${t.sample}` : ""} – ${t.selection === "extreme" ? "most extreme" : "random"}`);
      option.value = String(i);
      groups[t.group].append(option);
    });
    select.append(...groups.filter((group) => group.children.length));
  }

  function seekByPointer(event, element, share) {
    const box = element.getBoundingClientRect();
    seek(share((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height));
  }

  const KEYS = {
    ArrowRight: () => seek(state.step + 1), ArrowLeft: () => seek(state.step - 1),
    Home: () => seek(0), End: () => seek(track.steps), " ": play,
  };

  function listen() {
    $("slider").addEventListener("input", (event) => seek(Number(event.target.value)));
    $("select").addEventListener("change", (event) => load(Number(event.target.value)));
    $("play").addEventListener("click", play);
    $("next").addEventListener("click", () => load(state.index + 1));
    $("previous").addEventListener("click", () => load(state.index - 1));
    for (const button of host.querySelectorAll("[data-set]")) {
      button.addEventListener("click", () => { state[button.dataset.set] = button.dataset.value; draw(true); });
    }
    host.addEventListener("keydown", (event) => {
      const onControl = event.target.closest("select, button");
      if (!(event.key in KEYS) || event.ctrlKey || event.metaKey || event.altKey) return;
      if (onControl && (event.key === " " || event.target.tagName === "SELECT")) return;
      event.preventDefault();
      KEYS[event.key]();
    });
    $("canvas").addEventListener("pointerover", (event) => {
      if (event.target.classList.contains("tok")) showTip(event.target);
    });
    $("canvas").addEventListener("pointerleave", () => { $("tip").hidden = true; });
    addEventListener("scroll", () => { $("tip").hidden = true; }, { passive: true });
    $("map-box").addEventListener("click", (event) => seekByPointer(event, $("map"), (_, y) => Math.ceil(y * track.steps)));
    $("spark").addEventListener("click", (event) => seekByPointer(event, $("spark"), (x) =>
      1 + Math.round(((x * PLOT.w - PLOT.left) / (PLOT.w - PLOT.left - PLOT.right)) * (track.steps - 1))));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(true));
  }

  fillSelect();
  listen();
  load(data.start);
})();
