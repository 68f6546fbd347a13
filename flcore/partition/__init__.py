"""Partitions of a data set over clients: label skew, quantity skew, and a picture of who has what.

Each partitioner takes the labels of all examples, and returns for each client the indices of its examples.
"""

from flcore.errors import PartitionError
from flcore.partition.dirichlet import dirichlet, dirichlet_balanced
from flcore.partition.labels import label_counts
from flcore.partition.plot import plot_partition
from flcore.partition.quantity import quantity_skew
from flcore.partition.shards import shards

__all__ = [
    "PartitionError",
    "dirichlet",
    "dirichlet_balanced",
    "label_counts",
    "plot_partition",
    "quantity_skew",
    "shards",
]
