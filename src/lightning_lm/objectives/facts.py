"""What is known of an objective before it is built: names for transformers, for the command line and for people."""

from dataclasses import dataclass, field

PLACEHOLDER = "<mask>"  # in prompts, whatever the tokenizer's own mask token is


@dataclass(frozen=True)
class ObjectiveFacts:
    """Facts that other parts ask an objective for.

    Attributes:
        name: its option in ``conf/objective``.
        auto_class: transformers' class of models for it, by name.
        architectures: endings of the architectures' names that are trained for it.
        task: the pipeline of transformers that uses such a model.
        kind: the adjective for such a model.
        unit: of the loss, for people.
        tokenizer_kind: of ``model.tokenizer=train``: ``bpe`` or ``wordpiece``.
        smallest_vocabulary: tokens that such a tokenizer begins with.
        command: what ``lightning-lm`` offers for such a model, and an example's arguments.
        perplexity_label: what "perplexity" means here, for people.
        card_labels: of figures on the model card, where they differ from ``figures.py``.
    """

    name: str
    auto_class: str
    architectures: tuple[str, ...]
    task: str
    kind: str
    unit: str
    tokenizer_kind: str
    smallest_vocabulary: int
    command: tuple[str, str]
    perplexity_label: str = "perplexity"
    card_labels: dict[str, str] = field(default_factory=dict)


CLM = ObjectiveFacts(
    name="clm",
    auto_class="AutoModelForCausalLM",
    architectures=("ForCausalLM", "LMHeadModel"),
    task="text-generation",
    kind="causal",
    unit="nats per token",
    tokenizer_kind="bpe",
    smallest_vocabulary=257,  # all bytes and the end
    command=("generate", "--prompt 'The'"),
    card_labels={"perplexity": "perplexity (per token)", "accuracy": "next-token accuracy"},
)
MLM = ObjectiveFacts(
    name="mlm",
    auto_class="AutoModelForMaskedLM",
    architectures=("ForMaskedLM",),
    task="fill-mask",
    kind="masked",
    unit="nats per masked token",
    tokenizer_kind="wordpiece",
    smallest_vocabulary=6,  # the special tokens and a letter
    command=("fill-mask", "--text 'The <mask> is'"),
    perplexity_label="masked-token perplexity",
    card_labels={
        "loss": "loss (nats per masked token)",
        "perplexity": "masked-token perplexity",
        "accuracy": "masked-token accuracy",
    },
)
