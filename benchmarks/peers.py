"""What we are held against: transformers.Trainer with the well-known recipe, a bare loop, the Rust tokenizer."""

import math
import time
from itertools import chain, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset, load_dataset
from measure import WARM_UP_STEPS, forget_peak_memory, peak_memory, tell
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward


def recipe(objective: str, tokenizer: Any, text: str, block: int, cache: str) -> Dataset:
    """Blocks as in transformers' examples run_clm.py and run_mlm.py: two maps, a tail lost with each 1,000 rows."""
    mlm = objective == "mlm"

    def tokenize(examples: dict[str, list]) -> dict[str, list]:
        return tokenizer(examples["text"], return_special_tokens_mask=mlm)

    def group_texts(examples: dict[str, list]) -> dict[str, list]:
        joined = {name: list(chain(*column)) for name, column in examples.items()}
        total = len(joined["input_ids"]) // block * block
        result = {name: [ids[i : i + block] for i in range(0, total, block)] for name, ids in joined.items()}
        if not mlm:
            result["labels"] = result["input_ids"].copy()
        return result

    rows = load_dataset("text", data_files=[str(text)], split="train", keep_linebreaks=True, cache_dir=cache)
    return rows.map(tokenize, batched=True, remove_columns=["text"]).map(group_texts, batched=True)


def collator(objective: str, tokenizer: Any) -> Any:
    return DataCollatorForLanguageModeling(tokenizer) if objective == "mlm" else default_data_collator


def load(objective: str, model: str, unmasked: bool = False) -> torch.nn.Module:
    """``unmasked``: transformers makes no masks for an attention whose name it doesn't know."""
    auto = transformers.AutoModelForMaskedLM if objective == "mlm" else transformers.AutoModelForCausalLM
    loaded = auto.from_pretrained(model, dtype=torch.float32)
    if unmasked:
        transformers.AttentionInterface.register("without_masks", sdpa_attention_forward)
        loaded.set_attn_implementation("without_masks")
    return loaded


def arguments(folder: str, **given: Any) -> TrainingArguments:
    """Trainer's defaults, the fused AdamW among them, but nothing is saved or reported."""
    usual = {"save_strategy": "no", "report_to": "none", "use_cpu": True, "weight_decay": 0.01, "learning_rate": 1e-4}
    return TrainingArguments(folder, **{**usual, **given})


class Clock(TrainerCallback):
    """When the first step began, and when the steps ended."""

    def __init__(self) -> None:
        self.began, self.ends = 0.0, list[float]()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = self.began or time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def tokens_per_second(self, tokens_per_step: int) -> float | None:
        measured = self.ends[WARM_UP_STEPS - 1 :]
        return tokens_per_step * (len(measured) - 1) / (measured[-1] - measured[0]) if len(measured) > 1 else None

    def speed(self, tokens_per_step: int) -> dict[str, float | None]:
        rate = self.tokens_per_second(tokens_per_step)
        return {"tokens_per_second": rate, "first_step": self.ends[0] - self.began}


def train(model: torch.nn.Module, samples: Any, collate: Any, clock: Clock, **given: Any) -> list[float]:
    """Train with Trainer; returns the losses that it logged."""
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            model, arguments(folder, **given), train_dataset=samples, data_collator=collate, callbacks=[clock]
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def steps(
    objective: str,
    model: str,
    text: str,
    batch: int,
    block: int,
    steps: int,
    keep: bool = False,
    unmasked: bool = False,
    **given: Any,
) -> dict[str, Any]:
    """Tokens per second of training, seconds of its first step, peak memory in bytes, and the losses that were logged.

    With ``keep``, glibc is told to keep freed blocks, as ``hardware=cpu`` does.
    """
    if keep:
        from lightning_lm.allocator import keep_freed_blocks

        keep_freed_blocks()
    tokenizer, clock = AutoTokenizer.from_pretrained(model), Clock()
    with TemporaryDirectory() as cache:
        samples = recipe(objective, tokenizer, text, block, cache)
        sizes = {"max_steps": steps, "per_device_train_batch_size": batch, "logging_steps": min(10, steps)}
        network = load(objective, model, unmasked)
        losses = train(network, samples, collator(objective, tokenizer), clock, **sizes, **given)
    peak = peak_memory() if given.get("use_cpu", True) else torch.cuda.max_memory_allocated()
    return {**clock.speed(batch * block), "peak_memory": peak, "losses": losses}


