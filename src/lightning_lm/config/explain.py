"""From an exception to what the user reads: one line for each problem, on stderr, and exit code 2.

A job that is refused raises ``Refused``. Any other exception of a job is a bug, shown with its traceback:
``running_job`` sets its attribute ``in_job``. Without that, it is first looked for in what was typed.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from lightning_lm.config.overrides import diagnose
from lightning_lm.config.schema import AXES
from lightning_lm.errors import Died, Problem, Refused, refuse
from lightning_lm.logs import CONTROLS, CREDENTIALS

ONE_OPTION = {*AXES, "trainer", "hardware", "logger"} - {"callbacks"}
COMPOSING = (HydraException, OmegaConfBaseException, YAMLError, OSError)  # what Hydra raises of files that are wrong
RERUN = "a run again: lightning-lm rerun RUN; a recipe in a folder: --config-dir=FOLDER experiment=NAME"


@contextmanager
def running_job() -> Iterator[None]:
    """Around a job: reports why it was refused or died, and marks every other exception as a bug of the job.

    Alone, a job that was refused or died ends the process; in a multirun it lets the other jobs run.
    """
    try:
        check_mode(HydraConfig.get())
        yield
    except (Refused, Died) as error:
        code = error.code if isinstance(error, Died) else tell_and_exit_code(error)
        hydra = HydraConfig.get()
        remove_empty(Path(hydra.runtime.output_dir))
        if hydra.mode == RunMode.RUN:
            sys.exit(code)
        raise
    except SystemExit:
        remove_empty(Path(HydraConfig.get().runtime.output_dir))
        raise
    except Exception as bug:
        bug.in_job = True  # type: ignore[attr-defined]
        raise


def check_form(argv: Sequence[str]) -> None:
    """Raises Refused for what Hydra takes from a command line and that would do nothing here, or something else."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise refuse("folder", ".", "the working folder has vanished", "change to one that is there") from None
    parser = get_args_parser()
    parser.allow_abbrev, parser.error = False, _refuse_argument  # type: ignore[method-assign]
    args, unknown = parser.parse_known_args(argv)
    wrong = []
    for text in unknown:
        flag, equals, value = text.partition("=")
        if not flag.startswith("-"):
            wrong.append(Problem(flag, value, "behind a flag and other settings", "write flags, such as -m, first"))
            continue
        meant = text.lstrip("-") + ("" if equals else "=VALUE")
        wrong.append(Problem(flag, value, "no such flag", f"settings have no dashes: {meant}"))
    if args.experimental_rerun is not None:
        wrong.append(Problem("--experimental-rerun", args.experimental_rerun, "it would run what a file holds", RERUN))
    if args.config_dir is not None and not Path(args.config_dir).is_dir():
        wrong.append(Problem("--config-dir", args.config_dir, "no such folder", "check the path"))
    if args.package is not None and args.cfg is None:
        wrong.append(Problem("--package", args.package, "only --cfg shows a part", "leave it out, or add --cfg job"))
    for flag, value in {"--config-path": args.config_path, "--config-name": args.config_name}.items():
        if value is not None:
            wrong.append(Problem(flag, value, "a run is composed from conf/", RERUN))
    for text in args.overrides:
        name, _, value = text.lstrip("+").partition("=")
        if name.startswith("~") and name[1:].isidentifier():
            wrong.append(Problem(name, value, "its defaults would stay", f"choose an option: {name[1:]}=OPTION"))
        elif name == "hydra.job.chdir" and value.lower() != "false":
            wrong.append(Problem(name, value, "relative paths would lead elsewhere", "leave it out"))
        elif name in ONE_OPTION and value.startswith("["):
            wrong.append(Problem(name, value, "it takes one option", "name one; -m lists several without brackets"))
        elif name == "hydra.run.dir":
            wrong.append(Problem(name, value, "no run would be gone on with there", f"write run_dir={value}"))
    if wrong:
        raise Refused(*wrong)


def _refuse_argument(message: str) -> NoReturn:
    """In place of argparse's page on all arguments."""
    about = re.fullmatch(r"argument (--[\w-]+)\S*: (.*)", message)
    flag, wrong = about.groups() if about else ("command", message)
    raise refuse(flag, "", wrong, "see python train.py --help")


def check_mode(hydra: HydraConf) -> None:
    """Raises Refused for settings of a sweep where there is none."""
    if hydra.mode == RunMode.RUN:
        typed = [text.lstrip("+").partition("=") for text in hydra.overrides.hydra]
        given = [(name, value) for name, _, value in typed if name.startswith(("hydra.sweep.", "hydra.sweeper."))]
        if given:
            raise Refused(
                *(Problem(*pair, "this is a single run", "add -m for a sweep, or leave it out") for pair in given)
            )


def tell_and_exit_code(error: Exception) -> int:
    """Tell on stderr why nothing was run; returns the exit code. What is no refusal but a bug is raised again."""
    if isinstance(error, Refused) and error.reported:
        return 2
    reasons = lines(error, sys.argv[1:])
    if not reasons:
        raise error
    sys.stderr.writelines(f"error: {reason}\n" for reason in reasons)
    if isinstance(error, Refused):
        error.reported = True
    return 2


def lines(error: Exception, argv: Sequence[str] = ()) -> list[str]:
    """One line for each reason why the command line ``argv`` was refused; none where ``error`` is a bug."""
    if isinstance(error, Refused):
        return [on_one_line(str(problem)) for problem in error.problems]
    if getattr(error, "in_job", False):
        return []
    args = get_args_parser().parse_args(argv)
    wrong = diagnose(args.overrides, args.multirun, Path(args.config_dir) if args.config_dir else None)
    if wrong or not isinstance(error, COMPOSING):
        return [on_one_line(str(problem)) for problem in wrong]
    return [on_one_line(in_files(error))]


def in_files(error: Exception) -> str:
    """The message of an error that no override explains, such as one in a file under ``conf/``."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}; give another run_dir"
    text = str(error).partition("Config search path")[0] + (f" {error.__cause__}" if error.__cause__ else "")
    text = re.sub(r"In '(.+?)': \w+ raised while composing config:", r"conf/\1.yaml:", text)
    text = re.sub(r"(Could not load '(\w+)/schema_(\w+)')", r"\1; add the row \3 to the table of \2 in schema.py", text)
    return re.sub(r"\n\s+full_key: (\S+)\n(\s+reference_type=.*\n)?\s+object_type=.*", r"; correct \1", text)


def on_one_line(text: str) -> str:
    """Without what a URL holds of a password: batch systems keep what is told here."""
    return CREDENTIALS.sub("…", " ".join(text.split())).translate(CONTROLS)


def remove_empty(folder: Path) -> None:
    """Remove the run folder that Hydra made for a job that never began, and empty folders above it in ``outputs``."""
    root = Path("outputs").absolute()
    while folder not in (root, Path.cwd()) and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        if root not in folder.parents:
            return
        folder = folder.parent
