"""A search by Optuna: the space in Hydra's own syntax, and trials that are drawn, judged and gone on with."""

from collections.abc import Sequence
from pathlib import Path

import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from lightning_lm.errors import Refused, refuse
from lightning_lm.runs.folder import job_status, read_json_file, write_json
from lightning_lm.runs.study import SPARED, STUDY_NAME, storage
from lightning_lm.sweeps.jobs import JobSettings

SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
Space = dict[str, BaseDistribution]


def space(swept: dict[str, Override]) -> Space:
    """What each setting is drawn from: a number of an ``interval`` or ``range``, else one of the listed values.

    ``tag(log, interval(…))`` draws log-uniformly. As in Hydra a ``range`` is without its end.
    """
    if not swept:
        raise refuse("hydra.sweeper.params", "null", "nothing to search", "add optimizer.lr='interval(1e-5, 1e-2)'")
    return {key: distribution_of_override(key, override) for key, override in swept.items()}


def distribution_of_override(key: str, override: Override) -> BaseDistribution:
    values = override.value()
    try:
        if isinstance(values, IntervalSweep):
            kind = IntDistribution if isinstance(values.start, int) else FloatDistribution
            return kind(values.start, values.end, log="log" in values.tags)
        if isinstance(values, RangeSweep) and "log" not in values.tags and not values.shuffle and values.step > 0:
            numbers = list(override.sweep_iterator())
            kind = IntDistribution if isinstance(numbers[0], int) else FloatDistribution
            return kind(numbers[0], numbers[-1], step=values.step)
    except (ValueError, IndexError) as error:
        text = override.input_line.partition("=")[2]
        raise refuse(key, text, str(error) or "it is empty", "correct its ends") from error
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def ends(drawn_from: Space) -> list[JobSettings]:
    """Two jobs between which the others lie."""
    pairs = {
        key: (kind.choices[0], kind.choices[-1])
        if isinstance(kind, CategoricalDistribution)
        else (repr(kind.low), repr(kind.high))
        for key, kind in drawn_from.items()
    }
    return [{key: pair[end] for key, pair in pairs.items()} for end in (0, 1)]


class Study:
    """``study.db`` in a sweep's folder. The trial with number n is the job in the folder n.

    The first ``startup_trials`` are spared, that is, never pruned, and so is one of each ``spare_every`` (0: none).
    """

    def __init__(  # noqa: PLR0913
        self,
        folder: Path,
        drawn_from: Space,
        sampler: str,
        seed: int | None,
        reduction_factor: int | None,
        startup_trials: int = 0,
        spare_every: int = 0,
    ):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.space, self.reduction_factor = folder, drawn_from, reduction_factor
        self.sampler, self.seed = SAMPLERS[sampler], seed
        self.startup_trials, self.spare_every = startup_trials or 0, spare_every or 0
        self.study = optuna.create_study(
            storage=storage(folder), study_name=STUDY_NAME, direction="minimize", load_if_exists=True
        )

    def jobs(self) -> list[JobSettings]:
        """The settings of all trials so far."""
        drawn = [trial.params for trial in self.study.get_trials(deepcopy=False)]
        return [{key: v if isinstance(v, str) else repr(v) for key, v in values.items()} for values in drawn]

    def ended(self) -> list[int]:
        """The numbers of the trials that are not run again."""
        return [trial.number for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]

    def next_batch(self, trials: int, parallel: int) -> range:
        """The numbers of the trials to run next: those that were cut off, else new ones."""
        known = self.study.get_trials(deepcopy=False)
        cut_off = [trial.number for trial in known if trial.state == TrialState.RUNNING]
        batch = range(cut_off[0], len(known)) if cut_off else range(len(known), min(len(known) + parallel, trials))
        for number in batch[len(known) - batch.start :]:
            # A sampler for each trial: one that had drawn before would draw something else when a study is gone on with
            self.study.sampler = self.sampler(seed=None if self.seed is None else self.seed + number)
            self.study.ask(self.space).set_user_attr(SPARED, self.spares(number))
        settings = self.jobs()
        for number in batch:
            (self.folder / str(number)).mkdir(exist_ok=True)
            row = {"number": number, "reduction_factor": self.reduction_factor, "settings": settings[number]}
            row["spared"] = self.study.trials[number].user_attrs.get(SPARED, False)
            write_json(self.folder / str(number) / "trial.json", row)
        return batch

    def spares(self, number: int) -> bool:
        every = self.spare_every
        return number < self.startup_trials or (every > 0 and number % every == every - 1)

    def tell(self, numbers: Sequence[int], returned: Sequence[object]) -> None:
        """Enter what became of the jobs.

        Raises:
            Refused: the study's first jobs didn't even begin.
        """
        for number, value in zip(numbers, returned, strict=True):
            trial = self.study.get_trials(deepcopy=False)[number]
            if trial.state != TrialState.RUNNING:
                continue
            match job_status(self.folder / str(number)):
                case "finished":
                    self.study.tell(number, read_json_file(self.folder / str(number) / "summary.json")["val/loss"])
                case "pruned":
                    self.study.tell(number, state=TrialState.PRUNED)
                case "not run" if isinstance(value, Refused) and number < len(numbers):
                    raise value
                case kind:
                    reason = f"{kind}: {value}"
                    self.study._storage.set_trial_user_attr(trial._trial_id, "reason", reason)
                    self.study.tell(number, state=TrialState.FAIL)