def bare(objective: str, model: str, text: str, batch: int, block: int, steps: int) -> dict[str, Any]:
    """The limit of training: our loss and GELU, batches ready in memory, nothing else between the steps."""
    from lightning_lm.allocator import keep_freed_blocks
    from lightning_lm.models.activations import fuse_gelu
    from lightning_lm.models.loss import labelled_nll
    from lightning_lm.models.output_head import find_head

    keep_freed_blocks()
    tokenizer = AutoTokenizer.from_pretrained(model)
    transformers.set_seed(0)
    with TemporaryDirectory() as cache:
        blocks = recipe(objective, tokenizer, text, block, cache)[: batch * steps]
    ids, labels = torch.tensor(blocks["input_ids"]), None
    if objective == "mlm":
        masked = collator(objective, tokenizer)([{"input_ids": row} for row in blocks["input_ids"]])
        ids, labels = masked["input_ids"], masked["labels"]
    else:
        labels = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    ready = [
        {"input_ids": x, "labels": y, "labelled": (y.flatten() != -100).nonzero().squeeze(1)}
        for x, y in zip(ids.split(batch), labels.split(batch), strict=True)
        if len(x) == batch
    ]
    network = fuse_gelu(load(objective, model, unmasked=True).train())
    head, clock = find_head(network), Clock()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    for ready_batch in islice(cycle(ready), steps):
        sums = labelled_nll(network, head, ready_batch)
        (sums.nll / sums.tokens).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.on_step_end()
    return {"tokens_per_second": clock.tokens_per_second(batch * block), "peak_memory": peak_memory()}


