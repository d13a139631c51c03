"""What is known of an objective before it is built: names for transformers, for the command line and for people."""

from dataclasses import dataclass, field, replace

PLACEHOLDER = "<mask>"  # in prompts, whatever the tokenizer's own mask token is
MASKED_SHIFT = "masked_shift"  # in an export's config.json: by how many positions an output comes before its mask


@dataclass(frozen=True)
class ObjectiveFacts:
    """Facts that other parts ask an objective for."""

    name: str  # its option in conf/objective
    auto_class: str  # transformers' class of models for it, by name
    architectures: tuple[str, ...]  # endings of the architectures' names that are trained for it
    task: str  # the pipeline of transformers that uses such a model
    kind: str  # the adjective for such a model
    unit: str  # of the loss, for people
    tokenizer_kind: str  # of model.tokenizer=train where model.tokenizer_kind is null
    command: tuple[str, str]  # what lightning-lm offers for such a model, and an example's arguments
    perplexity_label: str = "perplexity"  # what it means here, for people
    card_labels: dict[str, str] = field(default_factory=dict)  # on the model card, where figures.py has others


CLM = ObjectiveFacts(
    name="clm",
    auto_class="AutoModelForCausalLM",
    architectures=("ForCausalLM", "LMHeadModel"),
    task="text-generation",
    kind="causal",
    unit="nats per token",
    tokenizer_kind="bpe",
    command=("generate", "--prompt 'The'"),
    card_labels={"perplexity": "perplexity (per token)", "accuracy": "next-token accuracy"},
)
HYBRID = replace(CLM, name="hybrid", architectures=())  # a model of it is told by its run, not by its architecture
MLM = ObjectiveFacts(
    name="mlm",
    auto_class="AutoModelForMaskedLM",
    architectures=("ForMaskedLM",),
    task="fill-mask",
    kind="masked",
    unit="nats per masked token",
    tokenizer_kind="wordpiece",
    command=("fill-mask", "--text 'The <mask> is'"),
    perplexity_label="masked-token perplexity",
    card_labels={
        "loss": "loss (nats per masked token)",
        "perplexity": "masked-token perplexity",
        "accuracy": "masked-token accuracy",
    },
)
