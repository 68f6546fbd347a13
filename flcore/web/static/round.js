// One round: its timeline, the slowest client, who was left out, and which round is shown.

import { byId, duration, element, n, setRows, setText } from './format.js';
import { ask, now, state } from './state.js';
import { active, MARKS, OUT, PHASES, slowest, Timeline } from './timeline.js';

const HINT = 'Choose a client with the arrow keys, or click it, to read its phases.';
const LOST = 'its connection was lost';
const OUT_WORDS = { refused: 'was refused', failed: 'failed', lost: 'lost its connection' };

export const timeline = new Timeline(byId('timeline'), byId('timeline-space'), byId('timeline-canvas'), (row) => {
  const node = byId('chosen');
  if (!row) { setText(node, HINT); return; }
  const tasks = Object.entries(Object.groupBy(row.spans, (span) => span.task)).map(([task, spans]) => {
    const told = spans.map((span) => `${span.phase} ${duration((span.end ?? elapsed() ?? span.begin) - span.begin)}`).join(', ');
    return hasSeveralTasks() ? `${task}: ${told}` : told;
  });
  const reason = row.out ? reasonOf(row) : '';
  setText(node, `${row.client}: ${tasks.join('; ')}${reason ? `. ${reason}` : ''}`);
});

function elapsed() {
  const { view, job } = state;
  if (!view) return 0;
  const isLive = state.chosen === null && job && !job.is_over && job.round > job.rounds_over;
  return isLive ? Math.max(0, now() - view.begin_s) : undefined;
}

export function shownRound() { return state.chosen ?? state.view?.round ?? state.job?.round ?? 0; }

const hasSeveralTasks = () => state.view?.tasks.length > 1;

function reasonOf({ client, out }) {
  if (state.chosen === null) {
    const found = state.job?.clients.find((each) => each.name === client);
    if (found?.last_reason) return found.last_reason === LOST ? '' : found.last_reason;
  }
  const failed = state.rounds.find((round) => round.round === shownRound())?.failed ?? [];
  return failed.find(([name, task]) => name === client && task === out.task)?.[2] ?? '';
}

export function showTimeline(view) {
  state.view = view;
  const job = state.job;
  const isLive = state.chosen === null && !job.is_over && job.round > job.rounds_over;
  setText(byId('timeline-title'), view ? `Round ${view.round}${isLive ? '' : ', over'}` : (state.chosen ? `Round ${state.chosen}` : 'Rounds'));
  byId('timeline').hidden = !view;
  timeline.set(view, elapsed());
  timeline.onSelect(timeline.rows.find((row) => row.client === timeline.selected) ?? null);
  showGlance(view, isLive);
  if (byId('timeline-table').open) showTimelineTable();
}

function showGlance(view, isLive) {
  const rows = timeline.rows;
  const found = view ? slowest(rows) : null;
  setText(byId('slow-title'), isLive ? 'Slowest now' : 'Slowest');
  byId('slow').replaceChildren(...describeSlowest(found, rows));
  const out = rows.filter((row) => row.out).sort((a, b) => OUT.indexOf(a.out.phase) - OUT.indexOf(b.out.phase));
  const items = out.slice(0, 6).map((row) => element('li', {}, element('span', { class: 'mark', 'data-phase': row.out.phase, 'aria-hidden': 'true' }, MARKS[row.out.phase]),
    element('span', {}, element('b', {}, row.client), ` ${OUT_WORDS[row.out.phase]}${hasSeveralTasks() ? ` in ${row.out.task}` : ''}`, reasonOf(row) ? `: ${reasonOf(row)}` : '')));
  if (out.length > 6) items.push(element('li', {}, element('span'), `and ${out.length - 6} more, see below`));
  byId('out').replaceChildren(...(items.length ? items : [element('li', { class: 'quiet' }, element('span'), view ? 'Nobody.' : 'No timeline is kept of this round.')]));
  setText(byId('phases-title'), isLive ? 'Where they are' : 'How it ended');
  const counts = Object.groupBy(rows, (row) => row.shown);
  byId('phases').replaceChildren(...PHASES.map((phase) => element('li', { 'data-count': String(counts[phase]?.length ?? 0) },
    element('span', { class: 'swatch', 'data-phase': phase, 'aria-hidden': 'true' }, MARKS[phase] ?? ''), `${counts[phase]?.length ?? 0} ${phase}`)));
}

function describeSlowest(row, rows) {
  if (!row) return ['–'];
  const done = rows.filter((each) => !each.isPending && !each.out).length;
  const name = element('b', {}, row.client);
  if (row.isPending) return [name, ` is ${row.last.phase}, for ${duration((elapsed() ?? row.last.begin) - row.last.begin)}. `, element('span', { class: 'quiet' }, `${done} of ${rows.length} are done.`)];
  const longest = active(row).toSorted((a, b) => (b.end - b.begin) - (a.end - a.begin))[0];
  const most = longest ? `, ${duration(longest.end - longest.begin)} of it ${longest.phase}` : '';
  return [name, ` took ${duration(row.busy)}${most}.`];
}

export function showTimelineTable() {
  setRows(byId('timeline-rows'), timeline.shown.flatMap((row) => row.spans.map((span) => [row.client, span.task, span.phase, n(span.begin.toFixed(1)), n(span.end === null ? 'now' : span.end.toFixed(1))])));
}

export function showRoundChoices(job, isForced = false) {
  const choices = byId('round');
  const rounds = job.timeline_rounds;
  const wanted = rounds.join(' ');
  if (document.activeElement === choices && !isForced) return; // somebody may be choosing from the list
  if (choices.dataset.rounds !== wanted) {
    choices.dataset.rounds = wanted;
    choices.replaceChildren(...rounds.toReversed().map((round) => element('option', { value: String(round) }, `Round ${round}`)));
  }
  choices.value = String(shownRound());
  const at = rounds.indexOf(shownRound());
  byId('round-previous').disabled = at <= 0;
  byId('round-next').disabled = at < 0 || at === rounds.length - 1;
  byId('round-live').setAttribute('aria-pressed', String(state.chosen === null));
}

export async function chooseRound(round) {
  const { job } = state;
  if (round === null || round === job.timeline_rounds.at(-1)) {
    state.chosen = null;
    showTimeline(job.timeline);
    showRoundChoices(job, true);
    return;
  }
  state.chosen = round;
  showRoundChoices(job, true);
  try {
    const view = await ask(`timeline?round=${round}`);
    if (state.chosen === round) showTimeline(view.spans.length ? view : null);
  } catch {
    if (state.chosen === round) showTimeline(null);
  }
}

/** Let the bars of phases that last grow, between two states of the server. */
export function tick() {
  if (state.chosen !== null || !state.view || elapsed() === undefined) return;
  timeline.tick(elapsed());
  byId('slow').replaceChildren(...describeSlowest(slowest(timeline.rows), timeline.rows));
}
