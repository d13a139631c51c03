"""A sweep: a grid of jobs, or a study whose jobs Optuna draws. Imports nothing heavy before it must."""

import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf

from lightning_lm.config.composition import typed_job
from lightning_lm.config.overrides import problems_of
from lightning_lm.errors import Problem, Refused, refuse
from lightning_lm.interrupts import Interrupted, interrupts_win, stopping_on_signals
from lightning_lm.runs.folder import DONE, alone_in, job_status
from lightning_lm.sweeps.jobs import JobSettings, claim_folder, combinations, extended, refuse_launched
from lightning_lm.sweeps.precheck import model_problems
from lightning_lm.sweeps.progress import JobPlace, exit_code

SAMPLERS = ("tpe", "random")


class SearchSweeper(Sweeper):
    """Runs a job for every combination of values; with ``trials``, a study by Optuna draws them one after another."""

    def __init__(
        self, params: DictConfig | None, trials: int | None, parallel: int, more: ListConfig | None, **search: Any
    ):
        self.params, self.trials, self.parallel, self.more = params or {}, trials, parallel, more
        self.search = search  # how a study draws and prunes

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> None:
        """What is typed wins over the params of a ``sweep=`` file.

        Raises:
            Refused: a job's settings can't work, or the folder holds another sweep; nothing was run.
            SystemExit: a job failed.
        """
        if not isinstance(self.params, dict | DictConfig):
            remedy = "write a table, such as {optimizer.lr: '1e-3,1e-2'}"
            raise refuse("hydra.sweeper.params", self.params, "no table of settings", remedy)
        texts = [*(f"{setting}={values}" for setting, values in self.params.items()), *arguments]
        parsed = OverridesParser.create(self.loader).parse_overrides(texts)
        overrides = {override.get_key_element(): override for override in parsed}
        swept = {key: override for key, override in overrides.items() if override.is_sweep_override()}
        self.fixed = {key: o.get_value_element_as_str() for key, o in overrides.items() if key not in swept}
        self.folder, self.jobs = Path(self.config.hydra.sweep.dir), []
        self.errors: dict[int, object] = {}  # job → what has ended it
        self.check_search(overrides)
        refuse_launched()
        with stopping_on_signals(), alone_in(self.folder, "hydra.sweep.dir"):
            try:
                with interrupts_win():
                    count = self.grid(swept) if self.trials is None else self.study(swept)
            except Interrupted:  # between two jobs; one at work tells it itself
                sys.stderr.write(f"interrupted: the same command with hydra.sweep.dir={self.folder} goes on\n")
                raise
            finally:
                if self.jobs:
                    from lightning_lm.sweeps.table import job_table  # with its mathematics a second: only now

                    sys.stdout.write(job_table(self.folder, self.jobs, self.errors))
                    self.log_to_wandb()
        if code := exit_code(self.folder, count):
            sys.exit(code)

    def check_search(self, overrides: dict[str, Override]) -> None:
        """Refuse what the sweep itself can't do."""
        whole = "give a whole number"
        problems = [
            Problem(f"hydra.sweeper.{name}", value, f"less than {least}, or no number", whole)
            for name, value, least in (
                ("trials", self.trials, 1),
                ("parallel", self.parallel, 1),
                ("reduction_factor", self.search["reduction_factor"], 2),
                ("startup_trials", self.search["startup_trials"], 0),
                ("spare_every", self.search["spare_every"], 0),
            )
            if value is not None and not (isinstance(value, int) and value >= least)
        ]
        if (sampler := self.search["sampler"]) not in SAMPLERS:
            remedy = f"use {' or '.join(SAMPLERS)}"
            problems.append(Problem("hydra.sweeper.sampler", sampler, "no such sampler", remedy))
        if self.config.hydra.sweep._get_node("subdir")._value() != "${hydra.job.num}":
            wrong = "a sweep is gone on with by its jobs' numbers"
            problems.append(Problem("hydra.sweep.subdir", self.config.hydra.sweep.subdir, wrong, "leave it out"))
        if "run_dir" in overrides:
            value = overrides["run_dir"].get_value_element_as_str()
            problems.append(
                Problem("run_dir", value, "each job has its own", "name the sweep's: hydra.sweep.dir=FOLDER")
            )
        if problems:
            raise Refused(*problems)

    def log_to_wandb(self) -> None:
        logger = OmegaConf.to_object(self.config.logger)
        if logger.name == "wandb":
            from lightning_lm.report.wandb_summary import log_sweep  # W&B and matplotlib: only now

            log_sweep(self.folder, logger)

    def grid(self, swept: dict[str, Override]) -> int:
        """Returns how many jobs the command asks for; the folder may have more."""
        jobs = combinations(swept) if self.more is None else extended(self.folder, self.more)
        self.check(jobs)
        self.jobs = claim_folder(self.folder, self.fixed, jobs, len(jobs), self.side_by_side)
        self.launch(jobs, 0)
        return len(jobs)

    def study(self, swept: dict[str, Override]) -> int:
        from lightning_lm.sweeps.study import Study, ends, space  # Optuna: only now

        drawn_from = space(swept)
        self.check(ends(drawn_from))
        searched = [{key: o.input_line.partition("=")[2] for key, o in swept.items()}]
        claim_folder(self.folder, self.fixed, searched, self.trials, self.side_by_side)
        study = Study(self.folder, drawn_from, **self.search)
        self.jobs = study.jobs()
        for number in study.ended():
            if job_status(folder := self.folder / str(number)) in DONE:
                JobPlace(folder).tell_done()
        while batch := study.next_batch(self.trials, self.parallel):
            self.jobs = study.jobs()
            results = self.launch([self.jobs[number] for number in batch], batch.start)
            study.tell(batch, results)
        return len(self.jobs)

    def overrides(self, settings: JobSettings) -> list[str]:
        return [f"{key}={value}" for key, value in (self.fixed | settings).items()]

    def check(self, jobs: list[JobSettings]) -> None:
        """Refuse the sweep for what is wrong with any of its jobs."""
        sys.stderr.write("checking the jobs …\n")
        problems: dict[Problem, None] = {}
        composed = [self.loader.load_sweep_config(self.config, self.overrides(settings)) for settings in jobs]
        for cfg in composed:
            problems |= dict.fromkeys(problems_of(cfg))
        if problems := problems or dict.fromkeys(model_problems([typed_job(cfg) for cfg in composed])):
            raise Refused(*problems)

    @property
    def side_by_side(self) -> bool:
        return self.config.hydra.runtime.choices["hydra/launcher"] != "basic"

    def launch(self, jobs: list[JobSettings], first: int) -> list[object]:
        """What the jobs return: a validation loss, or an exception."""
        returned = self.launcher.launch([self.overrides(settings) for settings in jobs], initial_job_idx=first)
        values = [job._return_value for job in returned]
        self.errors |= {first + i: value for i, value in enumerate(values) if isinstance(value, Exception)}
        return values
