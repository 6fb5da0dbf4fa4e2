"""Lines of the table that `bench.py` writes."""


class Row:
    """One line of the table: work, the peer's number, ours, the ratio, what was promised."""

    def __init__(
        self, work: str, theirs: float | None, mine: float, unit: str, target: str = ""
    ) -> None:
        self.work, self.theirs, self.mine, self.unit, self.target = work, theirs, mine, unit, target

    def cells(self) -> list[str]:
        ratio = f"{self.theirs / self.mine:.1f} ×" if self.theirs and self.mine else "–"
        theirs = "–" if self.theirs is None else self.told(self.theirs)
        return [self.work, theirs, self.told(self.mine), ratio, self.target]

    def told(self, number: float) -> str:
        """Counts are exact, measures are not."""
        text = f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
        return f"{text} {self.unit}".rstrip()

    def __str__(self) -> str:
        return "| " + " | ".join(self.cells()) + " |"


class Skipped(Exception):
    """Why something was not measured, as a sentence."""
