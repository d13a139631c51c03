"""GPT-2 small and BERT-base on one GPU, ours (``hardware=gpu``) beside Trainer with the same precision and compiler.

Prints tokens per second, peak memory, and model FLOPs utilisation: the products of a plain forward pass, head at every
position, times three (Chowdhery et al., 2022, appendix B), over what the device's data sheet promises. Ours leaves out
positions without a label, and may so show more than it computes: the same count for both makes them comparable.
"""

import argparse
import os
import sys
from pathlib import Path
from statistics import median

from inputs import Options
from measure import PAIR, fresh
from run import number

SHAPES = {  # objective, kind of model, block, blocks per step
    "GPT-2 small": ("clm", "gpt2", 1024, 16),
    "BERT-base": ("mlm", "bert", 512, 32),
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="lines of text; without it Python's reference text")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="tiny models on the CPU, to see that everything runs")
    args = parser.parse_args(argv)
    # One device: Trainer would spread the batch over all that it sees
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    options, hardware = Options(args.text, None, args.quick), "cpu" if args.quick else "gpu"
    found = fresh("ours.py", "machine", hardware=hardware)
    if found["device"] is None:
        print("error: torch sees no CUDA device; make bench-gpu needs one, make bench runs on the CPU", file=sys.stderr)
        return 2
    print(f"{found['device']}, {found['for_trainer']}\n")
    print("| model | side | tokens/s | peak memory, GB | model FLOPs utilisation |\n|---|---|---|---|---|")
    for name, (objective, kind, block, batch) in SHAPES.items():
        model, text = options.model(kind, 768, 12), options.corpus(4)
        case = {"objective": objective, "model": model, "text": text, "steps": options.steps(args.steps)}
        case |= {"block": 64, "batch": 4} if args.quick else {"block": block, "batch": batch}
        flops = fresh("peers.py", "flops_per_token", objective=objective, model=model, block=case["block"])
        more = {"ours": {"hardware": hardware}, "Trainer": found["for_trainer"]}
        pairs = [
            {side: fresh(script, "steps", **case, **more[side]) for side, script in PAIR.items()}
            for _ in range(1 if args.quick else args.pairs)
        ]
        for side in PAIR:
            rate, memory = (median(pair[side][key] for pair in pairs) for key in ("tokens_per_second", "peak_memory"))
            share = f"{rate * flops / found['peak']:.1%}" if found["peak"] else "—"
            shape = f"{name}, {case['batch']} × {case['block']}"
            print(f"| {shape} | {side} | {number(rate)} | {memory / 1e9:.2f} | {share} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
