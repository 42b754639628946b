"""The small networks of the toys and the image experiments: MLP, encoder, DCGAN pairs.

All take any leading batch dimensions and build their parameters with `device` and `dtype` (torch's
defaults if None). A critic's score has a last dimension of 1, whichever network gives it.
"""

from pyro_sig.nn.dcgan import DCGANCritic, DCGANGenerator
from pyro_sig.nn.mlp import MLP, Encoder, Joint
from pyro_sig.nn.stacked_digits import StackedDigitsCritic, StackedDigitsGenerator

__all__ = [
    "DCGANCritic",
    "DCGANGenerator",
    "Encoder",
    "Joint",
    "MLP",
    "StackedDigitsCritic",
    "StackedDigitsGenerator",
]
