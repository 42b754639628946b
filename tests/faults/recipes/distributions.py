"""Valid calls of `pyro_sig.distributions`."""

import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from pyro_sig import distributions as psd
from pyro_sig.distributions import pairwise
from pyro_sig.nn import MLP
from tests.faults.recipes import Recipe


def normal(psi):
    """A conditional of psi of shape `[*, 2]`, of any type of numbers."""
    return dist.Normal(psi + 0.0, 1.0).to_event(1)


def noise():
    return dist.Normal(torch.zeros(2), 1.0).to_event(1)


def mixing():
    return psd.Implicit(MLP(2, [], 2), noise(), 2)


def amortised_mixing(num_rows=3):
    net = torch.nn.Linear(3, 2)
    return psd.Implicit(
        lambda e, x: net(torch.cat([e, x], -1)), noise(), 2, inputs=torch.ones(num_rows, 1)
    )


def check_shape(x, shape):
    assert x.shape == tuple(shape)


def check_terms(terms, value):
    if not isinstance(terms, str):
        assert len(terms.statistics) == len(terms.carrier) == len(value)
        assert len(terms.natural) == len(terms.log_normalizer)


def discretized_logistic(value, sample_shape, batch_shape, **arguments):
    law = psd.DiscretizedLogistic(**arguments)
    assert law.mean.shape == law.variance.shape == law.batch_shape
    assert len(law.enumerate_support()) == law.num_levels
    return law, law.expand(batch_shape).sample(sample_shape), law.log_prob(value)


def check_discretized_logistic(result, value, **_):
    law, drawn, log_prob = result
    assert log_prob.shape == torch.broadcast_shapes(law.batch_shape, value.shape)
    assert (log_prob <= 0).all()
    assert torch.isfinite(drawn).all()


def fixed_mixture(value, sample_shape, batch_shape, **arguments):
    law = psd.FixedMixture(**arguments)
    assert law.mean.shape == law.variance.shape == law.batch_shape + law.event_shape
    drawn = law.expand(batch_shape).sample(sample_shape)
    assert law.psi_posterior(value).mean.dim() >= value.dim() - len(law.event_shape)
    return law, drawn, law.log_prob(value)


def check_scored(result, value, **_):
    """A row of the value has a number."""
    law, drawn, log_prob = result
    rows = value.shape[: value.dim() - len(law.event_shape)]
    assert log_prob.shape == torch.broadcast_shapes(rows, law.batch_shape)
    assert drawn.shape[drawn.dim() - len(law.event_shape) :] == law.event_shape
    assert log_prob.is_floating_point()


def implicit(sample_shape, batch_shape, **arguments):
    law = psd.Implicit(**arguments)
    return law, law.rsample(sample_shape), law.expand(batch_shape).sample()


def check_implicit(result, **_):
    law, drawn, expanded = result
    for x in (drawn, expanded):
        assert x.shape[x.dim() - len(law.event_shape) :] == law.event_shape


def push(noise):
    return mixing().push(noise)


def affine(make):
    def call(x, **arguments):
        transform = make(**arguments)
        y = transform(x)
        assert transform.inv(y).shape == x.shape
        return transform, y, transform.log_abs_det_jacobian(x, y)

    return call


def check_affine(result, x, **_):
    _, y, volume = result
    assert y.shape == x.shape and volume.shape == x.shape[:-1]


def particle_mixing(particles, sample_shape, batch_shape):
    law = psd.ParticleMixing(particles)
    return law, law.sample(sample_shape), law.expand(batch_shape).rsample()


def psi_posterior(sample_shape, **arguments):
    law = psd.PsiPosterior(**arguments)
    assert isinstance(repr(law), str)
    return law, law.sample(sample_shape)


def check_psi_posterior(result, log_weights, **_):
    law, _ = result
    assert law.mean.shape == law.variance.shape == law.batch_shape + law.event_shape
    assert law.effective_sample_size.shape == log_weights.shape[:-1]


