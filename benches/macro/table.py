"""Lines of the table that `bench.py` writes."""


class Row:
    """One line of the table: work, the peer's number, ours, the ratio, what was promised."""

    def __init__(
        self, work: str, theirs: float | None, mine: float, unit: str, target: str = ""
    ) -> None:
        self.work, self.theirs, self.mine, self.unit, self.target = work, theirs, mine, unit, target

    def cells(self) -> list[str]:
        ratio = f"{self.theirs / self.mine:.1f} ×" if self.theirs and self.mine else "–"
        theirs = "–" if self.theirs is None else f"{self.theirs:.3g} {self.unit}"
        return [self.work, theirs, f"{self.mine:.3g} {self.unit}", ratio, self.target]

    def __str__(self) -> str:
        return "| " + " | ".join(self.cells()) + " |"


class Skipped(Exception):
    """Why something was not measured, as a sentence."""
