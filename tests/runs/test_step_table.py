"""Tables that a spreadsheet shows as they are, and that read back as they were written."""

import csv

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_lm.api import Run
from lightning_lm.errors import Refused
from lightning_lm.runs.step_table import StepTable, read_series
from lightning_lm.runs.tracking import RunFolderLogger

COLUMNS = ["step", "prompt", "text"]
FORMULAS = ("=", "+", "-", "@", "\t", "\r")
texts = st.text(st.sampled_from("='+-@\t\r\n\"; ,1x"), min_size=1, max_size=8)  # an empty cell is none


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts, texts)
def test_no_cell_is_a_formula_and_all_read_back(tmp_path, prompt, text):
    table = StepTable(tmp_path / "samples.csv", COLUMNS)
    table.path.unlink(missing_ok=True)
    table.append({"step": 1, "prompt": prompt, "text": text})
    for _ in range(2):
        with table.path.open(newline="", encoding="utf-8") as file:
            _, cells = csv.reader(file)
        for cell in cells:
            assert not cell.startswith(FORMULAS) or float(cell) < 0 or cell[0] == "+"
        assert table.rows() == [{"step": "1", "prompt": prompt, "text": text}]
        table.rewind(1)
    if "\r" not in prompt + text:  # pandas takes it for a line's end
        pd.testing.assert_frame_equal(Run(tmp_path).samples, pd.DataFrame([[1, prompt, text]], columns=COLUMNS))


def test_negative_numbers_stay_numbers(tmp_path):
    table = StepTable(tmp_path / "metrics.csv", ["step", "figure"])
    table.append({"step": 1, "figure": -0.5})
    table.rewind(1)
    assert table.path.read_text() == "step,figure\n1,-0.5\n"


def test_rows_that_a_run_lacks_when_it_goes_on_are_told(tmp_path, caplog):
    logger = RunFolderLogger(tmp_path)
    for step in (10, 20):
        logger.log_metrics({"train/loss": 3.25}, step)
    logger.go_on_from(29, 10)
    assert not caplog.records
    logger.go_on_from(30, 10)
    assert caplog.messages == [f"{tmp_path / 'metrics.csv'}: the last rows before step 30 are lost"]
    logger.table.path.write_text(logger.table.path.read_text().replace("3.25", "3&25", 1))
    with pytest.raises(Refused, match="metrics.csv: it is damaged: .*; restore it, or delete that row"):
        logger.go_on_from(20, 10)  # else it would end the run when its plots are drawn


def test_a_run_that_begins_lacks_no_rows(tmp_path, caplog):
    RunFolderLogger(tmp_path).go_on_from(0, 10)
    assert not caplog.records


@pytest.mark.parametrize(
    "rows", [[], [("1", "", "")], [("1", "2.5", ""), ("2", "", ""), ("30", "-1e3", ""), ("4", "5")]]
)
def test_a_series_is_what_stands_in_its_column(rows, tmp_path):
    """Without the empty cells, and without the row that is still being written."""
    table = tmp_path / "metrics.csv"
    table.write_text("".join(",".join(row) + "\n" for row in [("step", "a", "b"), *rows]))
    steps, values = read_series(table).get("a", (np.array([]), np.array([])))
    expected = [(int(row[0]), float(row[1])) for row in rows if len(row) == 3 and row[1]]
    assert list(zip(steps.tolist(), values.tolist(), strict=True)) == expected
    assert "b" not in read_series(table)
