// Text and elements. Data becomes text nodes only, never markup.

export const byId = (id) => document.getElementById(id);

/** Make an element. Children are elements, or texts. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Set a node's text, if it is another one: an unchanged page costs no layout. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const ROWS_AT_ONCE = 120;
const unfinished = new WeakMap();

/**
 * Fill a table's body: rows are arrays of cells, a cell is a text, {text, class}, or null for one that the caller
 * fills. Rows that stay are reused. A long table is filled in parts, so that nobody waits for what is below.
 */
export function setRows(body, rows) {
  clearTimeout(unfinished.get(body));
  while (body.rows.length > rows.length) body.deleteRow(-1);
  fill(body, rows, 0);
}

function fill(body, rows, from) {
  const until = from + ROWS_AT_ONCE;
  rows.slice(from, until).forEach((cells, offset) => {
    const index = from + offset;
    const row = body.rows[index] ?? body.insertRow();
    cells.forEach((cell, column) => {
      if (cell === null) { if (!row.cells[column]) row.insertCell(); return; }
      const shown = typeof cell === 'object' ? cell : { text: cell };
      const target = row.cells[column] ?? row.insertCell();
      setText(target, shown.text);
      if (target.className !== (shown.class ?? '')) target.className = shown.class ?? '';
    });
    while (row.cells.length > cells.length) row.deleteCell(-1);
  });
  if (until < rows.length) unfinished.set(body, setTimeout(fill, 0, body, rows, until));
}

export const n = (text) => ({ text, class: 'n' });
export const wide = (text) => ({ text, class: 'wide' });

/** A duration in words; `isRough`: without seconds, where there are minutes. */
export function duration(seconds, isRough = false) {
  if (seconds === null || seconds === undefined) return '–';
  if (seconds < 10) return `${Math.max(0, seconds).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600 && isRough) return `${Math.round(whole / 60)} min`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** A number of bytes, in decimal units, as the rates are. */
export function bytes(count) {
  if (count === null || count === undefined) return '–';
  const units = ['B', 'kB', 'MB', 'GB', 'TB'];
  let power = 0;
  while (count >= 1000 && power < units.length - 1) { count /= 1000; power += 1; }
  return `${power && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[power]}`;
}

/** A size of memory, in binary units, as budgets are given. */
export function memory(count) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let power = 0;
  while (count >= 1024 && power < units.length - 1) { count /= 1024; power += 1; }
  return `${power && count < 100 && count % 1 ? count.toFixed(1) : Math.round(count)} ${units[power]}`;
}

/** A value of a metric, with four digits. */
export function value(number) {
  if (number === null || number === undefined) return '–';
  const size = Math.abs(number);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return number.toExponential(2);
  return Number(number.toPrecision(4)).toString();
}

export const rate = (megabytes) => (megabytes ? `${megabytes.toFixed(megabytes < 10 ? 1 : 0)} MB/s` : '0 MB/s');
export const plural = (count, word) => `${count} ${word}${count === 1 ? '' : 's'}`;
export const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour12: false });

/** The value of a colour variable of the style sheet. */
export function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** Size a canvas for the screen's pixels, clear it, and return its context in CSS pixels. */
export function context(canvas, width, height) {
  const scale = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext('2d');
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return pen;
}

/** A text that fits a width, with an ellipsis where it was cut. */
export function fitted(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let low = 0;
  let high = text.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (pen.measureText(`${text.slice(0, middle)}…`).width <= width) low = middle; else high = middle - 1;
  }
  return `${text.slice(0, low)}…`;
}

/** Round steps between two numbers, about `count` of them. */
export function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}
