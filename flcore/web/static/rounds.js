// The rounds that are over: metrics, metrics by site, time and bytes, as charts and as tables.

import { LineChart } from './charts.js';
import { byId, color, element, n, setRows, setText, value, wide } from './format.js';
import { ask, state } from './state.js';

const MOST_CHARTS = 12;
const MOST_CHOICES = 200;

/** Ask for the rounds that the page does not have yet. `onRounds` is called when there are some. */
export async function fetchRounds(onRounds) {
  const { job } = state;
  const last = state.rounds.at(-1)?.round ?? 0;
  if (state.isFetching || (last === job.rounds_over && last)) return;
  if (last > job.rounds_over) state.rounds = []; // the server has lost some, as after a restart
  state.isFetching = true;
  const known = state.rounds;
  let isBehind = false;
  try {
    const { rounds } = await ask(`rounds?after=${known.at(-1)?.round ?? 0}`);
    // The page may have forgotten its rounds meanwhile, and a later state may have no successor: a run that is over.
    isBehind = known !== state.rounds || (rounds.length > 0 && rounds.at(-1).round < state.job.rounds_over);
    if (rounds.length && known === state.rounds) {
      known.push(...rounds);
      showRounds();
      onRounds();
    }
  } catch { /* the stream says that the server is away */ } finally {
    state.isFetching = false;
  }
  if (isBehind) await fetchRounds(onRounds);
}

const charts = new Map();

function chart(parent, title, height) {
  if (!charts.has(title)) {
    charts.set(title, new LineChart(title, height));
    charts.get(title).hasZero = parent === 'cost-charts';
    byId(parent).append(charts.get(title).figure);
  }
  return charts.get(title);
}

function column(pick) { return state.rounds.map((round) => pick(round) ?? null); }

export function showRounds() {
  const numbers = state.rounds.map((round) => round.round);
  const names = new Map();
  for (const round of state.rounds) for (const kind of ['validate', 'train']) for (const name of Object.keys(round[kind])) names.set(name, true);
  const metrics = [...names.keys()];
  byId('no-metrics').hidden = metrics.length > 0;
  setText(byId('no-metrics'), state.rounds.length ? 'The clients report no metrics.' : 'No round is over yet.');
  const wanted = new Set(metrics.slice(0, MOST_CHARTS).map((name) => `metric ${name}`));
  for (const [title, each] of charts) if (title.startsWith('metric ') && !wanted.has(title)) { each.figure.remove(); charts.delete(title); }
  for (const name of metrics.slice(0, MOST_CHARTS)) {
    const each = chart('metric-charts', `metric ${name}`);
    each.setTitle(name);
    const series = [['validation', 'validate', 1, 0], ['training', 'train', 2, 1]]
      .map(([label, kind, number, dash]) => ({ name: label, values: column((round) => round[kind][name]), color: color(`series-${number}`), dash }))
      .filter((one) => one.values.some((point) => point !== null));
    each.set(numbers, series);
  }
  showCosts(numbers);
  showSiteChoices();
  if (byId('rounds-table').open) showRoundsTable();
  fetchSites();
}

function showCosts(numbers) {
  const phases = [...new Set(state.rounds.flatMap((round) => Object.keys(round.seconds)))].sort((a, b) => (a === 'round' ? -1 : b === 'round' ? 1 : 0)).slice(0, 5);
  chart('cost-charts', 'Seconds').set(numbers, phases.map((phase, index) => ({ name: phase, values: column((round) => round.seconds[phase]), color: color(`series-${index % 5 + 1}`), dash: index % 5 })));
  chart('cost-charts', 'Megabytes').set(numbers, [
    { name: 'received', values: column((round) => round.bytes_received / 1e6), color: color('series-1') },
    { name: 'sent', values: column((round) => round.bytes_sent / 1e6), color: color('series-2'), dash: 1 },
  ]);
  chart('cost-charts', 'Clients').set(numbers, [
    { name: 'counted', values: column((round) => round.updates), color: color('series-3') },
    { name: 'left out', values: column((round) => round.left_out), color: color('series-2'), dash: 1 },
  ]);
}

