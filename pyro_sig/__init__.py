"""Semi-implicit distributions, the objectives that train them, and checks of the result, for Pyro.

The parts are imported from their own modules:

- :mod:`pyro_sig.distributions`: distributions that can be sampled but not, or not wholly, scored;
- :mod:`pyro_sig.infer`: the evidence bounds and the training loop;
- :mod:`pyro_sig.adversarial`: trainers by a critic, their objectives and penalties;
- :mod:`pyro_sig.distributed`: one training by several processes;
- :mod:`pyro_sig.checkpoint`: saving and exact resuming of whatever trains;
- :mod:`pyro_sig.diagnostics`: what to look at before believing a fit;
- :mod:`pyro_sig.datasets`: toy laws with known densities, and readers for data files;
- :mod:`pyro_sig.nn`: the small networks that the examples use.

Importing this package loads none of them and changes no global setting.
"""

from pyro_sig._cite import cite

__version__ = "0.1.0"

__all__ = ["__version__", "cite"]
