// The timeline of one round: a row for each client, a bar for each phase. A canvas as large as what is visible.

import { color, context, duration, fitted, ticks } from './format.js';

export const OUT = ['refused', 'failed', 'lost'];
export const MARKS = { refused: '✕', failed: '!', lost: '?' };
const ACTIVE = ['queued', 'downloading', 'training', 'uploading'];
/** All phases, in the order in which a client goes through them, then those of the clients that were left out. */
export const PHASES = [...ACTIVE, 'checked', 'folded', ...OUT];
/** The order of rows by phase: those that were left out come first. */
const ORDER = [...OUT.toReversed(), ...PHASES.filter((phase) => !OUT.includes(phase))];
const AXIS = 26;
const FONT = '13px system-ui, "Segoe UI", Roboto, sans-serif';

/**
 * Turn the view of a timeline into rows: {client, spans: [{task, phase, begin, end}], last, isPending, out, shown, busy}.
 * A round has several tasks, and who was left out of one may answer the next: `out` is the span that says so, `shown`
 * the phase that stands for the client, and `busy` the seconds that it has spent in phases that others wait for.
 */
export function rowsOf(view) {
  const rows = view.clients.map((client) => ({ client, spans: [] }));
  for (const [client, task, phase, begin, end] of view.spans) {
    rows[client].spans.push({ task: view.tasks[task], phase: view.phases[phase], begin, end });
  }
  for (const row of rows) {
    row.last = row.spans.at(-1);
    row.isPending = ACTIVE.includes(row.last.phase) && row.last.end === null;
    row.out = leftOut(row.spans);
    const isFolded = row.spans.some((span) => span.phase === 'folded');
    row.shown = row.isPending ? row.last.phase : row.out?.phase ?? (isFolded ? 'folded' : row.last.phase);
    row.busy = active(row).reduce((sum, span) => sum + (span.end ?? span.begin) - span.begin, 0);
  }
  return rows;
}

/** The phases of a row in which others wait for the client. */
export const active = (row) => row.spans.filter((span) => ACTIVE.includes(span.phase));

/** The end of the last task that a client was left out of, or null. A task that it was asked again counts as it ended. */
function leftOut(spans) {
  const ends = new Map(spans.map((span) => [span.task, span]));
  return [...ends.values()].findLast((span) => OUT.includes(span.phase)) ?? null;
}

/** Whether a client is further back than another one: in an earlier phase, or for longer in the same one. */
function compareSlowness(a, b) {
  if (a.isPending !== b.isPending) return a.isPending ? -1 : 1;
  if (!a.isPending) return b.busy - a.busy;
  const stages = (row) => row.spans.filter((span) => span.phase !== 'lost' && span.task === row.last.task).length;
  return stages(a) - stages(b) || a.last.begin - b.last.begin;
}

/** The client that a round waits for or has waited for longest, among those that were not left out. */
export function slowest(rows) {
  const counted = rows.filter((row) => row.isPending || !row.out);
  return counted.length ? counted.toSorted(compareSlowness)[0] : null;
}

