"""Where a sweep's study keeps its trials: ``study.db`` in the sweep's folder."""

from optuna.storages import RDBStorage
from sqlalchemy.pool import NullPool

STUDY_NAME = "study"  # the same in every folder, which may be renamed


def storage(url: str) -> RDBStorage:
    """SQLite without connections that outlive their use: processes are forked meanwhile."""
    return RDBStorage(url, engine_kwargs={"poolclass": NullPool, "connect_args": {"timeout": 60}})
