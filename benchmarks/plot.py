"""Plots of costs over numbers, as SVG."""
from __future__ import annotations

import math
from collections.abc import Mapping

#: Size of a plot and of its margins, in pixels.
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 320, 60, 220, 34, 40

COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8d6a9f", "#c98b00", "#4a5859")


def plot(title: str, x_name: str, y_name: str, series: Mapping[str, Mapping[int, float]]) -> str:
    """Return an SVG of costs over numbers, both by their logarithms."""
    xs = [x for costs in series.values() for x in costs]
    ys = [y for costs in series.values() for y in costs.values()]
    x_low, x_high = math.log10(min(xs)), math.log10(max(xs))
    y_low, y_high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(x: float, y: float) -> tuple[float, float]:
        return (LEFT + (math.log10(x) - x_low) / (x_high - x_low) * width,
                HEIGHT - BOTTOM - (math.log10(y) - y_low) / (y_high - y_low) * height)

    def text(x: float, y: float, content: str, more: str) -> str:
        return f'<text x="{x:.1f}" y="{y:.1f}" {more}>{content}</text>'

    lines = [
        '<svg xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="11" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        text(LEFT, 18, title, 'font-size="13" font-weight="bold"'),
    ]
    for power in range(y_low, y_high + 1):
        left, y = at(min(xs), 10.0 ** power)
        lines.append(f'<line x1="{left:.0f}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" '
                     'stroke="#ddd"/>')
        lines.append(text(left - 6, y + 4, f"{10.0 ** power:,g} {y_name}", 'text-anchor="end"'))
    for number in sorted(set(xs)):
        x, bottom = at(number, 10.0 ** y_low)
        lines.append(text(x, bottom + 16, f"{number:,}", 'text-anchor="middle"'))
    lines.append(text(LEFT + width / 2, HEIGHT - 8, x_name, 'text-anchor="middle"'))
    for location, (name, costs) in enumerate(series.items()):
        colour = COLOURS[location % len(COLOURS)]
        points = [at(x, y) for x, y in costs.items()]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        lines.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        lines.append(text(WIDTH - RIGHT + 12, TOP + 14 + 18 * location, name, f'fill="{colour}"'))
    return "\n".join([*lines, "</svg>", ""])
