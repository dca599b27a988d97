"""Draw the bytes of a stream's state over the tokens it has read, as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from infinitevl.evaluation.units import show_bytes

WIDTH, HEIGHT = 440, 240  # about as wide as a phone, where the chart is not scaled
LEFT, RIGHT, TOP, BOTTOM = 72, 12, 30, 42


@dataclass(frozen=True)
class MemoryPoint:
    """Bytes of the state after a number of tokens."""

    tokens: int
    state_bytes: int


def memory_chart(points: Sequence[MemoryPoint], growth_per_token: int = 0) -> str:
    """Draw the state's size, and a cache that grows by `growth_per_token` bytes per token if given.

    The state has a fixed size, so its line begins at token 0, also that of a stream that was continued.
    """
    tokens = max([point.tokens for point in points], default=0) or 1
    held = max([point.state_bytes for point in points], default=0) or 1
    top = 1.15 * max(held, min(growth_per_token * tokens, 4 * held))
    scale = _Scale(tokens, top)
    start = [(0, point.state_bytes) for point in points[:1]]
    state = _line([*start, *((point.tokens, point.state_bytes) for point in points)], scale, "state")
    parts = [_axes(scale), state]
    parts.append(_label(scale.x(tokens), scale.y(held) - 8, f"state: {show_bytes(held)}", "end state"))
    if growth_per_token:
        parts.append(_growth(growth_per_token, scale))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Bytes of the state over tokens read">'
        f"{''.join(parts)}</svg>"
    )


@dataclass(frozen=True)
class _Scale:
    tokens: float
    top: float

    def x(self, tokens: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * tokens / self.tokens, 1)

    def y(self, count: float) -> float:
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * count / self.top, 1)


def _axes(scale: _Scale) -> str:
    marks = []
    for share in (0.0, 0.5, 1.0):
        y = scale.y(share * scale.top / 1.15)
        marks.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        marks.append(_label(LEFT - 8, y + 4, show_bytes(share * scale.top / 1.15), "end"))
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = scale.x(share * scale.tokens)
        marks.append(_label(x, HEIGHT - BOTTOM + 18, f"{share * scale.tokens:,.0f}", anchor))
    marks.append(_label(LEFT + (WIDTH - LEFT - RIGHT) / 2, HEIGHT - 4, "tokens read", "middle"))
    return "".join(marks)


def _growth(per_token: int, scale: _Scale) -> str:
    end = min(scale.tokens, scale.top / per_token)
    line = _line([(0, 0), (end, end * per_token)], scale, "growth")
    text = f"full attention of this shape: {show_bytes(per_token * scale.tokens)} by now"
    return line + _label(scale.x(scale.tokens), TOP - 12, text, "end growth")


def _line(points: Sequence[tuple[float, float]], scale: _Scale, name: str) -> str:
    path = " ".join(f"{scale.x(x)},{scale.y(y)}" for x, y in points)
    return f'<polyline class="{name}" points="{path}"/>'


def _label(x: float, y: float, text: str, name: str) -> str:
    return f'<text class="{name}" x="{x:.1f}" y="{y:.1f}">{text}</text>'
