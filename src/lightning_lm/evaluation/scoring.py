"""A model, by its name, scored on a text, by its name."""

import os
from typing import TYPE_CHECKING, Any

from lightning_lm.errors import Problem, Refused, nearest
from lightning_lm.evaluation.options import MASKING, PLACES, TEXT, wrong_options
from lightning_lm.evaluation.subject import opened_subject

if TYPE_CHECKING:
    from lightning_lm.evaluation.result import Evaluation

KNOWN = (
    "block_size",
    "stride",
    "objective",
    "batch_size",
    "convention",
    "mask_draws",
    "pseudo",
    "words",
    "task",
    *PLACES,
)
LAMBADA = "EleutherAI/lambada_openai"  # on the Hub


def evaluate(  # noqa: PLR0913 (each is an option of the command)
    model: str | os.PathLike,
    data: str | None = None,
    split: str = "test",
    *,
    block_size: int | None = None,
    stride: int | None = None,
    objective: str | None = None,
    batch_size: int | None = None,
    convention: str | None = None,
    mask_draws: int = 1,
    masking: dict[str, Any] | None = None,
    pseudo: int | None = None,
    words: int | None = None,
    task: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **text_options: Any,
) -> "Evaluation":
    """Exact figures of a run's or another model on a text.

    Args:
        model: a run folder, a model folder, or an id of the Hub.
        data: a path, a glob, an option of ``conf/data``, or an id of the Hub; None: the run's own.
        split: of the data; of local files any of train, validation and test.
        block_size: tokens per window; None: the run's, or the model's up to 1024.
        stride: advance of the windows; None: as disjoint as can be.
        objective: ``clm`` or ``mlm``; None: the one that the model was trained for.
        batch_size: windows at once; None: up to 4096 tokens.
        convention: ``lm-eval`` for the figures of lm-evaluation-harness's task ``wikitext``, ``hf-docs`` for the
            perplexity of transformers' documentation; None: our own.
        mask_draws: of a masked model, how often other masks are drawn; the first is that of the training's evaluation.
        masking: ``mlm_probability`` and ``whole_word``, where they shall be others than the objective's own.
        pseudo: of a masked model, the pseudo-perplexity over so many tokens; None: its own figures.
        words: accuracy and rank of so many words of the text, each guessed from its context; None: the whole text.
        task: ``lambada`` for the last words of passages, of which each row of the text is one; without ``data`` those
            of LAMBADA, from the Hub.
        device: such as ``cpu`` or ``cuda:1``; None: the GPU where there is one.
        dtype: ``bfloat16`` for the weights, and so the products; None: ``float32``.
        text_options: ``separator`` between rows (None: the run's, or ``auto``); ``documents``, whether windows stay
            inside documents, and the ``prefix`` before each (None: the run's, or no, and ``auto``); ``text_column``,
            ``name`` and ``revision`` of a data set; ``cache_dir``, where tokens are kept (None: the run's, or the
            default).

    Raises:
        Refused: there is no such model or text, or they don't go together.
    """
    given = {"block_size": block_size, "stride": stride, "objective": objective, "batch_size": batch_size}
    given |= {
        "convention": convention,
        "pseudo": pseudo,
        "words": words,
        "task": task,
        "device": device,
        "dtype": dtype,
        **(masking or {}),
        **text_options,
    }
    given |= {} if mask_draws == 1 else {"mask_draws": mask_draws}
    check_options({name: value for name, value in given.items() if value is not None})
    data = LAMBADA if task == "lambada" and data is None else data
    chosen = {"device": device, "dtype": dtype, **(masking or {})}
    with opened_subject(os.fspath(model), data, split, objective, chosen, **text_options) as subject:
        if convention == "lm-eval":
            from lightning_lm.evaluation.lm_eval import score_by_page

            return score_by_page(subject, block_size)
        if pseudo is not None:
            from lightning_lm.evaluation.pseudo_perplexity import score_pseudo

            return score_pseudo(subject, block_size, pseudo)
        if words is not None:
            from lightning_lm.evaluation.held_out_words import score_words

            return score_words(subject, block_size, words)
        if task == "lambada":
            from lightning_lm.evaluation.last_words import score_last_words

            return score_last_words(subject, block_size)
        if convention == "hf-docs":
            from lightning_lm.evaluation.hf_docs import score_as_docs

            return score_as_docs(subject, block_size, stride, batch_size)
        from lightning_lm.evaluation.perplexity import score_by_token

        return score_by_token(subject, block_size, stride, batch_size, mask_draws)


def check_options(given: dict[str, Any]) -> None:
    """Raises Refused for options that there aren't, whose values are wrong, or that don't go together."""
    known = [*KNOWN, *MASKING, *TEXT]
    wrong = {name: ("no such option", nearest(name, known)) for name in given if name not in known}
    wrong |= wrong_options(given)
    if given.get("task") == "blimp":
        wrong["task"] = "pairs are no text", "use lightning-lm evaluate --task blimp"
    if wrong:
        raise Refused(*(Problem(name, given[name], *reason) for name, reason in wrong.items()))
