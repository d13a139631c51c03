"""Tables of a run that grow step by step: ``metrics.csv`` and ``samples.csv``."""

import csv
import re
from pathlib import Path
from typing import Any

from lightning_lm.files import replacing

FORMULA = re.compile(r"'*[=+\-@\t\r]")  # what a cell begins with that a spreadsheet computes; see OWASP, CSV Injection


def as_cell(value: Any) -> Any:
    """A value as a spreadsheet shows it: of text that it would compute, an apostrophe makes text."""
    if not isinstance(value, str) or not FORMULA.match(value):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value  # a negative number


def from_cell(cell: Any) -> Any:
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and FORMULA.match(cell) else cell


class StepTable:
    """A CSV file that grows by rows with a ``step``, and can be taken back to an earlier one."""

    def __init__(self, path: Path, columns: list[str]):
        self.path, self.columns = path, columns

    def append(self, row: dict[str, Any]) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            if new:
                writer.writeheader()
            writer.writerow({column: as_cell(value) for column, value in row.items()})

    def rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [{column: from_cell(cell) for column, cell in row.items()} for row in csv.DictReader(file)]

    def rewind(self, step: int) -> None:
        """Drop the rows after ``step``, those of a test, and one that a kill left unfinished."""
        whole = [row for row in self.rows() if None not in row.values() and row["step"].isdigit()]
        earlier = [row for row in whole if int(row["step"]) <= step and not row.get("test/loss")]
        with replacing(self.path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows({column: as_cell(value) for column, value in row.items()} for row in earlier)
