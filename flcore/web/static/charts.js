// Line charts over rounds, on canvas, with labels at the lines and a cursor for mouse, touch and arrow keys.

import { color, context, element, fitted, setText, ticks, value } from './format.js';

const FONT = '12px system-ui, "Segoe UI", Roboto, sans-serif';
const TOP = 8;
const BOTTOM = 22;
const LABEL_STEP = 14;
const DASHES = [[], [6, 3], [2, 3], [9, 3, 2, 3], [4, 4]];

export class LineChart {
  /** `onCursor` is told the index of the round at the cursor, or null. */
  constructor(title, height = 190, onCursor = () => {}) {
    this.height = height;
    this.hasZero = false; // whether the axis begins at zero in any case: lengths are compared
    this.onCursor = onCursor;
    this.base = element('canvas', { 'aria-hidden': 'true' });
    this.over = element('canvas', { class: 'cursor', 'aria-hidden': 'true' });
    this.plot = element('div', { class: 'plot', tabindex: '0', role: 'group' }, this.base, this.over);
    this.title = element('b');
    this.readout = element('span', { class: 'readout', 'aria-live': 'polite' });
    this.figure = element('figure', { class: 'chart' }, element('figcaption', {}, this.title, this.readout), this.plot);
    this.setTitle(title);
    this.series = [];
    this.rounds = [];
    this.at = null;
    this.plot.addEventListener('pointermove', (event) => this.#point(event));
    this.plot.addEventListener('pointerleave', () => this.moveTo(null));
    this.plot.addEventListener('keydown', (event) => this.#key(event));
    new ResizeObserver(() => this.draw()).observe(this.figure);
  }

  setTitle(title) {
    setText(this.title, title);
    this.plot.setAttribute('aria-label', `Line chart of ${title} by round. Arrow keys read values.`);
  }

  /** Show series: {name, values, color, dash, isFaint}. A value is a number or null. Faint ones have no label. */
  set(rounds, series) {
    this.rounds = rounds;
    this.series = series;
    this.draw();
    this.moveTo(this.at !== null && this.at < rounds.length ? this.at : null);
  }

  draw() {
    const width = Math.floor(this.figure.clientWidth);
    if (!width) return;
    const { height } = this;
    const pen = context(this.base, width, height);
    pen.font = FONT;
    pen.textBaseline = 'middle';
    let low = Infinity;
    let high = -Infinity;
    for (const each of this.series) {
      for (const point of each.values) {
        if (point === null || point === undefined) continue;
        if (point < low) low = point;
        if (point > high) high = point;
      }
    }
    if (low > high) [low, high] = [0, 1];
    if (low > 0 && (this.hasZero || low < high * 0.35)) low = 0;
    if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
    const marks = ticks(low, high, 4);
    const left = Math.max(...marks.map((each) => pen.measureText(value(each)).width), 16) + 9;
    const labelled = this.series.filter((each) => !each.isFaint);
    const names = labelled.map((each) => pen.measureText(each.name).width);
    const right = labelled.length ? Math.min(width * 0.3, Math.max(...names) + 12) : 12;
    const room = (high - low) * 0.04;
    const count = Math.max(1, this.rounds.length - 1);
    this.x = (index) => left + (index / count) * (width - left - right);
    this.y = (number) => TOP + (1 - (number - low + room) / (high - low + 2 * room)) * (height - TOP - BOTTOM);
    pen.strokeStyle = color('line');
    pen.fillStyle = color('quiet');
    pen.lineWidth = 1;
    pen.textAlign = 'right';
    for (const mark of marks) {
      const at = Math.round(this.y(mark)) + 0.5;
      pen.beginPath();
      pen.moveTo(left, at);
      pen.lineTo(width - right, at);
      pen.stroke();
      pen.fillText(value(mark), left - 7, at);
    }
    this.#rounds(pen, left, width - right);
    for (const each of this.series.toSorted((a, b) => Boolean(b.isFaint) - Boolean(a.isFaint))) this.#line(pen, each);
    this.#labels(pen, labelled, width - right, right - 10);
    this.#cursor();
  }

  #rounds(pen, left, end) {
    if (!this.rounds.length) return;
    const first = this.rounds[0];
    const last = this.rounds.at(-1);
    pen.textAlign = 'center';
    for (const round of ticks(first, last, (end - left) / 64)) {
      const index = this.rounds.indexOf(round);
      if (index >= 0) pen.fillText(String(round), this.x(index), this.height - 9);
    }
  }

  #line(pen, each) {
    pen.strokeStyle = each.color;
    pen.lineWidth = each.isFaint ? 1 : 2;
    pen.globalAlpha = each.isFaint ? Math.max(0.05, Math.min(0.3, 12 / this.series.length)) : 1;
    pen.setLineDash(each.isFaint ? [] : DASHES[each.dash ?? 0]);
    pen.lineJoin = 'round';
    pen.beginPath();
    let isOpen = false;
    let lonely = -1;
    each.values.forEach((point, index) => {
      if (point === null || point === undefined) { isOpen = false; return; }
      if (isOpen) pen.lineTo(this.x(index), this.y(point)); else pen.moveTo(this.x(index), this.y(point));
      lonely = isOpen ? -1 : index;
      isOpen = true;
    });
    pen.stroke();
    if (lonely >= 0 && !each.isFaint) {
      pen.fillStyle = each.color;
      pen.beginPath();
      pen.arc(this.x(lonely), this.y(each.values[lonely]), 3, 0, 7);
      pen.fill();
    }
    pen.globalAlpha = 1;
    pen.setLineDash([]);
  }

