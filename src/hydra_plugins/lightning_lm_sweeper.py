"""The sweeper of ``conf/hydra/sweeper/lightning_lm.yaml``: Hydra takes plugins only from this package."""

from lightning_lm.sweeps import sweeper


class SearchSweeper(sweeper.SearchSweeper):
    __doc__ = sweeper.SearchSweeper.__doc__
