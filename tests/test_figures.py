"""A figure that the table doesn't know is said once, and the others are written."""

import logging

from lightning_lm.figures import COLUMNS
from lightning_lm.runs.tracking import RunFolderLogger


def test_an_unknown_figure_is_said_once(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning_lm"), "propagate", True)
    logger = RunFolderLogger(tmp_path)
    for step in (1, 2):
        logger.log_metrics({"val/loss": 1.5, "val/mystery": 3.0}, step=step)
    assert len({record for record in caplog.records if "val/mystery" in record.getMessage()}) == 1
    rows = logger.table.rows()
    assert [row["val/loss"] for row in rows] == ["1.5", "1.5"] and list(rows[0]) == COLUMNS


def test_the_columns_are_the_ones_that_scripts_rely_on():
    evaluated = ["loss", "perplexity", "accuracy", "bits_per_byte", "word_perplexity", "tokens"]
    evaluated += ["masked_loss", "masked_accuracy"]
    assert COLUMNS[:5] == ["step", "epoch", "tokens_seen", "learning_rate", "gradient_norm"]
    assert COLUMNS[-16:] == [f"{split}/{name}" for split in ("val", "test") for name in evaluated]
