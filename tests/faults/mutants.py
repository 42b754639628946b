"""Wrong formulas, each of which some test must notice."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """One line of the package made wrong.

    :ivar module: the file, below ``pyro_sig``.
    :ivar right: what stands there, once.
    :ivar wrong: what is put in its place.
    :ivar tests: where a test has to fail, below ``tests``.
    """

    module: str
    right: str
    wrong: str
    tests: str


MUTANTS = [
    # ------------------------------------------------------------------------------- the mixtures
    Mutant(
        "distributions/semi_implicit.py",
        "torch.logaddexp(log_sum, own) - math.log1p(self.num_mixing)\n            if not",
        "torch.logaddexp(log_sum, own) - math.log(self.num_mixing)\n            if not",
        "distributions/test_semi_implicit.py",
    ),
    Mutant(
        "distributions/semi_implicit.py",
        "            return log_sum - math.log(self.num_mixing)\n        if origin.noise is None",
        "            return log_sum\n        if origin.noise is None",
        "distributions/test_proposal.py",
    ),
    Mutant(
        "distributions/log_mixture.py",
        "total = total * (best - new_best).exp()",
        "total = total * (new_best - best).exp()",
        "distributions/test_log_mixture.py",
    ),
    Mutant(
        "distributions/large_mixing.py",
        "self.mass = self.mass * (self.top - top).exp() + mass",
        "self.mass = self.mass + mass",
        "distributions/test_large_mixing.py",
    ),
    Mutant(
        "distributions/score_term.py",
        "total - without - math.log(size / (size - 1))",
        "total - without",
        "distributions/test_score_term.py",
    ),
    Mutant(
        "distributions/exponential_families.py",
        "log_normalizer=0.5 * loc.square() * precision + scale.log()",
        "log_normalizer=0.5 * loc.square() * precision - scale.log()",
        "distributions/test_pairwise.py",
    ),
    Mutant(
        "distributions/fixed_mixture.py",
        "(log_sum - math.log(self.num_mixing)).expand(shape)",
        "log_sum.expand(shape)",
        "distributions/test_fixed_mixture.py",
    ),
    Mutant(
        "distributions/discretized_logistic.py",
        "torch.where(at_high, above, below + above + width)",
        "torch.where(at_high, above, below + above)",
        "distributions/test_discretized_logistic.py",
    ),
    Mutant(
        "distributions/psi_posterior.py",
        "log_evidence = log_sum - math.log(log_weights.shape[-1])",
        "log_evidence = log_sum",
        "distributions/test_psi_posterior.py",
    ),
    # ------------------------------------------------------------------------ bounds and surrogates
    Mutant(
        "infer/_direct_bound.py",
        "bound = (scale * (log_sum - math.log(runs.num_mixing))).sum()",
        "bound = (log_sum - math.log(runs.num_mixing)).sum()",
        "infer/test_sig_elbo.py",
    ),
    Mutant(
        "infer/_objective.py",
        "log_target = log_target + draw.weigh(draw.log_volume)",
        "log_target = log_target - draw.weigh(draw.log_volume)",
        "infer/test_semi_implicit_objectives.py",
    ),
    Mutant(
        "infer/path_gradient.py",
        "surrogate = surrogate + draw.weigh(along)",
        "surrogate = surrogate - draw.weigh(along)",
        "infer/test_semi_implicit_objectives.py",
    ),
    Mutant(
        "infer/ksivi.py",
        "loss = pairs.sum() / (size * (size - 1))",
        "loss = pairs.sum() / (size * size)",
        "infer/test_semi_implicit_objectives.py",
    ),
    Mutant(
        "infer/sivism.py",
        "loss = (2 * f * difference - f.square()).sum(-1).mean()",
        "loss = (f * difference - f.square()).sum(-1).mean()",
        "infer/test_semi_implicit_objectives.py",
    ),
    Mutant(
        "infer/uivi.py",
        "momentum.square() - end",
        "momentum.square() + end",
        "infer/test_semi_implicit_objectives.py",
    ),
    Mutant(
        "_rank_sum.py",
        "total = (log_sum - largest).exp()",
        "total = (log_sum + largest).exp()",
        "distributed/test_rank_sum.py",
    ),
    # ---------------------------------------------------------------------------------- adversaries
    Mutant(
        "adversarial/_elbo_term.py",
        "loss = bound if math.isinf(weight) else adversarial + weight * bound",
        "loss = bound if math.isinf(weight) else adversarial - weight * bound",
        "adversarial/test_gan.py",
    ),
    Mutant(
        "adversarial/_elbo_term.py",
        "            bound = bound / num_units\n",
        "",
        "adversarial/test_gan.py",
    ),
    Mutant(
        "adversarial/balance.py",
        "self._bound.to(norms[1]).lerp(norms[1], 1 - self.decay)",
        "self._bound.to(norms[1]).lerp(norms[1], self.decay)",
        "adversarial/test_gan.py",
    ),
    Mutant(
        "adversarial/objectives/cross_entropy.py",
        "return -logsigmoid(fake).mean()",
        "return logsigmoid(fake).mean()",
        "adversarial/objectives",
    ),
    Mutant(
        "adversarial/objectives/divergences.py",
        "fused_conjugate=lambda v: v + torch.expm1(v)",
        "fused_conjugate=lambda v: v - torch.expm1(v)",
        "adversarial/objectives/test_divergences.py",
    ),
    Mutant(
        "adversarial/objectives/relativistic.py",
        "return -logsigmoid(fake - real).mean()",
        "return -logsigmoid(real - fake).mean()",
        "adversarial/objectives",
    ),
    Mutant(
        "adversarial/penalties/zero_centred.py",
        "return self.gamma / 2 * squared_norm.mean()",
        "return self.gamma * squared_norm.mean()",
        "adversarial/penalties",
    ),
    Mutant(
        "adversarial/penalties/penalty.py",
        "between.append(share * x.detach() + (1 - share) * y.detach())",
        "between.append(share * x.detach() + share * y.detach())",
        "adversarial/penalties",
    ),
    Mutant(
        "adversarial/cyclegan.py",
        "loss = loss + self.cycle_weight * self.identity_weight * distances[1]",
        "loss = loss + self.identity_weight * distances[1]",
        "adversarial/test_cyclegan.py",
    ),
    Mutant(
        "adversarial/veegan.py",
        "return -layout(site, log_prob, 0, model).sum() / len(z)",
        "return layout(site, log_prob, 0, model).sum() / len(z)",
        "adversarial/test_veegan.py",
    ),
    Mutant(
        "adversarial/lbt.py",
        "return ahead((args, kwargs)) / sizes[-1]",
        "return -ahead((args, kwargs)) / sizes[-1]",
        "adversarial/test_lbt.py",
    ),
    # ---------------------------------------------------------------------------------- diagnostics
    Mutant(
        "diagnostics/evidence_bounds.py",
        "_groups(log_weights, size).logsumexp(1) - math.log(size) for size",
        "_groups(log_weights, size).logsumexp(1) for size",
        "diagnostics/test_evidence_bounds.py",
    ),
    Mutant(
        "diagnostics/sbc.py",
        "below, ties = (draws < truths).sum(1), (draws == truths).sum(1)",
        "below, ties = (draws <= truths).sum(1), (draws == truths).sum(1)",
        "diagnostics/test_sbc.py",
    ),
    Mutant(
        "diagnostics/tarp.py",
        "return ranks / (self.num_draws + 1)",
        "return ranks / self.num_draws",
        "diagnostics/test_tarp.py",
    ),
    Mutant(
        "diagnostics/feature_distances.py",
        "root_y.square().sum() - 2 * cross",
        "root_y.square().sum() - cross",
        "diagnostics/test_feature_distances.py",
    ),
    Mutant(
        "diagnostics/mode_coverage.py",
        "kl = torch.special.xlogy(cells, cells) - torch.special.xlogy(cells, true_cells)",
        "kl = torch.special.xlogy(true_cells, cells) - torch.special.xlogy(cells, true_cells)",
        "diagnostics/test_mode_coverage.py",
    ),
    Mutant(
        "diagnostics/pareto.py",
        "tail = math.ceil(min(0.2 * size, 3 * math.sqrt(size)))",
        "tail = math.ceil(min(0.9 * size, 30 * math.sqrt(size)))",
        "diagnostics/test_pareto.py",
    ),
    Mutant(
        "diagnostics/mmd.py",
        "squares * (-0.5 / h**2)",
        "squares * (-0.5 / h)",
        "diagnostics/test_mmd.py",
    ),
]
