"""Aggregation rules as values: what combines the updates of a round, and what stands before and behind it."""
