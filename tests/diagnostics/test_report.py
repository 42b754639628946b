"""Reports on fits that are good, and on fits that are bad in one known way each."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.optim import ClippedAdam

from pyro_sig.diagnostics import SBC, ReportLine, _report_checks, _report_fit, _report_page, report
from pyro_sig.distributions import Implicit, SemiImplicit
from pyro_sig.infer import AutoLocalSemiImplicit, train

NAMES = ["evidence", "k-hat", "chains", "LOO", "predictive", "PIT", "prior", "reference", "SBC"]
SIZE = 40
DOSE = torch.linspace(-1, 2, SIZE)
# The quantiles of a normal law around a line: data that no check of the model objects to.
NOISE = dist.Normal(0.0, 1.0).icdf((torch.arange(SIZE) + 0.5) / SIZE)
RESPONSE = 1 + DOSE / 2 + NOISE[torch.randperm(SIZE, generator=torch.Generator().manual_seed(3))]
DESIGN = torch.stack([torch.ones(SIZE), DOSE], -1)
COVARIANCE = (DESIGN.T @ DESIGN + torch.eye(2) / 4).inverse()
POSTERIOR = dist.MultivariateNormal(COVARIANCE @ DESIGN.T @ RESPONSE, COVARIANCE)
OPTIONS = {"parallel": True, "seed": 0, "quiet": True, "num_samples": 500}


def line(dose, response=RESPONSE):
    b = pyro.sample("b", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("row", len(dose)):
        pyro.sample("response", dist.Normal(b[..., 0] + b[..., 1] * dose, 1.0), obs=response)


def exact(dose, **kwargs):
    pyro.sample("b", POSTERIOR)


def normal(loc=POSTERIOR.mean, factor=1.0):
    """A guide with independent latents."""
    scale = factor * COVARIANCE.diagonal().sqrt()

    def guide(*args, **kwargs):
        pyro.sample("b", dist.Normal(loc, scale).to_event(1))

    return guide


def by_name(found):
    assert [one.name for one in found.lines] == NAMES
    return {one.name: one for one in found.lines}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.png"
    ranks = torch.arange(100) % 20
    reference = {"b": POSTERIOR.sample((1000,))}
    found = report(
        line,
        exact,
        DOSE,
        reference=reference,
        exact=True,
        sbc=SBC({"b": ranks}, num_draws=19),
        path=path,
        **OPTIONS,
    )
    return found, path


def test_the_exact_posterior_is_good_in_every_line(good):
    """Weights are constant and data ideal; the reference's line fails at a rate below 0.01."""
    found, _ = good
    lines = by_name(found)
    assert lines.pop("chains").verdict == "none"
    assert {one.verdict for one in lines.values()} == {"good"}
    assert found.verdict == "good" and found.overall.startswith("Good")
    law = dist.MultivariateNormal(torch.zeros(SIZE), torch.eye(SIZE) + 4 * DESIGN @ DESIGN.T)
    assert found.evidence.lower[0] == pytest.approx(float(law.log_prob(RESPONSE)), abs=1e-2)
    assert found.evidence.upper[0] == pytest.approx(float(law.log_prob(RESPONSE)), abs=1e-2)
    assert found.log_weights.shape == (5, 500)


def test_the_table_and_the_page(good, capsys):
    from matplotlib import pyplot
    from matplotlib.image import imread

    found, path = good
    text = repr(found)
    assert all(name in text for name in NAMES) and found.overall in text
    assert max(map(len, text.splitlines())) <= 100
    assert path.read_bytes().startswith(b"\x89PNG")
    image = imread(path)
    assert image.shape[1] == pytest.approx(1240, abs=2)
    # Ink in the table and in both rows of pictures.
    assert all(part[..., :3].std() > 0.02 for part in np.array_split(image, 4))
    figure = found.plot()
    assert len(figure.axes) == 6  # two marginals, weights, evidence, predictions, calibration
    assert pyplot.get_fignums() == []
    assert capsys.readouterr().out == ""


