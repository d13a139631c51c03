"""Tables of a run that grow step by step: ``metrics.csv`` and ``samples.csv``."""

import csv
from pathlib import Path
from typing import Any

from lightning_lm.files import replacing


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
            writer.writerow(row)

    def rows(self) -> list[dict[str, str]]:
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def rewind(self, step: int) -> None:
        """Drop the rows after ``step``, those of a test, and one that a kill left unfinished."""
        whole = [row for row in self.rows() if None not in row.values() and row["step"].isdigit()]
        earlier = [row for row in whole if int(row["step"]) <= step and not row.get("test/loss")]
        with replacing(self.path) as scratch, scratch.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(earlier)
