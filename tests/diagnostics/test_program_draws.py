import warnings

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch.distributions import constraints

from pyro_sig.diagnostics import to_inference_data
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import AutoSemiImplicit

arviz = pytest.importorskip("arviz")

DATA = torch.tensor([-0.7, 0.1, 0.4, 1.1, 1.6, -0.2, 0.9, 0.3])
EACH_MODE = pytest.mark.parametrize("parallel", [False, True])


class Conjugate:
    """Normal rows around a normal mean: posterior, evidence and leave-one-out are known."""

    def __init__(self, data=DATA, scale=1.0):
        self.data, self.scale = data, scale
        precision = 1 + len(data) / scale**2
        self.posterior = dist.Normal(data.sum() / scale**2 / precision, precision**-0.5)
        covariance = scale**2 * torch.eye(len(data)) + 1
        self.log_evidence = dist.MultivariateNormal(torch.zeros(len(data)), covariance).log_prob(
            data
        )

    def model(self):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(self.data)):
            pyro.sample("x", dist.Normal(loc, self.scale), obs=self.data)

    def guide(self):
        pyro.sample("loc", self.posterior)

    def leave_one_out(self):
        precision = 1 + (len(self.data) - 1) / self.scale**2
        loc = (self.data.sum() - self.data) / self.scale**2 / precision
        scale = (self.scale**2 + 1 / precision) ** 0.5
        return dist.Normal(loc, scale).log_prob(self.data)


def wide_guide():
    pyro.sample("loc", dist.Normal(0.5, 0.6))


def tensor(variable):
    return torch.as_tensor(variable.values)


def assert_mean(draws, expected, rate_z=5.0):
    """Within five standard errors: one failure in two million right programs."""
    draws = np.asarray(draws, dtype=float).reshape(-1)
    error = draws.std(ddof=1) / len(draws) ** 0.5
    assert abs(draws.mean() - float(expected)) < rate_z * error


# -------------------------------------------------------------------------------- log-densities


@EACH_MODE
def test_log_densities_against_their_closed_form(parallel):
    case = Conjugate()
    idata = to_inference_data(case.model, wide_guide, num_samples=50, parallel=parallel)
    loc = tensor(idata["posterior"]["loc"])
    log_likelihood = dist.Normal(loc[..., None], 1.0).log_prob(DATA)
    assert idata["log_likelihood"]["x"].dims == ("chain", "draw", "row")
    assert torch.allclose(tensor(idata["log_likelihood"]["x"]), log_likelihood, atol=1e-5)
    stats = idata["sample_stats"]
    lp = dist.Normal(0.0, 1.0).log_prob(loc) + log_likelihood.sum(-1)
    log_q = dist.Normal(0.5, 0.6).log_prob(loc)
    for name, expected in {"lp": lp, "log_q": log_q, "log_weight": lp - log_q}.items():
        assert stats[name].dims == ("chain", "draw")
        assert torch.allclose(tensor(stats[name]).float(), expected, atol=1e-4)


@EACH_MODE
def test_the_mean_weight_is_the_evidence(parallel):
    case = Conjugate()
    idata = to_inference_data(case.model, wide_guide, num_samples=2000, parallel=parallel)
    weights = np.exp(idata["sample_stats"]["log_weight"].values - float(case.log_evidence))
    assert_mean(weights, 1.0)
    exact = to_inference_data(case.model, case.guide, num_samples=20)["sample_stats"]
    assert np.allclose(exact["log_weight"], float(case.log_evidence), atol=1e-4)


def test_the_mean_weight_of_a_semi_implicit_guide():
    case = Conjugate()

    def guide():
        mixing = dist.Normal(0.5, 0.4)
        pyro.sample("loc", SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.4), 3))

    idata = to_inference_data(case.model, guide, num_samples=2000)
    assert_mean(np.exp(idata["sample_stats"]["log_weight"] - float(case.log_evidence)), 1.0)