def test_no_text_of_the_page_overlaps_another(good):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = good[0].plot()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in figure.texts]
    for axes in figure.axes:
        texts = [*axes.texts, axes.xaxis.label, axes.yaxis.label]
        boxes += [(t.get_text(), t.get_window_extent()) for t in texts]
        boxes += [("panel", axes.get_window_extent())]
    boxes = [(text, box) for text, box in boxes if text]
    width, height = figure.canvas.get_width_height()
    for i, (text, box) in enumerate(boxes):
        assert 0 <= box.x0 and box.x1 <= width and 0 <= box.y0 and box.y1 <= height, text
        for other, further in boxes[:i]:
            wide = min(box.x1, further.x1) - max(box.x0, further.x0)
            high = min(box.y1, further.y1) - max(box.y0, further.y0)
            assert min(wide, high) < 1.0, (text, other)


def test_a_narrow_guide_has_a_bad_k_hat():
    """Its weights have tail index 1 - 0.04."""
    found = report(line, normal(factor=0.2), DOSE, **OPTIONS)
    lines = by_name(found)
    assert lines["k-hat"].verdict == "bad" and "do not trust" in lines["k-hat"].text
    assert lines["evidence"].verdict in ("look", "bad")
    assert found.verdict == "bad" and "k-hat" in found.overall and "posterior" in found.overall


def test_trainings_that_disagree_and_that_agree():
    """Of 3000 draws each, R-hat exceeds 1.01 where means differ by 5 standard errors."""
    off = POSTERIOR.mean + 2 * COVARIANCE.diagonal().sqrt()
    found = report(line, [normal(), normal(loc=off)], DOSE, **OPTIONS)
    chains = by_name(found)["chains"]
    assert chains.verdict == "bad" and "2 independent trainings disagree" in chains.text
    # The weights are those of the worse guide.
    assert by_name(found)["k-hat"].value.startswith("guide 2 of 2")
    options = OPTIONS | {"num_samples": 3000}
    agree = report(line, [exact, normal(loc=POSTERIOR.mean + 1e-6)], DOSE, **options)
    assert "disagree" not in by_name(agree)["chains"].text
    assert len(agree.plot().axes) == 5


def counts(data):
    rate = pyro.sample("rate", dist.Gamma(1.0, 0.1))
    with pyro.plate("unit", len(data)):
        pyro.sample("count", dist.Poisson(rate), obs=data)


def conjugate(data):
    pyro.sample("rate", dist.Gamma(1 + data.sum(), 0.1 + len(data)))


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        # Quantiles of Poisson(4), and of a geometric law of the same mean.
        (torch.tensor([1.0, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 6, 6, 7, 8] * 3), "good"),
        (torch.tensor([0.0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 8, 10, 13, 17] * 3), "bad"),
    ],
    ids=["poisson", "overdispersed"],
)
def test_counts_that_fit_and_that_do_not(data, verdict):
    found = report(counts, conjugate, data, **OPTIONS)
    lines = by_name(found)
    assert lines["k-hat"].verdict == "good"
    assert lines["predictive"].verdict == lines["PIT"].verdict == verdict
    assert ("sd" in lines["predictive"].text) == (verdict == "bad")
    assert "zeros" in lines["predictive"].value
    if verdict == "bad":
        assert "this model (see predictive" in found.overall


@pytest.mark.parametrize(
    ("reference", "verdict", "text"),
    [
        (POSTERIOR.mean + torch.tensor([0.5, 0.0]), "bad", "not the law of the reference"),
        (POSTERIOR.mean, "good", "as the reference"),
    ],
    ids=["shifted", "same"],
)
def test_a_reference(reference, verdict, text):
    draws = {"b": dist.MultivariateNormal(reference, COVARIANCE).sample((2, 500))}
    one = by_name(report(line, exact, DOSE, reference=draws, **OPTIONS))["reference"]
    assert one.verdict == verdict and text in one.text
    assert "energy test p = " in one.value and "C2ST" in one.value


