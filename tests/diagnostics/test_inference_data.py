import random
import subprocess
import sys
import types
import warnings
from collections import namedtuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from pyro.nn import PyroModule, PyroParam
from scipy import stats

import pyro_sig
from pyro_sig.diagnostics import draws_to_inference_data, to_inference_data
from pyro_sig.diagnostics._arviz_labels import _build

arviz = pytest.importorskip("arviz")
xarray = pytest.importorskip("xarray")

DATA = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)


@pytest.fixture(autouse=True)
def fresh_store():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def model(data):
    """Latents at every level: global, per group (in an outer plate), per row; a vector each row."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    groups = pyro.plate("group", 2, dim=-2)
    rows = pyro.plate("row", len(data), dim=-1)
    pyro.deterministic("twice", 2 * loc)
    with groups:
        offset = pyro.sample("offset", dist.Normal(loc, 1.0))
    with rows:
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.deterministic("shifted", z[..., 0] + offset[0])
        pyro.sample("x", dist.Normal(z + loc[..., None], 0.1).to_event(1), obs=data)
    with groups, rows:
        pyro.sample("count", dist.Poisson(torch.exp(offset)), obs=torch.ones(2, len(data)))
    pyro.factor("bonus", loc.square())


def guide(data):
    loc = pyro.sample("loc", dist.Normal(5.0, 0.1))
    with pyro.plate("group", 2, dim=-2):
        pyro.sample("offset", dist.Normal(loc, 0.1))
    with pyro.plate("row", len(data), dim=-1):
        pyro.sample("z", dist.Normal(data, 0.1).to_event(1))


def groups_of(idata):
    found = idata.groups() if callable(idata.groups) else [g.strip("/") for g in idata.groups]
    return {group for group in found if group}


def sizes(idata, group):
    return {name: dict(variable.sizes) for name, variable in idata[group].data_vars.items()}


def test_groups_and_dims():
    idata = to_inference_data(model, guide, DATA, num_samples=60)
    assert groups_of(idata) == {
        "posterior",
        "posterior_predictive",
        "log_likelihood",
        "sample_stats",
        "prior",
        "prior_predictive",
        "observed_data",
    }
    lead = {"chain": 1, "draw": 60}
    latents = {
        "loc": lead,
        "twice": lead,
        "offset": {**lead, "group": 2},
        "z": {**lead, "row": 4, "z_dim_0": 3},
        "shifted": {**lead, "row": 4},
    }
    observed = {
        "x": {**lead, "row": 4, "x_dim_0": 3},
        "count": {**lead, "group": 2, "row": 4},
    }
    assert sizes(idata, "posterior") == sizes(idata, "prior") == latents
    assert sizes(idata, "posterior_predictive") == sizes(idata, "prior_predictive") == observed
    assert sizes(idata, "observed_data") == {
        "x": {"row": 4, "x_dim_0": 3},
        "count": {"group": 2, "row": 4},
    }
    assert np.array_equal(idata["observed_data"]["x"], DATA)
    assert sizes(idata, "log_likelihood") == {
        "x": {**lead, "row": 4},
        "count": {**lead, "group": 2, "row": 4},
    }
    assert sizes(idata, "sample_stats") == dict.fromkeys(["lp", "log_q", "log_weight"], lead)


def test_the_draws_belong_together():
    idata = to_inference_data(model, guide, DATA, num_samples=60)
    posterior = idata["posterior"]
    assert np.allclose(posterior["twice"], 2 * posterior["loc"])
    # The noise of x is 0.1: seven standard deviations, 720 times.
    mean = posterior["z"].values + posterior["loc"].values[..., None, None]
    assert np.abs(idata["posterior_predictive"]["x"].values - mean).max() < 0.7
    assert abs(float(posterior["loc"].mean()) - 5) < 0.1
    assert abs(float(idata["prior"]["loc"].mean())) < 1


@pytest.mark.parametrize("parallel", [False, True])
def test_the_law_of_every_group(parallel):
    def simple(data=None):
        z = pyro.sample("z", dist.Normal(1.0, 2.0))
        with pyro.plate("row", 2):
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(2))

    def simple_guide(data=None):
        pyro.sample("z", dist.Normal(-1.0, 0.5))

    idata = to_inference_data(simple, simple_guide, num_samples=1000, parallel=parallel, seed=1)
    for group, name, loc, scale in [
        ("posterior", "z", -1.0, 0.5),
        ("posterior_predictive", "x", -1.0, 1.25**0.5),
        ("prior", "z", 1.0, 2.0),
        ("prior_predictive", "x", 1.0, 5**0.5),
    ]:
        values = idata[group][name].values.reshape(1000, -1)[:, 0]
        # Each of the four checks fails for one seed in 10^6.
        assert stats.kstest(values, stats.norm(loc, scale).cdf).pvalue > 1e-6
    assert sizes(idata, "posterior")["z"] == {"chain": 1, "draw": 1000}
    assert sizes(idata, "prior_predictive")["x"] == {"chain": 1, "draw": 1000, "row": 2}


def test_a_guide_that_draws_nothing():
    class Generator(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = PyroParam(torch.tensor(3.0))

        def forward(self, data):
            with pyro.plate("row", len(data)):
                pyro.sample("x", dist.Normal(self.loc, 0.1).expand([3]).to_event(1), obs=data)

    idata = to_inference_data(Generator(), lambda data: None, DATA, num_samples=20)
    assert groups_of(idata) == {"posterior_predictive", "observed_data"}
    assert abs(float(idata["posterior_predictive"]["x"].mean()) - 3) < 0.1


def test_a_latent_that_the_guide_leaves_out():
    # As under an ELBO that sums z out.
    def partial(data):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(data)):
            z = pyro.sample("z", dist.Normal(loc, 0.1))
            pyro.sample("x", dist.Normal(z, 0.1), obs=data[:, 0])

    def partial_guide(data):
        pyro.sample("loc", dist.Normal(7.0, 0.1))

    idata = to_inference_data(partial, partial_guide, DATA, num_samples=20)
    assert set(idata["posterior"]) == {"loc"} and set(idata["prior"]) == {"loc", "z"}
    assert abs(float(idata["posterior_predictive"]["x"].mean()) - 7) < 0.5


@pytest.mark.parametrize("misspelt", [False, True])
def test_a_guide_that_draws_what_the_model_lacks(misspelt):
    """The density of that site would stand in log q and not in log p: no weight is exported."""

    def loc_model(data):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=data)

    def exact(data):
        pyro.sample("loc_" if misspelt else "loc", dist.Normal(data / 2, 0.5**0.5))
        pyro.sample("c", dist.Normal(0.0, 0.01))

    data = torch.tensor(0.4)
    with pytest.warns(UserWarning, match="without log_q and log_weight: `guide` draws '(c|loc_)'"):
        idata = to_inference_data(loc_model, exact, data, num_samples=4)
    if misspelt:
        assert "posterior" not in groups_of(idata) and "sample_stats" not in groups_of(idata)
    else:
        assert set(idata["posterior"]) == {"loc"} and set(idata["sample_stats"]) == {"lp"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_inference_data(loc_model, exact, data, num_samples=4, sample_stats=False)


def test_without_a_guide_and_without_observations():
    assert groups_of(to_inference_data(model, None, DATA, num_samples=3)) == {
        "prior",
        "prior_predictive",
        "observed_data",
    }

    def generator():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 2):
            pyro.sample("x", dist.Normal(z, 1.0))

    assert groups_of(to_inference_data(generator, num_samples=3)) == {"prior"}

    def z_guide():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    idata = to_inference_data(generator, z_guide, num_samples=3)
    assert set(idata["posterior"]) == {"z"} and set(idata["posterior_predictive"]) == {"x"}


def test_auto_guides_export_the_sites_of_the_model_only():
    auto = AutoMultivariateNormal(model)
    idata = to_inference_data(model, auto, DATA, num_samples=5)
    assert set(idata["posterior"]) == {"loc", "offset", "z", "twice", "shifted"}
    assert sizes(idata, "posterior")["offset"] == {"chain": 1, "draw": 5, "group": 2}


def test_names_of_dims_and_coords():
    idata = to_inference_data(
        model,
        guide,
        DATA,
        num_samples=3,
        dims={"z": ["axis"], "x": ["case", "pixel"]},
        coords={"axis": ["a", "b", "c"], "row": [10, 11, 12, 13]},
    )
    assert sizes(idata, "posterior")["z"] == {"chain": 1, "draw": 3, "row": 4, "axis": 3}
    assert sizes(idata, "observed_data")["x"] == {"case": 4, "pixel": 3}
    assert sizes(idata, "log_likelihood")["x"] == {"chain": 1, "draw": 3, "case": 4}
    assert idata["posterior"]["axis"].values.tolist() == ["a", "b", "c"]
    assert idata["posterior"]["row"].values.tolist() == [10, 11, 12, 13]


def test_plates_named_like_a_reserved_dim():
    def unlucky():
        with pyro.plate("draw", 2):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    idata = to_inference_data(unlucky, num_samples=3)
    assert sizes(idata, "prior")["x"] == {"chain": 1, "draw": 3, "draw_plate": 2}


def rows_only(data):
    with pyro.plate("row", len(data), subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=data[rows, 0])


def test_sites_in_a_subsampled_plate_are_left_out():
    def subsampled(data):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(data), subsample_size=2) as rows:
            pyro.sample("x", dist.Normal(loc, 1.0), obs=data[rows, 0])

    def loc_guide(data):
        pyro.sample("loc", dist.Normal(0.0, 1.0))

    with pytest.warns(UserWarning, match=r"left out: x \(plate row\).*`create_plates`"):
        idata = to_inference_data(subsampled, loc_guide, DATA, num_samples=3)
    assert groups_of(idata) == {"posterior", "prior"}
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="nothing to export"),
    ):
        to_inference_data(rows_only, None, DATA, num_samples=3)


def test_seeded_draws_repeat_and_leave_the_global_states_alone():
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = to_inference_data(model, guide, DATA, num_samples=5, seed=3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    assert random.getstate() == states[2]
    torch.randn(3)
    second = to_inference_data(model, guide, DATA, num_samples=5, seed=3)
    third = to_inference_data(model, guide, DATA, num_samples=5, seed=4)
    for group in ("posterior", "prior", "posterior_predictive"):
        assert first[group].equals(second[group])
        assert not first[group].equals(third[group])
    assert first["posterior"].attrs["seed"] == 3
    unseeded = to_inference_data(model, guide, DATA, num_samples=5)
    assert "seed" not in unseeded["posterior"].attrs
    assert not torch.equal(torch.get_rng_state(), states[0])


def test_nothing_is_trained_or_recorded():
    loc = pyro.param("q", torch.tensor(0.0))

    def param_guide(data):
        pyro.sample("loc", dist.Normal(pyro.param("q"), 1.0))

    def loc_model(data):
        pyro.sample("x", dist.Normal(pyro.sample("loc", dist.Normal(0.0, 1.0)), 1.0), obs=data)

    with pyro.poutine.trace() as recorded:
        to_inference_data(loc_model, param_guide, torch.tensor(0.0), num_samples=3)
    assert not recorded.trace.nodes and loc.grad is None


def test_attributes():
    idata = to_inference_data(model, guide, DATA, num_samples=3, attrs={"study": "rows"})
    for group in groups_of(idata):
        attributes = idata[group].attrs
        assert attributes["inference_library"] == "pyro_sig"
        assert attributes["inference_library_version"] == pyro_sig.__version__
        assert attributes["pyro_version"] == pyro.__version__
        assert attributes["torch_version"] == str(torch.__version__)
        assert attributes["study"] == "rows"


def test_summary_and_netcdf(tmp_path):
    pytest.importorskip("h5netcdf")
    idata = to_inference_data(model, guide, DATA, num_samples=50, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one chain: ArviZ says that r_hat needs more
        summary = arviz.summary(idata, var_names=["loc", "offset"])
    assert list(summary.index) == ["loc", "offset[0]", "offset[1]"]
    path = tmp_path / "draws.nc"
    idata.to_netcdf(str(path))
    loaded = arviz.from_netcdf(str(path))
    assert loaded["posterior"]["z"].equals(idata["posterior"]["z"])
    assert loaded["observed_data"].attrs["inference_library"] == "pyro_sig"
    assert loaded["posterior"].attrs["seed"] == 0
    loaded.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_plain_draws(dtype):
    posterior = {"z": torch.ones(7, 2).to(dtype), "scalar": np.arange(7)}
    idata = draws_to_inference_data(
        posterior,
        prior={"z": torch.zeros(5, 2)},
        posterior_predictive={"x": torch.zeros(7, 3)},
        prior_predictive={"x": torch.zeros(5, 3)},
        observed_data={"x": torch.zeros(3)},
        dims={"z": ["axis"], "x": ["row"]},
        coords={"row": [1, 2, 3]},
        attrs={"study": "plain"},
    )
    assert sizes(idata, "posterior") == {
        "z": {"chain": 1, "draw": 7, "axis": 2},
        "scalar": {"chain": 1, "draw": 7},
    }
    assert sizes(idata, "prior")["z"] == {"chain": 1, "draw": 5, "axis": 2}
    assert sizes(idata, "observed_data") == {"x": {"row": 3}}
    assert idata["posterior_predictive"]["row"].values.tolist() == [1, 2, 3]
    assert idata["prior"].attrs["study"] == "plain"
    assert (idata["posterior"]["z"].values == 1).all()


def test_plain_draws_in_chains():
    posterior = {"z": torch.randn(2, 10), "w": np.zeros((2, 10, 3))}
    idata = draws_to_inference_data(
        posterior,
        posterior_predictive={"x": torch.zeros(2, 10, 4)},
        log_likelihood={"x": 0.1 * torch.randn(2, 10, 4)},
        sample_stats={"lp": torch.zeros(2, 10), "diverging": torch.zeros(2, 10).bool()},
        prior={"z": torch.zeros(5)},
        observed_data={"x": torch.zeros(4)},
        chains=True,
        dims={"x": ["row"]},
    )
    lead = {"chain": 2, "draw": 10}
    assert sizes(idata, "posterior") == {"z": lead, "w": {**lead, "w_dim_0": 3}}
    assert sizes(idata, "log_likelihood") == {"x": {**lead, "row": 4}}
    assert sizes(idata, "sample_stats") == {"lp": lead, "diverging": lead}
    assert sizes(idata, "prior") == {"z": {"chain": 1, "draw": 5}}
    assert np.array_equal(idata["posterior"]["z"], posterior["z"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # twenty draws are few
        assert arviz.loo(idata).n_samples == 20
    # The same draws in one chain.
    flat = draws_to_inference_data({"z": posterior["z"].flatten()}, sample_stats={})
    assert sizes(flat, "posterior") == {"z": {"chain": 1, "draw": 20}}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, r"nothing to export"),
        ({"posterior": torch.zeros(3)}, r"`posterior` must be a dict of tensors.*torch"),
        (
            {"prior": {"z": [1.0]}},
            r"`prior` must hold tensors or arrays.*, but 'z' was \[1",
        ),
        ({"posterior": {"z": torch.eye(3).to_sparse()}}, r"`posterior` must hold.*sparse"),
        ({"posterior": {"z": torch.zeros(3)}, "chains": "no"}, "`chains` must be True or False"),
        (
            {"posterior": {"z": torch.zeros(3, 2)}, "dims": {"z": "ab"}},
            "`dims` must hold sequences",
        ),
        ({"posterior": {"z": torch.zeros(3)}, "dims": {"z": ["a"]}}, "`dims` must name the 0 dim"),
        (
            {
                "posterior": {"z": torch.zeros(3, 2)},
                "dims": {"z": ["a"]},
                "coords": {"a": [1, 2, 3]},
            },
            "`dims` and `coords` must give every dimension one size.*'a' had 3 .* and 2 for 'z'",
        ),
        ({"posterior": {"z": torch.tensor(1.0)}}, r"`posterior`.*\[draws, \.\.\.\]"),
        (
            {"posterior": {"z": torch.zeros(3), "y": torch.zeros(4)}},
            r"`posterior`.*same number of draws.*\(3,\).*\(4,\)",
        ),
        (
            {"posterior": {"z": torch.zeros(3)}, "chains": True},
            r"`posterior`.*\[chains, draws, \.\.\.\].*\(3,\)",
        ),
        (
            {"posterior": {"z": torch.zeros(3, 1), "y": torch.zeros(3, 2)}, "chains": True},
            r"`posterior`.*\[chains, draws, \.\.\.\].*\(3, 1\).*\(3, 2\)",
        ),
        (
            {"posterior": {"z": torch.zeros(3)}, "log_likelihood": {"x": torch.zeros(4, 2)}},
            r"`log_likelihood` must hold one entry for each draw.*\(3,\), but its own was \(4,\)",
        ),
        (
            {"sample_stats": {"log_weight": torch.tensor([0.0, -torch.inf, torch.nan])}},
            r"`sample_stats` must be finite, but 'log_weight' was infinite or NaN in 2 of 3",
        ),
    ],
)
def test_bad_draws(arguments, match):
    with pytest.raises(ValueError, match=match):
        draws_to_inference_data(**arguments)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`num_samples` must be a positive integer, was 0"):
        to_inference_data(model, guide, DATA, num_samples=0)
    with pytest.raises(ValueError, match=r"`model` must be a function or a module, was 3"):
        to_inference_data(3)
    with pytest.raises(
        ValueError, match=r"`guide` must be a function, a module or None,.*, was .*torch"
    ):
        to_inference_data(model, DATA)
    # As `fit` returns its guide, among other things.
    fitted = namedtuple("Fit", ["guide", "loss"])(lambda: None, 1.0)
    with pytest.raises(ValueError, match=r"`guide` must hold .*guide of the Fit, its `.guide`"):
        to_inference_data(lambda: None, fitted)
    with pytest.raises(ValueError, match=r"`guide` must hold at least one callable.*\[\]"):
        to_inference_data(model, [])
    with pytest.raises(ValueError, match=r"`dims` must name all 2 dimensions of 'z', or the 1"):
        to_inference_data(model, guide, DATA, num_samples=2, dims={"z": ["a", "b", "c"]})

    def wrong_guide(data):
        pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def loc_model(data):
        loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=data)

    with pytest.raises(ValueError, match=r"`guide` must give 'loc' the shape.*\(3,\).*\(2,\)"):
        to_inference_data(loc_model, wrong_guide, DATA[0], num_samples=2)


@pytest.mark.parametrize("version", ["0.23.4", "1.0.0", "1.3.0rc1"])
def test_both_lines_of_arviz_get_their_groups(version, monkeypatch):
    calls = []
    fake = types.ModuleType("arviz")
    fake.__version__ = version
    fake.from_dict = lambda *args, **kwargs: calls.append((args, kwargs))
    monkeypatch.setitem(sys.modules, "arviz", fake)
    groups = {"posterior": {"z": np.zeros((1, 2))}}
    _build(groups, coords={}, dims={"z": []})
    labels = {"coords": {}, "dims": {"z": []}}
    if version.startswith("0"):
        assert calls == [((), {**groups, **labels})]
    else:
        assert calls == [((groups,), labels)]


@pytest.mark.parametrize("version", ["0.23.4", "1.2.0"])
def test_dims_of_a_masked_log_likelihood_in_both_lines(version, monkeypatch):
    """The group is built by a call of its own, because its variable has other dimensions."""
    groups = {"posterior": {"x": np.zeros((1, 2, 4))}, "log_likelihood": {"x": np.ones((1, 2, 3))}}
    if version.startswith("1"):

        def from_dict(groups, coords, dims):
            def variable(name, x):
                return (("chain", "draw", *dims[name]), x)

            return xarray.DataTree.from_dict(
                {
                    group: xarray.Dataset({name: variable(name, x) for name, x in values.items()})
                    for group, values in groups.items()
                }
            )

        fake = types.ModuleType("arviz")
        fake.__version__, fake.from_dict = version, from_dict
        monkeypatch.setitem(sys.modules, "arviz", fake)
    data = _build(groups, {"left": [0, 2, 3]}, {"x": ["row"]}, pointwise={"x": ["left"]})
    assert groups_of(data) == set(groups)
    assert data["posterior"]["x"].dims == ("chain", "draw", "row")
    assert data["log_likelihood"]["x"].dims == ("chain", "draw", "left")
    assert (data["log_likelihood"]["x"].values == 1).all()


def test_arviz_is_imported_in_the_function_only():
    code = "import sys, pyro_sig.diagnostics; assert 'arviz' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
