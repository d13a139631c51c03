"""A search as an Optuna study in memory, so that Optuna's own pictures of it can be drawn, for grids too."""

import warnings
from typing import Any

import optuna
from optuna import visualization
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from plotly.graph_objects import Figure

from lightning_lm.report.certainty import Verdict
from lightning_lm.report.comparison import comparable, configurations, levels, searched, short_name, winner
from lightning_lm.report.landscape import averaging, draw_landscape
from lightning_lm.report.runs import SavedRun
from lightning_lm.runs.numbers import is_number

ENOUGH = 20  # trials, before importances say anything
WIDE = 20  # a range of this factor is searched, and so drawn, on a log scale


def as_study(runs: list[SavedRun]) -> optuna.Study:
    """A trial for each configuration that finished, with the mean loss of its seeds, in the order of the jobs."""
    names = searched(runs)
    distributions = {short_name(name): distribution_of_values(levels(runs, name)) for name in names}
    study = optuna.create_study()
    finished = [c for c in configurations(runs) if c.losses]
    for c in sorted(finished, key=lambda c: min((len(run.name), run.name) for run in c.runs)):  # 2 before 10
        values = {short_name(name): c.settings[name] for name in names}
        params = {
            name: value if isinstance(distributions[name], FloatDistribution) else choice(value)
            for name, value in values.items()
        }
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE, value=c.mean, params=params, distributions=distributions
            )
        )
    return study


def distribution_of_values(values: list[Any]) -> BaseDistribution:
    """A range of numbers, on a log scale where it is wide; categories where a value is 0 or no number."""
    if all(map(is_number, values)) and values[0] > 0:
        return FloatDistribution(float(values[0]), float(values[-1]), log=values[-1] / values[0] >= WIDE)
    return CategoricalDistribution([choice(value) for value in values])


def choice(value: Any) -> Any:
    return value if is_number(value) else str(comparable(value))


def pictures(runs: list[SavedRun], loss: str, certainty: Verdict) -> dict[str, Figure]:
    """Title → picture of the search, most of them Optuna's own; none where fewer than two are finished."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls some of these experimental
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = as_study(runs)
        count = len(study.trials)
        if count < 2 or not (names := list(study.trials[0].params)):
            return {}
        drawn = {} if (plane := draw_landscape(runs, loss, certainty.region)) is None else {"map": plane}
        drawn |= {
            "slices": visualization.plot_slice(study, target_name=loss),
            "parallel coordinates": visualization.plot_parallel_coordinate(study, target_name=loss),
        }
        if winner(runs):  # the history has a line of the best so far
            drawn["history"] = visualization.plot_optimization_history(study, target_name=loss)
        for name in drawn.keys() & {"slices", "history"}:
            drawn[name].update_traces(marker={"size": 9, "line": {"color": "#888888", "width": 1}})
        if len(names) > 1:
            drawn["contours"] = visualization.plot_contour(study, params=names[:3], target_name=loss)
        if (times := averaging(certainty.averaging_times, loss)) is not None:
            drawn["averaging time"] = times
        if count >= ENOUGH and len(names) > 1:
            from optuna.importance import PedAnovaImportanceEvaluator  # its module takes seconds to load

            evaluator = PedAnovaImportanceEvaluator()
            drawn["importances"] = visualization.plot_param_importances(study, evaluator=evaluator, target_name=loss)
    for figure in drawn.values():
        figure.update_layout(template=None, title=None)  # the page has colours of its own
    return drawn