def semi_implicit(value, sample_shape, batch_shape, **arguments):
    """Builds, draws, scores what is drawn and what is given, and takes a gradient."""
    law = psd.SemiImplicit(**arguments)
    drawn = law.expand(batch_shape).sample(sample_shape)
    own = law.sample()
    assert law.log_prob(own).shape == law.batch_shape
    assert law.mean.shape == law.variance.shape == law.batch_shape + law.event_shape
    log_prob = law.log_prob(value)
    if log_prob.requires_grad:
        log_prob.sum().backward()
    return law, drawn, log_prob


def semi_implicit_bounds(value, psi_0, num_mixing, share_draws, chunk_size, num_draws):
    """All other methods that take something."""
    law = psd.SemiImplicit(mixing(), normal, 4)
    other = law.with_draws(num_mixing, share_draws)
    lower, upper = other.log_prob_bounds(value, psi_0)
    posterior = law.psi_posterior(value, num_mixing, chunk_size, num_draws)
    frozen = law.to_mixture(num_mixing)
    return law, lower, upper, posterior, frozen.log_prob(value)


def check_bounds(result, value, psi_0, **_):
    _, lower, upper, posterior, log_prob = result
    rows = value.shape[:-1]
    assert lower.shape == log_prob.shape == rows
    assert posterior.mean.shape[:-1] == rows
    assert (upper is None) == (psi_0 is None)
    assert upper is None or upper.shape == rows


def score_parts(value, reinterpreted):
    law = psd.SemiImplicit(dist.Poisson(torch.ones(3)), lambda n: dist.Normal(n, 1.0), 4)
    parts = law.score_parts(value)
    return parts, law.to_event(reinterpreted).log_prob(value)


def known_psi(value):
    """The value may be replaced by one that was not drawn: an error, of course."""
    law = psd.SemiImplicit(mixing(), normal, 4)
    drawn = law.sample((3,))
    return law.psi(drawn if value is None else value)


def components():
    return dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)


def laplace():
    return dist.Laplace(torch.zeros(4, 2), 1.0).to_event(1)


def scored_by(components, value, result):
    shape = components.batch_shape
    assert result.shape == (*shape, len(value))


def log_mixture(statistics, natural, log_normalizer, chunk_size):
    if isinstance(natural, torch.Tensor) and natural.is_floating_point():
        natural.requires_grad_()
    result = psd.log_mixture(statistics, natural, log_normalizer, chunk_size)
    if result.requires_grad:
        result.sum().backward()
    return result


def register(classes, event_dims, parameters, location, form, value):
    """Registers a form, scores by it, and forgets it."""
    before = dict(pairwise._REGISTRY)
    try:
        psd.register_pairwise(
            classes, event_dims=event_dims, parameters=parameters, location=location
        )(form)
        law = dist.Geometric(torch.tensor([0.2, 0.5]))
        return psd.pairwise_log_prob(law, value)
    finally:
        pairwise._REGISTRY.clear()
        pairwise._REGISTRY.update(before)


def geometric(value, probs):
    x = value.unsqueeze(-1)
    return psd.Terms(x, 0 * value, (-probs).log1p().unsqueeze(-1), -probs.log())


def shared_transform(cache_size, x):
    class Double(psd.SharedTransform):
        def _call(self, x):
            return 2 * x

        def _inverse(self, y):
            return y / 2

        def log_abs_det_jacobian(self, x, y):
            return x.new_zeros(x.shape[:-1])

    transform = Double(cache_size)
    return transform.inv(transform(x))


def semi_implicit_arguments(**changes):
    def arguments():
        return {
            "mixing": mixing(),
            "conditional": normal,
            "num_mixing": 4,
            "share_draws": True,
            "chunk_size": None,
            "proposal": None,
            "backward": "exact",
            "value": torch.zeros(3, 2),
            "sample_shape": (2,),
            "batch_shape": (3,),
            **{name: make() for name, make in changes.items()},
        }

    return arguments