@EACH_MODE
def test_a_latent_drawn_from_the_model_cancels_in_the_weight(parallel):
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 3):
            z = pyro.sample("z", dist.Normal(loc, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[:3])

    covariance = 2 * torch.eye(3) + 1
    log_evidence = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(DATA[:3])
    idata = to_inference_data(model, wide_guide, num_samples=3000, parallel=parallel)
    assert_mean(np.exp(idata["sample_stats"]["log_weight"] - float(log_evidence)), 1.0)
    assert "log_likelihood" not in idata
    with pytest.raises(ValueError, match=r"`log_likelihood`.*latents \['z'\].*was True"):
        to_inference_data(model, wide_guide, num_samples=2, log_likelihood=True)


@EACH_MODE
def test_scale_and_factor_enter_the_joint_density_only(parallel):
    case = Conjugate()

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(DATA)), poutine.scale(scale=3.0):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=DATA)
        pyro.factor("bonus", 2 * loc)

    idata = to_inference_data(model, case.guide, num_samples=10, parallel=parallel)
    loc = tensor(idata["posterior"]["loc"])
    pointwise = dist.Normal(loc[..., None], 1.0).log_prob(DATA)
    assert torch.allclose(tensor(idata["log_likelihood"]["x"]), pointwise, atol=1e-5)
    lp = dist.Normal(0.0, 1.0).log_prob(loc) + 3 * pointwise.sum(-1) + 2 * loc
    assert torch.allclose(tensor(idata["sample_stats"]["lp"]).float(), lp, atol=1e-4)


@EACH_MODE
@pytest.mark.parametrize("where", ["handler", "distribution"])
def test_masked_entries_are_no_observations(parallel, where):
    mask = torch.arange(len(DATA)) % 3 > 0

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(DATA)):
            if where == "handler":
                with poutine.mask(mask=mask):
                    pyro.sample("x", dist.Normal(loc, 1.0), obs=DATA)
            else:
                pyro.sample("x", dist.Normal(loc, 1.0).mask(mask), obs=DATA)
            pyro.sample("y", dist.Normal(loc, 2.0), obs=DATA)

    idata = to_inference_data(model, wide_guide, num_samples=200, parallel=parallel, seed=0)
    loc = tensor(idata["posterior"]["loc"])[..., None]
    found = idata["log_likelihood"]["x"]
    assert found.dims == ("chain", "draw", "x_unmasked")
    assert found["x_unmasked"].values.tolist() == mask.nonzero().flatten().tolist()
    expected = dist.Normal(loc, 1.0).log_prob(DATA[mask])
    assert torch.allclose(tensor(found), expected, atol=1e-5)
    assert idata["log_likelihood"]["y"].dims == ("chain", "draw", "row")
    lp = expected.sum(-1) + dist.Normal(loc, 2.0).log_prob(DATA).sum(-1)
    lp = lp + dist.Normal(0.0, 1.0).log_prob(loc[..., 0])
    assert torch.allclose(tensor(idata["sample_stats"]["lp"]).float(), lp, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the guide is no posterior: k-hat is large
        assert arviz.loo(idata, var_name="x").n_data_points == mask.sum()


def test_a_site_that_is_masked_whole_has_no_log_likelihood():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=False):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(0.0))

    idata = to_inference_data(model, wide_guide, num_samples=3)
    assert "log_likelihood" not in idata and "x" in idata["observed_data"]


@EACH_MODE
def test_event_dims_are_summed_and_plates_nest(parallel):
    data = torch.linspace(-1, 1, 24).reshape(2, 3, 4)

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("group", 2, dim=-2):
            shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
            with pyro.plate("row", 3, dim=-1):
                mean = (loc + shift)[..., None].expand(*(loc + shift).shape[:-1], 3, 4)
                pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=data)

    def guide():
        pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("group", 2, dim=-2):
            pyro.sample("shift", dist.Normal(1.0, 1.0))

    idata = to_inference_data(model, guide, num_samples=7, parallel=parallel)
    found = idata["log_likelihood"]["x"]
    assert dict(found.sizes) == {"chain": 1, "draw": 7, "group": 2, "row": 3}
    mean = tensor(idata["posterior"]["loc"] + idata["posterior"]["shift"])[..., None, None]
    expected = dist.Normal(mean, 1.0).log_prob(data).sum(-1)
    assert torch.allclose(tensor(found), expected, atol=1e-4)


def test_a_matrix_product_with_a_latent():
    """Predictive gives a vector latent a dimension for each plate, and `x @ beta` fails."""
    x = torch.randn(6, 2)

    def model(x, y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("group", 3, dim=-2):
            offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x), dim=-1):
            pyro.sample("y", dist.Normal(x @ beta + offset[0], 1.0), obs=y)

    guide = AutoNormal(model)
    idata = to_inference_data(model, guide, x, torch.zeros(6), num_samples=20)
    assert idata["posterior"]["beta"].shape == (1, 20, 2)
    assert idata["log_likelihood"]["y"].shape == (1, 20, 6)


