"""Draws the throughput tables of a result as an SVG beside it."""

import json
import sys
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

STYLE = Style(
    background="white", plot_background="white", opacity="1", opacity_hover="1",
    colors=("#8a94a3", "#0b6e4f"), font_family="sans-serif", title_font_size=18,
    label_font_size=14, major_label_font_size=14, legend_font_size=15, value_font_size=12,
    value_label_font_size=12, value_colors=("#333", "#333"),
)  # fmt: skip


def plot(result: Path) -> None:
    """One chart a table whose title begins with tokens/s."""
    told = json.loads(result.read_text())
    for number, (title, table) in enumerate(_tables(told["figures"])):
        chart = _chart(title, table, told)
        chart.render_to_file(str(result.with_name(f"{result.stem}-{number + 1}.svg")))


def _tables(figures: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [item for item in figures.items() if item[0].startswith("tokens/s")]


def _chart(title: str, table: dict[str, Any], told: dict[str, Any]) -> pygal.Bar:
    chart = pygal.Bar(style=STYLE, js=[], width=820, height=420, print_values=True,
                      legend_at_bottom=True, margin=16, spacing=12)  # fmt: skip
    machine = told["machine"]
    chart.title = (
        f"{title}\n{told['note'].split(',')[0]}, {machine['cores']} cores {machine['cpu']}"
    )
    chart.x_labels = [f"{name.strip()}, {row['ratio']} ×" for name, row in table.items()]
    chart.add("llama-server", [row["server"] for row in table.values()])
    chart.add("ours", [row["ours"] for row in table.values()])
    return chart


if __name__ == "__main__":
    plot(Path(sys.argv[1]))
