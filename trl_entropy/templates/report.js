// Copyright 2026 The trl-entropy Authors.
// SPDX-License-Identifier: Apache-2.0
// The page: its controls, the charts in it, and the completions colored by entropy.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const controls = document.getElementById("controls");
const STORE = "trl-entropy " + location.pathname;
const HEIGHT = 220;
const charts = [];

const saved = (() => { try { return JSON.parse(sessionStorage.getItem(STORE)) ?? {}; } catch { return {}; } })();
const state = {
  hidden: [], smooth: Number(controls.smooth.value), from: null, to: null,
  grouped: data.groups.some((group) => group.runs.length > 1), difference: false, log: {}, renew: true,
  ...(saved.runs === data.runs.join("\n") ? saved.state : {}),
};

function keep() {
  try { sessionStorage.setItem(STORE, JSON.stringify({ runs: data.runs.join("\n"), state })); } catch { /* no storage */ }
}

const element = (tag, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
};

/** One figure: its chart, its slider, and what is shown of the point under the cursor. */
class Chart {
  constructor(figure) {
    this.figure = figure;
    this.panel = data.panels[Number(figure.dataset.panel)];
    this.box = figure.querySelector(".chart");
    this.slider = figure.querySelector(".cursor");
    this.tip = this.box.appendChild(element("div", { className: "tip", hidden: true, ariaHidden: "true" }));
    this.log = figure.querySelector("[name=log]");
    this.log.checked = state.log[this.panel.title] ?? this.panel.log;
    this.log.addEventListener("change", () => { state.log[this.panel.title] = this.log.checked; keep(); this.draw(); });
    figure.querySelector("[name=save]").addEventListener("click", () => this.save());
    this.slider.addEventListener("input", () => this.show(this.stops[this.slider.value]));
    this.slider.addEventListener("focus", () => this.show(this.stops[this.slider.value]));
    this.slider.addEventListener("blur", () => this.show(null));
    this.box.addEventListener("pointermove", (event) => this.move(event));
    this.box.addEventListener("pointerdown", (event) => this.press(event));
    this.box.addEventListener("pointerup", (event) => this.release(event));
    this.box.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && !this.pressed && this.show(null));
    this.box.addEventListener("dblclick", () => this.zoomTo(null));
    this.zoom = null; this.near = false; this.stale = true; this.pressed = null;
  }

  get choices() {
    const difference = state.difference && data.baseline !== null;
    return { ...state, difference, log: this.log.checked && this.panel.can_log && !(difference && this.panel.over_steps) };
  }

  get range() {
    if (!this.panel.over_steps) return this.zoom;
    if (state.from === null && state.to === null) return null;
    const all = this.stops.length ? [this.stops[0], this.stops.at(-1)] : [0, 1];
    const range = [state.from ?? all[0], state.to ?? all[1]];
    return range[0] < range[1] ? range : null;
  }

  refresh() { this.stale = true; if (this.near) this.draw(); }

  draw() {
    this.stale = false;
    this.view?.finalize();
    this.log.disabled = !this.panel.can_log || (this.choices.difference && this.panel.over_steps);
    this.items = drawn(data, this.panel, this.choices);
    this.stops = stopsOf(this.panel, this.items);
    this.slider.max = Math.max(0, this.stops.length - 1);
    this.slider.disabled = !this.stops.length;
    const spec = specOf(this.panel, this.items, this.choices, this.range, [this.box.clientWidth, HEIGHT]);
    this.view = new vega.View(vega.parse(spec), { renderer: "svg", container: this.box.firstElementChild });
    this.view.run();
    this.show(null);
  }

  /** Where an event is, in pixels of the plot. */
  place(event) {
    const box = this.box.querySelector("svg").getBoundingClientRect(), [left, top] = this.view.origin();
    return [event.clientX - box.left - left, event.clientY - box.top - top];
  }

  move(event) {
    if (!this.view) return;
    const [x, y] = this.place(event);
    if (this.pressed !== null) {
      this.view.signal("brush", [this.pressed, x].sort((one, other) => one - other)).runAsync();
      return;
    }
    const scale = { x: this.view.scale("x"), y: this.view.scale("y") };
    const points = this.panel.over_steps ? null : pointsOf(this.items);
    const far = (stop) => points
      ? Math.hypot(scale.x(points[stop].x) - x, scale.y(points[stop].y) - y) : Math.abs(scale.x(stop) - x);
    this.show(this.stops.reduce((best, stop) => (best === null || far(stop) < far(best) ? stop : best), null));
  }

  press(event) {
    if (event.pointerType !== "mouse" || event.button) return this.move(event);
    this.show(null);
    this.pressed = this.place(event)[0];
    this.box.setPointerCapture(event.pointerId);
  }

  release(event) {
    if (this.pressed === null) return;
    const ends = [this.pressed, this.place(event)[0]].sort((one, other) => one - other);
    this.pressed = null;
    this.view.signal("brush", null).runAsync();
    if (ends[1] - ends[0] > 5) this.zoomTo(ends.map((pixel) => this.view.scale("x").invert(pixel)));
  }

  zoomTo(range) {
    if (!this.panel.over_steps) { this.zoom = range; return this.draw(); }
    [state.from, state.to] = range ? [Math.floor(range[0]), Math.ceil(range[1])] : [null, null];
    renewAll();
  }

  /** Shows the values at a stop, in the chart and to those who hear the slider; `null` shows none. */
  show(stop) {
    const points = stop === null || stop === undefined ? [] : valuesAt(this.panel, this.items, stop);
    const visible = points.length > 0;
    this.tip.hidden = !visible;
    this.view.signal("stop", visible && this.panel.over_steps ? stop : null).data("here", points).runAsync();
    const head = visible && this.panel.over_steps ? `step ${digits(stop)}` : "";
    if (visible) {
      this.slider.value = this.stops.indexOf(stop);
      this.slider.setAttribute("aria-valuetext", [head, ...points.map((point) => inWords(point, this.panel))].filter(Boolean).join("; "));
      const rows = points.map((point) => element("div", {}, swatch(point.color), inWords(point, this.panel)));
      this.tip.replaceChildren(...(head ? [element("b", {}, head)] : []), ...rows);
      const left = this.view.origin()[0] + this.view.scale("x")(points[0].x);
      const right = left > this.box.clientWidth / 2;
      this.tip.style.left = right ? "auto" : `${left + 10}px`;
      this.tip.style.right = right ? `${this.box.clientWidth - left + 10}px` : "auto";
    }
  }

  /** Hands out the chart as an SVG file, with the colors of the page. */
  async save() {
    if (this.stale) this.draw();
    const style = getComputedStyle(document.documentElement);
    const text = (await this.view.toSVG()).replace(/var\((--\w+)\)/g, (_, name) => style.getPropertyValue(name).trim());
    const link = element("a", { download: this.panel.title.replace(/\W+/g, "_") + ".svg" });
    link.href = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.click();
    URL.revokeObjectURL(link.href);
  }
}