def test_exact_draws_that_are_not_exact():
    """A narrow guide gives its middle a small weight: the bounds change places at K = 1."""
    draws = {"b": POSTERIOR.mean.expand(300, 2)}
    found = report(line, normal(factor=0.3), DOSE, reference=draws, exact=True, **OPTIONS)
    assert "`reference` is not exact" in by_name(found)["evidence"].text
    draws = {"b": POSTERIOR.sample((300,))}
    found = report(line, normal(factor=0.3), DOSE, reference=draws, exact=True, **OPTIONS)
    evidence = by_name(found)["evidence"]
    assert "upper bound" in evidence.value and "the gap at K = 100" in evidence.text


def test_draws_of_nuts_in_place_of_a_guide():
    found = report(line, None, DOSE, posterior={"b": POSTERIOR.sample((2, 500))}, **OPTIONS)
    lines = by_name(found)
    for name in ("evidence", "k-hat"):
        assert lines[name].verdict == "none" and "without a guide" in lines[name].text
    assert "ESS" in lines["chains"].value and lines["LOO"].verdict == "good"
    assert len(found.plot().axes) == 3
    stuck = {"b": POSTERIOR.sample((2, 500)) + torch.tensor([0.0, 1.0])[:, None, None]}
    assert by_name(report(line, posterior=stuck, **OPTIONS, dose=DOSE))["chains"].verdict == "bad"


def test_no_observations():
    found = report(line, normal(), DOSE, response=None, **OPTIONS)
    lines = by_name(found)
    for name in ("evidence", "k-hat", "LOO", "predictive", "PIT"):
        assert lines[name].verdict == "none" and lines[name].text == "no observations"
    assert lines["prior"].verdict == "good"
    assert found.verdict == "look" and found.overall.startswith("Look again before believing this")
    assert "Nothing looked at the posterior itself" in found.overall
    assert len(found.plot().axes) == 2


def test_a_factor_is_an_observation_without_data():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("likelihood", -0.5 * (z - 1) ** 2)

    def guide():
        pyro.sample("z", dist.Normal(0.5, 0.5**0.5))

    lines = by_name(report(model, guide, **OPTIONS))
    assert lines["evidence"].verdict == lines["k-hat"].verdict == "good"
    assert lines["predictive"].text == "no observations"


def generative(data):
    with pyro.plate("row", len(data)):
        z = pyro.sample("z", Implicit(lambda noise: noise, dist.Normal(0.0, 1.0)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=data)


def test_a_semi_implicit_generative_model():
    data = 2**0.5 * NOISE
    found = report(generative, lambda data: None, data, **OPTIONS)
    lines = by_name(found)
    assert "no latent" in lines["k-hat"].text and "no draws" in lines["LOO"].text
    assert lines["predictive"].verdict == lines["PIT"].verdict == "good"
    assert lines["chains"].verdict == lines["prior"].verdict == "none"
    # There is no posterior that anything could look at.
    assert found.verdict == "good" and found.overall.endswith("speaks against this model.")
    assert len(found.plot().axes) == 1
    wrong = by_name(report(generative, lambda data: None, 3 * data, **OPTIONS))
    assert wrong["predictive"].verdict == wrong["PIT"].verdict == "bad"


def test_an_implicit_guide():
    def guide(*args, **kwargs):
        pyro.sample("b", Implicit(lambda noise: noise, POSTERIOR, event_shape=(2,)))

    lines = by_name(report(line, guide, DOSE, **OPTIONS))
    assert lines["k-hat"].text == lines["evidence"].text == "the site 'b' has no log_prob"
    assert lines["LOO"].verdict == lines["prior"].verdict == "good"


def test_a_semi_implicit_guide_of_several_rows():
    """The exact posterior as a mixture: each row needs psi of its own."""

    def model():
        with pyro.plate("rows", 6):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=NOISE[15:21])

    def guide():
        with pyro.plate("rows", 6):
            mixing = dist.Normal(NOISE[15:21] / 2, 0.5)
            pyro.sample("z", SemiImplicit(mixing, lambda psi: dist.Normal(psi, 0.5), 3))

    lines = by_name(report(model, guide, **(OPTIONS | {"num_samples": 100})))
    assert lines["k-hat"].verdict == "good" and lines["evidence"].verdict == "good"