RECIPES: dict[str, Recipe] = {
    "distributions.DiscretizedLogistic": Recipe(
        discretized_logistic,
        lambda: {
            "loc": torch.zeros(3),
            "scale": 0.1,
            "low": -1.0,
            "high": 1.0,
            "num_levels": 3,
            "value": torch.zeros(3),
            "sample_shape": (2,),
            "batch_shape": (4, 3),
        },
        check=check_discretized_logistic,
    ),
    "distributions.FixedMixture": Recipe(
        fixed_mixture,
        lambda: {
            "psi": torch.zeros(3, 2),
            "conditional": normal,
            "psi_event_dim": 1,
            "chunk_size": None,
            "value": torch.zeros(3, 2),
            "sample_shape": (2,),
            "batch_shape": (3,),
        },
        check=check_scored,
    ),
    "distributions.FixedMixture, of scalars": Recipe(
        fixed_mixture,
        lambda: {
            "psi": torch.ones(3, 2),
            "conditional": dist.Poisson,
            "psi_event_dim": 0,
            "chunk_size": 2,
            "value": torch.zeros(3, 2),
            "sample_shape": (2,),
            "batch_shape": (3, 2),
        },
        check=check_scored,
    ),
    "distributions.Implicit": Recipe(
        implicit,
        lambda: {
            "transform": MLP(2, [], 2),
            "noise": noise(),
            "event_shape": 2,
            "inputs": None,
            "inputs_event_dim": 1,
            "support": None,
            "sample_shape": (2,),
            "batch_shape": (3,),
        },
        check=check_implicit,
    ),
    "distributions.Implicit, with inputs": Recipe(
        implicit,
        lambda: {
            "transform": lambda e, x: e + x.float().mean(),
            "noise": noise(),
            "event_shape": (2,),
            "inputs": (torch.ones(3, 2),),
            "inputs_event_dim": 1,
            "support": constraints.real_vector,
            "sample_shape": (2,),
            "batch_shape": (4, 3),
        },
        check=check_implicit,
    ),
    "distributions.Implicit, push": Recipe(
        push,
        lambda: {"noise": torch.zeros(3, 2)},
        check=lambda psi, noise, **_: check_shape(psi, noise.shape),
    ),
    "distributions.TriangularAffine": Recipe(
        affine(psd.TriangularAffine),
        lambda: {
            "loc": torch.zeros(2),
            "scale_tril": torch.eye(2),
            "cache_size": 0,
            "x": torch.ones(3, 2),
        },
        check=check_affine,
    ),
    "distributions.LowRankAffine": Recipe(
        affine(psd.LowRankAffine),
        lambda: {
            "loc": torch.zeros(2),
            "scale": torch.ones(2),
            "factor": torch.ones(2, 1),
            "cache_size": 0,
            "x": torch.ones(3, 2),
        },
        check=check_affine,
    ),
    "distributions.LowRankAffine, of a vector": Recipe(
        affine(psd.LowRankAffine),
        lambda: {
            "loc": torch.zeros(3),
            "scale": torch.ones(3),
            "factor": torch.ones(3, 2),
            "cache_size": 0,
            "x": torch.ones(3),
        },
        check=check_affine,
    ),
    "distributions.SharedTransform": Recipe(
        shared_transform,
        lambda: {"cache_size": 0, "x": torch.ones(3, 2)},
        keep=frozenset({"x"}),  # goes to the maps of the subclass alone
    ),
    "distributions.ParticleMixing": Recipe(
        particle_mixing,
        lambda: {"particles": torch.zeros(5, 2), "sample_shape": (2,), "batch_shape": (3,)},
        check=lambda result, particles, **_: check_shape(
            result[1], (*result[1].shape[: 1 - particles.dim() or None], *particles.shape[1:])
        ),
    ),
    "distributions.PsiPosterior": Recipe(
        psi_posterior,
        lambda: {
            "samples": torch.zeros(3, 2),
            "log_weights": torch.zeros(3, 2),
            "log_evidence": None,
            "effective_sample_size": None,
            "moments": None,
            "sample_shape": (2,),
        },
        check=check_psi_posterior,
    ),
    "distributions.PsiPosterior, with all": Recipe(
        psi_posterior,
        lambda: {
            "samples": torch.zeros(3, 2, 5),
            "log_weights": torch.zeros(3, 2),
            "log_evidence": torch.zeros(3),
            "effective_sample_size": torch.ones(3),
            "moments": (torch.zeros(3, 5), torch.ones(3, 5)),
            "sample_shape": (2,),
        },
        check=check_psi_posterior,
    ),
    "distributions.SemiImplicit": Recipe(
        semi_implicit, semi_implicit_arguments(), check=check_scored
    ),
    "distributions.SemiImplicit, amortised": Recipe(
        semi_implicit,
        semi_implicit_arguments(mixing=amortised_mixing, batch_shape=lambda: (4, 3)),
        check=check_scored,
    ),
    "distributions.SemiImplicit, in chunks": Recipe(
        semi_implicit,
        semi_implicit_arguments(chunk_size=lambda: 3, backward=lambda: psd.TopK(2)),
        check=check_scored,
    ),
    "distributions.SemiImplicit, with a proposal": Recipe(
        semi_implicit,
        semi_implicit_arguments(proposal=lambda: lambda x: dist.Normal(x, 1.0).to_event(1)),
        check=check_scored,
    ),
    "distributions.SemiImplicit, over counts": Recipe(
        semi_implicit,
        semi_implicit_arguments(
            mixing=lambda: dist.Poisson(torch.ones(2)).to_event(1), share_draws=lambda: False
        ),
        check=check_scored,
    ),
    "distributions.SemiImplicit, over particles": Recipe(
        semi_implicit,
        semi_implicit_arguments(mixing=lambda: psd.ParticleMixing(torch.zeros(5, 2))),
        check=check_scored,
    ),
    "distributions.SemiImplicit, other methods": Recipe(
        semi_implicit_bounds,
        lambda: {
            "value": torch.zeros(3, 2),
            "psi_0": torch.zeros(3, 2),
            "num_mixing": 5,
            "share_draws": None,
            "chunk_size": 2,
            "num_draws": 3,
        },
        check=check_bounds,
    ),
    "distributions.SemiImplicit, score parts": Recipe(
        score_parts, lambda: {"value": torch.zeros(3), "reinterpreted": 1}
    ),
    "distributions.SemiImplicit, psi": Recipe(known_psi, lambda: {"value": None}),
    "distributions.log_mixture": Recipe(
        log_mixture,
        lambda: {
            "statistics": torch.zeros(3, 2),
            "natural": torch.zeros(4, 2),
            "log_normalizer": torch.zeros(4),
            "chunk_size": 3,
        },
        check=lambda result, statistics, **_: check_shape(result, statistics.shape[:1]),
    ),
    "distributions.mixture_log_prob": Recipe(
        psd.mixture_log_prob,
        lambda: {"components": components(), "value": torch.zeros(3, 2), "chunk_size": 3},
        check=lambda result, components, value, **_: check_shape(
            result, value.shape[: value.dim() - len(components.event_shape)]
        ),
    ),
    "distributions.mixture_log_prob, broadcast": Recipe(
        psd.mixture_log_prob,
        lambda: {"components": laplace(), "value": torch.zeros(3, 2), "chunk_size": None},
        check=lambda result, components, value, **_: check_shape(
            result, value.shape[: value.dim() - len(components.event_shape)]
        ),
    ),
    "distributions.pairwise_log_prob": Recipe(
        psd.pairwise_log_prob,
        lambda: {"components": components(), "value": torch.zeros(3, 2), "component_dims": 1},
        check=lambda result, components, value, **_: scored_by(components, value, result),
    ),
    "distributions.pairwise_log_prob, broadcast": Recipe(
        psd.pairwise_log_prob,
        lambda: {"components": laplace(), "value": torch.zeros(3, 2), "component_dims": 1},
        check=lambda result, components, value, **_: scored_by(components, value, result),
    ),
    "distributions.pairwise_terms": Recipe(
        psd.pairwise_terms,
        lambda: {"components": components(), "value": torch.zeros(3, 2), "component_dims": 1},
        check=lambda result, value, **_: check_terms(result, value),
    ),
    "distributions.register_pairwise": Recipe(
        register,
        lambda: {
            "classes": dist.Geometric,
            "event_dims": {"probs": 0},
            "parameters": None,
            "location": None,
            "form": geometric,
            "value": torch.zeros(3),
        },
    ),
}
