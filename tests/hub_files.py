"""What a stand-in Hub's repositories hold: a small WikiText and a small GPT-2."""

import json
import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer

PROSE = (
    "the river of old town was built in early century by its first king and then ran north to a great stone bridge "
    "where many ships came with grain , salt and wool ; later writers said that no storm had ever closed this harbour"
)


def wikitext_rows(count: int, seed: int = 0) -> list[str]:
    """Rows as the Hub's WikiText has them: empty where the files have blank lines, else one line with its end."""
    draw, words = random.Random(seed), PROSE.split()
    rows: list[str] = []
    while len(rows) < count:
        title = " ".join(draw.sample(words, 2)).title()
        rows += ["", f" = {title} = \n", ""]
        rows += [f" {' '.join(draw.choices(words, k=draw.randint(12, 60)))} . \n" for _ in range(draw.randint(1, 4))]
    return rows[:count]


def write_wikitext(
    folder: Path,
    rows: dict[str, int] | dict[str, list[str]] | None = None,
    config: str = "wikitext-2-raw-v1",
) -> dict[str, list[str]]:
    """Write a dataset repository in the layout of ``Salesforce/wikitext``; returns the rows of each split.

    ``rows`` gives how many, or which, per split; the default is 120 for training and 40 each for the others.
    """
    rows = rows or {"train": 120, "validation": 40, "test": 40}
    made = {s: wikitext_rows(n, seed) if isinstance(n, int) else n for seed, (s, n) in enumerate(rows.items())}
    (folder / config).mkdir(parents=True, exist_ok=True)
    card = ["---", "dataset_info:", f"- config_name: {config}", "  features:", "  - name: text", "    dtype: string"]
    card += ["  splits:"]
    for split, texts in made.items():
        path = folder / config / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(texts, pyarrow.string())}), path)
        size = sum(len(text.encode()) for text in texts)
        card += [f"  - name: {split}", f"    num_bytes: {size}", f"    num_examples: {len(texts)}"]
    card += ["configs:", f"- config_name: {config}", "  data_files:"]
    for split in made:
        card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", "", "# WikiText", ""]), encoding="utf-8")
    return made


def write_small_gpt2(folder: Path, texts: list[str] | None = None, vocab_size: int = 512, seed: int = 0) -> None:
    """Write a model repository: a random GPT-2 of two layers, and a byte-level BPE tokenizer trained on ``texts``."""
    bpe = ByteLevelBPETokenizer()
    end = "<|endoftext|>"
    bpe.train_from_iterator(texts or wikitext_rows(200), vocab_size, min_frequency=1, special_tokens=[end])
    state = json.loads(bpe.to_str())["model"]
    tokenizer = GPT2Tokenizer(vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]])
    tokenizer.model_max_length = 128
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": len(tokenizer)}
    GPT2LMHeadModel(GPT2Config(**sizes, **ends)).save_pretrained(folder)
