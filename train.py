"""Train a language model. ``python train.py --help`` shows what can be set."""

import os
import signal
import sys
from pathlib import Path

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # until a run takes it: OmegaConf hides exceptions
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted\n"), os._exit(130)))

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from lightning_lm.config.composition import register, typed
from lightning_lm.config.explain import check_form, running_job, tell_and_exit_code
from lightning_lm.launch import start
from lightning_lm.sweeps.jobs import run_sweep_job


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(cfg: DictConfig) -> float:
    with running_job():
        config = typed(cfg)
        folder = Path(HydraConfig.get().runtime.output_dir)  # in a multirun, the job's own
        config.run_dir = str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)
        named = "${now:" not in OmegaConf.to_container(cfg)["run_dir"]  # the default has the time in it
        return start(config, named) if HydraConfig.get().mode == RunMode.RUN else run_sweep_job(config)


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, so that they can be told in one line each
    register()
    try:
        check_form(sys.argv[1:])
        main()
    except Exception as problem:
        sys.exit(tell_and_exit_code(problem))