export class Timeline {
  constructor(scroller, space, canvas, onSelect) {
    Object.assign(this, { scroller, space, canvas, onSelect, rows: [], shown: [], selected: null, sort: 'slowest', find: '' });
    scroller.addEventListener('scroll', () => this.draw(), { passive: true });
    scroller.addEventListener('keydown', (event) => this.#key(event));
    canvas.addEventListener('click', (event) => this.#click(event));
    new ResizeObserver(() => this.draw()).observe(scroller);
  }

  /** Show a round. `elapsed` is its time so far in seconds: bars of phases that last end there. */
  set(view, elapsed) {
    this.view = view;
    this.rows = view ? rowsOf(view) : [];
    this.arrange(elapsed);
  }

  arrange(elapsed = this.elapsed) {
    const wanted = this.find.toLowerCase();
    const compare = {
      slowest: compareSlowness,
      name: (a, b) => a.client.localeCompare(b.client, 'en', { numeric: true }),
      phase: (a, b) => ORDER.indexOf(a.shown) - ORDER.indexOf(b.shown),
    }[this.sort];
    const byName = (a, b) => a.client.localeCompare(b.client, 'en', { numeric: true });
    this.shown = this.rows.filter((row) => row.client.toLowerCase().includes(wanted)).sort((a, b) => compare(a, b) || byName(a, b));
    this.tick(elapsed);
  }

  tick(elapsed) {
    this.elapsed = elapsed;
    this.draw();
  }

  get isNarrow() { return this.scroller.clientWidth < 560; }
  get rowHeight() { return this.isNarrow ? 38 : 24; }

  draw() {
    const width = this.scroller.clientWidth;
    if (!width) return;
    const { rowHeight } = this;
    const full = AXIS + this.shown.length * rowHeight + 4;
    this.space.style.height = `${full}px`;
    const height = Math.min(full, this.scroller.clientHeight || full, 1600);
    const pen = context(this.canvas, width, height);
    pen.font = FONT;
    pen.textBaseline = 'middle';
    const ink = Object.fromEntries([...ORDER, 'ink', 'quiet', 'line', 'card', 'faint', 'accent-back'].map((name) => [name, color(name)]));
    const left = this.isNarrow ? 0 : Math.min(170, width * 0.22);
    const right = this.isNarrow ? 4 : 168;
    const ends = this.rows.flatMap((row) => row.spans.map((span) => span.end ?? span.begin));
    this.span = Math.max(0.2, this.elapsed ?? 0, ends.reduce((most, each) => Math.max(most, each), 0));
    const x = (seconds) => left + (seconds / this.span) * (width - left - right);
    const from = Math.max(0, Math.floor((this.scroller.scrollTop - AXIS) / rowHeight));
    const until = Math.min(this.shown.length, from + Math.ceil(height / rowHeight) + 2);
    for (let index = from; index < until; index += 1) {
      this.#row(pen, this.shown[index], AXIS + index * rowHeight - this.scroller.scrollTop, { x, left, right, width, ink });
    }
    this.#axis(pen, { x, left, right, width, ink });
  }

  #row(pen, row, top, { x, left, right, width, ink }) {
    const { rowHeight, isNarrow } = this;
    if (row.client === this.selected) {
      pen.fillStyle = ink['accent-back'];
      pen.fillRect(0, top, width, rowHeight);
    }
    const line = isNarrow ? top + 11 : top + rowHeight / 2;
    const bar = isNarrow ? top + 21 : top + 5;
    const thick = isNarrow ? 12 : rowHeight - 10;
    pen.fillStyle = ink.ink;
    pen.fillText(fitted(pen, row.client, isNarrow ? width * 0.5 : left - 12), isNarrow ? 2 : 4, line);
    for (const span of row.spans) {
      const end = span.end ?? this.elapsed ?? this.span;
      const isDone = !ACTIVE.includes(span.phase);
      pen.fillStyle = ink[span.phase];
      const height = isDone ? Math.max(3, thick * 0.28) : thick;
      pen.fillRect(x(span.begin), bar + (thick - height) / 2, Math.max(1.5, x(end) - x(span.begin) - 1), height);
      if (OUT.includes(span.phase)) this.#mark(pen, span.phase, x(span.begin), bar + thick / 2, ink);
    }
    pen.fillStyle = OUT.includes(row.shown) ? ink.ink : ink.quiet;
    const told = this.#told(row);
    pen.textAlign = isNarrow ? 'right' : 'left';
    pen.fillText(fitted(pen, told, isNarrow ? width * 0.48 : right - 12), isNarrow ? width - 4 : width - right + 12, line);
    pen.textAlign = 'left';
  }

  /** What stands beside a row's bars. Of phases that last, only those of a live round have a duration. */
  #told(row) {
    if (row.isPending) return `${row.shown} ${duration(Math.max(0, (this.elapsed ?? row.last.begin) - row.last.begin))}`;
    return row.out ? `${row.shown} after ${duration(row.out.begin)}` : `${row.shown}, took ${duration(row.busy)}`;
  }

  #mark(pen, phase, x, y, ink) {
    pen.beginPath();
    pen.arc(x + 7, y, 7, 0, 7);
    pen.fill();
    pen.fillStyle = ink.card;
    pen.font = 'bold 10px system-ui, sans-serif';
    pen.textAlign = 'center';
    pen.fillText(MARKS[phase], x + 7, y + 0.5);
    pen.textAlign = 'left';
    pen.font = FONT;
  }

  #axis(pen, { x, left, right, width, ink }) {
    pen.fillStyle = ink.card;
    pen.fillRect(0, 0, width, AXIS - 2);
    pen.fillStyle = ink.quiet;
    pen.strokeStyle = ink.line;
    pen.textAlign = 'center';
    for (const at of ticks(0, this.span, (width - left - right) / 110)) {
      pen.textAlign = at === 0 ? 'left' : 'center';
      if (x(at) < width - right - 20 || at === 0) pen.fillText(at >= 120 ? duration(at) : `${at} s`, x(at), AXIS / 2 - 1);
    }
    pen.textAlign = 'left';
    pen.fillRect(0, AXIS - 2, width, 0.5);
  }

  select(client) {
    this.selected = client;
    const index = this.shown.findIndex((row) => row.client === client);
    if (index >= 0) {
      const top = AXIS + index * this.rowHeight;
      if (top - AXIS < this.scroller.scrollTop) this.scroller.scrollTop = top - AXIS;
      const bottom = top + this.rowHeight - this.scroller.clientHeight;
      if (bottom > this.scroller.scrollTop) this.scroller.scrollTop = bottom;
    }
    this.draw();
    this.onSelect(this.shown[index] ?? null);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.scroller.clientHeight / this.rowHeight) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -this.shown.length, End: this.shown.length };
    if (!(event.key in steps) || !this.shown.length) return;
    event.preventDefault();
    const now = this.shown.findIndex((row) => row.client === this.selected);
    const next = now < 0 ? 0 : now + steps[event.key];
    this.select(this.shown[Math.min(this.shown.length - 1, Math.max(0, next))].client);
  }

  #click(event) {
    const y = event.clientY - this.scroller.getBoundingClientRect().top + this.scroller.scrollTop - AXIS;
    const row = this.shown[Math.floor(y / this.rowHeight)];
    if (row) this.select(row.client);
  }
}