def test_rows_without_a_plate():
    def model(expand):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        law = dist.Normal(loc, 1.0)
        pyro.sample("x", law.expand([len(DATA)]) if expand else law, obs=DATA)

    def guide(expand):
        wide_guide()

    idata = to_inference_data(model, guide, True, num_samples=5)
    assert idata["log_likelihood"]["x"].dims == ("chain", "draw", "x_dim_0")
    # Fresh data would have another shape than the data.
    with pytest.raises(ValueError, match=r"`model`.*'x' a law.*\(8,\), but that was \(\)"):
        to_inference_data(model, guide, False, num_samples=5)
    with pytest.raises(ValueError, match=r"`parallel` must be False here.*'x'"):
        to_inference_data(model, guide, True, num_samples=len(DATA), parallel=True)


# ----------------------------------------------------------------------- what cannot be scored


def test_sites_without_a_density():
    noise = dist.Normal(torch.zeros(2), 1.0).to_event(1)

    def model(observe):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", Implicit(lambda e: e.sum(-1), noise), obs=torch.tensor(0.3))
        if observe:
            pyro.sample("y", dist.Normal(loc, 1.0), obs=torch.tensor(0.3))

    def guide(observe):
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    idata = to_inference_data(model, guide, False, num_samples=3)
    assert "log_likelihood" not in idata and "sample_stats" not in idata
    idata = to_inference_data(model, guide, True, num_samples=3)
    assert set(idata["log_likelihood"]) == {"y"} and "sample_stats" not in idata
    with pytest.raises(ValueError, match=r"`log_likelihood`.*site 'x' has no log_prob.*True"):
        to_inference_data(model, guide, True, num_samples=3, log_likelihood=True)

    def implicit_guide():
        pyro.sample("loc", Implicit(lambda e: e.sum(-1), noise))

    idata = to_inference_data(Conjugate().model, implicit_guide, num_samples=3)
    assert set(idata["sample_stats"]) == {"lp"} and set(idata["log_likelihood"]) == {"x"}


def test_an_implicit_latent_that_is_summed_out():
    noise = dist.Normal(torch.zeros(1), 1.0).to_event(1)

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 2):
            psi = pyro.sample("psi", Implicit(lambda e: e.sum(-1), noise))
            pyro.sample("x", dist.Normal(loc + psi, 1.0), obs=DATA[:2])

    covariance = 2 * torch.eye(2) + 1
    log_evidence = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(DATA[:2])
    idata = to_inference_data(model, wide_guide, num_samples=1500)
    assert_mean(np.exp(idata["sample_stats"]["log_weight"] - float(log_evidence)), 1.0)
    assert "log_likelihood" not in idata


@pytest.mark.parametrize("share_draws", [True, False])
def test_shared_draws_of_several_rows_leave_no_weight(share_draws):
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 2):
            mixing = dist.Normal(loc, 1.0)
            law = SemiImplicit(
                mixing, lambda psi: dist.Normal(psi, 1.0), 4, share_draws=share_draws
            )
            pyro.sample("x", law, obs=DATA[:2])

    if share_draws:
        with pytest.warns(UserWarning, match=r"without log_q and log_weight: `share_draws`.*'x'"):
            idata = to_inference_data(model, wide_guide, num_samples=3)
        assert set(idata["sample_stats"]) == {"lp"}
    else:
        idata = to_inference_data(model, wide_guide, num_samples=1500)
        covariance = 2 * torch.eye(2) + 1
        log_evidence = dist.MultivariateNormal(torch.zeros(2), covariance).log_prob(DATA[:2])
        assert_mean(np.exp(idata["sample_stats"]["log_weight"] - float(log_evidence)), 1.0)
    # The estimate in the joint density is that in the log-likelihood.
    prior = dist.Normal(0.0, 1.0).log_prob(tensor(idata["posterior"]["loc"]))
    total = tensor(idata["log_likelihood"]["x"]).sum(-1) + prior
    assert torch.allclose(total, tensor(idata["sample_stats"]["lp"]).float(), atol=1e-4)


