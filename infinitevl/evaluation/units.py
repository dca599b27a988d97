"""Sizes and times as people read them."""


def show_bytes(count: float) -> str:
    """`count` bytes for people: 812 B, 4.1 MB, 133 MB."""
    unit = "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if count < 999.5:
            break
        count, unit = count / 1000, larger
    return f"{count:.0f} {unit}" if count >= 100 or unit == "B" else f"{count:.1f} {unit}"


def show_time(seconds: float) -> str:
    """`seconds` as a clock shows them: 0:07.5, 1:30, 1:02:03."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{rest % 10}" if rest % 10 else ""
    head = f"{hours}:{minutes:02}" if hours else f"{minutes}"
    return f"{head}:{rest // 10:02}{fraction}"
