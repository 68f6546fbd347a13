// The page: one stream of states from the server, and what is asked for when it is looked at. It never sends anything.

import { byId, bytes, clock, duration, element, memory, n, plural, rate, setRows, setText, wide } from './format.js';
import { chooseRound, showRoundChoices, shownRound, showTimeline, showTimelineTable, tick, timeline } from './round.js';
import { fetchRounds, fetchSites, showRounds, showRoundsTable, showSites, showSitesTable } from './rounds.js';
import { now, state } from './state.js';
import { loadContract, loadFiles, showClients, showRefusals } from './tables.js';

const RETRY_MS = 3000;
const STATE_WORDS = {
  queued: 'It waits for its turn.',
  waiting: 'It waits for clients.',
  stopped: 'Its server was stopped. It goes on when the server is started again.',
  interrupted: 'The disk took no more. It goes on when the server is started again.',
  aborted: 'Its lead or an admin has ended it.',
  failed: 'It has failed.',
};

let stream = null;
let retry = 0;

// ---- The stream -----------------------------------------------------------------------------------------------------

function connect() {
  clearTimeout(retry);
  stream?.close();
  stream = new EventSource(`/api/events?job=${encodeURIComponent(state.key)}`);
  stream.onopen = () => { state.isStale = true; };
  stream.onmessage = (event) => receive(JSON.parse(event.data));
  stream.onerror = async () => {
    showLink('away');
    if (stream.readyState !== EventSource.CLOSED) return; // the browser connects again by itself
    if (await needsToken()) askToken(); else retry = setTimeout(connect, RETRY_MS);
  };
}

async function needsToken() {
  try {
    return (await fetch('/status.json', { method: 'HEAD' })).status === 401;
  } catch {
    return false;
  }
}

function receive(message) {
  state.message = message;
  byId('main').hidden = false;
  byId('login').hidden = true;
  showLink('live');
  setText(byId('version'), `flcore ${message.version}.`);
  showJobs(message);
  if (!message.job) {
    const first = message.jobs.find((job) => !job.is_over && job.state !== 'queued') ?? message.jobs[0];
    byId('job').hidden = true;
    setText(byId('no-job'), state.key && first ? 'This job is not there any more. Choose another one.' : 'No job yet. Jobs appear here when leads submit them.');
    byId('no-job').hidden = Boolean(first && !state.key);
    if (first && !state.key) choose(first.key);
    return;
  }
  const job = message.job;
  if (state.job?.key !== job.key || state.isStale) forget();
  state.isStale = false;
  state.offset = job.updated_s - Date.now() / 1000;
  state.job = job;
  byId('job').hidden = false;
  byId('no-job').hidden = true;
  showJob(job);
  if (state.chosen === null) showTimeline(job.timeline);
  showRoundChoices(job);
  showClients(job);
  showRefusals(job);
  fetchRounds(() => showRefusals(state.job));
}

function forget() {
  Object.assign(state, { rounds: [], view: null });
  state.site.rounds = [];
  state.site.sites = Object.create(null);
  if (state.job && state.job.key !== state.message.job?.key) state.chosen = null;
  loadFiles();
  if (byId('contract').open) loadContract();
}

function choose(key) {
  if (key === state.key) return;
  state.key = key;
  state.chosen = null;
  history.replaceState(null, '', `#job=${encodeURIComponent(key)}`);
  connect();
}

function showLink(is) {
  const link = byId('link');
  if (link.dataset.state !== is) link.dataset.state = is;
  const job = state.job;
  const seen = job ? ` This was so at ${clock(job.updated_s)}.` : '';
  const away = job?.is_over ? 'The server has ended.' : `The server is away; the page connects again.${seen}`;
  setText(link, is === 'live' ? 'Live' : away);
}

// ---- The token ------------------------------------------------------------------------------------------------------

function askToken() {
  byId('main').hidden = true;
  byId('login').hidden = false;
  byId('token').focus();
}

async function logIn(token) {
  const reply = await fetch('/api/login', { headers: { Authorization: `Bearer ${token}` } });
  setText(byId('login-error'), reply.ok ? '' : 'This is not the token of this page.');
  if (reply.ok) {
    byId('login').hidden = true;
    byId('token').value = '';
    connect();
  }
}

// ---- The job --------------------------------------------------------------------------------------------------------

function showJobs(message) {
  byId('jobs').hidden = message.jobs.length < 2 && !message.sites.length;
  if (byId('jobs').hidden) return;
  const body = byId('job-rows');
  setRows(body, message.jobs.map((job) => [null, null, n(`${job.rounds_over}/${job.rounds || '?'}`), n(job.is_over || job.state === 'queued' ? '–' : String(job.connected)),
    n(job.is_over ? '–' : job.megabytes_per_s.toFixed(1)), n(duration(job.time_left_s)), n(job.refusals ? String(job.refusals) : '–'), wide(job.reason)]));
  message.jobs.forEach((job, index) => {
    const row = body.rows[index];
    if (row.dataset.key !== job.key || row.dataset.state !== job.state) {
      row.dataset.key = job.key;
      row.dataset.state = job.state;
      row.cells[0].replaceChildren(element('a', { href: `#job=${encodeURIComponent(job.key)}` }, job.key));
      row.cells[1].replaceChildren(element('span', { class: 'badge', 'data-state': job.state }, job.state));
    }
    if (job.key === state.key) row.setAttribute('aria-current', 'true'); else row.removeAttribute('aria-current');
  });
  const { sites } = message;
  byId('sites').hidden = !sites.length;
  setText(byId('site-count'), `${sites.filter((site) => site.is_connected).length} of ${sites.length} connected`);
  byId('site-list').replaceChildren(...sites.map((site) => element('li', {}, `${site.name}: ${site.is_connected ? 'connected' : 'away'}${site.jobs.length ? `, in ${site.jobs.join(', ')}` : ''}`)));
}

