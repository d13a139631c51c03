"""Whether a study was right to prune: how its trials' losses on the way agree with those at the end."""

from pathlib import Path

import optuna
from optuna.trial import TrialState
from scipy.stats import spearmanr

from lightning_lm.runs.study import SPARED, STUDY_NAME, storage

FEWEST = 3  # trials that have an order worth the name


def rank_correlations(sweep: Path) -> dict[int, float]:
    """Optimizer step of a validation → Spearman's ρ of the losses there with the final ones, the earliest step first.

    Over the trials that the study spared and that finished: of those that it chose to go on with, the order says
    nothing about the ones that it ended. Empty for fewer than three of them, or where the sweep was no study.
    """
    if not (sweep / "study.db").exists():
        return {}
    study = optuna.load_study(study_name=STUDY_NAME, storage=storage(sweep))
    finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    spared = [trial for trial in finished if trial.user_attrs.get(SPARED)]
    steps = sorted(set.intersection(*(set(t.intermediate_values) for t in spared))) if len(spared) >= FEWEST else []
    final = [trial.value for trial in spared]
    return {step: float(spearmanr([t.intermediate_values[step] for t in spared], final).statistic) for step in steps}
