"""Draws the ratios of tokens a second in a result as an SVG beside it."""

import json
import sys
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

RATES = "tokens/s, "  # what a table is called that is drawn
STYLE = Style(
    background="white", plot_background="white", opacity="1", opacity_hover="1",
    colors=("#0b6e4f", "#6bbf9c", "#2f5d8a", "#9db8d2", "#c9a227"), font_family="sans-serif",
    title_font_size=18, label_font_size=14, major_label_font_size=14, legend_font_size=14,
    value_font_size=12, guide_stroke_color="#ddd", major_guide_stroke_color="#333",
    guide_stroke_dasharray="1,0", major_guide_stroke_dasharray="1,0",
)  # fmt: skip


def plot(result: Path) -> None:
    """Nothing is drawn of a result without such a table."""
    told = json.loads(result.read_text())
    tables = {
        name.removeprefix(RATES): table
        for name, table in told["figures"].items()
        if name.startswith(RATES)
    }
    if tables:
        _chart(tables, told).render_to_file(str(result.with_suffix(".svg")))


def _chart(tables: dict[str, dict[str, Any]], told: dict[str, Any]) -> pygal.Bar:
    rows = max(tables.values(), key=len)
    highest = max(row["ratio"] for table in tables.values() for row in table.values())
    labels = [step / 4 for step in range(int(highest * 4) + 3)]
    chart = pygal.Bar(
        style=STYLE, js=[], width=980, height=520, margin=16, spacing=12,
        print_values=True, print_values_position="top", value_formatter=lambda v: f"{v:.2f}",
        y_labels=labels, y_labels_major=[1.0], range=(0, labels[-1]),
        legend_at_bottom=True, legend_at_bottom_columns=1, truncate_legend=-1,
    )  # fmt: skip
    model, cores = told["note"].split(",")[0], told["machine"]["cores"]
    cpu = told["machine"]["cpu"]
    chart.title = f"Tokens/s as a multiple of llama-server's\n{model}, {cores} cores of {cpu}"
    chart.x_labels = list(rows)
    for name, table in tables.items():
        chart.add(name, [table.get(row, {}).get("ratio") for row in rows])
    return chart


if __name__ == "__main__":
    plot(Path(sys.argv[1]))
