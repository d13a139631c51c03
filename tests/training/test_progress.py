"""What a run shows on a terminal, read from a real one; and in a log."""

import csv
import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
import time

import pytest
from conftest import compose, in_fresh_process
from resumable import settings

from lightning_lm.run import train
from lightning_lm.training import progress
from lightning_lm.training.telemetry import Telemetry

STEPS, CUT_OFF = 9, 5
MORE = [f"trainer.max_steps={STEPS}", "trainer.val_every_n_steps=4", "trainer.patience=9"]
LINE = r"step (\d+)/9 · loss (\S+) · lr (\S+) · \S+ tokens/s · \d:\d\d · ≤\d:\d\d left"


def on_terminal(columns, seconds, arguments):
    """Train until a step, and on from the last checkpoint; returns what a terminal of this width gets of each."""
    progress.SECONDS = seconds
    terminal, ours = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    os.dup2(ours, sys.stderr.fileno())
    written = []
    threading.Thread(
        target=lambda: [written.append(os.read(terminal, 1000)) for _ in iter(int, 1)], daemon=True
    ).start()
    log_row, screens = Telemetry.on_train_batch_end, []

    def dying(self, trainer, *more):
        if trainer.global_step == CUT_OFF:
            raise RuntimeError("cut off")
        log_row(self, trainer, *more)

    for Telemetry.on_train_batch_end in (dying, log_row):
        try:
            train(compose(*arguments))
        except RuntimeError as error:
            sys.stderr.write(f"error: {error}\n")
        sys.stderr.write("the end\n")
        for _ in range(600):
            if b"the end" in b"".join(written):
                break
            time.sleep(0.1)
        screens.append(b"".join(written).decode())
        written.clear()
    return screens


def drawn(screen):
    """All lines that ever stood on a terminal."""
    return [line for line in re.split(r"[\r\n]|\x1b\[[A-Z]", screen) if line.strip()]


@pytest.fixture(scope="module")
def screens(dropping, text, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "run"
    arguments = settings(
        dropping, text, run, *MORE, "trainer.log_every_n_steps=3", "trainer.checkpoint_every_n_steps=2"
    )
    return run, *in_fresh_process(on_terminal, 80, 0, arguments)


@pytest.fixture(scope="module")
def rows(dropping, text, tmp_path_factory):
    """The training rows of a run that was not cut off and logs each step."""
    run = tmp_path_factory.mktemp("run") / "run"
    train(compose(*settings(dropping, text, run, *MORE, "trainer.log_every_n_steps=1")))
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        return run, [row for row in csv.DictReader(file) if row["train/loss"]]


def test_the_bar_shows_the_whole_run_and_its_loss_from_the_first_step(screens, rows):
    _, first, second = screens
    losses = [float(row["train/loss"]) for row in rows[1]]
    lines = drawn(first)
    assert lines.index(next(line for line in lines if line.startswith("step 0/9 · 0:0"))) > 0
    shown = {int(line[5]): float(line.split()[4]) for line in lines if re.match(r"step \d/9 · loss", line)}
    means = {1: losses[0], 2: sum(losses[:2]) / 2, 3: sum(losses[:3]) / 3, 4: losses[3]}  # since the last row
    assert shown == pytest.approx({**means, 5: sum(losses[3:5]) / 2}, rel=1e-3)
    assert any(re.fullmatch(LINE, line.rstrip()) for line in lines)
    assert any(re.match(r"validation 4/4 batches", line) for line in lines)
    assert any(re.match(r"test 2/2 batches", line) for line in drawn(second))


def test_lines_fit_and_none_is_glued_to_another(screens):
    for screen in screens[1:]:
        assert all(len(line) <= 80 for line in drawn(screen) if re.match(r"(step|validation|test) \d+/", line))
        assert len(re.findall(r"\nerror: cut off|\nthe end", screen)) == screen.count("error: ") + 1
        assert not re.search(r"\S(step \d+/|validation \d)", re.sub(r"\x1b\[[A-Z]", "\r", screen))


def test_a_resumed_run_begins_where_it_was(screens):
    lines = drawn(screens[2])
    assert "continuing at step 4 of 9" in lines
    places = [int(line[5]) for line in lines if re.match(r"step \d/9", line)]
    assert places == sorted(places) and (places[0], places[-1]) == (4, STEPS)


def test_the_log_has_a_line_per_interval_that_the_terminal_lacks(screens):
    run, first, _ = screens
    found = re.findall(LINE, (run / "train.log").read_text(encoding="utf-8"))
    assert [int(step) for step, _, _ in found] == [3, 6, 9]
    assert not re.search(r"step 3/9 · [^\r\n\x1b]*\r?\n", first)


def test_without_a_terminal_the_lines_are_on_the_console(dropping, text, rows, tmp_path, capfd):
    train(compose(*settings(dropping, text, tmp_path / "run", *MORE, "trainer.log_every_n_steps=3")))
    console = capfd.readouterr().err
    found = re.findall(rf"^{LINE}$", console, re.MULTILINE)
    assert [int(step) for step, _, _ in found] == [3, 6, 9] and "\r" not in console
    for step, loss, rate in found:
        logged = [float(row["train/loss"]) for row in rows[1][int(step) - 3 : int(step)]]
        assert float(loss) == pytest.approx(sum(logged) / 3, rel=1e-3)
        assert float(rate) == pytest.approx(float(rows[1][int(step) - 1]["learning_rate"]), rel=1e-2)


def test_the_bar_is_drawn_by_time_and_reads_nothing_in_between(dropping, text, tmp_path):
    arguments = settings(dropping, text, tmp_path / "run", *MORE, "trainer.log_every_n_steps=9", "logger=none")
    first, _ = in_fresh_process(on_terminal, 120, 1e9, arguments)
    places = [int(line[5]) for line in drawn(first) if re.match(r"step \d/9", line)]
    assert set(places) == {0, 4, 5}, "drawn at the start, for the lines of a validation, and at the end"
