// What the page knows: the server's last state of the job, and what was asked for besides.

export const state = {
  key: new URLSearchParams(location.hash.slice(1)).get('job') ?? '',
  message: null, job: null, offset: 0, rounds: [], isStale: true, isFetching: false,
  chosen: null, view: null, site: { metric: '', rounds: [], sites: Object.create(null) },
};

/** The moment at the server, in seconds since the epoch. */
export const now = () => Date.now() / 1000 + state.offset;

/** Parse JSON. Its objects inherit nothing: a client or a metric may be called "constructor" or "toString". */
export function parse(text) {
  return JSON.parse(text, (_, value) => (value && typeof value === 'object' && !Array.isArray(value) ? Object.setPrototypeOf(value, null) : value));
}

/** Ask for values of the job. */
export async function ask(path) {
  const reply = await fetch(`/api/jobs/${encodeURIComponent(state.key)}/${path}`);
  if (!reply.ok) throw new Error(`${reply.status}`);
  return parse(await reply.text());
}
