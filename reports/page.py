"""Self-contained HTML pages: sections, tables, figures, drawn graphs. Nothing is loaded from elsewhere."""

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8885; --soft: #8882; --accent: #2f6f9f; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .3rem .8rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
@media (min-width: 600px) { td.n, th.n { white-space: nowrap; } }
img, svg { width: 36rem; max-width: 100%; height: auto; } img { background: #fff; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 1.5rem; margin: 1rem 0; }
.pair > div { background: var(--soft); padding: .2rem 1rem; border-radius: .4rem; overflow-wrap: anywhere; }
.right { color: #2d7d46; font-weight: 600; } .wrong { color: #b3402a; } .big { font-size: 1.25rem; }
@media (max-width: 45rem) { .pair { grid-template-columns: 1fr; } }
"""
GRAPH_SIZE, LABEL_LETTERS = 640, 26


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """A page of (heading, HTML) sections."""
    body = "\n".join(f"<h2>{escape(heading)}</h2>\n{content}" for heading, content in sections)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    icon = '<link rel="icon" href="data:,">'  # or browsers ask for /favicon.ico
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}{icon}<style>{STYLE}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def paragraphs(text: str) -> str:
    return "".join(paragraph(part) for part in text.split("\n") if part.strip())


def bullets(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; all columns but the first are aligned to the right where their cells are numbers."""
    rows = [[str(cell) for cell in row] for row in rows]
    numeric = [
        bool(rows) and all(row[i][:1].isdigit() or row[i][:1] in "+-$–" for row in rows) for i in range(len(header))
    ]
    cells = [("th", header), *(("td", row) for row in rows)]
    lines = (
        "".join(
            f"<{tag}{' class=n' if right else ''}>{escape(text)}</{tag}>"
            for text, right in zip(row, numeric, strict=True)
        )
        for tag, row in cells
    )
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def side_by_side(left: str, right: str) -> str:
    """Two pieces of HTML in columns, below each other on a narrow screen."""
    return f'<div class="pair"><div>{left}</div><div>{right}</div></div>'


def image(png: bytes, description: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def graph(nodes: Sequence[str], edges: Iterable[Sequence[str]], marked: Iterable[str] = ()) -> str:
    """Nodes on a circle and their edges, as SVG; `marked` nodes are red."""
    middle, radius, marked = GRAPH_SIZE / 2, GRAPH_SIZE * 0.3, set(marked)
    angles = {name: 2 * math.pi * number / max(1, len(nodes)) for number, name in enumerate(nodes)}
    places = {name: (middle + radius * math.cos(a), middle + radius * math.sin(a)) for name, a in angles.items()}
    lines = [
        f'<line x1="{places[a][0]:.1f}" y1="{places[a][1]:.1f}" x2="{places[b][0]:.1f}" y2="{places[b][1]:.1f}" '
        'stroke="currentColor" stroke-opacity="0.35"/>'
        for a, b in edges
        if a in places and b in places
    ]
    labels = []
    for name, (x, y) in places.items():
        color, label = (
            "#b3402a" if name in marked else "#2f6f9f",
            name[:LABEL_LETTERS] + "…" * (len(name) > LABEL_LETTERS),
        )
        left = x < middle - 1
        anchor, shift = ("end", -8) if left else ("start", 8)
        labels.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{color}"><title>{escape(name)}</title></circle>'
            f'<text x="{x + shift:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}" font-size="12" fill="currentColor">'
            f"{escape(label)}</text>"
        )
    box = f"0 0 {GRAPH_SIZE} {GRAPH_SIZE}"
    return f'<svg viewBox="{box}" role="img" aria-label="entity graph">{"".join(lines)}{"".join(labels)}</svg>'