export function showRoundsTable() {
  const metrics = [...new Set(state.rounds.flatMap((round) => Object.keys({ ...round.train, ...round.validate })))].slice(0, 6);
  const heads = ['Round', 'Clients', 'Seconds', 'MB', ...metrics, 'Note'];
  byId('rounds-head').replaceChildren(element('tr', {}, ...heads.map((head, index) => element('th', { scope: 'col', class: index && index < heads.length - 1 ? 'n' : '' }, head))));
  setRows(byId('rounds-rows'), state.rounds.toReversed().map((round) => [String(round.round), n(`${round.updates} of ${round.sampled}`), n(value(round.seconds.round)),
    n(value((round.bytes_sent + round.bytes_received) / 1e6)), ...metrics.map((name) => n(value(round.validate[name] ?? round.train[name]))),
    wide(round.skipped ? `skipped: ${round.skipped}` : round.stopped || (round.is_best ? 'best so far' : ''))]));
}

const siteChart = new LineChart('', 280, () => { if (byId('sites-table').open) showSitesTable(); });
byId('site-chart').append(siteChart.figure);

function options(select, values, first = []) {
  const wanted = [...first, ...values];
  if ([...select.options].map((each) => each.value).join('\n') === wanted.join('\n')) return;
  const { value: before } = select;
  select.replaceChildren(...wanted.map((each) => element('option', { value: each }, each || 'all')));
  if (wanted.includes(before)) select.value = before;
}

function showSiteChoices() {
  const names = [...new Set(state.rounds.flatMap((round) => round.site_metrics))].slice(0, MOST_CHOICES);
  const measures = names.filter((name) => name.includes(' ('));
  options(byId('metric'), [...names.filter((name) => !measures.includes(name)), ...measures]);
}

export async function fetchSites() {
  const metric = byId('metric').value;
  const { site } = state;
  if (site.metric !== metric) Object.assign(site, { metric, rounds: [], sites: Object.create(null) });
  if (!metric || site.rounds.at(-1) === state.rounds.at(-1)?.round) { showSites(); return; }
  const known = site.rounds;
  let isBehind = false;
  try {
    const found = await ask(`sites?metric=${encodeURIComponent(metric)}&after=${known.at(-1) ?? 0}`);
    // Another metric, or another state of the server, whose rounds are asked for anew; or the same rounds twice.
    if (known !== site.rounds || found.rounds[0] <= known.at(-1)) return;
    const before = known.length;
    known.push(...found.rounds);
    for (const name of new Set([...Object.keys(site.sites), ...Object.keys(found.sites)])) {
      site.sites[name] ??= new Array(before).fill(null);
      site.sites[name].push(...(found.sites[name] ?? new Array(found.rounds.length).fill(null)));
    }
    isBehind = site.rounds.at(-1) < state.rounds.at(-1)?.round && found.rounds.length > 0; // a reply has a part of many
    showSites();
  } catch { /* the stream says that the server is away */ }
  if (isBehind) await fetchSites();
}

const byNumber = (a, b) => a.localeCompare(b, 'en', { numeric: true });

export function showSites() {
  const { metric, rounds, sites } = state.site;
  const names = Object.keys(sites).sort(byNumber);
  options(byId('site'), names, ['']);
  const chosen = byId('site').value;
  siteChart.setTitle(metric);
  const last = (name) => sites[name].at(-1);
  const ranked = names.filter((name) => last(name) !== null).sort((a, b) => last(a) - last(b));
  const shown = chosen ? [chosen] : names.length <= 5 ? names : [ranked.at(0), ranked.at(-1)];
  siteChart.set(rounds, names.map((name) => {
    const at = shown.indexOf(name);
    return { name, values: sites[name], isFaint: at < 0, color: at < 0 ? color('quiet') : color(`series-${at % 5 + 1}`), dash: Math.max(0, at) % 5 };
  }));
  if (byId('sites-table').open) showSitesTable();
}

export function showSitesTable() {
  const { metric, rounds, sites } = state.site;
  const at = siteChart.at ?? rounds.length - 1;
  setText(byId('sites-value'), `${metric}, round ${rounds[at] ?? '–'}`);
  setRows(byId('sites-rows'), Object.keys(sites).sort(byNumber).map((name) => [name, n(value(sites[name][at])), n(String(sites[name].filter((point) => point !== null).length))]));
}
