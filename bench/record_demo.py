"""Records `crucible-worker.pyz demo` on a terminal: docs/demo.svg, and the same lines in README.md.

Run `./build.sh` and `image build` first. Lines appear in the picture when they appeared on the terminal.
"""

import os
import re
import subprocess
import sys
import time
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMAND = ("./crucible-worker.pyz", "demo")
COMMAND_LINE = " ".join(COMMAND)
WIDTH, LINE, TOP, LEFT, CELL = 880, 20, 58, 20, 7.8
STYLE = """
svg{--ground:#fff;--edge:#d0d7de;--bar:#f6f8fa;--text:#1f2328;--dim:#59636e;--good:#116329;--bad:#a40e26;--late:#7d4e00}
@media(prefers-color-scheme:dark){svg{--ground:#0d1117;--edge:#3d444d;--bar:#151b23;--text:#f0f6fc;--dim:#9198a1;\
--good:#3fb950;--bad:#ff7b72;--late:#d29922}}
.window{fill:var(--ground);stroke:var(--edge)}.bar{fill:var(--bar);stroke:var(--edge)}.button{fill:var(--edge)}
text{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:var(--text);white-space:pre}
.dim{fill:var(--dim)}.completed{fill:var(--good)}.failed{fill:var(--bad)}.timeout{fill:var(--late)}.b{font-weight:600}
@keyframes wait{from{visibility:hidden}to{visibility:hidden}}
@media(prefers-reduced-motion:no-preference){.line{animation:wait 1ms backwards}}
"""


def record() -> list[tuple[float, str]]:
    """Seconds since the start, and the line that was then complete, for each line that the demo prints."""
    screen, terminal = os.openpty()
    began = time.monotonic()
    demo = subprocess.Popen(COMMAND, cwd=ROOT / "dist", stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    lines, rest = [], b""
    while True:
        try:
            rest += os.read(screen, 65536)
        except OSError:  # how Linux says that nobody has the terminal open any more
            break
        *whole, rest = rest.split(b"\r\n")
        lines += [(time.monotonic() - began, line.decode()) for line in whole]
    if demo.wait():
        sys.exit(f"the demo failed: {lines[-1:]}")
    return lines


def coloured(line: str) -> str:
    """One line as SVG text: the heading dim, a verdict's status in its colour."""
    if line.startswith("$ "):
        return f'<tspan class="dim">$</tspan> <tspan class="b">{escape(line[2:])}</tspan>'
    if line.startswith("ENGINE"):
        return f'<tspan class="dim">{escape(line)}</tspan>'
    text = escape(line, quote=False)
    return re.sub(r" (completed|failed|timeout) ", r' <tspan class="\1">\1</tspan> ', text, count=1)


def drawing(lines: list[tuple[float, str]]) -> str:
    """A terminal window in which each line appears at its time and stays."""
    height = TOP + LINE * len(lines) + 6
    title = f"{COMMAND_LINE}, as it ran"
    text = "\n".join(line for _, line in lines)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}"',
        ' role="img" aria-labelledby="t d">',
        f'<title id="t">{title}</title><desc id="d">{escape(text, quote=False)}</desc><style>{STYLE}</style>',
        f'<rect class="window" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
        f'<path class="bar" d="M.5 34.5V8.5a8 8 0 0 1 8-8H{WIDTH - 8.5}a8 8 0 0 1 8 8v26z"/>',
        *(f'<circle class="button" cx="{x}" cy="17.5" r="5.5"/>' for x in (20, 38, 56)),
    ]
    for number, (seconds, line) in enumerate(lines):
        # The width is said, so that the columns stand in every font.
        place = f'x="{LEFT}" y="{TOP + LINE * number}" textLength="{CELL * len(line):.1f}"'
        delay = f'style="animation-delay:{seconds:.2f}s"'
        parts.append(f'<text class="line" {place} {delay}>{coloured(line)}</text>' if line else "")
    return "\n".join(part for part in [*parts, "</svg>"] if part) + "\n"


def main() -> None:
    """Record once, write both."""
    lines = [(0.0, f"$ {COMMAND_LINE}"), *record()]
    (ROOT / "docs/demo.svg").write_text(drawing(lines), encoding="utf-8")
    block = "\n".join(f"    {line}".rstrip() for _, line in lines)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pattern = r"(<!-- demo -->\n).*?(<!-- /demo -->)"
    readme = re.sub(pattern, lambda found: f"{found[1]}{block}\n{found[2]}", readme, flags=re.DOTALL)
    (ROOT / "README.md").write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
