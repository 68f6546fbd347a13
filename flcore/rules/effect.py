"""What a rule did to one client's update, for the record of the round."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RuleEffect:
    """What a rule did to one client's update.

    Attributes:
        kind: "excluded": it does not count. "clipped": its norm was reduced. "scaled": its weight was changed.
        factor: That of its difference to the base ("clipped") or of its weight ("scaled"); 0 if excluded.
        figure: What decided: its norm, its score or its distance.
        measure: What the figure is: "norm", "score" or "distance".
    """

    kind: str
    factor: float
    figure: float
    measure: str
