"""Statistics of columns that stay at their sites: the part that a site computes, and their sum at the server.

A job's code calls `site_statistics`; the bundled workflow `federated_statistics` does the rest.
"""

from flcore.statistics.site_statistics import no_model, site_statistics

__all__ = ["no_model", "site_statistics"]