def test_observations_that_each_have_a_latent_are_no_misfit():
    """They were seen in the fit, and are in the middle of their predictions."""
    data = 10 * NOISE

    def model():
        with pyro.plate("row", SIZE):
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def guide():
        with pyro.plate("row", SIZE):
            pyro.sample("z", dist.Normal(data / 1.01, 1.01**-0.5))

    pit = by_name(report(model, guide, **OPTIONS))["PIT"]
    assert pit.verdict == "good" and "in the middle" in pit.text


def test_a_plate_that_subsamples():
    def model():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("row", SIZE, subsample_size=5) as rows:
            pyro.sample("x", dist.Normal(z, 1.0), obs=NOISE[rows])

    def guide():
        pyro.sample("z", dist.Normal(0.0, 0.15))

    options = OPTIONS | {"parallel": False, "num_samples": 60}
    found = report(model, guide, **options)
    lines = by_name(found)
    for name in ("LOO", "predictive", "PIT"):
        assert lines[name].text == "the plate 'row' subsamples"
    assert "the plate 'row' subsamples" in lines["k-hat"].text
    assert "`create_plates`" in lines["k-hat"].text
    # It contracts its prior, and may do so anywhere.
    assert lines["prior"].verdict == "good" and found.verdict == "look"
    assert "Nothing looked at the posterior itself" in found.overall
    assert found.overall in " ".join(repr(found).split())
    looked = report(model, guide, reference={"z": 0.15 * torch.randn(400)}, **options)
    assert "Nothing looked" not in looked.overall
    # Beside a worse verdict on the model it is said too.
    with pytest.MonkeyPatch.context() as patch:
        judgement = ("p: mean 0.001", "bad", "new data differ")
        patch.setattr(_report_fit.ReportedFit, "check_predictive", lambda self: judgement)
        wrong = report(model, guide, **options)
    assert wrong.overall.startswith("Bad: do not believe this model (see predictive). Nothing")


def test_a_guide_of_mini_batches_is_judged_on_whole_plates():
    """An autoguide keeps the plates of its first call, unless `create_plates` makes them."""

    def rows(data, batch_size=None):
        return pyro.plate("row", len(data), subsample_size=batch_size or len(data))

    def model(data, batch_size=None):
        with rows(data, batch_size) as index:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])

    pyro.clear_param_store()
    guide = AutoLocalSemiImplicit(
        model, encoder=lambda data, _=None: data.unsqueeze(-1), create_plates=rows
    )
    svi = SVI(model, guide, ClippedAdam({"lr": 0.01}), Trace_ELBO())
    train(svi, (NOISE[:6], 2), num_steps=2, progress=False)
    options = {"num_samples": 50, "num_mixing": 10, "seed": 0, "quiet": True}
    lines = by_name(report(model, guide, NOISE[:6], **options))
    assert "effective share" in lines["k-hat"].value and "at K = 1" in lines["evidence"].value


@pytest.mark.parametrize("misspelt", [False, True])
def test_a_guide_that_draws_what_the_model_lacks(misspelt):
    """The density of that site would count against the guide, and a latent may lack a guide."""

    def guide(dose):
        pyro.sample("b_" if misspelt else "b", POSTERIOR)
        pyro.sample("c", dist.Normal(0.0, 0.01))

    found = report(line, guide, DOSE, **OPTIONS)
    lines = by_name(found)
    for name in ("evidence", "k-hat"):
        assert (lines[name].value, lines[name].verdict) == ("failed", "look")
        assert f"drew '{'b_' if misspelt else 'c'}', which `model` lacks" in lines[name].text
    assert found.verdict == "look" and "k-hat" in found.overall


def test_a_program_that_does_not_broadcast_is_named():
    def model(group):
        effect = pyro.sample("effect", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))
        with pyro.plate("row", len(group)):
            pyro.sample("x", dist.Normal(effect[group, 0], 1.0), obs=NOISE)

    def guide(group):
        pyro.sample("effect", dist.Normal(torch.zeros(3, 2), 1.0).to_event(2))

    with pytest.raises(ValueError, match="`parallel` must be False, or .* one more plate.*500"):
        report(model, guide, torch.arange(SIZE) % 3, **OPTIONS)