function showJob(job) {
  document.title = `${job.job}: ${job.state}`;
  setText(byId('job-name'), job.job);
  setText(byId('job-id'), job.id && job.id !== job.job ? job.id : '');
  const badge = byId('job-state');
  setText(badge, job.state);
  badge.dataset.state = job.state;
  const words = STATE_WORDS[job.state] ?? '';
  setText(byId('job-reason'), job.reason && job.state !== 'running' ? `${words} ${job.reason}`.trim() : (words || job.reason));
  const progress = byId('job-progress');
  progress.max = job.rounds || 1;
  progress.value = job.rounds_over;
  setText(byId('f-round'), job.rounds ? `${job.is_over ? job.rounds_over : Math.max(job.round, job.rounds_over)} of ${job.rounds}` : String(job.round));
  setText(byId('f-task'), !job.is_over && job.task ? `${job.task}: ${job.answered} of ${job.asked} answers in` : plural(job.rounds_over, 'round') + ' over');
  const away = job.clients.filter((client) => !client.is_connected).length;
  setText(byId('f-clients'), job.is_over ? String(job.clients.length) : String(job.connected));
  setText(byId('f-clients-more'), job.is_over ? 'took part' : `connected${away ? `, ${away} away` : ''}`);
  showTime(job);
  setText(byId('f-rate'), job.is_over ? bytes(job.bytes_sent + job.bytes_received) : rate(job.megabytes_per_s));
  setText(byId('f-bytes'), `${bytes(job.bytes_sent)} sent, ${bytes(job.bytes_received)} received`);
  showResources(job.resources);
}

function showTime(job) {
  const ran = job.started_s === null ? null : (job.ended_s ?? now()) - job.started_s;
  setText(byId('f-time-title'), job.is_over ? 'Took' : 'Time left');
  setText(byId('f-time'), job.is_over ? duration(ran) : (job.time_left_s === null ? '–' : `≈ ${duration(job.time_left_s, true)}`));
  setText(byId('f-time-more'), job.is_over ? (job.ended_s ? `ended at ${clock(job.ended_s)}` : '') : `running for ${duration(ran, true)}`);
}

function showResources(resources) {
  const staging = byId('m-memory');
  const disk = byId('m-disk');
  staging.hidden = !resources;
  disk.hidden = !resources || resources.disk_total_bytes === null;
  if (!resources) {
    for (const id of ['f-memory', 'f-disk']) setText(byId(id), '–');
    for (const id of ['f-memory-more', 'f-disk-more']) setText(byId(id), '');
    return;
  }
  const { staged_bytes: staged, staging_budget_bytes: most, budget_bytes: budget, disk_free_bytes: free, disk_total_bytes: total } = resources;
  setText(byId('f-memory'), memory(staged));
  setText(byId('f-memory-more'), `of ${memory(most)}; budget ${memory(budget)}${resources.resident_bytes === null ? '' : `, process ${memory(resources.resident_bytes)}`}`);
  Object.assign(staging, { max: most, low: most * 0.75, high: most * 0.95, optimum: 0, value: staged });
  setText(byId('f-disk'), free === null ? '–' : `${bytes(free)} free`);
  setText(byId('f-disk-more'), total === null ? '' : `${free < total * 0.05 ? 'almost full, ' : ''}of ${bytes(total)}`);
  if (total !== null) Object.assign(disk, { max: total, low: total * 0.85, high: total * 0.95, optimum: 0, value: total - free });
}

// ---- What people do -------------------------------------------------------------------------------------------------

byId('round').addEventListener('change', (event) => chooseRound(Number(event.target.value)));
byId('round').addEventListener('blur', () => { if (state.job) showRoundChoices(state.job, true); });
byId('round-live').addEventListener('click', () => chooseRound(null));
for (const [id, step] of [['round-previous', -1], ['round-next', 1]]) {
  byId(id).addEventListener('click', () => {
    const rounds = state.job.timeline_rounds;
    chooseRound(rounds[rounds.indexOf(shownRound()) + step]);
  });
}
byId('sort').addEventListener('change', (event) => { timeline.sort = event.target.value; timeline.arrange(); });
byId('find').addEventListener('input', (event) => { timeline.find = event.target.value; timeline.arrange(); });
byId('metric').addEventListener('change', fetchSites);
byId('site').addEventListener('change', showSites);
byId('timeline-table').addEventListener('toggle', showTimelineTable);
byId('rounds-table').addEventListener('toggle', showRoundsTable);
byId('sites-table').addEventListener('toggle', showSitesTable);
byId('contract').addEventListener('toggle', loadContract);
byId('login').addEventListener('submit', (event) => { event.preventDefault(); logIn(byId('token').value.trim()); });
addEventListener('hashchange', () => choose(new URLSearchParams(location.hash.slice(1)).get('job') ?? ''));
document.addEventListener('visibilitychange', () => { if (document.hidden) stream?.close(); else connect(); });
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { timeline.draw(); if (state.rounds.length) showRounds(); });

setInterval(() => { // bars and durations of a round that goes on, between two states
  const { job } = state;
  if (document.hidden || !job || job.is_over) return;
  showTime(job);
  if (byId('link').dataset.state === 'live') tick();
}, 1000);

const given = new URLSearchParams(location.hash.slice(1)).get('token');
if (given) { // it stays neither in the address nor in the history
  history.replaceState(null, '', state.key ? `#job=${encodeURIComponent(state.key)}` : location.pathname);
  logIn(given);
} else {
  connect();
}