  /** Write each line's name beside its end, moved apart where lines end close together. */
  #labels(pen, labelled, from, room) {
    const ends = labelled
      .map((each) => ({ each, last: each.values.findLastIndex((point) => point !== null && point !== undefined) }))
      .filter(({ last }) => last >= 0)
      .map(({ each, last }) => ({ each, at: this.y(each.values[last]) }))
      .sort((a, b) => a.at - b.at);
    ends.forEach((end, index) => { if (index) end.at = Math.max(end.at, ends[index - 1].at + LABEL_STEP); });
    const over = ends.length ? ends.at(-1).at - (this.height - BOTTOM) : 0;
    if (over > 0) {
      ends.at(-1).at -= over;
      for (let index = ends.length - 2; index >= 0; index -= 1) ends[index].at = Math.min(ends[index].at, ends[index + 1].at - LABEL_STEP);
    }
    pen.textAlign = 'left';
    for (const { each, at } of ends) {
      pen.fillStyle = each.color;
      pen.fillText(fitted(pen, each.name, room), from + 7, at);
    }
  }

  moveTo(at) {
    this.at = at;
    this.#cursor();
    setText(this.readout, this.#reading(at ?? this.rounds.length - 1));
    this.onCursor(at);
  }

  #reading(index) {
    if (index < 0 || index >= this.rounds.length) return '';
    const said = this.series.filter((each) => !each.isFaint).map((each) => `${each.name} ${value(each.values[index])}`);
    return `round ${this.rounds[index]}: ${said.join(', ')}`;
  }

  #cursor() {
    const width = Math.floor(this.figure.clientWidth);
    if (!width || !this.x) return;
    const pen = context(this.over, width, this.height);
    if (this.at === null || this.at >= this.rounds.length) return;
    const x = Math.round(this.x(this.at)) + 0.5;
    pen.strokeStyle = color('quiet');
    pen.beginPath();
    pen.moveTo(x, TOP);
    pen.lineTo(x, this.height - BOTTOM);
    pen.stroke();
    for (const each of this.series) {
      const point = each.values[this.at];
      if (each.isFaint || point === null || point === undefined) continue;
      pen.fillStyle = each.color;
      pen.beginPath();
      pen.arc(x, this.y(point), 3.5, 0, 7);
      pen.fill();
    }
  }

  #point(event) {
    if (!this.rounds.length || !this.x) return;
    const x = event.clientX - this.plot.getBoundingClientRect().left;
    const [first, last] = [this.x(0), this.x(this.rounds.length - 1)];
    const share = last > first ? (x - first) / (last - first) : 0;
    this.moveTo(Math.round(Math.min(1, Math.max(0, share)) * (this.rounds.length - 1)));
  }

  #key(event) {
    const most = this.rounds.length - 1;
    const steps = { ArrowRight: 1, ArrowLeft: -1, PageDown: 20, PageUp: -20, Home: -most, End: most };
    if (event.key === 'Escape') this.moveTo(null);
    if (!(event.key in steps) || most < 0) return;
    event.preventDefault();
    this.moveTo(Math.min(most, Math.max(0, (this.at ?? most) + steps[event.key])));
  }
}
