"""Tables of a run that grow step by step: ``metrics.csv`` and ``samples.csv``."""

import csv
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lm.errors import refuse
from lightning_lm.faults import first_line
from lightning_lm.files import replacing

if TYPE_CHECKING:
    import numpy as np  # a refusal is quick without it
    import pyarrow

Series = tuple["np.ndarray", "np.ndarray"]  # the steps at which a figure has a value, and the values
NUMBER = re.compile(r"[+-](\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-](inf|nan)", re.IGNORECASE)  # with a sign
FORMULA = re.compile(r"'*[=+\-@\t\r]")  # a spreadsheet takes a cell that begins so for a formula: OWASP, CSV Injection


def as_cell(value: Any) -> Any:
    """A value as a spreadsheet shows it: of text that it would compute, an apostrophe makes text."""
    if not isinstance(value, str) or not FORMULA.match(value) or NUMBER.fullmatch(value):
        return value
    return f"'{value}"


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


def read_series(path: Path) -> dict[str, Series]:
    """Column of a metrics file → its series. Empty cells and a row that is still being written are left out.

    Raises:
        Refused: a cell holds a text.
    """
    import numpy as np
    import pyarrow  # much quicker than Python's reader
    from pyarrow import csv as arrow

    if not path.exists() or not path.stat().st_size:
        return {}
    whole = arrow.ParseOptions(invalid_row_handler=lambda row: "skip")
    try:
        with path.open(encoding="utf-8") as file:
            names = file.readline().strip().split(",")
        numbers = arrow.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.float64()))
        table = arrow.read_csv(path, parse_options=whole, convert_options=numbers)
        columns = {name: _numpy(table[name].combine_chunks()) for name in names}
        steps = columns.pop("step").astype(int)
    except (ValueError, KeyError) as error:  # Arrow's are ValueErrors
        wrong = f"it is damaged: {first_line(error)}"
        raise refuse("file", path, wrong, "restore it, or delete that row") from error
    known = {name: ~np.isnan(values) for name, values in columns.items()}
    return {name: (steps[there], columns[name][there]) for name, there in known.items() if there.any()}


def _numpy(column: "pyarrow.DoubleArray") -> "np.ndarray":
    """What ``to_numpy`` does, but that imports pandas, which takes half a second."""
    import numpy as np

    present, numbers = column.buffers()
    values = np.frombuffer(numbers, np.float64, len(column))
    if present is None:
        return values
    bits = np.unpackbits(np.frombuffer(present, np.uint8), count=len(column), bitorder="little")
    return np.where(bits, values, np.nan)
