"""Adversarial trainers of Pyro programs, from objectives, penalties and views that compose."""

from pyro_sig.adversarial import objectives, penalties
from pyro_sig.adversarial.avb import AVB
from pyro_sig.adversarial.balance import Balance
from pyro_sig.adversarial.bigan import BiGAN
from pyro_sig.adversarial.cyclegan import CycleGAN
from pyro_sig.adversarial.features import critic_features
from pyro_sig.adversarial.gan import GAN
from pyro_sig.adversarial.image_pool import ImagePool
from pyro_sig.adversarial.lbt import LBT
from pyro_sig.adversarial.linear_decay import linear_decay
from pyro_sig.adversarial.optimal_critic import optimal_critic
from pyro_sig.adversarial.unrolling import unrolled
from pyro_sig.adversarial.veegan import VEEGAN
from pyro_sig.adversarial.views import ObservedView, PsiView, View

__all__ = [
    "AVB",
    "GAN",
    "LBT",
    "VEEGAN",
    "Balance",
    "BiGAN",
    "CycleGAN",
    "ImagePool",
    "ObservedView",
    "PsiView",
    "View",
    "critic_features",
    "linear_decay",
    "objectives",
    "optimal_critic",
    "penalties",
    "unrolled",
]
