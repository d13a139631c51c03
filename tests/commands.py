"""``lightning-lm``'s commands, called in this process."""

import pytest

from lightning_lm import cli


def call(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr()
    return code, told.out, told.err
