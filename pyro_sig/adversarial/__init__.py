"""Adversarial trainers of Pyro programs, from objectives, penalties and views that compose."""

from pyro_sig.adversarial import objectives, penalties
from pyro_sig.adversarial.balance import Balance
from pyro_sig.adversarial.features import critic_features
from pyro_sig.adversarial.gan import GAN
from pyro_sig.adversarial.optimal_critic import optimal_critic
from pyro_sig.adversarial.unrolling import unrolled
from pyro_sig.adversarial.views import ObservedView, PsiView, View

__all__ = [
    "GAN",
    "Balance",
    "ObservedView",
    "PsiView",
    "View",
    "critic_features",
    "objectives",
    "optimal_critic",
    "penalties",
    "unrolled",
]
