"""Train a language model. ``python train.py --help`` shows what can be set."""

import os
import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lightning_lm import sweep
from lightning_lm.config import register, typed
from lightning_lm.errors import Refused
from lightning_lm.launch import Died, start
from lightning_lm.refusals import end_job, report


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    try:
        config = typed(cfg)
        folder = Path(HydraConfig.get().runtime.output_dir)  # in a multirun, the job's own
        config.run_dir = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
        named = any(text.startswith("run_dir=") for text in HydraConfig.get().overrides.task)
        return start(config, named) if HydraConfig.get().mode == RunMode.RUN else sweep.run(config)
    except (Refused, Died) as problem:
        end_job(problem)


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, so that they can be told in one line each
    register()
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as problem:
        sys.exit(report(problem))
