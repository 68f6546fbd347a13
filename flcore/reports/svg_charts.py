"""Charts as inline SVG: lines with their names beside them, and stacked columns. Colours come from the page's CSS."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from flcore.number_text import metric_text
from flcore.reports.labels import pushed_apart, shortened
from flcore.reports.series import SiteSpread, thinned, upper_limit

WIDTH, HEIGHT = 400, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 112, 12, 24
"""The margins of a chart, in its units. Names stand in the right one, so that they cover no line."""

PADDING = 0.04
"""The share of the values' range that is free below and above them."""

LABEL_GAP = 13.0
MAX_LABEL_CHARACTERS = 17
MAX_POINTS = 400


@dataclass(frozen=True)
class ChartLine:
    """A line of a chart.

    Attributes:
        label: Its name, which stands beside its end.
        points: Rounds and values; at least one.
        style: The CSS class that gives its colour: "c0" to "c7", or "muted".
    """

    label: str
    points: Sequence[tuple[int, float]]
    style: str


@dataclass(frozen=True)
class _Scale:
    """The ranges of a chart: rounds, and values."""

    first: int
    last: int
    low: float
    high: float

    def x(self, number: float) -> float:
        share = (number - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        share = (min(value, self.high) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def line_chart(
    title: str,
    lines: Sequence[ChartLine],
    rounds: tuple[int, int],
    *,
    band: Sequence[SiteSpread] = (),
    marked: Sequence[int] = (),
    dot: tuple[int, float] | None = None,
    unit: str = "",
) -> str:
    """Return a chart of lines as a figure with a caption.

    Args:
        title: The caption.
        lines: The lines; at least one.
        rounds: The first and the last round of the axis.
        band: The range behind the lines, from low to high. Default: none.
        marked: Rounds that are marked by a vertical line, because they were skipped. Default: none.
        dot: A point that is marked. Default: None.
        unit: The unit, for values that begin at 0, and whose few peaks are cut off. Default: the range of the values.
    """
    values = [value for line in lines for _, value in line.points]
    values += [each for spread in band for each in (spread.low, spread.high)]
    scale, cut = _scale(values, rounds, from_zero=bool(unit))
    parts = [_axes(scale), _band(scale, band)]
    parts += [f'<path class="skip" d="M{scale.x(number):.1f} {TOP}V{HEIGHT - BOTTOM}"/>' for number in marked]
    parts += [_line(scale, line) for line in lines]
    if dot is not None:
        parts.append(f'<circle class="dot" cx="{scale.x(dot[0]):.1f}" cy="{scale.y(dot[1]):.1f}" r="3.5"/>')
    parts.append(_labels([(scale.y(line.points[-1][1]), line.label, line.style) for line in lines]))
    said = [
        f"{line.label}: {metric_text(line.points[0][1])} first, {metric_text(line.points[-1][1])} last"
        for line in lines
    ]
    return _figure(title, cut, "; ".join(said), parts)


def stacked_chart(title: str, parts: Mapping[str, tuple[str, Sequence[float]]], rounds: Sequence[int]) -> str:
    """Return a chart of columns that are stacked from their parts.

    Args:
        title: The caption.
        parts: The CSS class and the heights of each part, by name, from below; as many heights as `rounds`.
        rounds: The first round of each column.
    """
    totals = [sum(column) for column in zip(*(heights for _, heights in parts.values()), strict=True)]
    scale, cut = _scale(totals, (rounds[0], rounds[-1]), from_zero=True)
    drawn, below = [_axes(scale)], [0.0] * len(rounds)
    for style, heights in parts.values():
        drawn.append(f'<path class="fill {style}" d="{_columns(scale, below, heights)}"/>')
        below = [low + height for low, height in zip(below, heights, strict=True)]
    names = list(parts)[::-1]
    ends = [(TOP + 6 + LABEL_GAP * index, name, parts[name][0]) for index, name in enumerate(names)]
    return _figure(title, cut, f"From below: {', '.join(parts)}", [*drawn, _labels(ends)])


def _columns(scale: _Scale, below: Sequence[float], heights: Sequence[float]) -> str:
    """Return the path of one part of all columns. Parts too low to be seen are left out."""
    step, path = (WIDTH - LEFT - RIGHT) / len(below), []
    for column, (low, height) in enumerate(zip(below, heights, strict=True)):
        bottom, top = scale.y(low), scale.y(low + height)
        if bottom - top >= 0.05:
            path.append(f"M{LEFT + column * step:.1f} {bottom:.1f}V{top:.1f}h{max(0.6, step * 0.84):.1f}V{bottom:.1f}z")
    return "".join(path)


def _scale(values: Sequence[float], rounds: tuple[int, int], *, from_zero: bool) -> tuple[_Scale, str]:
    """Return the scale, and what is to be said of peaks above it."""
    low, high = min(values), max(values)
    cut = ""
    if from_zero:
        low, limit = 0.0, upper_limit(values)
        if limit is not None:
            cut, high = f"axis cut; highest {high:.3g}", limit
    elif high > low:
        low, high = low - PADDING * (high - low), high + PADDING * (high - low)
    if high <= low:
        low, high = low - (abs(low) or 1) / 2 * (not from_zero), high + (abs(high) or 1) / 2
    return _Scale(*rounds, low, high), cut


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers in a range."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _axes(scale: _Scale) -> str:
    right = WIDTH - RIGHT
    parts = []
    for tick in _ticks(scale.low, scale.high):
        y = scale.y(tick)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{tick:.4g}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{right}"/>')
    for number, anchor in {scale.first: "start", scale.last: "end"}.items():
        label = f"round {number}" if number == scale.first else f"{number}"
        x = LEFT if anchor == "start" else right
        parts.append(f'<text class="tick" x="{x}" y="{HEIGHT - 8}" text-anchor="{anchor}">{label}</text>')
    return "".join(parts)


def _band(scale: _Scale, band: Sequence[SiteSpread]) -> str:
    if not band:
        return ""
    high = thinned([(each.round, each.high) for each in band], MAX_POINTS)
    low = thinned([(each.round, each.low) for each in band], MAX_POINTS)
    outline = [f"{scale.x(number):.1f} {scale.y(value):.1f}" for number, value in [*high, *reversed(low)]]
    return f'<path class="band" d="M{"L".join(outline)}z"/>'


def _line(scale: _Scale, line: ChartLine) -> str:
    points = [f"{scale.x(number):.1f} {scale.y(value):.1f}" for number, value in thinned(line.points, MAX_POINTS)]
    if len(points) == 1:
        x, y = points[0].split()
        return f'<circle class="fill {line.style}" cx="{x}" cy="{y}" r="3"/>'
    return f'<path class="line {line.style}" d="M{"L".join(points)}"/>'


def _labels(ends: Sequence[tuple[float, str, str]]) -> str:
    placed = pushed_apart([height for height, _, _ in ends], LABEL_GAP, TOP, HEIGHT - BOTTOM)
    return "".join(
        f'<text class="label {style}" x="{WIDTH - RIGHT + 7}" y="{y + 3.5:.1f}">'
        f"{escape(shortened(text, MAX_LABEL_CHARACTERS))}</text>"
        for y, (_, text, style) in zip(placed, ends, strict=True)
    )


def _figure(title: str, note: str, said: str, parts: Sequence[str]) -> str:
    aside = f' <span class="note">{escape(note)}</span>' if note else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}{aside}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}. {said}")}">'
        f"{''.join(parts)}</svg></figure>"
    )
