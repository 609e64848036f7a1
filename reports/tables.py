"""Text tables, and accuracies with their intervals."""

from collections.abc import Iterable, Sequence


def print_table(rows: Iterable[Sequence[object]]) -> None:
    """Print rows of cells in columns, the header first.

    The first column is aligned to the left, the others to the right.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    for first, *others in texts:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]))


def format_accuracy(accuracy: float, interval: Sequence[float], sign: str = "") -> str:
    """`57.1% (46.4% to 67.9%)`; with `sign="+"` for a difference of accuracies."""
    value, low, high = (f"{share:{sign}.1%}" for share in (accuracy, *interval))
    return f"{value} ({low} to {high})"
