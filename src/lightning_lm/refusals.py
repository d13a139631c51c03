"""From what is raised to what the user reads: one line for each problem, on stderr, and exit code 2."""

import re
import sys
import traceback
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_lm.errors import Refused
from lightning_lm.launch import Died
from lightning_lm.overrides import diagnose


def report(error: Exception) -> int:
    """Tell on stderr why nothing was run; returns the exit code. What is no refusal but a bug is raised again."""
    told = [] if getattr(error, "told", False) else lines(error, sys.argv[1:])
    if not told and not isinstance(error, Refused):
        raise error
    for line in told:
        sys.stderr.write(f"error: {line}\n")
    error.told = True  # in a multirun each job reports for itself, and Hydra raises the first one's error at the end
    return 2


def end_job(error: Refused | Died) -> None:
    """Report a job that never began, or died; alone it ends the process, in a multirun it lets the other jobs run."""
    code = error.code if isinstance(error, Died) else report(error)
    hydra = HydraConfig.get()
    remove_empty(Path(hydra.runtime.output_dir))
    if hydra.mode == RunMode.RUN:
        sys.exit(code)
    raise error


def lines(error: Exception, argv: list[str] = ()) -> list[str]:
    """One line for each reason why the command line ``argv`` was refused; none where ``error`` is a bug."""
    if isinstance(error, Refused):
        return [flat(str(problem)) for problem in error.problems]
    if not composing(error):
        return []
    args = get_args_parser().parse_args(argv)
    GlobalHydra.instance().clear()
    found = diagnose(args.overrides, args.multirun, Path(args.config_dir) if args.config_dir else None)
    return [flat(str(problem)) for problem in found] or [flat(in_files(error))]


def composing(error: Exception) -> bool:
    """Whether the error comes from reading settings, and not from the job that they describe."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if sum(frame.f_globals.get("__name__") == "__main__" for frame in frames) > 1:
        return False  # the second such frame is the job's
    if isinstance(error, HydraException | OmegaConfBaseException | YAMLError | OSError):
        return True
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("hydra")


def in_files(error: Exception) -> str:
    """The message of an error that no override explains, such as one in a file under ``conf/``."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; give another run_dir"
    text = str(error).partition("Config search path")[0] + (f" {error.__cause__}" if error.__cause__ else "")
    text = re.sub(r"In '(.+?)': \w+ raised while composing config:", r"conf/\1.yaml:", text)
    return re.sub(r"\n\s+full_key: (\S+)\n\s+object_type=.*", r"; correct \1", text)


def flat(text: str) -> str:
    return " ".join(text.split())


def remove_empty(folder: Path) -> None:
    """Remove the run folder that Hydra made for a job that never began, and empty folders above it in ``outputs``."""
    root = Path("outputs").absolute()
    while folder not in (root, Path.cwd()) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        if root not in folder.parents:
            return
        folder = folder.parent
