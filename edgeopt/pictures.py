"""SVG pictures: axes with ticks at round numbers, bars and interval whiskers. Shapes have class names that the style of
the page colours; a picture in its own file contains its style, for light and dark mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDE = 640
_FINEST, _SMALLEST = 1e-12, 1e-300  # smallest step between ticks: relative to the values, and absolute
_STYLE = """<style>
svg { font: 12px system-ui, sans-serif; background: #fff; }
text { fill: #333; } .grid { stroke: #ddd; fill: none; } .whisker { stroke: #1f4e79; fill: none; }
.bar, .bubble { fill: #1f4e79; } .light { fill: #9dc3e6; }
@media (prefers-color-scheme: dark) {
  svg { background: #1b1b1b; } text { fill: #ddd; } .grid { stroke: #444; } .whisker { stroke: #7fb2e5; }
  .bar, .bubble { fill: #7fb2e5; } .light { fill: #35587a; }
}
</style>"""


def svg(width: float, height: float, label: str, body: Sequence[str], *, alone: bool = False) -> str:
    """A picture of `width` x `height` pixels; alone: whether it is a file of its own."""
    space = ' xmlns="http://www.w3.org/2000/svg"' if alone else ""
    size = f' width="{width:g}" height="{height:g}"' if alone else ""
    head = f'<svg{space}{size} viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">'
    return "\n".join([head, f"<title>{escape(label)}</title>", *([_STYLE] if alone else []), *body, "</svg>"])


def text(x: float, y: float, content: str, *, kind: str = "tick", anchor: str = "start", title: str = "") -> str:
    """A text element at (x, y); title: a tooltip."""
    more = f"<title>{escape(title)}</title>" if title else ""
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{where}>{escape(content)}{more}</text>'


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between `low` and `high`; only `low` if the two are too close."""
    raw = high / count - low / count  # high - low could overflow
    if raw <= max(_SMALLEST, _FINEST * max(abs(low), abs(high))):
        return [low]
    step = 10.0 ** math.floor(math.log10(raw))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def labelled(low: float, high: float, count: int = 4) -> list[tuple[float, str]]:
    """Ticks with labels of at least four significant digits, and as many as are needed to distinguish them."""
    found = ticks(low, high, count)
    digits = next(n for n in range(4, 18) if len({f"{t:.{n}g}" for t in found}) == len(found))
    return [(t, f"{t:.{digits}g}") for t in found]


@dataclass(frozen=True)
class Axes:
    """The plot area of a picture: (x0, y0) is at the lower left and (x1, y1) at the upper right.

    left, right, top, bottom: its edges in pixels.
    """

    x0: float
    x1: float
    y0: float
    y1: float
    left: float = 70
    right: float = WIDE - 30
    top: float = 20
    bottom: float = 270

    def x(self, value: float) -> float:
        """The horizontal position of `value` in pixels."""
        return self.left + (value - self.x0) / ((self.x1 - self.x0) or 1.0) * (self.right - self.left)

    def y(self, value: float) -> float:
        """The vertical position of `value` in pixels."""
        return self.bottom - (value - self.y0) / ((self.y1 - self.y0) or 1.0) * (self.bottom - self.top)

    def across(self, count: int = 4) -> list[str]:
        """Horizontal lines at round values of y, with their numbers."""
        return [
            f'<path class="grid" d="M{self.left:g} {self.y(t):.1f}H{self.right:g}"/>'
            + text(self.left - 8, self.y(t) + 4, told, anchor="end")
            for t, told in labelled(self.y0, self.y1, count)
        ]

    def down(self) -> list[str]:
        """Vertical lines at round values of x, with their numbers."""
        return [
            f'<path class="grid" d="M{self.x(t):.1f} {self.top:g}V{self.bottom:g}"/>'
            + text(self.x(t), self.bottom + 18, told, anchor="middle")
            for t, told in labelled(self.x0, self.x1)
        ]

    def named(self, x: str, y: str) -> list[str]:
        """The titles of the axes."""
        middle = f'transform="translate(16 {(self.top + self.bottom) / 2:g}) rotate(-90)" text-anchor="middle"'
        return [
            text((self.left + self.right) / 2, self.bottom + 38, x, kind="axis", anchor="middle"),
            f'<text class="axis" {middle}>{escape(y)}</text>',
        ]

    def whisker(self, low: float, high: float, y: float) -> str:
        """A horizontal whisker from `low` to `high` (x values) at the height of `y`."""
        a, b, level = self.x(low), self.x(high), self.y(y)
        return (
            f'<path class="whisker" d="M{a:.1f} {level:.1f}H{b:.1f}'
            f'M{a:.1f} {level - 4:.1f}v8M{b:.1f} {level - 4:.1f}v8"/>'
        )


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart. parts: (length as a share of the longest bar, class name) from left to right; told: text
    after the bar; title: tooltip of the name.
    """

    name: str
    parts: Sequence[tuple[float, str]]
    told: str
    title: str = ""


def bars(rows: Sequence[Bar], label: str, *, at: float = 228, length: float = 330, alone: bool = False) -> str:
    """A bar chart with rows from top to bottom. at: start of the bars in pixels, names are left of it; length: of the
    longest bar in pixels.
    """
    body = []
    for i, row in enumerate(rows):
        y, x = 4 + 20 * i, at
        body.append(text(at - 8, y + 12, row.name, anchor="end", title=row.title))
        for share, kind in row.parts:
            width = length * min(1.0, max(0.0, share))
            if width or len(row.parts) == 1:
                body.append(
                    f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{max(1.0, width):.1f}" height="15" rx="2"/>'
                )
            x += width
        body.append(text(x + 6, y + 12, row.told))
    return svg(max(WIDE, at + length + 80), 8 + 20 * len(rows), label, body, alone=alone)


def shortened(name: str, longest: int = 32) -> str:
    """`name`, or its end after "..." if it is longer than `longest` characters."""
    return name if len(name) <= longest else f"...{name[3 - longest :]}"
