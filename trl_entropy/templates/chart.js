// Copyright 2026 The trl-entropy Authors.
// SPDX-License-Identifier: Apache-2.0
// From the numbers of a panel and the reader's choices to what Vega draws. Touches no document, so that tests run it.
"use strict";

const LINES = new Set(["line", "second", "evaluation", "front"]);
const SMOOTHED = new Set(["line", "second"]);

/** Centered running mean over `width` of x; x is in ascending order. */
function runningMean(x, y, width) {
  let first = 0, next = 0, sum = 0;
  return x.map((here) => {
    while (next < x.length && x[next] <= here + width / 2) sum += y[next++];
    while (x[first] < here - width / 2) sum -= y[first++];
    return sum / (next - first);
  });
}

/** What to draw: the series shown, smoothed, merged over seeds, and relative to the baseline, as the state says. */
function drawn(data, panel, state) {
  const all = panel.series.map((item) => ({
    ...item, x: data.axes[item.x], steps: data.axes[item.steps], color: item.run, name: data.runs[item.run],
  }));
  const ends = all.filter((item) => item.x.length).flatMap((item) => [item.x[0], item.x.at(-1)]);
  const width = (Math.max(...ends) - Math.min(...ends)) * state.smooth / 100;
  let items = all.filter((item) => !state.hidden.includes(item.run) || needed(data, state, item));
  items = items.map((item) => {
    if (!panel.over_steps || !SMOOTHED.has(item.kind) || !width) return item;
    return { ...item, raw: item.y, y: runningMean(item.x, item.y, width) };
  });
  if (state.grouped) items = merged(data, items);
  if (state.difference && panel.over_steps) items = differences(data, items, state);
  return items.filter((item) => (item.runs ?? [item.run]).some((run) => !state.hidden.includes(run)));
}

/** Whether a hidden run is still needed, to compare others with it. */
function needed(data, state, item) {
  const group = (run) => state.grouped ? data.groups.findIndex((found) => found.runs.includes(run)) : run;
  return state.difference && data.baseline !== null && group(item.run) === group(data.baseline);
}

/** Lines of the runs of a group as their mean, with the lowest and the highest as a band. */
function merged(data, items) {
  const found = new Map();
  for (const item of items) {
    const group = data.groups.find((one) => one.runs.includes(item.run));
    const alone = group.runs.length === 1 || !LINES.has(item.kind);
    const key = alone ? found.size + " alone" : [group.label, item.kind, item.label].join("\n");
    if (!found.has(key)) found.set(key, { group, alone, parts: [] });
    found.get(key).parts.push(item);
  }
  return [...found.values()].map(({ group, alone, parts }) => {
    const color = group.runs[0];
    return alone ? { ...parts[0], color } : { ...meanOf(parts), color, name: group.label, runs: parts.map((part) => part.run) };
  });
}

/** The mean of several series at each x or, for points of a front, at each place in it. */
function meanOf(parts) {
  const points = new Map();
  for (const part of parts) {
    part.x.forEach((x, place) => {
      const key = part.kind === "front" ? place : x;
      if (!points.has(key)) points.set(key, { x: [], y: [], steps: part.steps?.[place] });
      points.get(key).x.push(x);
      points.get(key).y.push(part.y[place]);
    });
  }
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const kept = [...points.values()].map((point) => ({ ...point, at: mean(point.x) }));
  if (parts[0].kind !== "front") kept.sort((one, other) => one.at - other.at);
  return {
    ...parts[0], raw: undefined, x: kept.map((point) => point.at), y: kept.map((point) => mean(point.y)),
    low: kept.map((point) => Math.min(...point.y)), high: kept.map((point) => Math.max(...point.y)),
    seeds: kept.map((point) => point.y.length), steps: parts[0].steps && kept.map((point) => point.steps),
  };
}

/** Lines minus the baseline's at the same step; the baseline itself and all that has no line are left out. */
function differences(data, items, state) {
  const isBase = (item) => item.runs ? item.runs.includes(data.baseline) : item.run === data.baseline;
  const bases = new Map();
  for (const item of items.filter(isBase)) bases.set(item.kind + item.label, new Map(item.x.map((x, i) => [x, item.y[i]])));
  return items.filter((item) => LINES.has(item.kind) && !isBase(item)).flatMap((item) => {
    const base = bases.get(item.kind + item.label);
    const kept = base ? item.x.map((x, place) => place).filter((place) => base.has(item.x[place])) : [];
    if (!kept.length) return [];
    const minus = (values) => values && kept.map((place) => values[place] - base.get(item.x[place]));
    return [{
      ...item, x: kept.map((place) => item.x[place]), y: minus(item.y), raw: undefined,
      low: minus(item.low), high: minus(item.high), seeds: item.seeds && kept.map((place) => item.seeds[place]),
    }];
  });
}

