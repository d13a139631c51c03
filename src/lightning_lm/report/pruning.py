"""Whether a study was right to prune: how its trials' losses on the way agree with those at the end."""

from pathlib import Path

import optuna
from optuna.trial import TrialState
from scipy.stats import spearmanr

from lightning_lm.runs.folder import read_json_file
from lightning_lm.runs.study import SPARED, STUDY_NAME, storage

FEWEST = 5  # trials that have an order worth the name


def rank_correlations(sweep: Path) -> tuple[dict[int, float], int]:
    """Optimizer step of a rung → Spearman's ρ of the losses there with the final ones; and over how many trials.

    Over the trials that the study spared and that finished: of those that it chose to go on with, the order says
    nothing about the ones that it ended. Empty for fewer than five of them, or where nothing is pruned.
    """
    if not (sweep / "study.db").exists():
        return {}, 0
    study = optuna.load_study(study_name=STUDY_NAME, storage=storage(sweep))
    finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    spared = [trial for trial in finished if trial.user_attrs.get(SPARED)]
    if len(spared) < FEWEST or not (factor := read_json_file(sweep / "0" / "trial.json")["reduction_factor"]):
        return {}, len(spared)
    steps = sorted(set.intersection(*(set(t.intermediate_values) for t in spared)))
    rungs, final = [], [trial.value for trial in spared]
    for step in steps[:-1]:  # the last loss is the final one
        if step >= steps[0] * factor ** len(rungs):
            rungs.append(step)
    rhos = {step: float(spearmanr([t.intermediate_values[step] for t in spared], final).statistic) for step in rungs}
    return rhos, len(spared)