def test_masked_data_and_an_improper_prior():
    keep = torch.arange(SIZE) < 20
    data = torch.where(keep, NOISE[torch.arange(SIZE) * 2 % SIZE], 1e3)

    def model():
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("row", SIZE), poutine.mask(mask=keep):
            pyro.sample("x", dist.Normal(z, 1.0), obs=data)

    def guide():
        pyro.sample("z", dist.Normal(data[:20].mean(), 20**-0.5))

    found = report(model, guide, **(OPTIONS | {"parallel": False, "num_samples": 100}))
    lines = by_name(found)
    assert lines["predictive"].verdict == "good" and found.observations["x"][0].shape == (20,)
    assert lines["prior"].text == "the prior cannot be drawn from"


def test_what_the_data_say_nothing_about():
    """The contraction of the second, 1 - 1.1^2, is 6 standard errors of 0.045 from both limits."""

    def model(data):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("silent", dist.Cauchy(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.1), obs=data)

    def guide(data):
        pyro.sample("z", dist.Normal(data, 0.1))
        pyro.sample("silent", dist.Cauchy(0.0, 1.1))

    options = OPTIONS | {"num_samples": 20000}
    silent = by_name(report(model, guide, torch.tensor(0.5), **options))["prior"]
    assert silent.verdict == "look" and silent.text == "the data say nothing about silent"
    conflict = by_name(report(model, guide, torch.tensor(5.0), **options))["prior"]
    assert "the data contradict the prior of z" in conflict.text


def test_a_guide_outside_of_the_support():
    def model(data):
        scale = pyro.sample("scale", dist.Exponential(1.0))
        with pyro.plate("row", len(data)):
            pyro.sample("x", dist.Normal(0.0, scale, validate_args=False), obs=data)

    def guide(data):
        pyro.sample("scale", dist.Normal(1.0, 1.0))

    with pyro.validation_enabled(False):
        found = report(model, guide, NOISE, **OPTIONS)
    lines = by_name(found)
    assert lines["LOO"].value == "failed" and "infinite or NaN" in lines["LOO"].text
    assert found.verdict != "good"
    assert not any("failed" in text.get_text() for axes in found.plot().axes for text in axes.texts)


def test_a_panel_that_raises_leaves_the_others(good, monkeypatch):
    monkeypatch.setattr(_report_page, "_draw_weights", None)
    axes = good[0].plot().axes
    assert len(axes) == 6
    assert sum("A panel failed" in text.get_text() for one in axes for text in one.texts) == 1


