"""Charts as SVG, drawn where the numbers are: a page that shows them needs no script and no library."""

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 480, 170
_LEAST = 1e-9  # nothing that is drawn is less and not nothing
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 10, 24


def bars(label: str, columns: Sequence[Mapping[str, int]], classes: Mapping[str, str], unit: str) -> str:
    """Stacked bars, one a column. `classes` has a CSS class for each kind, from the bottom up."""
    top = nice(max((sum(column.values()) for column in columns), default=0))
    step = (WIDTH - _LEFT - _RIGHT) / max(len(columns), 1)
    shapes = []
    for n, column in enumerate(columns):
        base = 0
        for kind, css in classes.items():
            if count := column.get(kind, 0):
                y, bottom = _y(base + count, top), _y(base, top)
                shapes.append(
                    f'<rect class="{css}" x="{_LEFT + n * step + 1:.1f}" y="{y:.1f}" width="{step - 2:.1f}"'
                    f' height="{max(bottom - y, 1):.1f}"/>'
                )
                base += count
    return _chart(label, top, unit, len(columns), shapes)


def lines(label: str, series: Mapping[str, Sequence[float | None]], unit: str) -> str:
    """A line for each series, by CSS class; None interrupts it, and a value between two of those is a dot."""
    top = nice(max((value for values in series.values() for value in values if value is not None), default=0))
    count = max((len(values) for values in series.values()), default=0)
    step = (WIDTH - _LEFT - _RIGHT) / max(count, 1)
    shapes = []
    for css, values in series.items():
        for run in _runs(values):
            points = [f"{_LEFT + (n + 0.5) * step:.1f},{_y(value, top):.1f}" for n, value in run]
            shapes.append(f'<polyline class="{css}" points="{" ".join(points)}"/>')
            shapes += [
                f'<circle class="{css}" cx="{x}" cy="{y}" r="2.5"/>' for x, y in (point.split(",") for point in points)
            ]
    return _chart(label, top, unit, count, shapes)


def nice(value: float) -> float:
    """The least of 1, 2 and 5 times a power of ten that is not below a value: where an axis ends."""
    if value < _LEAST or not math.isfinite(value):
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    runs: list[list[tuple[int, float]]] = [[]]
    for n, value in enumerate(values):
        if value is not None:
            runs[-1].append((n, value))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _y(value: float, top: float) -> float:
    return HEIGHT - _BOTTOM - min(value / top, 1.0) * (HEIGHT - _TOP - _BOTTOM)


def _chart(label: str, top: float, unit: str, minutes: int, shapes: Sequence[str]) -> str:
    grid = []
    for share in (0.0, 0.5, 1.0):
        y = _y(share * top, top)
        grid.append(f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{WIDTH - _RIGHT}" y2="{y:.1f}"/>')
        grid.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share * top:g}{escape(unit)}</text>')
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        words = "now" if share == 1 else f"{minutes * (1 - share):.0f} min ago"
        x = _LEFT + share * (WIDTH - _LEFT - _RIGHT)
        grid.append(f'<text x="{x:.0f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{words}</text>')
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return f"{head}{''.join(grid)}{''.join(shapes)}</svg>"
