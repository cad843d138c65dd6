"""A bar chart as SVG, readable in light and dark, without a library."""

from collections.abc import Mapping
from html import escape

WIDTH, ROW, LABEL, VALUE = 720, 22, 210, 70
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.t{font-weight:600}.runc{fill:#0969da}.runsc{fill:#8250df}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.runc{fill:#4493f8}.runsc{fill:#ab7df8}}"
)


def bars(values: Mapping[tuple[str, str], float], title: str) -> str:
    """One bar for each (group, name), groups under each other, shortest first."""
    scale = (WIDTH - LABEL - VALUE) / max(values.values())
    parts, y = [f'<text class="t" x="8" y="20">{escape(title)}</text>'], 34
    for group in dict.fromkeys(group for group, _ in values):
        parts.append(f'<text class="t" x="8" y="{y + 15}">{escape(group)}</text>')
        y += ROW
        rows = sorted((value, name) for (at, name), value in values.items() if at == group)
        for value, name in rows:
            parts.append(
                f'<text x="24" y="{y + 15}">{escape(name)}</text>'
                f'<rect class="{group}" x="{LABEL}" y="{y + 3}" width="{value * scale:.1f}" height="{ROW - 6}"/>'
                f'<text x="{LABEL + value * scale + 6:.1f}" y="{y + 15}">{value:.0f}</text>'
            )
            y += ROW
        y += ROW // 2
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" role="img" aria-label="{escape(title)}">'
    return f"{head}<style>{STYLE}</style>{''.join(parts)}</svg>\n"