def test_a_plate_that_subsamples_leaves_no_log_densities():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(DATA), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=DATA[rows])

    with pytest.warns(UserWarning, match=r"left out: x \(plate row\).*log-densities"):
        idata = to_inference_data(model, wide_guide, num_samples=3)
    assert "sample_stats" not in idata and "log_likelihood" not in idata
    with pytest.raises(ValueError, match=r"`log_likelihood`.*'x' is inside a plate that sub"):
        to_inference_data(model, wide_guide, num_samples=3, log_likelihood=True)


def test_an_improper_prior_leaves_the_prior_groups_out():
    def model():
        loc = pyro.sample("loc", dist.ImproperUniform(constraints.real, (), ()))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(0.0))

    idata = to_inference_data(model, wide_guide, num_samples=3)
    assert "prior" not in idata and "prior_predictive" not in idata
    assert set(idata["sample_stats"]) == {"lp", "log_q", "log_weight"}


@EACH_MODE
@pytest.mark.parametrize("validate", [False, True])
def test_draws_at_which_the_density_is_not_finite(parallel, validate):
    def model():
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Normal(0.0, scale.abs()), obs=torch.tensor(0.0))

    def guide():
        pyro.sample("scale", dist.Normal(0.0, 1.0))

    def export(**options):
        with pyro.validation_enabled(validate):
            return to_inference_data(model, guide, num_samples=50, parallel=parallel, **options)

    match = r"`model`.*site 'scale'" if validate else r"at 'scale' in \d+ of 50 draws"
    with pytest.raises(ValueError, match=f"(?s){match}.*sample_stats=False"):
        export(seed=1)
    idata = export(seed=1, sample_stats=False, log_likelihood=False)
    assert (idata["posterior"]["scale"] < 0).any() and "sample_stats" not in idata


def test_a_log_likelihood_that_is_not_finite():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 2):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor([0.0, torch.inf]))

    with pyro.validation_enabled(False):
        for sample_stats in (True, False):
            with pytest.raises(ValueError, match=r"`guide`.*at 'x' in 5 of 5 draws"):
                to_inference_data(model, wide_guide, num_samples=5, sample_stats=sample_stats)

    def spike():
        pyro.sample("loc", dist.Delta(torch.tensor(0.0), log_density=torch.inf))

    with pyro.validation_enabled(False), pytest.raises(ValueError, match=r"its own.*at 'loc' in 5"):
        to_inference_data(Conjugate().model, spike, num_samples=5)


@pytest.mark.parametrize(
    ("observed", "guide", "match"),
    [
        (False, wide_guide, "`model` has no observations"),
        (True, None, "no draws of a posterior"),
        (True, lambda: None, "no draws of a posterior"),
    ],
)
def test_a_log_likelihood_that_does_not_exist(observed, guide, match):
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(0.0) if observed else None)

    with pytest.raises(ValueError, match=f"`log_likelihood` must be None or False.*{match}"):
        to_inference_data(model, guide, num_samples=2, log_likelihood=True)
    assert "log_likelihood" not in to_inference_data(model, guide, num_samples=2)


def test_groups_that_are_not_asked_for():
    case = Conjugate()
    idata = to_inference_data(case.model, case.guide, num_samples=3, log_likelihood=False)
    assert "log_likelihood" not in idata and "sample_stats" in idata
    idata = to_inference_data(case.model, case.guide, num_samples=3, sample_stats=False)
    assert "log_likelihood" in idata and "sample_stats" not in idata
    with pytest.raises(ValueError, match=r"`log_likelihood` must be True, False or None.*'yes'"):
        to_inference_data(case.model, case.guide, log_likelihood="yes")


# --------------------------------------------------------------------------------- the draws


@EACH_MODE
@pytest.mark.parametrize("kind", [AutoNormal, AutoSemiImplicit])
def test_the_draws_have_the_moments_of_the_guide(kind, parallel):
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.5, 0.3))
        with pyro.plate("row", 3):
            pyro.sample("share", dist.Beta(2.0, scale))

    guide = kind(model)
    guide()
    num = 2000 if parallel else 500
    idata = to_inference_data(model, guide, num_samples=num, parallel=parallel, seed=3)
    with torch.no_grad(), pyro.plate("draws", 2000, dim=-2):
        own = guide()
    for name, draws in own.items():
        found = idata["posterior"][name].values[0]
        draws = draws.reshape(2000, -1).numpy()
        assert (found > 0).all() and found.shape[0] == num
        for power in (1, 2):
            a, b = found.reshape(num, -1) ** power, draws**power
            error = (a.var(0) / num + b.var(0) / 2000) ** 0.5
            # 32 comparisons in all, at five standard errors: one failure in 10^5.
            assert (np.abs(a.mean(0) - b.mean(0)) < 5 * error).all()


