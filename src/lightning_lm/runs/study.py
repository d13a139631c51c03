"""Where a sweep's study keeps its trials: ``study.db`` in the sweep's folder."""

from pathlib import Path

from optuna.storages import RDBStorage
from sqlalchemy.pool import NullPool

STUDY_NAME = "study"  # the same in every folder, which may be renamed
SPARED = "spared"  # the attribute of a trial that is never pruned


def storage(sweep: Path) -> RDBStorage:
    """The study of a sweep's folder; without connections that outlive their use: processes are forked meanwhile."""
    alone = {"poolclass": NullPool, "connect_args": {"timeout": 60}}
    return RDBStorage(f"sqlite:///{sweep.absolute()}/study.db", engine_kwargs=alone)
