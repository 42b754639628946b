"""One inference by several processes, started by torchrun.

- :func:`~pyro_sig.distributed.data_parallel`: each process has its own rows; gradients are reduced.
- :func:`~pyro_sig.distributed.all_reduce_logsumexp`: each process has its own draws for the same
  rows; the mixture is over the draws of all.
"""

from pyro_sig._rank_sum import all_reduce_logsumexp, rank_share, same_draws
from pyro_sig.distributed.data_parallel import check_equal, data_parallel
from pyro_sig.distributed.seed_ranks import seed_ranks

__all__ = [
    "all_reduce_logsumexp",
    "check_equal",
    "data_parallel",
    "rank_share",
    "same_draws",
    "seed_ranks",
]
