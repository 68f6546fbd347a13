"""The log of a server, a client or an agent: one line for each event, as text or JSON."""
