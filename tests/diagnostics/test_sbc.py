import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

from pyro_sig.diagnostics import (
    SBC,
    draws_from,
    log_likelihood_of,
    sbc,
    sbc_ranks,
    uniformity_test,
)

ROWS, DRAWS = 4, 49


def model():
    """A global latent, one in each row, and one on the side; all normal, of variance 1."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("row", ROWS):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.deterministic("twice", 2 * z)
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(ROWS))


def exact_posterior(spread=1.0, shift=0.0, num_draws=DRAWS):
    """The normal with the precision and the mean of the model, written by hand."""
    precision = torch.zeros(1 + ROWS, 1 + ROWS, dtype=torch.double)
    precision[0, 0] = 1 + ROWS
    precision[1:, 1:] = 2 * torch.eye(ROWS)
    precision[0, 1:] = precision[1:, 0] = -1
    covariance = precision.inverse()
    factor = torch.linalg.cholesky(covariance)
    scales = covariance.diagonal().sqrt()

    def posterior(observations):
        mean = covariance[:, 1:] @ observations["x"].double() + shift * scales
        noise = torch.randn(num_draws, 1 + ROWS, dtype=torch.double)
        draws = (mean + spread * noise @ factor.mT).float()
        return {"loc": draws[:, 0], "z": draws[:, 1:]}

    return posterior


def run(posterior, program=model, num_simulations=300, **options):
    options = {"progress": False, **options}
    return sbc(program, posterior, num_simulations=num_simulations, **options)


def test_the_exact_posterior_passes():
    result = run(exact_posterior())
    assert isinstance(result, SBC)
    assert result.num_draws == DRAWS and result.num_simulations == 300
    shapes = {name: tuple(ranks.shape) for name, ranks in result.ranks.items()}
    assert shapes == {"loc": (300,), "z": (300, ROWS)}
    assert result.p_values["z"].shape == (ROWS,)
    # Fails for one seed in 10^5.
    assert result.p_value > 1e-5
    # Of 1500 ranks the mean is within 5 standard errors, those of a row's being dependent.
    ranks = torch.cat([result.ranks["loc"][:, None], result.ranks["z"]], 1).double().mean(1)
    assert abs(float(ranks.mean()) - DRAWS / 2) < 5 * float(ranks.std()) / math.sqrt(300)


@pytest.mark.parametrize(
    ("spread", "shift"),
    [(0.7, 0.0), (1.4, 0.0), (1.0, 0.5), (1.0, -0.5)],
    ids=["overconfident", "underconfident", "shifted up", "shifted down"],
)
def test_wrong_posteriors_are_rejected(spread, shift):
    result = run(exact_posterior(spread, shift), num_simulations=800)
    assert result.p_value < 1e-4
    # The statements of the docstring of the plot.
    low, high = (
        float((result.ranks["loc"] <= share * DRAWS).double().mean()) - share
        for share in (0.2, 0.8)
    )
    if shift:
        assert max(low, high) < 0 if shift < 0 else min(low, high) > 0
    else:
        assert low > 0 > high if spread < 1 else low < 0 < high


def test_gamma_poisson():
    def counts():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("row", 5):
            pyro.sample("x", dist.Poisson(rate), obs=torch.zeros(5))

    def posterior(observations, factor=1.0):
        total = factor * observations["x"].sum()
        return {"rate": dist.Gamma(2.0 + total, 1.0 + factor * 5).sample((DRAWS,))}

    # Fails for one seed in 10^5.
    assert run(posterior, counts).p_value > 1e-5
    # Every count taken twice.
    assert run(lambda x: posterior(x, 2.0), counts, 500).p_value < 1e-4


def test_a_discrete_latent_has_ties():
    def coin():
        side = pyro.sample("side", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(side, 1.0), obs=torch.tensor(0.0))

    def posterior(observations, factor=1.0):
        logits = math.log(0.3 / 0.7) + factor * (observations["x"] - 0.5)
        return {"side": dist.Bernoulli(logits=logits).sample((DRAWS,))}

    # Fails for one seed in 10^5.
    assert run(posterior, coin).p_value > 1e-5
    shifted = run(lambda x: posterior({"x": x["x"] + 2}), coin, 1000)
    assert shifted.p_value < 1e-4


def test_the_prior_passes_until_a_quantity_looks_at_the_data():
    def prior(observations):
        loc = torch.randn(DRAWS)
        return {"loc": loc, "z": loc[:, None] + torch.randn(DRAWS, ROWS)}

    def log_likelihood(latents, observations):
        return dist.Normal(latents["z"], 1.0).log_prob(observations["x"]).sum()

    quantities = {"log-likelihood": log_likelihood}
    result = run(prior, quantities=quantities)
    # Each fails for one seed in 10^5: the latents' own ranks are uniform.
    assert result.quantity_p_values["loc"] > 1e-5 and result.quantity_p_values["z"] > 1e-5
    assert result.quantity_p_values["log-likelihood"] < 1e-10
    assert result.p_value == pytest.approx(3 * result.quantity_p_values["log-likelihood"])
    # Fails for one seed in 10^5.
    assert run(exact_posterior(), quantities=quantities).p_value > 1e-5


def test_the_log_likelihood_of_a_program():
    latents = {"loc": torch.tensor(0.3), "z": torch.randn(ROWS)}
    observations = {"x": torch.randn(ROWS)}
    expected = dist.Normal(latents["z"], 1.0).log_prob(observations["x"]).sum()
    quantity = log_likelihood_of(model)
    torch.testing.assert_close(quantity(latents, observations), expected)

    def with_arguments(scale, *, loc):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, scale), obs=torch.tensor(0.0))
        pyro.sample("y", dist.Poisson(z.exp()), obs=torch.tensor(0.0))

    observations = {"x": torch.tensor(1.0), "y": torch.tensor(2.0)}
    z = torch.tensor(0.5)
    expected = dist.Normal(z, 2.0).log_prob(observations["x"])
    expected = expected + dist.Poisson(z.exp()).log_prob(observations["y"])
    quantity = log_likelihood_of(with_arguments, 2.0, loc=0.0)
    torch.testing.assert_close(quantity({"z": z}, observations), expected)

    def prior(observations):
        return {"z": torch.randn(19)}

    options = {"num_simulations": 150, "progress": False, "quantities": {"f": quantity}}
    assert sbc(with_arguments, prior, 2.0, loc=0.0, **options).quantity_p_values["f"] < 1e-3


@pytest.mark.parametrize("spread", [1.0, 0.5])
def test_an_amortised_guide(spread):
    def guide(x):
        loc = pyro.sample("loc", dist.Normal(x.sum() / 6, spread / math.sqrt(3)))
        with pyro.plate("row", ROWS):
            pyro.sample("z", dist.Normal((loc + x) / 2, spread / math.sqrt(2)))

    result = run(
        lambda observations: draws_from(guide, observations["x"], num_samples=19),
        num_simulations=150,
    )
    # The exact posterior fails for one seed in 10^5.
    assert result.p_value > 1e-5 if spread == 1 else result.p_value < 1e-4


def test_ranks_by_hand():
    truths, draws = torch.tensor([[0.5, 2.0]]), torch.tensor([[[0.1, 1.0], [0.2, 3.0], [0.9, 4.0]]])
    assert sbc_ranks(truths, draws).tolist() == [[2, 1]]
    # Of 9 ties the rank is uniform on 0, ..., 9. Fails for one seed in 10^5.
    ranks = sbc_ranks(torch.zeros(1000), torch.zeros(1000, 9))
    assert float(uniformity_test(ranks, 9).p_value) > 1e-5
    first, second = (
        sbc_ranks(torch.zeros(100), torch.zeros(100, 9), torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first, second)


def test_ranks_at_hand():
    generator = torch.Generator().manual_seed(0)
    even = torch.randint(20, (200, 2), generator=generator)
    result = SBC({"even": even, "low": even[:, 0] // 2}, num_draws=19)
    assert result.p_values["even"].shape == (2,) and result.p_values["low"].shape == ()
    assert result.adjusted_p_values["low"] == 2 * result.quantity_p_values["low"]
    assert result.p_value == result.adjusted_p_values["low"] < 1e-6
    # Holm: the larger of two p-values stays as it is.
    assert result.adjusted_p_values["even"] == result.quantity_p_values["even"]
    lines = repr(result).splitlines()
    assert lines[0] == f"SBC: 200 simulations, 19 draws each, overall p = {result.p_value:.1e}"
    assert lines[1].split() == ["quantity", "entries", "p", "adjusted", "p"]
    assert [line.split()[:2] for line in lines[2:]] == [["even", "2"], ["low", "1"]]
    assert len({len(line) for line in lines[1:]}) == 1


def test_holm_keeps_the_order():
    ranks = {f"q{i}": torch.randint(10, (50,)) for i in range(12)}
    result = SBC(ranks, num_draws=9)
    raw = torch.tensor(list(result.quantity_p_values.values()))
    order = raw.argsort()
    expected = (raw[order] * torch.arange(12, 0, -1)).clamp(max=1).cummax(0).values
    adjusted = torch.tensor(list(result.adjusted_p_values.values()))
    torch.testing.assert_close(adjusted[order], expected)


def test_many_entries_of_a_wrong_posterior_are_rejected():
    # A thousand p-values that were simulated, at least 1e-4 each, could not reject anything.
    ranks = torch.randint(100, (300, 1000))
    ranks[:, 7] = ranks[:, 7] // 2
    result = SBC({"z": ranks}, num_draws=99)
    assert result.p_value < 1e-6
    assert int(result.p_values["z"].argmin()) == 7


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.1, 0.5])
def test_the_overall_level(level):
    num_problems, rejected = 200, 0
    for seed in range(num_problems):
        rejected += run(exact_posterior(num_draws=19), num_simulations=50, seed=seed).p_value <= (
            level
        )
    # At most the level, since Bonferroni's inequality is one. Fails for one set of seeds in 10^5.
    assert rejected <= stats.binom(num_problems, level).isf(1e-5)


def test_singleton_dimensions():
    def nested():
        outer, inner = pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 2, dim=-1)
        with outer:
            a = pyro.sample("a", dist.Normal(0.0, 1.0))  # of shape [3, 1]
            with inner:
                pyro.sample("x", dist.Normal(a, 1.0), obs=torch.zeros(3, 2))

    def posterior(observations):
        mean = observations["x"].sum(-1) / 3
        return {"a": mean + torch.randn(9, 3) / math.sqrt(3)}

    result = run(posterior, nested, 100)
    assert result.ranks["a"].shape == (100, 3, 1)
    # Fails for one seed in 10^5.
    assert result.p_value > 1e-5

    def latents_have_the_shapes_of_the_model(latents, observations):
        assert latents["a"].shape == (3, 1)
        return latents["a"].sum()

    run(posterior, nested, 2, quantities={"f": latents_have_the_shapes_of_the_model})


def test_hidden_latents_need_no_draws():
    hidden = pyro.poutine.block(model, hide=["z"])
    exact = exact_posterior()
    result = run(lambda x: {"loc": exact(x)["loc"], "extra": torch.zeros(3)}, hidden, 50)
    assert set(result.ranks) == {"loc"}


def test_observations_are_simulated_and_the_posterior_may_train():
    seen = []

    def posterior(observations):
        assert torch.is_grad_enabled()
        seen.append(observations["x"].clone())
        draws = exact_posterior()(observations)
        observations["x"].zero_()  # harms nobody
        return {name: value.numpy() for name, value in draws.items()}

    def quantity(latents, observations):
        assert torch.equal(observations["x"], seen[-1])
        return latents["loc"]

    run(posterior, num_simulations=5, quantities={"f": quantity})
    assert len(seen) == 5 and all(x.shape == (ROWS,) for x in seen)
    assert len({float(x[0]) for x in seen}) == 5


def test_the_seed_alone_decides():
    state = torch.get_rng_state()
    first, second, other = (run(exact_posterior(), num_simulations=5, seed=s) for s in (1, 1, 2))
    assert torch.equal(first.ranks["z"], second.ranks["z"])
    assert not torch.equal(first.ranks["z"], other.ranks["z"])
    assert torch.equal(state, torch.get_rng_state())


def test_progress(capfd):
    run(exact_posterior(), num_simulations=2, progress=True)
    out, err = capfd.readouterr()
    assert "SBC" in err and "2/2" in err and not out
    run(exact_posterior(), num_simulations=2)
    assert capfd.readouterr() == ("", "")


def test_plot():
    from matplotlib import pyplot

    ranks = {f"latent {i}": torch.randint(100, (200, 1 + 3 * i)) for i in range(9)}
    ranks["one number"] = torch.randint(100, (200,)) // 2
    for few in (1, 2, 10):
        result = SBC(dict(list(ranks.items())[-few:]), num_draws=99)
        figure = result.plot()
        assert len(figure.axes) == few
        titles = [axes.get_title() for axes in figure.axes]
        assert titles[-1].startswith("one number\np = ")
        assert few == 1 or "entries" in titles[-2]
        assert "overall p = " in figure.get_suptitle()
        assert figure.axes[-1].get_lines()[-1].get_color() == "C3"  # rejected
        figure.canvas.draw()
        pyplot.close(figure)
    figure = SBC({"a" * 20 + "b" * 20: ranks["latent 0"]}, num_draws=99).plot()
    assert figure.axes[0].get_title().startswith("a" * 14 + "..." + "b" * 13 + "\n")
    pyplot.close(figure)
    figure = result.plot(level=0.5, columns=2)
    assert len({axes.get_position().x0 for axes in figure.axes}) == 2
    pyplot.close(figure)


def test_a_line_leaves_its_bands_exactly_if_p_is_small():
    from matplotlib import pyplot

    seen = set()
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        ranks = torch.randint(50, (100, 3), generator=generator) + torch.tensor([0, 0, seed])
        ranks = ranks.clamp(max=49)
        result = SBC({"one": ranks, "other": ranks.flip(0)[:, :2] // 2 * 2}, num_draws=49)
        for level in (0.2, 0.5, 0.95):
            figure = result.plot(level=level)
            outside = False
            for axes in figure.axes:
                band = axes.collections[0].get_paths()[0].vertices
                red = False
                for line in (line for line in axes.get_lines() if len(line.get_xdata()) > 2):
                    for x, y in zip(line.get_xdata()[1:-1], line.get_ydata()[1:-1], strict=True):
                        edges = band[abs(band[:, 0] - x) < 1e-9, 1]
                        outside |= not edges.min() - 1e-9 <= y <= edges.max() + 1e-9
                    red |= line.get_color() == "C3"
                seen.add(red)
            assert outside == (result.p_value <= 1 - level)
            pyplot.close(figure)
    assert seen == {True, False}


def without_observations():
    pyro.sample("z", dist.Normal(0.0, 1.0))


def without_latents():
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))


def subsampling():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("row", 10, subsample_size=3):
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(3))


def with_factor():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.factor("bonus", -z.square())
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))


def infinite():
    pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Delta(torch.tensor(math.inf)), obs=torch.tensor(math.inf))


@pytest.mark.parametrize(
    ("program", "match"),
    [
        (None, "`model` must be a function or a module, was None"),
        (
            without_observations,
            "`model` must have at least one observed site, had none: pass data",
        ),
        (without_latents, "`model` must have at least one latent site, had none"),
        (subsampling, r"`model` must not subsample.*'row' had 3 of 10 rows"),
        (with_factor, r"`model` must not have factors.*'bonus'"),
        (infinite, r"`model` must draw finite values, but 'x' was not finite"),
    ],
)
def test_bad_models(program, match):
    with pytest.raises(ValueError, match=match):
        run(lambda x: {"z": torch.zeros(9)}, program)


def test_a_model_that_changes():
    sizes = iter((2, 3))

    def changing():
        z = pyro.sample("z", dist.Normal(torch.zeros(next(sizes)), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=r"`model` must draw latents of the same.*\(2,\).*\(3,\)"):
        run(lambda x: {"z": torch.zeros(9, 2)}, changing)


GOOD = {"loc": torch.zeros(9), "z": torch.zeros(9, ROWS)}


@pytest.mark.parametrize(
    ("draws", "match"),
    [
        (torch.zeros(9), "`posterior` must return a dict of draws by site, returned a .* tensor"),
        ({"loc": torch.zeros(9)}, r"`posterior` must return draws of all latents, but \['z'\]"),
        (
            GOOD | {"z": torch.zeros(9)},
            r"draws of 'z' at once, of shape \[L, 4\], but these were \(9,\)",
        ),
        (GOOD | {"z": torch.zeros(9, 5)}, r"of shape \[L, 4\], but these were \(9, 5\)"),
        (GOOD | {"loc": torch.tensor(0.0)}, r"of shape \[L\], but these were \(\)"),
        (GOOD | {"loc": torch.full((9,), math.nan)}, r"finite draws, but 'loc' was not finite"),
        (GOOD | {"loc": torch.zeros(8)}, r"same number of draws.*\{'loc': 8, 'z': 9\}"),
        (
            {"loc": torch.zeros(0), "z": torch.zeros(0, ROWS)},
            r"same number of draws.*at least 1, but these were \{'loc': 0, 'z': 0\}",
        ),
    ],
)
def test_bad_draws(draws, match):
    with pytest.raises(ValueError, match=match):
        run(lambda x: draws)


def test_draws_that_change_in_number():
    counts = iter((5, 6))

    def posterior(observations):
        return exact_posterior(num_draws=next(counts))(observations)

    with pytest.raises(ValueError, match=r"same number.*'loc': 6, 'z': 6\}, after 5 at the call"):
        run(posterior)


@pytest.mark.parametrize(
    ("quantities", "match"),
    [
        ({"f": 1.0}, r"`quantities` must be functions, but 'f' was 1.0"),
        ({"z": lambda z, x: 0.0}, r"`quantities` must have other names.*'z' is one"),
        ({"f": lambda z, x: z["z"]}, r"`quantities` must be scalars, but 'f' was .*\(4,\)"),
        ({"f": lambda z, x: math.nan}, r"`quantities` must be scalars, but 'f' was NaN"),
    ],
)
def test_bad_quantities(quantities, match):
    with pytest.raises(ValueError, match=match):
        run(exact_posterior(), quantities=quantities)


@pytest.mark.parametrize(
    ("latents", "observations", "match"),
    [
        (None, {"x": torch.zeros(())}, "`latents` must be a dict of tensors by name, was None"),
        ({}, {"x": torch.zeros(())}, r"`latents` must hold a value of every latent.*\['z'\]"),
        ({"z": torch.zeros(())}, {}, r"`observations` must hold values of observed sites"),
        ({"z": torch.zeros(3)}, {"x": torch.zeros(())}, r"`latents` must hold 'z' in its shape"),
        ({"z": torch.zeros(())}, {"x": torch.zeros(3)}, r"`observations` must hold 'x' in its"),
    ],
)
def test_bad_values_of_the_log_likelihood(latents, observations, match):
    def program():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))

    with pytest.raises(ValueError, match=match):
        log_likelihood_of(program)(latents, observations)


def test_bad_options():
    with pytest.raises(ValueError, match=r"`num_simulations` must be a positive integer, was 0"):
        run(exact_posterior(), num_simulations=0)
    with pytest.raises(ValueError, match="`seed` must be an integer of at least 0, was 0.5"):
        run(exact_posterior(), seed=0.5)
    with pytest.raises(ValueError, match=r"`quantities` must be a dict of functions by name"):
        run(exact_posterior(), quantities=[])
    with pytest.raises(ValueError, match=r"`posterior` must be a function or a module, was {}"):
        run({})


@pytest.mark.parametrize(
    ("ranks", "match"),
    [
        ({}, r"`ranks` must be a dict of tensors by name, not empty"),
        ({"a": torch.zeros(3)}, r"`ranks\['a'\]` must be a dense .*, was a torch.float32 tensor"),
        ({"a": torch.tensor([10])}, r"`ranks\['a'\]` must be from 0 to `num_draws`, 9"),
        (
            {"a": torch.tensor([1]), "b": torch.tensor([1, 2])},
            r"`ranks` must have one number of rows.*'a': 1, 'b': 2",
        ),
    ],
)
def test_bad_ranks(ranks, match):
    with pytest.raises(ValueError, match=match):
        SBC(ranks, num_draws=9)


@pytest.mark.parametrize(
    ("truths", "draws", "match"),
    [
        ([0.0], torch.zeros(1, 9), r"`truths` must be a tensor of real numbers, was \[0\.0\]"),
        (torch.tensor([math.nan]), torch.zeros(1, 9), r"`truths` must not be NaN"),
        (torch.zeros(2), torch.zeros(1, 9), r"`draws` must be of shape.*\(1, 9\) and \(2,\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3, 9), r"`draws` must be of shape.*\(2, 3, 9\)"),
        (torch.zeros(2), torch.zeros(2, 0), r"`draws` must be of shape.*\(2, 0\)"),
    ],
)
def test_bad_truths(truths, draws, match):
    with pytest.raises(ValueError, match=match):
        sbc_ranks(truths, draws)


def test_bad_plots():
    result = SBC({"a": torch.tensor([1])}, num_draws=9)
    with pytest.raises(ValueError, match="`level` must be a number above 0 and below 1, was 0"):
        result.plot(level=0)
    with pytest.raises(ValueError, match=r"`columns` must be a positive integer, was 0"):
        result.plot(columns=0)
