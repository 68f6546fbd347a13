// What the page knows: the server's last state of the job, and what was asked for besides.

export const state = {
  key: new URLSearchParams(location.hash.slice(1)).get('job') ?? '',
  message: null, job: null, offset: 0, rounds: [], isStale: true, isFetching: false,
  chosen: null, view: null, site: { metric: '', rounds: [], sites: {} },
};

/** The moment at the server, in seconds since the epoch. */
export const now = () => Date.now() / 1000 + state.offset;

/** Ask for values of the job. */
export async function ask(path) {
  const reply = await fetch(`/api/jobs/${encodeURIComponent(state.key)}/${path}`);
  if (!reply.ok) throw new Error(`${reply.status}`);
  return reply.json();
}
