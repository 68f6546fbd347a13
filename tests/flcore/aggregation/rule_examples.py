"""One or more examples of every rule and stage, as jobs and the command line name them."""

SUMS = ("mean", "unweighted_mean")

COLUMNS = ("median", "median(weighted=false)", "trimmed_mean(f=1)", "trimmed_mean(f=1, weighted=false)", "meamed(f=1)")

OF_DISTANCES = (
    "krum(f=1)",
    'krum(f=1, neighbours="byzfl")',
    "multi_krum(f=1)",
    "multi_krum(f=1, m=2, weighted=false)",
    "bulyan(f=1)",
    "mda(f=1)",
    "geometric_median",
    "geometric_median(weighted=false)",
    "nnm(f=1) + mean",
    "nnm(f=1) + trimmed_mean(f=1)",
    "nnm(f=1, weighted=false) + geometric_median",
    "bucketing(size=2) + median",
)

OF_A_BASE = (
    "clipped_mean(max_norm=1.0)",
    "clipped_mean(quantile=0.5, weighted=false)",
    "centered_clip(radius=1.0)",
    "clip_norm(max_norm=1.0) + median",
    "arc(f=1) + nnm(f=1) + trimmed_mean(f=1)",
    "clip_norm(quantile=0.5) + multi_krum(f=1)",
)
"""Rules that clip: they need the model that clients began with."""

WITHOUT_BASE = (*SUMS, *COLUMNS, *OF_DISTANCES)
ALL = (*WITHOUT_BASE, *OF_A_BASE)
CLIENTS = 7
"""Updates that suffice for each example."""
