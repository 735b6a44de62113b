"""Grouped bars as an SVG file; libraries that draw this are large or meddle with imports."""

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

COLOURS = "#1f5fbf #3f8f6b #c77d24 #8a5bb0 #b3404a #5b6b7b #2a9d9d #8c6d31 #c05a8e #4f7a28".split()
WIDTH, HEIGHT, TOP, LEFT, BOTTOM = 760, 320, 28, 16, 58


def draw(path: Path, bars: Mapping[str, Mapping[int, float]], unit: str, title: str) -> None:
    """`bars`: values by name of the series and number of streams; each group of bars is a number
    of streams. Values are written over the bars, so there is no scale to read."""
    groups = list(next(iter(bars.values())))
    highest = max(value for series in bars.values() for value in series.values())
    room = (WIDTH - 2 * LEFT) / len(groups)
    width = 0.86 * room / len(bars)
    parts = [_text(LEFT, 18, f"{title} ({unit})", "start", 14)]
    for place, group in enumerate(groups):
        x = LEFT + place * room
        name = f"{group} stream{'s' * (group > 1)}"
        parts.append(_text(x + 0.43 * room, HEIGHT - BOTTOM + 16, name))
        for number, series in enumerate(bars.values()):
            tall = (HEIGHT - TOP - BOTTOM - 16) * series[group] / highest
            parts += _bar(x + number * width, tall, width, series[group], COLOURS[number])
    parts += [_legend(number, name) for number, name in enumerate(bars)]
    path.write_text(_svg(parts))


def _bar(x: float, tall: float, width: float, value: float, colour: str) -> list[str]:
    top = HEIGHT - BOTTOM - tall
    rectangle = f'<rect x="{x:.1f}" y="{top:.1f}" width="{width - 2:.1f}" height="{tall:.1f}"'
    return [
        f'{rectangle} rx="2" fill="{colour}"/>',
        _text(x + width / 2 - 1, top - 4, f"{value:.0f}"),
    ]


def _legend(number: int, name: str) -> str:
    x, y = LEFT + 104 * number, HEIGHT - 24
    box = f'<rect x="{x}" y="{y}" width="10" height="10" rx="2" fill="{COLOURS[number]}"/>'
    return box + _text(x + 15, y + 9, name, "start")


def _text(x: float, y: float, text: str, anchor: str = "middle", size: int = 11) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {place}>{escape(text)}</text>"


def _svg(parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
    style = 'font-family="system-ui, sans-serif" fill="#22303c"'
    body = "\n".join(parts)
    return f'{head} {style}>\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
