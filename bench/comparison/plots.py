"""Bars on a logarithmic scale, as SVG that stands alone: one row a system, one bar a batch size."""

import math
from xml.sax.saxutils import escape

SHADES = ["#0b3c5d", "#2f7eb0", "#7fb8d8", "#c3dcea"]
LEFT, RIGHT, BAR, GAP, TOP = 250, 110, 13, 14, 62
WIDTH = 960


def bars(title, subtitle, rows, names, text):
    """`rows`: (label, values), a value for each of `names` or None; `text` renders a value."""
    values = [value for _, of_row in rows for value in of_row if value]
    if not values:
        return None
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 0.001)
    scale = lambda value: LEFT + (math.log10(value) - low) / max(1, high - low) * (WIDTH - LEFT - RIGHT)  # noqa: E731
    row_height = BAR * len(names) + GAP
    height = TOP + row_height * len(rows) + 40
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
           f'<text x="12" y="22" font-size="16" font-weight="bold">{escape(title)}</text>',
           f'<text x="12" y="40" fill="#555">{escape(subtitle)}</text>']
    for at, name in enumerate(names):
        x = LEFT + at * 130
        out.append(f'<rect x="{x}" y="{TOP - 15}" width="10" height="10" fill="{SHADES[at % len(SHADES)]}"/>'
                   f'<text x="{x + 15}" y="{TOP - 6}" fill="#333">{escape(name)}</text>')
    bottom = TOP + row_height * len(rows)
    for power in range(low, high + 1):
        x = scale(10**power)
        out.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom}" stroke="#ddd"/>'
                   f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle" fill="#555">{text(10.0**power)}</text>')
    for row, (label, of_row) in enumerate(rows):
        y = TOP + row * row_height + GAP / 2
        middle = y + BAR * len(names) / 2 + 4
        out.append(f'<text x="{LEFT - 10}" y="{middle:.1f}" text-anchor="end">{escape(label)}</text>')
        for at, value in enumerate(of_row):
            if not value:
                continue
            x, top = scale(value), y + at * BAR
            out.append(f'<rect x="{LEFT}" y="{top:.1f}" width="{max(1, x - LEFT):.1f}" height="{BAR - 2}" fill="{SHADES[at % len(SHADES)]}"/>'
                       f'<text x="{x + 5:.1f}" y="{top + 10:.1f}" font-size="11">{text(value)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