def test_both_modes_agree_in_law():
    case = Conjugate()
    one, all_at_once = (
        to_inference_data(case.model, wide_guide, num_samples=2000, parallel=parallel)
        for parallel in (False, True)
    )
    pairs = [("posterior_predictive", "x"), ("prior_predictive", "x"), ("log_likelihood", "x")]
    for group, name in [*pairs, ("sample_stats", "log_weight")]:
        a, b = (idata[group][name].values.reshape(2000, -1) for idata in (one, all_at_once))
        for power in (1, 2):
            error = ((a**power).var(0) + (b**power).var(0)) ** 0.5 / 2000**0.5
            difference = np.abs((a**power).mean(0) - (b**power).mean(0))
            # 50 comparisons at six standard errors: one failure in 10^7.
            assert (difference < 6 * error).all()


def test_programs_that_change_from_run_to_run():
    runs = []

    def guide():
        runs.append(len(runs))
        name = "loc" if len(runs) < 3 else "other"
        pyro.sample(name, dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"`guide` must have the same sites.*lacked 'loc'"):
        to_inference_data(Conjugate().model, guide, num_samples=5)

    def model():
        runs.append(len(runs))
        size = 2 if len(runs) % 2 else 3
        pyro.sample("z", dist.Normal(torch.zeros(size), 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"`model` must give 'z' the same shape at every run"):
        to_inference_data(model, num_samples=5)


def test_a_chain_of_observed_sites_is_drawn_along():
    """Fresh data follow fresh data, not what was observed before them."""

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        first = pyro.sample("first", dist.Normal(loc, 0.1), obs=torch.tensor(100.0))
        pyro.sample("second", dist.Normal(first, 0.1), obs=torch.tensor(100.0))

    drawn = to_inference_data(model, wide_guide, num_samples=20)["posterior_predictive"]
    assert np.abs(drawn["second"] - drawn["first"]).max() < 1 and drawn["second"].max() < 10


# ------------------------------------------------------------------------------ several guides


class NormalGuide(PyroModule):
    def __init__(self, loc):
        super().__init__()
        self.mean = PyroParam(torch.tensor(loc))

    def forward(self):
        pyro.sample("loc", dist.Normal(self.mean, 0.1))


@EACH_MODE
def test_guides_are_chains(parallel):
    def guide_at(loc):
        return lambda: pyro.sample("loc", dist.Normal(loc, 0.1))

    model = Conjugate().model
    guides = [guide_at(0.0), guide_at(1.0), guide_at(2.0)]
    idata = to_inference_data(model, guides, num_samples=100, parallel=parallel)
    means = idata["posterior"]["loc"].mean("draw").values
    assert np.allclose(means, [0.0, 1.0, 2.0], atol=0.1)  # ten standard errors
    predicted = idata["posterior_predictive"]["x"].mean(("draw", "row")).values
    assert np.allclose(predicted, [0.0, 1.0, 2.0], atol=0.3)
    for group in ("posterior", "posterior_predictive", "log_likelihood", "sample_stats"):
        assert idata[group].sizes["chain"] == 3 and idata[group].sizes["draw"] == 100
    assert idata["prior"].sizes["chain"] == 1
    assert arviz.rhat(idata)["loc"] > 1.5
    log_likelihood = dist.Normal(tensor(idata["posterior"]["loc"])[..., None], 1.0).log_prob(DATA)
    assert torch.allclose(tensor(idata["log_likelihood"]["x"]), log_likelihood, atol=1e-5)
    alone = to_inference_data(model, guides[:1], num_samples=10)
    assert alone["posterior"].sizes["chain"] == 1


def test_modules_of_one_class_keep_their_own_parameters():
    first, second = NormalGuide(0.0), NormalGuide(5.0)
    first()
    store = pyro.get_param_store()
    before = dict(store.items())
    idata = to_inference_data(Conjugate().model, [first, second], num_samples=50)
    assert np.allclose(idata["posterior"]["loc"].mean("draw"), [0.0, 5.0], atol=0.1)
    assert first.mean.item() == 0.0 and second.mean.item() == 5.0
    assert dict(store.items()) == before


def test_guides_trained_one_after_the_other():
    case = Conjugate()
    guides = []
    for seed in range(2):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = AutoNormal(case.model, init_loc_fn=lambda site: torch.tensor(3.0 * seed))  # noqa: B023
        svi = SVI(case.model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        for _ in range(400):
            svi.step()
        guides.append(guide)
    idata = to_inference_data(case.model, guides, num_samples=500)
    means = idata["posterior"]["loc"].mean("draw").values
    # The optimiser's noise is a few hundredths; the trainings began at 0 and at 3.
    assert np.allclose(means, float(case.posterior.mean), atol=0.15) and means[0] != means[1]
    assert arviz.rhat(idata)["loc"] < 1.1


def test_guides_that_are_one_guide():
    model = Conjugate().model
    guide = NormalGuide(0.0)
    with pytest.raises(ValueError, match=r"`guide` must hold independently.*one of them twice"):
        to_inference_data(model, [guide, guide], num_samples=2)

    def sharing(scale):
        def guide():
            pyro.sample("loc", dist.Normal(pyro.param("q", torch.tensor(1.0)), 0.1))

        return guide

    with pytest.raises(ValueError, match=r"guides 0 and 1 draw the same values.*param store"):
        to_inference_data(model, [sharing(1), sharing(2)], num_samples=2)

    def in_scope(loc):
        state = {"params": {"q": torch.tensor(loc)}, "constraints": {"q": constraints.real}}

        def guide():
            with pyro.get_param_store().scope(state):
                sharing(1)()

        return guide

    idata = to_inference_data(model, [in_scope(0.0), in_scope(3.0)], num_samples=50)
    assert np.allclose(idata["posterior"]["loc"].mean("draw"), [0.0, 3.0], atol=0.1)

    def other():
        pyro.sample("other", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"`guide`.*same sites.*\['loc'\] and guide 1 \['other'\]"):
        to_inference_data(model, [guide, other], num_samples=2)
    with pytest.raises(ValueError, match=r"`guide` must hold at least one callable.*held \[3\]"):
        to_inference_data(model, [3])


# ------------------------------------------------------------------------ draws in place of a guide


def test_draws_of_nuts():
    case = Conjugate()
    mcmc = MCMC(NUTS(case.model), num_samples=150, warmup_steps=50, disable_progbar=True)
    mcmc.run()
    draws = mcmc.get_samples()
    idata = to_inference_data(case.model, None, posterior=draws, num_samples=20)
    assert np.array_equal(idata["posterior"]["loc"].values[0], draws["loc"])
    assert set(idata["sample_stats"]) == {"lp"}
    assert idata["log_likelihood"]["x"].shape == (1, 150, len(DATA))
    assert idata["posterior_predictive"]["x"].shape == (1, 150, len(DATA))
    assert idata["prior"]["loc"].shape == (1, 20)
    by_chain = mcmc.get_samples(group_by_chain=True)
    assert by_chain["loc"].shape == (1, 150)
    again = to_inference_data(case.model, None, posterior=by_chain, num_samples=20)
    assert again["log_likelihood"].equals(idata["log_likelihood"])


@EACH_MODE
def test_given_draws_in_chains(parallel):
    def model():
        loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.deterministic("twice", 2 * loc, event_dim=1)
        with pyro.plate("group", 3, dim=-2):
            pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("row", 4, dim=-1):
            pyro.sample("x", dist.Normal(loc[..., 0], 1.0), obs=DATA[:4])

    draws = {"loc": torch.randn(2, 10, 2), "scale": torch.rand(2, 10, 3, 1).numpy()}
    idata = to_inference_data(model, None, posterior=draws, num_samples=3, parallel=parallel)
    assert torch.equal(tensor(idata["posterior"]["loc"]), draws["loc"])
    assert np.array_equal(idata["posterior"]["scale"], draws["scale"][..., 0])
    assert np.array_equal(idata["posterior"]["twice"], 2 * draws["loc"])
    expected = dist.Normal(draws["loc"][..., :1], 1.0).log_prob(DATA[:4])
    assert torch.allclose(tensor(idata["log_likelihood"]["x"]), expected, atol=1e-5)


def test_draws_of_predictive():
    case = Conjugate()
    draws = Predictive(case.model, guide=case.guide, num_samples=7)()
    assert draws["loc"].shape == (7, 1)  # padded for the plate
    loc = {"loc": draws["loc"]}
    idata = to_inference_data(case.model, None, posterior=loc, num_samples=3)
    assert idata["posterior"]["loc"].shape == (1, 7)


@pytest.mark.parametrize(
    ("posterior", "match"),
    [
        (torch.zeros(3), r"`posterior` must be a dict of tensors"),
        ({}, "`posterior` must hold draws of the latents, was empty"),
        ({"loc": [1.0]}, r"`posterior` must hold tensors or arrays.*, but 'loc' was \[1"),
        ({"loc": torch.zeros(3), "b": torch.zeros(3)}, r"`posterior`.*latents of.*held 'b'"),
        ({"loc": torch.zeros(3), "x": torch.zeros(3, 8)}, r"`posterior`.*latents of.*held 'x'"),
        ({"loc": torch.zeros(3), "other": torch.zeros(4)}, r"same numbers.*\(1, 3\).*\(1, 4\)"),
        ({"loc": torch.zeros(0)}, r"at least one draw"),
        ({"loc": torch.zeros(2, 3, 4)}, r"`posterior`.*\[draws, \.\.\.\] or.*'loc'.*\(2, 3, 4\)"),
        ({"loc": torch.tensor(0.0)}, r"`posterior`.*\[draws, \.\.\.\] or.*'loc'.*\(\)"),
        ({"loc": torch.tensor([torch.nan])}, r"`posterior` must be finite.*'loc'.* 1 of 1"),
    ],
)
def test_bad_draws(posterior, match):
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("other", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(DATA)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=DATA)

    with pytest.raises(ValueError, match=match):
        to_inference_data(model, None, posterior=posterior)


def test_draws_beside_a_guide():
    case = Conjugate()
    with pytest.raises(ValueError, match=r"`posterior` must be None where a `guide`"):
        to_inference_data(case.model, case.guide, posterior={"loc": torch.zeros(3)})


# --------------------------------------------------------------------------------- ArviZ on it


def test_leave_one_out_of_two_models():
    cases = {"narrow": Conjugate(scale=0.8), "wide": Conjugate(scale=3.0)}
    exports, truth = {}, {}
    for name, case in cases.items():
        idata = to_inference_data(case.model, case.guide, num_samples=4000, parallel=True)
        exports[name], truth[name] = idata, float(case.leave_one_out().sum())
        # Importance sampling without smoothing: its standard error by the delta method.
        ratios = np.exp(-idata["log_likelihood"]["x"].values[0].astype(float))
        influence = (ratios / ratios.mean(0)).sum(-1)
        error = influence.std() / len(influence) ** 0.5
        # Five standard errors: one failure in two million.
        assert abs(arviz.loo(idata).elpd_loo - truth[name]) < 5 * error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of pandas inside of ArviZ
        table = arviz.compare(exports)
    assert list(table.index) == sorted(truth, key=truth.get, reverse=True)


def test_arviz_functions_run():
    case = Conjugate()

    def other():
        pyro.sample("loc", dist.Normal(0.5, 0.5))

    idata = to_inference_data(case.model, [case.guide, other], num_samples=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside of ArviZ and matplotlib
        assert list(arviz.summary(idata).index) == ["loc"]
        arviz.plot_posterior(idata)
        arviz.plot_ppc(idata, num_pp_samples=10)
        plt.close("all")


def test_all_groups_survive_netcdf(tmp_path):
    pytest.importorskip("h5netcdf")
    mask = torch.arange(len(DATA)) % 2 > 0

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(DATA)), poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=DATA)

    guides = [wide_guide, AutoDelta(model)]
    coords = {"row": [f"r{i}" for i in range(len(DATA))]}
    idata = to_inference_data(model, guides, num_samples=5, seed=2, coords=coords)
    path = str(tmp_path / "draws.nc")
    idata.to_netcdf(path)
    loaded = arviz.from_netcdf(path)
    groups = {"posterior", "posterior_predictive", "log_likelihood", "sample_stats", "prior"}
    groups |= {"prior_predictive", "observed_data"}
    assert set(loaded.groups()) == groups
    for group in groups:
        assert loaded[group].equals(idata[group])
        for name, variable in idata[group].data_vars.items():
            assert loaded[group][name].dims == variable.dims
        assert dict(loaded[group].attrs) == dict(idata[group].attrs)
        assert loaded[group].attrs["seed"] == 2
    loaded.close()