def test_a_check_that_raises_leaves_the_others(monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("it broke\nhere")

    monkeypatch.setattr(_report_checks, "uniformity_test", broken)
    monkeypatch.setattr(_report_fit, "log_importance_weights", broken)
    found = report(line, exact, DOSE, **(OPTIONS | {"quiet": False}))
    lines = by_name(found)
    for name in ("PIT", "k-hat"):
        assert lines[name] == ReportLine(name, "failed", "look", "RuntimeError: it broke")
    assert "see k-hat" in lines["evidence"].text
    assert lines["LOO"].verdict == lines["predictive"].verdict == lines["prior"].verdict == "good"
    assert found.verdict == "look"
    assert capsys.readouterr().out.strip() == repr(found)


def test_a_seed_leaves_the_global_state_and_repeats_the_report():
    options = OPTIONS | {"num_samples": 60}
    reference = {"b": POSTERIOR.sample((100,))}
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = (report(line, exact, DOSE, reference=reference, **options) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert first.lines == second.lines
    assert first.data["posterior"].attrs["seed"] == 0


def test_a_program_that_does_not_broadcast_runs_in_turn():
    def model(data):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = z if z.item() < 10 else -z
        with pyro.plate("row", len(data)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=data)

    def guide(data):
        pyro.sample("z", dist.Normal(data.sum() / (1 + len(data)), (1 + len(data)) ** -0.5))

    found = report(model, guide, NOISE, num_samples=60, seed=0, quiet=True)
    assert by_name(found)["k-hat"].verdict == "good"
    assert len(found.evidence.num_importance) == 2  # 300 weights are too few for K = 100


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"guide": None}, "`guide` must be given where `posterior` is not"),
        ({"num_samples": 10}, "`num_samples` must be an integer of at least 50, was 10"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_mixing": 0}, "num_mixing"),
        ({"quiet": "no"}, "`quiet` must be True or False, was 'no'"),
        ({"path": ""}, "`path` must be the name of a file, was ''"),
        ({"path": "report.unknown"}, "`path` must end in one of .*, was 'report.unknown'"),
        ({"exact": True}, "`exact` must be False where `reference` is None"),
        ({"sbc": 0.3}, r"`sbc` must be what sbc\(\.\.\.\) returns, or None, was 0\.3"),
        ({"path": "/no/such/folder/x.png"}, "`path` must be in a folder that exists"),
        ({"reference": {"c": torch.zeros(9)}}, "`reference` must hold draws of the latents"),
        ({"reference": {}}, "`reference` must hold draws of the latents"),
        ({"reference": {"b": torch.zeros(9, 3)}}, "`reference` must hold at least one draw"),
        ({"reference": [1.0]}, "`reference` must be a dict of tensors"),
        ({"posterior": {"b": torch.zeros(9, 2)}}, "`posterior` must be None where a `guide`"),
        ({"guide": [exact, exact]}, "held one of them twice"),
    ],
)
def test_bad_arguments(options, match):
    guide = options.pop("guide", exact)
    with pytest.raises(ValueError, match=match):
        report(line, guide, DOSE, **(OPTIONS | options))


def test_numbers_that_are_not_finite_are_bad():
    assert _report_checks._grade(math.nan, (0.0, 1.0)) == "bad"
    assert _report_checks._grade(math.inf, (0.0, 1.0)) == "bad"


def test_dependent_reference_draws_are_asked_about():
    """25 points forty times: mean and sd fit, and the energy test rejects."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(1000, 1, generator=generator)
    repeated = torch.randn(25, 1, generator=generator).repeat(40, 1)
    repeated = (repeated - repeated.mean()) / repeated.std()
    entries = [_report_checks.Entries(["z"], x.double().numpy()[None]) for x in (draws, repeated)]
    _, verdict, text = _report_checks.check_reference(*entries)
    assert verdict == "look" and "dependent draws" in text


def test_two_trained_guides_of_one_class_keep_their_own_weights():
    """Modules of one class share the names of their parameters: each is weighed with its own."""

    def trained(seed):
        pyro.clear_param_store()
        pyro.set_rng_seed(seed)
        guide = AutoMultivariateNormal(line)
        elbo = Trace_ELBO(num_particles=20, vectorize_particles=True, max_plate_nesting=1)
        svi = SVI(line, guide, ClippedAdam({"lr": 0.03, "lrd": 0.99}), elbo)
        for _ in range(300):
            svi.step(DOSE)
        return guide

    found = report(line, [trained(0), trained(1)], DOSE, **OPTIONS)
    lines = by_name(found)
    assert lines["k-hat"].verdict == lines["chains"].verdict == "good"
    assert "2 independent trainings agree" in lines["chains"].text


def test_a_guide_of_some_latents_is_not_blamed_for_the_others():
    """An implicit site beside an ordinary latent: no weights, and everything else runs."""
    noise = dist.Normal(torch.zeros(()), 1.0)

    def model(dose):
        slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        with pyro.plate("row", len(dose)):
            shift = pyro.sample("shift", Implicit(lambda e: 1 + 0.1 * e, noise))
            pyro.sample("response", dist.Normal(shift + slope * dose, 1.0), obs=RESPONSE)

    def guide(dose):
        pyro.sample("slope", dist.Normal(0.5, 0.15))

    found = by_name(report(model, guide, DOSE, **OPTIONS))
    for name in ("evidence", "k-hat"):
        assert found[name].verdict == "none"
        assert found[name].text == "the latent 'shift' is left to the model"
    assert found["predictive"].verdict == found["prior"].verdict == "good"
