// The tables of refusals and of clients, the contract, and the files.

import { byId, bytes, clock, duration, element, n, plural, setRows, setText, wide } from './format.js';
import { ask, state } from './state.js';

const MOST_REFUSALS = 200;

export function showRefusals(job) {
  const counts = Object.entries(job.refusals).sort((a, b) => b[1] - a[1]).map(([kind, count]) => `${count} ${kind}`);
  setText(byId('refused-counts'), counts.length ? `Refused: ${counts.join(', ')}.` : 'Nothing was refused.');
  const refused = job.last_refusals.toReversed().map((each) => ({ round: each.round, client: each.client, what: `refused: ${each.kind}`, reason: each.reason, at: each.at_s }));
  const known = new Set(refused.map((each) => `${each.round}\n${each.client}`));
  const present = job.clients.filter((client) => ['failed', 'lost'].includes(client.phase) && client.round > job.rounds_over)
    .map((client) => ({ round: client.round, client: client.name, what: client.phase, reason: client.last_reason, at: client.phase_begin_s }));
  const earlier = state.rounds.toReversed().flatMap((round) => round.failed.filter(([client]) => !known.has(`${round.round}\n${client}`))
    .map(([client, task, reason]) => ({ round: round.round, client, what: `failed in ${task}`, reason, at: null })));
  const all = [...present, ...refused, ...earlier].sort((a, b) => (b.round || Infinity) - (a.round || Infinity)).slice(0, MOST_REFUSALS);
  setRows(byId('refused-rows'), all.map((each) => [each.round ? String(each.round) : '–', each.client || '–', each.what, wide(each.reason), each.at === null ? '' : clock(each.at)]));
}

export function showClients(job) {
  const now = job.updated_s;
  setText(byId('client-count'), `${job.is_over ? '' : `${job.connected} of `}${job.clients.length}${job.is_over ? '' : ' connected'}${job.clients_left_out ? `, ${job.clients_left_out} more are left out` : ''}`);
  setRows(byId('client-rows'), job.clients.map((client) => {
    const isAt = client.phase && !job.is_over ? `${client.phase}${client.phase === 'training' && client.progress !== null ? ` ${Math.round(client.progress * 100)} %` : ''}` : '';
    const where = client.is_connected ? isAt || 'idle' : client.last_seen_s === null ? 'never connected' : client.phase === 'lost' ? 'lost' : 'away';
    return [client.name, where, n(String(client.answers)), n(client.failures ? String(client.failures) : '–'), n(bytes(client.bytes_sent)), n(bytes(client.bytes_received)),
      n(client.megabytes_per_s ? client.megabytes_per_s.toFixed(1) : '–'), n(client.last_seen_s === null ? '–' : `${duration(Math.max(0, now - client.last_seen_s))} ago`), wide(client.last_reason)];
  }));
}

export async function loadFiles() {
  try {
    const { files } = await ask('files');
    byId('files').replaceChildren(...files.map(([name, size]) => element('li', {}, element('a', { href: `/api/jobs/${encodeURIComponent(state.key)}/files/${encodeURIComponent(name)}`, download: '' }, name), ` ${bytes(size)}`)));
  } catch { /* the stream says that the server is away */ }
}

export async function loadContract() {
  try {
    setText(byId('contract-text'), JSON.stringify(await ask('contract'), null, 2));
  } catch { /* as above */ }
}
