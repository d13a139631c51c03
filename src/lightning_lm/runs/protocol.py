"""How a figure was measured: what must be the same before two figures may be compared."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lm.files import checksums
from lightning_lm.runs.folder import environment

if TYPE_CHECKING:
    from lightning_lm.data.document_windows import Bounds  # which brings numpy


def build_protocol(
    text: str | None,
    separator: str,
    tokenizer: Any,
    objective: Any,
    *,
    block_size: int,
    stride: int | None,
    within: "Bounds | None" = None,
) -> dict[str, Any]:
    """Facts for JSON.

    Args:
        text: a hash of the split's rows.
        stride: of windows that follow one another; None where there are none.
        within: where windows stay inside documents, the documents' bounds.
    """
    from lightning_lm.data.token_stream import tokenizer_fingerprint

    masking, first = getattr(objective, "masking", None), "not scored"
    if within and within.prefix is not None:
        first = f"scored, after {tokenizer.convert_ids_to_tokens(within.prefix)}"
    return {
        "text": text,
        "separator": str(separator),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "objective": objective.facts.name,
        "documents": "each by itself" if within else "in one stream",
        "block_size": block_size,
        "stride": stride,
        "limit": None,  # how many windows were scored, where not all
        "first_token": first if objective.shift else None,
        "masking": masking and {"probability": masking.probability, "whole_word": masking.whole_word, "draws": 1},
        "words": "pieces between white space, and line ends",
        "bytes": "of the text in UTF-8",
        "dtype": "float32",
    }


def short_hash(protocol: dict[str, Any]) -> str:
    """Equal for figures that were measured in the same way, on the same text."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]


def as_line(protocol: dict[str, Any]) -> str:
    """For people: the hash, and what isn't plain from the command."""
    parts = [f"text {(protocol['text'] or 'unknown')[:8]}, tokenizer {protocol['tokenizer'][:8]}"]
    parts += [f"separator {protocol['separator']}", f"documents {protocol['documents']}"]
    parts.append(describe_windows(protocol["block_size"], protocol["stride"]))
    parts += [protocol["scored"]] if "scored" in protocol else []
    if protocol["limit"] is not None:
        parts.append(f"only the first {protocol['limit']} windows")
    if protocol["first_token"]:
        parts.append(f"first token {protocol['first_token']}")
    if masking := protocol["masking"]:
        draws = f" in {masking['draws']} draws" * (masking["draws"] > 1)
        parts.append(
            f"{masking['probability']:.0%} of the {'words' if masking['whole_word'] else 'tokens'} masked{draws}"
        )
    return f"protocol {short_hash(protocol)}: {', '.join([*parts, protocol['dtype']])}"


def describe_windows(block_size: int, stride: int | None) -> str:
    advance = "" if stride is None else f" that advance by {stride}"
    return f"windows of {block_size} tokens{advance}"


def differing(protocols: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """What these protocols don't share: name → the value of each."""
    names = dict.fromkeys(name for of in protocols for name in of)
    values = {name: [of.get(name) for of in protocols] for name in names}
    return {name: of_all for name, of_all in values.items() if any(value != of_all[0] for value in of_all)}


def made_with(place: str) -> dict[str, Any]:
    """What a figure belongs to and can be made again with: the model's hash or revision, the commit, the versions.

    Args:
        place: the model's folder, or its id on the Hub, from where it has been loaded.
    """
    here = environment()
    return {
        "model": _weights_hash(Path(place)) if Path(place).is_dir() else _revision(place),
        "commit": here["commit"],
        "uncommitted": bool(here["uncommitted"]),
        "versions": here["versions"],
    }


def _weights_hash(folder: Path) -> str:
    weights = {name: crc for name, crc in checksums(folder).items() if name.endswith((".safetensors", ".bin"))}
    return short_hash(weights)


def _revision(model: str) -> str | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(model, "config.json")  # of the cache's newest commit, in whose folder it lies
    return Path(path).parent.name if isinstance(path, str) else None