/** The range of the y axis: what is drawn, at least as wide as the panel asks, and 0 where it belongs. */
function rangeOfY(panel, items, state) {
  const values = items.flatMap((item) => [item.y, item.raw, item.low, item.high, item.upper].flatMap((list) => list ?? []));
  if (!values.length) return [0, 1];
  let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  if (state.log) {
    const missing = Math.max(0, 1 - Math.log10(high / low)) / 2; // at least a factor of ten
    return [low / 10 ** missing, high * 10 ** missing];
  }
  const fraction = low >= 0 && high <= 1, positive = low >= 0, difference = state.difference && panel.over_steps;
  if (difference || panel.from_zero) [low, high] = [Math.min(low, 0), Math.max(high, 0)];
  const missing = (panel.least_span - (high - low)) / 2;
  if (missing > 0) [low, high] = [low - missing, high + missing];
  if (difference) return low === high ? [low - 1, high + 1] : [low, high];
  if (fraction && high > 1) [low, high] = [low - (high - 1), 1];
  if (positive && low < 0) [low, high] = [0, high - low];
  if (!panel.over_steps) [low, high] = [low - (high - low) * 0.05, high + (high - low) * 0.05]; // room for large points
  return low === high ? [low, low + 1] : [low, high];
}

/** The points at an x, or the one point at a place in the list of all points, for the reader to see their values. */
function valuesAt(panel, items, cursor) {
  const lines = items.filter((item) => LINES.has(item.kind) || item.kind === "points");
  if (!panel.over_steps) return pointsOf(lines)[cursor] ? [pointsOf(lines)[cursor]] : [];
  return lines.flatMap((item) => {
    const place = item.x.indexOf(cursor);
    return place < 0 ? [] : [pointOf(item, place)];
  });
}

function pointsOf(items) {
  return items.filter((item) => LINES.has(item.kind) || item.kind === "points")
    .flatMap((item) => item.x.map((_, place) => pointOf(item, place)));
}

function pointOf(item, place) {
  return {
    x: item.x[place], y: item.y[place], raw: item.raw?.[place], low: item.low?.[place], high: item.high?.[place],
    step: item.steps?.[place], name: item.name, label: item.label, color: `var(--c${item.color})`,
  };
}

/** Where the cursor can be: every x of a line over steps; elsewhere the places of all points. */
function stopsOf(panel, items) {
  if (!panel.over_steps) return pointsOf(items).map((_, place) => place);
  return [...new Set(pointsOf(items).map((point) => point.x))].sort((one, other) => one - other);
}

/** Places for the labels of a logarithmic axis: powers of ten, and over less than three of them 2 and 5 times these. */
function logTicks([low, high]) {
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const powers = Array.from({ length: last - first + 1 }, (_, place) => 10 ** (first + place));
  const all = Math.log10(high / low) < 3 ? powers.flatMap((power) => [power, 2 * power, 5 * power]) : powers;
  return all.map((value) => Number(value.toPrecision(6))).filter((value) => value >= low && value <= high);
}

const digits = (value) => Number(value.toPrecision(4)).toString();

/** A point in words. */
function inWords(point, panel) {
  const name = point.label ? `${point.name}, ${point.label}` : point.name;
  const step = point.step === undefined ? "" : ` at step ${digits(point.step)}`;
  const where = panel.over_steps ? "" : `${panel.x_label} ${digits(point.x)}, ${panel.y_label} `;
  const band = point.low === undefined || point.low === point.high ? "" : ` (${digits(point.low)} to ${digits(point.high)})`;
  const raw = point.raw === undefined || point.raw === point.y ? "" : ` (logged: ${digits(point.raw)})`;
  return `${name}${step}: ${where}${digits(point.y)}${band}${raw}`;
}

/** The marks of one series. */
function marksOf(item, index, crowded) {
  const color = `var(--c${item.color})`, from = { data: `d${index}` }, quiet = { aria: false, interactive: false, clip: true };
  const at = (field) => ({ scale: "y", field });
  const mark = (type, encode, more) => ({
    type, from, ...quiet, ...more, encode: { enter: { x: { scale: "x", field: "x" }, y: at("y"), ...encode } },
  });
  const line = (more) => mark("line", { stroke: { value: color }, strokeWidth: { value: 2 }, ...more });
  const area = (low, high, opacity) => mark("area", {
    y: at(low), y2: at(high), fill: { value: color }, fillOpacity: { value: opacity },
  });
  const symbol = (size, more) => mark("symbol", {
    size, fill: { value: color }, stroke: { value: color }, strokeWidth: { value: 1 }, ...more,
  });
  switch (item.kind) {
    case "band":
      return item.upper.every((value, place) => value === item.y[place])
        ? [line({ strokeDash: { value: [2, 3] }, strokeWidth: { value: 1.5 } })]
        : [area("y", "upper", 0.13)];
    case "points": {
      const fill = { value: item.label === "dropped" ? "transparent" : color };
      return [symbol({ value: crowded ? 7 : 24 }, { fill, fillOpacity: { value: 0.5 }, strokeOpacity: { value: 0.7 } })];
    }
    case "evaluation":
      return [...(item.low ? [area("low", "high", 0.16)] : []), symbol({ value: 60 }, { shape: { value: "diamond" } })];
    case "threshold":
      return [line({ strokeDash: { value: [2, 3] }, strokeWidth: { value: 1 } })];
    case "front":
      return [line({ strokeOpacity: { value: 0.5 }, strokeWidth: { value: 1.2 } }), symbol({ field: "size" })];
  }
  const dash = item.kind === "second" ? { strokeDash: { value: [6, 4] } } : {};
  return [
    ...(item.low ? [area("low", "high", 0.16)] : []),
    ...(item.raw ? [line({ y: at("raw"), strokeOpacity: { value: 0.28 }, strokeWidth: { value: 1 } })] : []),
    item.x.length === 1 ? symbol({ value: 40 }) : line(dash),
  ];
}

