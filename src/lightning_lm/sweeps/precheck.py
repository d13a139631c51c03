"""What tokenizer and config tell of a sweep's jobs before the first one trains, without weights, text or
a download."""

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lightning_lm.config.schema import Config, tokenizer_kind
from lightning_lm.errors import Problem, Refused
from lightning_lm.interrupts import Interrupted
from lightning_lm.launch import PRELOADED, end_fork_server
from lightning_lm.models.schema import TRAIN

MOST_PARAMETERS = 200e6  # of a model that is built and tried in seconds, in less than a gigabyte


def model_problems(jobs: Sequence[Config]) -> list[Problem]:
    """Of jobs whose settings are right by themselves; each kind of model is built once, without memory for weights.

    In a process that is forked from the one that the jobs' own come from, for which torch is imported only once.
    """
    kinds = {repr((job.model, job.objective, job.data.block_size, job.optimizer.groups)): job for job in jobs}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(_problems, list(kinds.values())).result()
        except Interrupted:
            end_fork_server()
            raise


def _problems(jobs: list[Config]) -> list[Problem]:
    from lightning_lm.hub.access import go_offline_if_unreachable

    if any(job.model.hub_ids for job in jobs):
        go_offline_if_unreachable()
    problems: dict[Problem, None] = {}
    for job in jobs:
        try:
            if is_here(job):
                _build_without_weights(job)
        except Refused as refused:
            problems |= dict.fromkeys(refused.problems)
    return list(problems)


def is_here(job: Config) -> bool:
    """Whether config and tokenizer are local, or in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    needed = {"model.name_or_path": "config.json", "model.tokenizer": "tokenizer_config.json"}
    ids = job.model.hub_ids
    files = [(ids[setting], file) for setting, file in needed.items() if setting in ids]
    if job.model.tokenizer is None:
        files += [(name, "tokenizer_config.json") for name, _ in files]
    return all(isinstance(try_to_load_from_cache(name, file), str) for name, file in files)


def _build_without_weights(job: Config) -> None:
    import torch

    from lightning_lm.models.loading import fit_together, load_tokenizer
    from lightning_lm.training.components import RunComponents, check_components

    model = job.model
    if model.tokenizer == TRAIN:
        tokenizer = _stand_in(job)
    else:
        tokenizer = load_tokenizer(model.tokenizer or model.name_or_path, None if model.tokenizer else model.revision)
    if model.pretrained:  # the weights decide how many tokens there are
        config = {name: value for name, value in model.config.items() if name != "vocab_size"}
        model = replace(model, pretrained=False, config=config)
    objective, facts = job.objective.build(tokenizer), job.objective.facts
    with torch.device("meta"):
        built = model.build(tokenizer, facts.auto_class, facts.name)
    fit_together(built, tokenizer, job.data.block_size)
    if built.num_parameters() < MOST_PARAMETERS:  # tried with random weights
        objective.check_model(model.build(tokenizer, facts.auto_class, facts.name))
    if model.tokenizer != TRAIN:
        check_components(job, RunComponents(tokenizer, objective, None, built, None, sys.maxsize))


def _stand_in(job: Config) -> Any:
    """For a tokenizer that is yet to be trained: one of the same kind with few tokens."""
    from lightning_lm.data.corpora.corpus import Corpus
    from lightning_lm.data.tokenizer_training import train_tokenizer

    words = Corpus({"train": ""}, lambda split: iter([["few words"]]), "few words")
    with TemporaryDirectory() as folder:
        return train_tokenizer(words, tokenizer_kind(job), job.model.vocab_size, Path(folder), show_progress=False)
