"""Small real models, tokenizers and texts, made on the spot."""

import json
import random
from pathlib import Path

VOCABULARY = """
the a of and to in is was he she they it on with as by at from river stone light house winter summer small old new green
road ship island king garden music letter morning evening walked found made gave took under over between through after
before because while when where many few some each every never always often again
"""
WORDS = VOCABULARY.split()


def write_text(path: Path, lines: int = 800, seed: int = 0) -> Path:
    """English-like lines in which each word makes some others likelier; a few lines are blank, as in WikiText."""
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for _ in range(lines):
            if draw.random() < 0.1:
                file.write(" \n")
                continue
            word, words = draw.choice(WORDS), []
            for _ in range(draw.randint(5, 25)):
                words.append(word)
                word = WORDS[(WORDS.index(word) * 7 + draw.choice((1, 1, 1, 2, 5))) % len(WORDS)]
            file.write(" " + " ".join(words).capitalize() + " .\n")
    return path


def part_of(text: Path) -> Path:
    """The first third of a text's lines, beside it: a test text that isn't the validation text."""
    path = text.with_name(f"{text.stem}-part.txt")
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) // 3]), encoding="utf-8", newline="\n")
    return path


def write_gpt2(folder: Path, text: Path, dropout: float = 0.0) -> Path:
    """A random two-layer GPT-2 with a byte-level BPE of 384 tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel, set_seed  # not before a test needs it

    from lightning_lm.data.corpora.text_files import text_corpus
    from lightning_lm.data.tokenizer_training import train_tokenizer

    corpus = text_corpus(
        {"train": [str(text)]}, validation_percent=None, test_percent=None, cache_dir=folder.parent / "cache"
    )
    tokenizer = train_tokenizer(corpus, "bpe", 384, folder.parent / "cache")
    set_seed(0)
    config = GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=2,
        n_positions=64,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_bert(folder: Path, text: Path, dropout: float = 0.0) -> Path:
    """A random two-layer BERT with a WordPiece vocabulary of 200 tokens."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer, set_seed

    trained = BertWordPieceTokenizer(lowercase=False)
    trained.train([str(text)], vocab_size=200, show_progress=False)
    tokenizer = BertTokenizer(vocab=trained.get_vocab(), do_lower_case=False)
    set_seed(0)
    config = BertConfig(
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        vocab_size=len(tokenizer),
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_records(folder, lines):
    """JSON lines, a document each, of so many lines of text."""
    texts = [write_text(folder / "draft.txt", lines=count, seed=n).read_text() for n, count in enumerate(lines)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder / "text.jsonl"