/** The rows of one series. */
function rowsOf(item) {
  return item.x.map((x, place) => ({
    x, y: item.y[place], raw: item.raw?.[place], low: item.low?.[place], high: item.high?.[place],
    upper: item.upper?.[place], size: place === item.x.length - 1 ? 130 : 26,
  }));
}

/** The whole chart for Vega. `zoom` is a range of x or null, `size` is [width, height] in pixels. */
function specOf(panel, items, state, zoom, size) {
  const x = items.flatMap((item) => item.x);
  const [first, last] = x.length ? [x.reduce((a, b) => Math.min(a, b)), x.reduce((a, b) => Math.max(a, b))] : [0, 1];
  const margin = panel.over_steps ? 0 : (last - first || 1) * 0.04;
  const difference = state.difference && panel.over_steps;
  const label = difference ? `${panel.title}, minus baseline` : panel.title;
  const range = rangeOfY(panel, items, state);
  const crowded = x.length > 600;
  const ticks = state.log ? { values: logTicks(range), format: "~g" } : { tickCount: 5 };
  const stop = { scale: "x", signal: "stop === null ? 0 : stop" };
  return {
    width: size[0], height: size[1], padding: 4, autosize: { type: "fit", contains: "padding" },
    description: `${label} over ${panel.x_label}: ${new Set(pointsOf(items).map((point) => point.name)).size} runs or means of seeds. ` +
      "The slider after the chart reads out values.",
    signals: [{ name: "stop", value: null }, { name: "brush", value: null }],
    data: [...items.map((item, index) => ({ name: `d${index}`, values: rowsOf(item) })), { name: "here", values: [] }],
    scales: [
      { name: "x", domain: zoom ?? [first - margin, last === first ? last + 1 : last + margin], range: "width", zero: false },
      { name: "y", type: state.log ? "log" : "linear", domain: range, range: "height", zero: false, nice: !state.log },
    ],
    axes: [
      { scale: "y", orient: "left", grid: true, ...ticks, labelOverlap: true },
      { scale: "x", orient: "bottom", tickCount: Math.max(3, Math.floor(size[0] / 80)), tickMinStep: panel.over_steps ? 1 : 0, title: panel.x_label, labelOverlap: true },
    ],
    marks: [
      ...(difference ? [{ type: "rule", aria: false, encode: { enter: { y: { scale: "y", value: 0 }, x2: { signal: "width" }, stroke: { value: "var(--muted)" } } } }] : []),
      ...items.flatMap((item, index) => marksOf(item, index, crowded)),
      { type: "rule", aria: false, interactive: false, clip: true, encode: {
        enter: { y: { value: 0 }, y2: { signal: "height" }, stroke: { value: "var(--muted)" } },
        update: { x: stop, opacity: { signal: "stop === null ? 0 : 1" } },
      } },
      { type: "symbol", from: { data: "here" }, aria: false, interactive: false, clip: true, encode: { update: {
        x: { scale: "x", field: "x" }, y: { scale: "y", field: "y" }, fill: { field: "color" }, stroke: { value: "var(--page)" },
        size: { value: 60 },
      } } },
      { type: "rect", aria: false, interactive: false, encode: { update: {
        x: { signal: "brush ? brush[0] : 0" }, x2: { signal: "brush ? brush[1] : 0" }, y: { value: 0 }, y2: { signal: "height" },
        fill: { value: "var(--muted)" }, fillOpacity: { signal: "brush ? 0.2 : 0" },
      } } },
    ],
    config: {
      background: null, view: { stroke: null },
      axis: {
        labelColor: "var(--muted)", titleColor: "var(--muted)", domainColor: "var(--edge)", tickColor: "var(--edge)",
        gridColor: "var(--line)", labelFont: "system-ui, sans-serif", titleFont: "system-ui, sans-serif",
        labelFontSize: 11, titleFontSize: 11, titleFontWeight: "normal",
      },
    },
  };
}
