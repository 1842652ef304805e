"use strict";
// The script of a report. It reads what stands in the page, draws on canvases, and asks nothing of a network.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const NONE = 255; // a level of 8 bits that stands for "no value"; values are 0 to 254
  const STEP = 200; // rows of the table that are made at a time
  const VERDICT = {
    "predicted on held-out data": ["v-good", "predicted"],
    "weak on held-out data": ["v-weak", "weak"],
    "no better than Ridge on held-out data": ["v-ridge", "as Ridge"],
    "not predicted on held-out data": ["v-bad", "not predicted"],
    "this tissue is outside what the model knows": ["v-bad", "outside"],
    "no held-out evidence": ["v-none", "no evidence"],
  };
  const COLUMNS = [
    ["gene", "gene", "Name of the gene"],
    ["verdict", "verdict", "In words, from held-out data and domain"],
    ["val_pcc", "held-out r", "Correlation over held-out shapes when the model was trained"],
    ["ridge_pcc", "Ridge r", "What Ridge on colour statistics reached there"],
    ["ceiling", "ceiling", "What a perfect predictor could have reached there"],
    ["val_rmse", "held-out RMSE", "Root of the mean squared error there, in " + DATA.unit],
    ["spread", "spread", "Standard deviation over the members of the ensemble, on this slide"],
    ["pcc_here", "r here", "Correlation over the measured shapes of this slide"],
    ["ceiling_here", "ceiling here", "What a perfect predictor could reach on this slide"],
    ["depth_here", "log depth here", "A null: correlation of the truth with the log of the total count"],
  ];
  const DOMAIN = [
    [95, "#0072b2", "up to the 95th percentile"],
    [99, "#56b4e9", "to the 99th"],
    [Infinity, "#d55e00", "beyond: unknown to the model"],
  ];
  const table = DATA.table;
  const rowOf = new Map(table.gene.map((gene, i) => [gene, i]));
  const drawnAt = new Map(DATA.genes.map((gene, i) => [gene, i]));
  const state = { gene: 0, opacity: 0.7, colours: "viridis", shared: true, outline: true, byName: false, query: "" };
  const view = { x: 0, y: 0, zoom: 1 }; // the upper left corner in pixels of the H&E, and how close
  const number = (value, digits = 2) => (value == null ? "–" : value.toFixed(digits));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const column = (name) => table[name] || [];
  const valueOf = (name, gene) => column(name)[rowOf.get(gene)];

  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  // ---------------------------------------------------------------- values of a gene

  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const lists = Object.fromEntries(
    Object.entries(DATA.colours).map(([name, hex]) => [
      name, Uint8Array.from({ length: 768 }, (_, i) => parseInt(hex.slice(2 * i, 2 * i + 2), 16)),
    ]),
  );
  const decoded = new Map(); // the last few planes

  async function plane(source, i) {
    const key = source + i;
    if (!decoded.has(key)) {
      const { width, height, planes } = DATA[source];
      const image = new Image();
      image.src = planes[i];
      await image.decode();
      const canvas = new OffscreenCanvas(width, height);
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(image, 0, 0);
      const pixels = context.getImageData(0, 0, width, height).data;
      decoded.set(key, Uint8Array.from({ length: width * height }, (_, k) => pixels[4 * k]));
      if (decoded.size > 24) decoded.delete(decoded.keys().next().value);
    }
    return decoded.get(key);
  }

  // What is drawn of a gene from one source: levels, the values of 0 and 254, and the ends of its colour scale.
  async function layerOf(source, i) {
    const from = DATA[source];
    const levels = from.columns ? bytes(from.columns[i]) : await plane(source, i);
    return { source, levels, low: from.low[i], high: from.high[i], range: from.range[i], grid: from.columns ? null : from };
  }

  const valueAt = (layer, k) =>
    layer.levels[k] === NONE ? null : layer.low + ((layer.high - layer.low) * layer.levels[k]) / 254;

  // The colour of every level on a scale, as 256 colours.
  function palette(layer, scale) {
    const list = lists[state.colours];
    const out = new Uint8Array(768);
    for (let level = 0; level < 255; level++) {
      const value = layer.low + ((layer.high - layer.low) * level) / 254;
      const at = Math.round(255 * clamp((value - scale[0]) / (scale[1] - scale[0] || 1), 0, 1));
      out.set(list.subarray(3 * at, 3 * at + 3), 3 * level);
    }
    return out;
  }

  // ---------------------------------------------------------------- the pictures

  const histology = new Image();
  const SOURCES = [];
  if (DATA.map) SOURCES.push(["map", "Predicted: map"]);
  if (DATA.predicted) SOURCES.push(["predicted", DATA.map ? "Predicted: read inside the shapes" : "Predicted"]);
  if (DATA.measured) SOURCES.push(["measured", "Measured"]);
  if (DATA.domain) SOURCES.push(["domain", "Tissue that the model knows"]);
  SOURCES.push(["plain", "H&E alone"]);
  const panels = ["left", "right"].map((side) => ({
    side, source: "plain", layer: null, painted: null, scale: null, canvas: $("canvas-" + side), choice: $(side),
    bar: $("bar-" + side), ends: $("bar-" + side).nextElementSibling,
  }));
  const [left, right] = panels;
  left.source = SOURCES[0][0];
  right.source = DATA.measured ? "measured" : "plain";
  for (const panel of panels) {
    panel.choice.append(...SOURCES.map(([value, name]) => element("option", { value }, name)));
    panel.choice.value = panel.source;
  }
  const expression = (panel) => ["map", "predicted", "measured"].includes(panel.source);

  // One turn of loading: values of the gene for every panel, then the scales, then the pictures.
  let turn = 0;
  async function load() {
    const mine = ++turn;
    const wanted = panels.map((panel) => (expression(panel) ? layerOf(panel.source, state.gene) : null));
    const layers = await Promise.all(wanted);
    if (mine !== turn) return; // another gene was picked meanwhile
    layers.forEach((layer, k) => (panels[k].layer = layer));
    const both = panels.filter((panel) => panel.layer);
    const low = Math.min(...both.map((panel) => panel.layer.range[0]));
    const high = Math.max(...both.map((panel) => panel.layer.range[1]));
    for (const panel of both) {
      panel.scale = state.shared ? [low, high] : panel.layer.range;
      panel.colours = palette(panel.layer, panel.scale);
      panel.painted = panel.layer.grid ? paint(panel.layer, panel.colours) : null;
    }
    panels.forEach(drawBar);
    draw();
    document.body.dataset.gene = DATA.genes[state.gene];
  }

  function paint(layer, colours) {
    const { width, height } = layer.grid;
    const canvas = new OffscreenCanvas(width, height);
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    for (let k = 0; k < layer.levels.length; k++) {
      const level = layer.levels[k];
      if (level === NONE) continue;
      image.data.set(colours.subarray(3 * level, 3 * level + 3), 4 * k);
      image.data[4 * k + 3] = 255;
    }
    context.putImageData(image, 0, 0);
    return canvas;
  }

  let waiting = false;
  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      panels.forEach(drawPanel);
    });
  }

  function fitted(canvas, height) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth;
    canvas.style.height = height + "px";
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    return [context, width, height];
  }

  // CSS pixels of a canvas per pixel of the H&E.
  const scaleOf = (panel) => (panel.canvas.clientWidth / DATA.image.width) * view.zoom;

  function drawPanel(panel) {
    const whole = (panel.canvas.clientWidth * DATA.image.height) / DATA.image.width;
    const [context, width, height] = fitted(panel.canvas, clamp(whole, 120, Math.max(320, 0.82 * window.innerHeight)));
    const scale = scaleOf(panel);
    const ratio = window.devicePixelRatio || 1;
    const place = () => context.setTransform(ratio * scale, 0, 0, ratio * scale, -ratio * scale * view.x, -ratio * scale * view.y);
    place();
    context.drawImage(histology, 0, 0, DATA.image.width, DATA.image.height);
    context.globalAlpha = state.opacity;
    if (panel.layer && panel.layer.grid) {
      const [a, b, c, d, e, f] = panel.layer.grid.matrix;
      context.transform(a, b, c, d, e, f);
      context.imageSmoothingEnabled = scale * Math.hypot(a, b) < 6; // closer, pixels of the map are shown as they are
      context.drawImage(panel.painted, 0, 0);
      place();
    } else if (panel.layer) {
      fillShapes(context, (k) => {
        const level = panel.layer.levels[k];
        return level === NONE ? null : `rgb(${panel.colours.subarray(3 * level, 3 * level + 3).join()})`;
      });
    } else if (panel.source === "domain") drawDomain(context);
    context.globalAlpha = 1;
    if (state.outline && DATA.tissue) {
      context.lineWidth = 1.6 / scale;
      context.strokeStyle = "rgba(20, 24, 30, .75)";
      context.stroke(tissue());
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    drawScaleBar(context, width, height, scale);
  }

  function fillShapes(context, colour) {
    const { x, y, r, rings } = DATA.shapes;
    const n = x ? x.length : rings.length;
    for (let k = 0; k < n; k++) {
      const fill = colour(k);
      if (fill === null) continue;
      context.fillStyle = fill;
      context.beginPath();
      if (x) context.arc(x[k], y[k], r[k], 0, 2 * Math.PI);
      else trace(context, rings[k]);
      context.fill("evenodd");
    }
  }

  function trace(path, rings) {
    for (const ring of rings) {
      path.moveTo(ring[0], ring[1]);
      for (let i = 2; i < ring.length; i += 2) path.lineTo(ring[i], ring[i + 1]);
      path.closePath();
    }
  }

  let outline = null;
  function tissue() {
    if (!outline) trace((outline = new Path2D()), DATA.tissue);
    return outline;
  }

  const domainColour = (value) => (value == null ? null : DOMAIN.find(([end]) => value <= end)[1]);
  let domainGrid = null;
  function drawDomain(context) {
    if (DATA.domain.values) return fillShapes(context, (k) => domainColour(DATA.domain.values[k]));
    if (!domainGrid) return plane("domain", 0).then((levels) => ((domainGrid = levels), draw()));
    const { width, height, matrix, low, high } = DATA.domain;
    const canvas = new OffscreenCanvas(width, height);
    const grid = canvas.getContext("2d");
    domainGrid.forEach((level, k) => {
      if (level === NONE) return;
      grid.fillStyle = domainColour(low[0] + ((high[0] - low[0]) * level) / 254);
      grid.fillRect(k % width, Math.floor(k / width), 1, 1);
    });
    context.transform(...matrix);
    context.imageSmoothingEnabled = false;
    context.drawImage(canvas, 0, 0);
  }

  function drawScaleBar(context, width, height, scale) {
    if (!DATA.image.um) return;
    const um = DATA.image.um / scale; // of a CSS pixel
    const most = 0.28 * width * um;
    const power = 10 ** Math.floor(Math.log10(most));
    const length = [5, 2, 1].map((k) => k * power).find((k) => k <= most) || power;
    const text = length >= 1000 ? `${length / 1000} mm` : `${length} µm`;
    const px = length / um;
    context.font = "600 12px system-ui, sans-serif";
    context.fillStyle = "rgba(255, 255, 255, .85)";
    context.beginPath();
    context.roundRect(10, height - 38, Math.max(px, context.measureText(text).width) + 20, 28, 6);
    context.fill();
    context.fillStyle = "#111";
    context.fillText(text, 20, height - 22);
    context.fillRect(20, height - 17, px, 3);
  }

  function drawBar(panel) {
    const [low, unit, high] = panel.ends.children;
    low.textContent = high.textContent = "";
    unit.replaceChildren();
    panel.bar.hidden = !expression(panel);
    if (panel.source === "domain") {
      for (const [, colour, name] of DOMAIN) {
        const swatch = element("span", { class: "swatch" });
        swatch.style.background = colour;
        unit.append(swatch, name);
      }
    }
    if (!panel.layer) return;
    const [context, width] = fitted(panel.bar, 12);
    const list = lists[state.colours];
    for (let i = 0; i < width; i++) {
      const at = 3 * Math.round((255 * i) / Math.max(1, width - 1));
      context.fillStyle = `rgb(${list[at]}, ${list[at + 1]}, ${list[at + 2]})`;
      context.fillRect(i, 0, 1.5, 12);
    }
    const beyond = [panel.layer.low < panel.scale[0] - 1e-9, panel.layer.high > panel.scale[1] + 1e-9];
    low.textContent = (beyond[0] ? "≤ " : "") + number(panel.scale[0]);
    high.textContent = (beyond[1] ? "≥ " : "") + number(panel.scale[1]);
    unit.textContent = DATA.unit;
  }

  // ---------------------------------------------------------------- moving about, and reading values

  function move(x, y) {
    const panel = left;
    const seenX = panel.canvas.clientWidth / scaleOf(panel);
    const seenY = panel.canvas.clientHeight / scaleOf(panel);
    const margin = 0.1;
    view.x = clamp(x, -margin * seenX, Math.max(-margin * seenX, DATA.image.width - (1 - margin) * seenX));
    view.y = clamp(y, -margin * seenY, Math.max(-margin * seenY, DATA.image.height - (1 - margin) * seenY));
    if (view.zoom === 1 && DATA.image.height * scaleOf(panel) <= panel.canvas.clientHeight + 1) view.x = view.y = 0;
    draw();
  }

  function zoom(factor, panel = left, at = [panel.canvas.clientWidth / 2, panel.canvas.clientHeight / 2]) {
    const before = scaleOf(panel);
    view.zoom = clamp(view.zoom * factor, 1, 40);
    const after = scaleOf(panel);
    move(view.x + at[0] / before - at[0] / after, view.y + at[1] / before - at[1] / after);
  }

  function under(panel, event) {
    const scale = scaleOf(panel);
    return [event.offsetX / scale + view.x, event.offsetY / scale + view.y];
  }

  function shapeAt(x, y) {
    if (!DATA.shapes) return -1;
    const { x: xs, y: ys, r, rings } = DATA.shapes;
    if (xs) return xs.findIndex((each, k) => (each - x) ** 2 + (ys[k] - y) ** 2 <= r[k] ** 2);
    return rings.findIndex((each) => each.filter((ring) => inside(ring, x, y)).length % 2 === 1);
  }

  function inside(ring, x, y) {
    let within = false;
    for (let i = 0, j = ring.length - 2; i < ring.length; j = i, i += 2)
      if (ring[i + 1] > y !== ring[j + 1] > y && x < ((ring[j] - ring[i]) * (y - ring[i + 1])) / (ring[j + 1] - ring[i + 1]) + ring[i])
        within = !within;
    return within;
  }

  function read(layer, x, y, shape) {
    if (!layer.grid) return shape < 0 ? null : valueAt(layer, shape);
    const [a, b, c, d, e, f] = layer.grid.matrix;
    const det = a * d - b * c;
    const column = Math.floor((d * (x - e) - c * (y - f)) / det);
    const row = Math.floor((a * (y - f) - b * (x - e)) / det);
    const { width, height } = layer.grid;
    return column < 0 || row < 0 || column >= width || row >= height ? null : valueAt(layer, row * width + column);
  }

  function readout(panel, event) {
    const [x, y] = under(panel, event);
    const shape = shapeAt(x, y);
    const parts = [];
    for (const each of panels) {
      if (each.layer) parts.push(`${each.source} ${number(read(each.layer, x, y, shape), 3)}`);
      else if (each.source === "domain" && DATA.domain.values && shape >= 0)
        parts.push(`domain percentile ${number(DATA.domain.values[shape], 0)}`);
    }
    const { um, corner } = DATA.image; // the corner of what is shown, in its own pixels
    const [across, down] = [x + corner[0], y + corner[1]].map((px) => ((px * um) / 1000).toFixed(2));
    const where = um ? `x ${across} mm, y ${down} mm` : "";
    $("readout").textContent = [where, `${DATA.genes[state.gene]}: ${parts.join(" · ") || "–"} ${DATA.unit}`].filter(Boolean).join("   ");
  }

  for (const panel of panels) {
    const fingers = new Map();
    panel.canvas.addEventListener("pointerdown", (event) => {
      fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
      panel.canvas.setPointerCapture(event.pointerId);
    });
    for (const end of ["pointerup", "pointercancel"])
      panel.canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
    panel.canvas.addEventListener("pointermove", (event) => {
      const last = fingers.get(event.pointerId);
      if (last && fingers.size === 2) {
        const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
        const apart = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]) || 1;
        zoom(apart([event.offsetX, event.offsetY]) / apart(last), panel, other);
      } else if (last) move(view.x - (event.offsetX - last[0]) / scaleOf(panel), view.y - (event.offsetY - last[1]) / scaleOf(panel));
      if (last) fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
      readout(panel, event);
    });
    panel.canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoom(Math.exp(-event.deltaY * 0.0016), panel, [event.offsetX, event.offsetY]);
    }, { passive: false });
    panel.canvas.addEventListener("keydown", (event) => {
      const step = 0.12 * panel.canvas.clientWidth / scaleOf(panel);
      const by = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
      if (!by) return;
      event.preventDefault();
      move(view.x + by[0], view.y + by[1]);
    });
    panel.choice.addEventListener("change", () => {
      panel.source = panel.choice.value;
      load();
    });
  }

  // ---------------------------------------------------------------- the list of genes

  const list = $("genes");
  let listed = [];

  function fillList() {
    const query = state.query.trim().toLowerCase();
    listed = DATA.genes.map((_, i) => i).filter((i) => DATA.genes[i].toLowerCase().includes(query));
    if (state.byName) listed.sort((a, b) => DATA.genes[a].localeCompare(DATA.genes[b]));
    list.replaceChildren(...listed.map((i) => {
      const gene = DATA.genes[i];
      const [kind] = VERDICT[valueOf("verdict", gene)] || ["v-none"];
      const r = valueOf("val_pcc", gene) ?? valueOf("pcc_here", gene);
      return element("li", { role: "option", id: "gene-" + i, "data-i": i, "aria-selected": i === state.gene },
        element("span", { class: "dot " + kind, "aria-hidden": "true" }), element("span", {}, gene), element("span", {}, r == null ? "" : number(r)));
    }));
    const undrawn = query ? table.gene.filter((gene) => !drawnAt.has(gene) && gene.toLowerCase().includes(query)).length : 0;
    const of = listed.length === DATA.genes.length ? `${listed.length} genes` : `${listed.length} of ${DATA.genes.length} genes`;
    $("found").textContent = of + (undrawn ? `; ${undrawn} more in the table, without pictures` : "");
    $("order").textContent = state.byName ? "By trust" : "A–Z";
  }

  function pick(i) {
    if (i == null || i < 0 || i >= DATA.genes.length) return;
    state.gene = i;
    for (const item of list.children) item.setAttribute("aria-selected", Number(item.dataset.i) === i);
    const item = $("gene-" + i);
    if (item) {
      list.scrollTop = clamp(list.scrollTop, item.offsetTop - list.offsetTop - list.clientHeight + item.offsetHeight, item.offsetTop - list.offsetTop);
      $("search").setAttribute("aria-activedescendant", item.id);
      list.setAttribute("aria-activedescendant", item.id);
    }
    showFacts();
    load();
    drawRanking();
    drawScatter();
    markRow();
  }

  function next(step) {
    const at = listed.indexOf(state.gene);
    pick(listed[at < 0 ? 0 : clamp(at + step, 0, listed.length - 1)]);
  }

  function showFacts() {
    const gene = DATA.genes[state.gene];
    const verdict = valueOf("verdict", gene);
    $("gene-name").textContent = gene;
    $("gene-verdict").textContent = verdict || "";
    $("gene-verdict").className = "chip " + (VERDICT[verdict] || ["v-none"])[0];
    $("gene-facts").replaceChildren(...COLUMNS.slice(2).filter(([name]) => table[name]).flatMap(([name, title, what]) => [
      element("dt", { title: what }, title), element("dd", {}, number(valueOf(name, gene))),
    ]));
  }

  list.addEventListener("click", (event) => {
    const item = event.target.closest("li");
    if (item) pick(Number(item.dataset.i));
  });
  $("search").addEventListener("input", (event) => {
    state.query = event.target.value;
    fillList();
    if (state.query && listed.length && !listed.includes(state.gene)) pick(listed[0]);
  });
  $("order").addEventListener("click", () => {
    state.byName = !state.byName;
    fillList();
    pick(state.gene);
  });
  for (const box of [$("search"), list])
    box.addEventListener("keydown", (event) => {
      const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 }[event.key];
      if (step) next(step);
      else if (event.key === "Home" && box === list) pick(listed[0]);
      else if (event.key === "End" && box === list) pick(listed[listed.length - 1]);
      else if (event.key === "Enter") list.focus();
      else return;
      event.preventDefault();
    });

  // ---------------------------------------------------------------- the charts

  const ranked = table.val_pcc ? "val_pcc" : table.pcc_here ? "pcc_here" : null;
  const order = ranked ? table.gene.map((_, i) => i).filter((i) => column(ranked)[i] != null).sort((a, b) => column(ranked)[b] - column(ranked)[a]) : [];
  const beside = ranked === "val_pcc" ? [["ridge_pcc", "Ridge"], ["ceiling", "ceiling"], ["pcc_here", "on this slide"]] : [["depth_here", "log depth"], ["ceiling_here", "ceiling"]];

  function drawRanking() {
    if (!order.length) return;
    const [context, width, height] = fitted($("ranking"), 240);
    const names = beside.map(([name]) => name).filter((name) => table[name]);
    const all = [ranked, ...names].flatMap((name) => column(name).filter((value) => value != null));
    const [low, high] = [Math.min(0, ...[all.reduce((a, b) => Math.min(a, b), 0)]), Math.min(1, all.reduce((a, b) => Math.max(a, b), 0) + 0.05)];
    const box = [34, 8, width - 8, height - 22];
    const px = (k) => box[0] + ((k + 0.5) / order.length) * (box[2] - box[0]);
    const py = (value) => box[3] - ((value - low) / (high - low || 1)) * (box[3] - box[1]);
    axis(context, box, low, high, py);
    context.fillStyle = css("--quiet");
    context.textAlign = "center";
    context.fillText(`${order.length} genes, the best on the left`, (box[0] + box[2]) / 2, height - 5);
    const size = clamp((box[2] - box[0]) / order.length, 1.5, 5);
    const dots = (name, colour, radius) => order.forEach((i, k) => {
      const value = column(name)[i];
      if (value == null) return;
      context.fillStyle = typeof colour === "function" ? colour(i) : colour;
      context.fillRect(px(k) - radius / 2, py(value) - radius / 2, radius, radius);
    });
    const tones = { ridge_pcc: "--ridge", depth_here: "--ridge", ceiling: "--none", ceiling_here: "--none", pcc_here: "--accent" };
    for (const name of names) dots(name, css(tones[name]), Math.max(1.8, 0.6 * size));
    const kinds = Object.fromEntries(Object.values(VERDICT).map(([kind]) => [kind, css("--" + { "v-good": "good", "v-weak": "weak", "v-ridge": "ridge", "v-bad": "bad", "v-none": "none" }[kind])]));
    dots(ranked, (i) => kinds[(VERDICT[column("verdict")[i]] || ["v-none"])[0]], Math.max(2.5, size));
    const at = order.indexOf(rowOf.get(DATA.genes[state.gene]));
    if (at >= 0) {
      context.strokeStyle = context.fillStyle = css("--text");
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(px(at), box[1]);
      context.lineTo(px(at), box[3]);
      context.stroke();
      context.textAlign = px(at) > 0.7 * width ? "right" : "left";
      context.fillText(DATA.genes[state.gene], px(at) + (context.textAlign === "left" ? 5 : -5), box[1] + 10);
    }
    $("ranking-legend").replaceChildren(...[[ranked === "val_pcc" ? "held-out correlation, by verdict" : "correlation on this slide", "--good"], ...names.map((name) => [beside.find(([each]) => each === name)[1], tones[name]])].flatMap(([name, colour]) => {
      const mark = element("b", {}, "■ ");
      mark.style.color = css(colour);
      return [mark, name + "   "];
    }));
  }

  function axis(context, box, low, high, py) {
    context.font = "11px system-ui, sans-serif";
    context.textAlign = "right";
    const step = [0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 50, 100].find((each) => (high - low) / each <= 6) || high - low;
    for (let value = Math.ceil(low / step) * step; value <= high + 1e-9; value += step) {
      context.strokeStyle = css("--line");
      context.lineWidth = 1;
      context.beginPath();
      context.moveTo(box[0], py(value));
      context.lineTo(box[2], py(value));
      context.stroke();
      context.fillStyle = css("--quiet");
      context.fillText(String(Math.round(value * 100) / 100), box[0] - 5, py(value) + 4);
    }
  }

  $("ranking").addEventListener("click", (event) => {
    const at = Math.floor(((event.offsetX - 34) / ($("ranking").clientWidth - 42)) * order.length);
    const gene = table.gene[order[clamp(at, 0, order.length - 1)]];
    if (drawnAt.has(gene)) pick(drawnAt.get(gene));
  });

  const paired = DATA.measured && DATA.predicted && DATA.measured.columns;
  async function drawScatter() {
    if (!paired) return;
    const i = state.gene;
    const [measured, predicted] = await Promise.all(["measured", "predicted"].map((source) => layerOf(source, i)));
    if (i !== state.gene) return;
    const points = [];
    for (let k = 0; k < measured.levels.length; k++) {
      const pair = [valueAt(measured, k), valueAt(predicted, k)];
      if (pair[0] != null && pair[1] != null) points.push(pair);
    }
    const [context, width, height] = fitted($("scatter"), 240);
    const low = Math.min(measured.low, predicted.low);
    const high = Math.max(measured.high, predicted.high);
    const box = [38, 8, width - 8, height - 30];
    const px = (value) => box[0] + ((value - low) / (high - low || 1)) * (box[2] - box[0]);
    const py = (value) => box[3] - ((value - low) / (high - low || 1)) * (box[3] - box[1]);
    axis(context, box, low, high, py);
    context.strokeStyle = css("--quiet");
    context.setLineDash([4, 4]);
    context.beginPath();
    context.moveTo(px(low), py(low));
    context.lineTo(px(high), py(high));
    context.stroke();
    context.setLineDash([]);
    context.fillStyle = css("--accent");
    context.globalAlpha = points.length > 1500 ? 0.25 : 0.55;
    for (const [x, y] of points) {
      context.beginPath();
      context.arc(px(x), py(y), points.length > 1500 ? 1.4 : 2.6, 0, 2 * Math.PI);
      context.fill();
    }
    context.globalAlpha = 1;
    context.fillStyle = css("--quiet");
    context.textAlign = "center";
    context.fillText(`measured, ${DATA.unit}`, (box[0] + box[2]) / 2, height - 4);
    context.textAlign = "left";
    context.fillText("predicted", box[0] + 4, box[1] + 8);
    $("scatter-gene").textContent = DATA.genes[i];
    const r = valueOf("pcc_here", DATA.genes[i]);
    $("scatter-note").textContent = `${points.length} shapes${r == null ? "" : `, r = ${number(r)}`}; dashed: equal`;
  }

  // ---------------------------------------------------------------- the table

  const shown = { by: null, down: true, rows: STEP, query: "" };
  const columns = COLUMNS.filter(([name]) => table[name]);

  function tableRows() {
    const query = shown.query.trim().toLowerCase();
    const rows = table.gene.map((_, i) => i).filter((i) => !query || table.gene[i].toLowerCase().includes(query) || String(column("verdict")[i] || "").includes(query));
    const values = column(shown.by);
    const sign = shown.down ? -1 : 1;
    return rows.sort((a, b) => {
      const [x, y] = [values[a], values[b]];
      if (x == null || y == null) return (x == null) - (y == null);
      return typeof x === "string" ? -sign * y.localeCompare(x) : sign * (x - y);
    });
  }

  function fillTable() {
    const rows = tableRows();
    $("table").tBodies[0].replaceChildren(...rows.slice(0, shown.rows).map((i) => {
      const gene = table.gene[i];
      const drawn = drawnAt.has(gene);
      const row = element("tr", { "data-gene": gene, class: drawn ? "" : "undrawn" });
      for (const [name] of columns) {
        const value = column(name)[i];
        if (name === "gene") row.append(element("td", {}, drawn ? element("button", { type: "button", title: "Show this gene" }, gene) : gene));
        else if (name === "verdict") row.append(element("td", { class: "words " + (VERDICT[value] || ["v-none"])[0], title: value }, "● ", value));
        else row.append(element("td", {}, number(value)));
      }
      return row;
    }));
    $("rows").textContent = `${Math.min(shown.rows, rows.length)} of ${rows.length} genes`;
    $("more").hidden = rows.length <= shown.rows;
    for (const head of $("table").tHead.querySelectorAll("th"))
      head.setAttribute("aria-sort", head.dataset.name !== shown.by ? "none" : shown.down ? "descending" : "ascending");
    markRow();
  }

  function markRow() {
    for (const row of $("table").tBodies[0].rows) row.classList.toggle("picked", row.dataset.gene === DATA.genes[state.gene]);
  }

  function fillHead() {
    const row = element("tr");
    for (const [name, title, what] of columns) {
      const button = element("button", { type: "button", title: what }, title);
      const head = element("th", { scope: "col", "data-name": name, class: name === "verdict" ? "words" : "" }, button);
      button.addEventListener("click", () => {
        shown.down = shown.by === name ? !shown.down : !["gene", "verdict"].includes(name);
        shown.by = name;
        fillTable();
      });
      row.append(head);
    }
    $("table").tHead.replaceChildren(row);
  }

  $("table").tBodies[0].addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row && drawnAt.has(row.dataset.gene)) pick(drawnAt.get(row.dataset.gene));
  });
  $("filter").addEventListener("input", (event) => {
    shown.query = event.target.value;
    shown.rows = STEP;
    fillTable();
  });
  $("more").addEventListener("click", () => {
    shown.rows += STEP;
    fillTable();
  });
  $("csv").addEventListener("click", () => {
    const cell = (value) => (value == null ? "" : /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : value);
    const lines = [columns.map(([name]) => name), ...tableRows().map((i) => columns.map(([name]) => cell(column(name)[i])))];
    const text = lines.map((line) => line.join(",")).join("\n") + "\n";
    const link = element("a", { href: "data:text/csv;charset=utf-8," + encodeURIComponent(text), download: "genes.csv" });
    link.click();
  });

  // ---------------------------------------------------------------- controls, keys, theme

  function setOpacity(value) {
    state.opacity = clamp(value, 0, 1);
    $("opacity").value = Math.round(100 * state.opacity);
    $("opacity-value").textContent = `${Math.round(100 * state.opacity)} %`;
    draw();
  }

  let before = 0.7;
  function toggleMap() {
    if (state.opacity > 0) before = state.opacity;
    setOpacity(state.opacity > 0 ? 0 : before);
  }

  function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = theme === "dark" ? "Light" : "Dark";
    drawRanking();
    drawScatter();
    draw();
  }
  const toggleTheme = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");

  $("opacity").addEventListener("input", (event) => setOpacity(event.target.value / 100));
  $("colours").append(...Object.keys(lists).map((name) => element("option", { value: name }, name)));
  $("colours").addEventListener("change", (event) => {
    state.colours = event.target.value;
    load();
  });
  $("shared").addEventListener("change", (event) => {
    state.shared = event.target.checked;
    load();
  });
  $("outline").addEventListener("change", (event) => {
    state.outline = event.target.checked;
    draw();
  });
  $("zoom-in").addEventListener("click", () => zoom(1.5));
  $("zoom-out").addEventListener("click", () => zoom(1 / 1.5));
  const all = () => {
    view.zoom = 1;
    view.x = view.y = 0;
    draw();
  };
  $("zoom-reset").addEventListener("click", all);
  $("theme").addEventListener("click", toggleTheme);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) && !["range", "checkbox"].includes(event.target.type);
    if (event.key === "Escape" && typing) return event.target.blur();
    if (typing) return;
    const keys = {
      "/": () => $("search").focus(), j: () => next(1), k: () => next(-1), o: toggleMap, t: toggleTheme, 0: all,
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5),
      "[": () => setOpacity(state.opacity - 0.1), "]": () => setOpacity(state.opacity + 0.1),
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
  });

  $("shared-label").hidden = !DATA.measured && !(DATA.map && DATA.predicted);
  $("outline-label").hidden = !DATA.tissue;
  $("ranking-figure").hidden = !order.length;
  $("scatter-figure").hidden = !paired;
  document.querySelector(".charts").classList.toggle("single", !(order.length && paired));
  document.querySelector(".charts").hidden = !order.length && !paired;
  shown.by = ranked || "gene";
  shown.down = Boolean(ranked);
  new ResizeObserver(() => {
    panels.forEach(drawBar);
    draw();
    drawRanking();
    drawScatter();
  }).observe(document.querySelector("main"));

  histology.onload = () => {
    fillHead();
    fillTable();
    fillList();
    setTheme(window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    pick(0);
  };
  histology.src = DATA.image.src;
})();
