"""Whole words up to the stream's end, against a walk over the tokens."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from lightning_lm.data.masking import Masking, uniform
from lightning_lm.data.token_stream import TokenStream
from lightning_lm.data.windows import Windows
from lightning_lm.objectives.mlm import Mlm
from lightning_lm.objectives.schema import MlmConfig

KEY = np.uint64(5)


@pytest.mark.parametrize("ending", [[1], [0], [1, 0], [1, 1]], ids=str)
def test_a_word_at_the_streams_end(ending):
    """The last window is padded: what lies beyond the stream belongs to no word."""
    for length in range(9, 40):
        starts = np.array([1, *(np.arange(length - 1 - len(ending)) % 3 == 0), *ending], np.uint8)
        tokens = np.full(length, 9, np.uint16)
        zeros = np.zeros(1, np.int64)
        stream = TokenStream(tokens, starts, zeros + length, zeros, zeros, {}, "")
        windows = Windows(stream, 8, 8)
        objective = Mlm(Masking(0.5, True, mask_id=4, vocab_size=10, special_ids=(4,)))
        labelled = objective.labelled(windows.take(np.arange(len(windows))), KEY, starts).ravel()
        heads = np.maximum.accumulate(np.where(starts == 1, np.arange(length), 0))
        assert labelled[:length].tolist() == (uniform(KEY, heads) < 0.5).tolist()
        assert not labelled[length:].any()


def test_random_tokens_come_from_the_whole_vocabulary():
    """Also where its highest id is above its number of tokens."""
    model = WordLevel({"[UNK]": 0, "[MASK]": 1, "a": 2, "b": 50}, unk_token="[UNK]")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), unk_token="[UNK]", mask_token="[MASK]")
    assert MlmConfig().build(tokenizer).masking.vocab_size == 51