def one_graph(
    objective: str, model: str, text: str, batch: int, block: int, steps: int, on_cpu: bool = False
) -> dict[str, Any]:
    """The limit on a GPU: body, head and loss as one graph in bfloat16, batches ready on the device, no other work.

    For GPT-2 and BERT. Of a masked model, each batch has the same number of labels, so that no shape changes.
    """
    device = torch.device("cpu" if on_cpu else "cuda")
    torch.set_float32_matmul_precision("high")
    tokenizer = AutoTokenizer.from_pretrained(model)
    with TemporaryDirectory() as cache:
        ids = torch.tensor(recipe(objective, tokenizer, text, block, cache)[: batch * steps]["input_ids"])
    generator, masked = torch.Generator().manual_seed(0), round(0.15 * batch * block)
    ready = []
    for x in (x for x in ids.split(batch) if len(x) == batch):
        where = torch.arange(batch * block).view(batch, block)[:, :-1].flatten()
        labels = x[:, 1:].flatten()
        if objective == "mlm":
            where = torch.randperm(batch * block, generator=generator)[:masked]
            labels, x = x.flatten()[where], x.flatten().index_fill(0, where, tokenizer.mask_token_id).view(batch, block)
        ready.append([tensor.to(device) for tensor in (x, where, labels)])
    network = load(objective, model, unmasked=True).train().to(device)
    head = network.cls if objective == "mlm" else network.lm_head

    def loss(x: torch.Tensor, where: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        states = network.base_model(input_ids=x).last_hidden_state.flatten(0, 1).index_select(0, where)
        return torch.nn.functional.cross_entropy(head(states).float(), labels)

    graph, clock = torch.compile(loss, fullgraph=True), Clock()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    for tensors in islice(cycle(ready), steps):
        clock.on_step_begin()
        with torch.autocast(device.type, torch.bfloat16):
            nll = graph(*tensors)
        nll.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if len(clock.ends) in (WARM_UP_STEPS - 1, steps - 1) and not on_cpu:
            torch.cuda.synchronize()
        clock.on_step_end()
    peak = peak_memory() if on_cpu else torch.cuda.max_memory_allocated()
    return {**clock.speed(batch * block), "peak_memory": peak, "losses": [float(nll)]}


def evaluate(objective: str, model: str, text: str, batch: int, block: int, **given: Any) -> dict[str, Any]:
    """Seconds of Trainer.evaluate with perplexity and accuracy, as in the examples; tokens per second of the text; peak
    memory in bytes; the scores. On a GPU in the second of two passes: the first loads kernels.
    """
    tokenizer, on_cpu = AutoTokenizer.from_pretrained(model), given.get("use_cpu", True)

    def argmax(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.argmax(-1)

    def accuracy(predicted: Any) -> dict[str, float]:
        guesses, labels = predicted.predictions, predicted.label_ids
        if objective == "clm":
            guesses, labels = guesses[:, :-1], labels[:, 1:]
        scored = labels != -100
        return {"accuracy": float(np.mean(guesses[scored] == labels[scored])), "tokens": int(scored.sum())}

    with TemporaryDirectory() as folder:
        samples = recipe(objective, tokenizer, text, block, folder)
        trainer = Trainer(
            load(objective, model),
            arguments(folder, per_device_eval_batch_size=batch, **given),
            eval_dataset=samples,
            data_collator=collator(objective, tokenizer),
            compute_metrics=accuracy,
            preprocess_logits_for_metrics=argmax,
        )
        for _ in range(1 if on_cpu else 2):
            forget_peak_memory()
            began = time.perf_counter()
            found = trainer.evaluate()
            scores = {"loss": found["eval_loss"], "perplexity": math.exp(found["eval_loss"])}
            seconds = time.perf_counter() - began
    scores |= {name: found[f"eval_{name}"] for name in ("accuracy", "tokens")}
    peak = peak_memory() if on_cpu else torch.cuda.max_memory_allocated()
    speed = {"seconds": seconds, "tokens_per_second": len(samples) * block / seconds}
    return {**speed, "peak_memory": peak, **scores}


def prepare(objective: str, model: str, text: str, block: int) -> dict[str, Any]:
    """Seconds of making blocks from a text, tokens in them, and peak memory in bytes."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    with TemporaryDirectory() as cache:
        began = time.perf_counter()
        blocks = recipe(objective, tokenizer, text, block, cache)
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "tokens": len(blocks) * block, "peak_memory": peak_memory()}


def rust(model: str, text: str) -> dict[str, Any]:
    """The limit of tokenising: seconds of reading the lines and of ``encode_batch_fast``, whose tokens are dropped.

    The faster of two passes, with many rows at once and with so few that their tokens stay in a core's cache.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer("")  # a call without options switches truncation and padding off
    passes = []
    for size in (10_000, 400):
        began, tokens = time.perf_counter(), 0
        with Path(text).open(encoding="utf-8", newline="\n") as file:
            while rows := list(islice(file, size)):
                tokens += sum(map(len, tokenizer.backend_tokenizer.encode_batch_fast(rows)))
        passes.append(time.perf_counter() - began)
    return {"seconds": min(passes), "tokens": tokens, "peak_memory": peak_memory()}


def flops_per_token(objective: str, model: str, block: int) -> float:
    """Of a training step with the head at every position: three times those of a forward pass.

    Causal attention counts the half of its products that it needs.
    """
    auto = transformers.AutoModelForMaskedLM if objective == "mlm" else transformers.AutoModelForCausalLM
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = auto.from_config(transformers.AutoConfig.from_pretrained(model))
        network(input_ids=torch.zeros(1, block, dtype=torch.long))
    config = network.config
    unused = 2 * block**2 * config.hidden_size * config.num_hidden_layers if objective == "clm" else 0
    return 3 * (counter.get_total_flops() - unused) / block


if __name__ == "__main__":
    tell(steps, bare, one_graph, evaluate, prepare, rust, flops_per_token)