const swatch = (color) => {
  const made = element("i", { className: "swatch" });
  made.style.background = color;
  return made;
};

/** Writes the state into the controls, keeps it, and draws every chart again. */
function renewAll() {
  for (const box of controls.querySelectorAll("[name=run]")) box.checked = !state.hidden.includes(Number(box.value));
  for (const mark of document.querySelectorAll(".swatch[data-run]")) {
    const run = Number(mark.dataset.run), group = data.groups.find((one) => one.runs.includes(run));
    mark.style.background = `var(--c${state.grouped ? group.runs[0] : run})`;
  }
  controls.smooth.value = state.smooth;
  controls.querySelector("output").textContent = `${state.smooth} %`;
  controls.from.value = state.from ?? "";
  controls.to.value = state.to ?? "";
  for (const name of ["grouped", "difference", "renew"]) if (controls[name]) controls[name].checked = state[name];
  keep();
  for (const chart of charts) chart.refresh();
}

function readControls() {
  state.hidden = [...controls.querySelectorAll("[name=run]")].filter((box) => !box.checked).map((box) => Number(box.value));
  state.smooth = Number(controls.smooth.value);
  const number = (input) => (input.value === "" ? null : Number(input.value));
  [state.from, state.to] = [number(controls.from), number(controls.to)];
  for (const name of ["grouped", "difference", "renew"]) if (controls[name]) state[name] = controls[name].checked;
  renewAll();
}

/** A completion: colored tokens, and a slider that goes through them. */
function fillCompletion(box) {
  const shown = data.completions[Number(box.dataset.completion)];
  const text = box.querySelector(".text"), slider = box.querySelector("input"), output = box.querySelector("output");
  const tokens = shown.tokens.map((token, place) => {
    const entropy = shown.entropies[place], made = element("b", { textContent: token.replaceAll("\n", "\u21b5\n") });
    if (entropy === null) made.className = "none";
    else made.style.setProperty("--heat", Math.min(entropy / data.scale, 1).toFixed(3));
    return made;
  });
  text.append(...tokens);
  slider.max = Math.max(0, tokens.length - 1);
  const words = (place) => {
    const entropy = shown.entropies[place];
    return `token ${place + 1} of ${tokens.length}, ${JSON.stringify(shown.tokens[place])}: ` +
      (entropy === null ? "outside the loss" : `${entropy.toFixed(3)} nats`);
  };
  const show = (place) => {
    text.querySelector(".here")?.classList.remove("here");
    tokens[place].classList.add("here");
    output.textContent = words(place);
    slider.value = place;
    slider.setAttribute("aria-valuetext", words(place));
  };
  const follow = (event) => { const place = tokens.indexOf(event.target); if (place >= 0) show(place); };
  text.addEventListener("pointerover", follow);
  text.addEventListener("click", follow);
  for (const kind of ["input", "focus"]) slider.addEventListener(kind, () => {
    if (!tokens.length) return;
    show(Number(slider.value));
    const here = tokens[Number(slider.value)];
    if (here.offsetTop < text.scrollTop || here.offsetTop > text.scrollTop + text.clientHeight - 24) {
      text.scrollTop = here.offsetTop - text.clientHeight / 2;
    }
  });
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const chart = charts.find((one) => one.figure === entry.target);
    chart.near = entry.isIntersecting;
    if (chart.near && chart.stale) chart.draw();
  }
}, { rootMargin: "300px" });

for (const figure of document.querySelectorAll("figure[data-panel]")) {
  charts.push(new Chart(figure));
  seen.observe(figure);
}
let wide = innerWidth;
addEventListener("resize", () => {
  if (innerWidth === wide) return; // a phone's bar of addresses changes the height alone
  wide = innerWidth;
  for (const chart of charts) chart.refresh();
});
controls.addEventListener("input", readControls);
controls.addEventListener("submit", (event) => event.preventDefault());
controls.querySelector("[name=all]").addEventListener("click", () => {
  Object.assign(state, { from: null, to: null, hidden: [] });
  for (const chart of charts) chart.zoom = null;
  renewAll();
});
document.querySelectorAll("[data-completion]").forEach(fillCompletion);
document.body.classList.add("live");
renewAll();
if (data.watch) setInterval(() => state.renew && !document.hidden && location.reload(), data.watch * 1000);
