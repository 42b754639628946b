"""Eleven posteriors of posteriordb as Pyro models, for comparison with their reference draws.

Each model is a function of prepared data, written from the Stan program that its docstring names:
the same parameters, the same density but for a constant. Other scripts import them:

    posterior = MODELS["garch-garch11"]
    data = load(folder, "garch-garch11", dtype=torch.float64)
    svi = SVI(posterior.model, guide, optimiser, Trace_ELBO())
    svi.step(data)

Run alone, the script prints what there is. It writes nothing.

    python examples/posteriordb_models.py --data-dir data

Models run alone, under `torch.func.vmap`, and in plates of particles: `Trace_ELBO` with
`vectorize_particles`, or any plates at dim -2 and further left. There a scalar latent has shape
[*, 1] and a vector [*, 1, D]. Where a prior of Stan is flat, a normal one of width `WIDE` stands
for it, since most of Pyro's initialisers draw from the prior; a draw that wide is a poor start, so
give automatic guides `init_loc_fn=init_to_feasible`.
"""

import argparse
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_sig.datasets import read_posteriordb
from pyro_sig.diagnostics import draw_matrix

Raw = dict[str, Any]  # what the Stan program reads, tensors and integers
Data = dict[str, Tensor]  # what the Pyro model reads
Samples = dict[str, Tensor]

WIDE = 1e4  # the parameters with flat priors lie within 100 of zero


# -------------------------------------------------------------------------------- what models share


def constant(data: Data, value: float) -> Tensor:
    """Return a number with the dtype and on the device of the data."""
    return data["y"].new_full((), value)


def rows(values: Tensor) -> Tensor:
    """Move the last dimension of [*, 1, N] into the data plate, [*, N]; leave [N] alone."""
    return values if values.dim() == 1 else values.squeeze(-2)


def flat(data: Data) -> dist.TorchDistribution:
    """Stand for Stan's flat prior on the real line."""
    return dist.Normal(constant(data, 0.0), WIDE)


def flat_positive(data: Data) -> dist.TorchDistribution:
    """Stand for Stan's flat prior on positive numbers: flat in sigma, not in its logarithm."""
    return dist.HalfNormal(constant(data, WIDE))


def regression(
    data: Data, beta_prior: dist.TorchDistribution, sigma_prior: dist.TorchDistribution
) -> None:
    """Observe y ~ normal(X beta, sigma)."""
    X = data["X"]
    beta = pyro.sample("beta", beta_prior.expand([X.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", sigma_prior)
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(rows(beta @ X.T), sigma), obs=data["y"])


def design(*columns: Tensor) -> Tensor:
    """Return the matrix with an intercept and these columns."""
    return torch.stack([torch.ones_like(columns[0]), *columns], -1)


def unchanged(samples: Samples) -> Samples:
    """Return the samples: the latent sites are the parameters."""
    return samples


# ------------------------------------------------------------------------------------- regressions


def prepare_kidscore_momiq(raw: Raw) -> Data:
    """Regress a child's score on the mother's IQ."""
    return {"X": design(raw["mom_iq"]), "y": raw["kid_score"]}


def kidscore_momiq(data: Data) -> None:
    """Follow kidscore_momiq.stan: beta flat, sigma half-Cauchy."""
    regression(data, flat(data), dist.HalfCauchy(constant(data, 2.5)))


def prepare_kidscore_interaction_c(raw: Raw) -> Data:
    """Regress a child's score on centred predictors and their product."""
    high_school = raw["mom_hs"] - raw["mom_hs"].mean()
    iq = raw["mom_iq"] - raw["mom_iq"].mean()
    return {"X": design(high_school, iq, high_school * iq), "y": raw["kid_score"]}


def kidscore_interaction_c(data: Data) -> None:
    """Follow kidscore_interaction_c.stan: beta and sigma flat."""
    regression(data, flat(data), flat_positive(data))


def prepare_logearn_interaction_z(raw: Raw) -> Data:
    """Regress log earnings on standardised height, sex and their product."""
    height = (raw["height"] - raw["height"].mean()) / raw["height"].std()
    return {"X": design(height, raw["male"], height * raw["male"]), "y": raw["earn"].log()}


def logearn_interaction_z(data: Data) -> None:
    """Follow logearn_interaction_z.stan: beta and sigma flat."""
    regression(data, flat(data), flat_positive(data))


def prepare_logmesquite(raw: Raw) -> Data:
    """Regress the log weight of bushes on their log measures and the group."""
    measures = ("diam1", "diam2", "canopy_height", "total_height", "density")
    X = design(*(raw[name].log() for name in measures), raw["group"])
    return {"X": X, "y": raw["weight"].log()}


def logmesquite(data: Data) -> None:
    """Follow logmesquite.stan: beta and sigma flat."""
    regression(data, flat(data), flat_positive(data))


def prepare_nes(raw: Raw) -> Data:
    """Regress party identification on opinions, age as a factor, and circumstances."""
    age = raw["age_discrete"]
    ages = [(age == level).to(age.dtype) for level in (2, 3, 4)]
    others = [raw[name] for name in ("educ1", "gender", "income")]
    return {"X": design(raw["real_ideo"], raw["race_adj"], *ages, *others), "y": raw["partyid7"]}


def nes(data: Data) -> None:
    """Follow nes.stan: beta and sigma flat."""
    regression(data, flat(data), flat_positive(data))


def prepare_blr(raw: Raw) -> Data:
    """Take the design as it is."""
    return {"X": raw["X"], "y": raw["y"]}


def blr(data: Data) -> None:
    """Follow blr.stan: beta normal, sigma half-normal."""
    regression(data, dist.Normal(constant(data, 0.0), 10.0), dist.HalfNormal(constant(data, 10.0)))


# ------------------------------------------------------------------------------------- time series


def prepare_arK(raw: Raw) -> Data:
    """Put the K values before each observed one beside it, the latest first."""
    y, K = raw["y"], raw["K"]
    return {"X": y.unfold(0, K, 1)[:-1].flip(-1), "y": y[K:]}


def arK(data: Data) -> None:
    """Follow arK.stan: an autoregression of order K."""
    X = data["X"]
    prior = dist.Normal(constant(data, 0.0), 10.0)
    alpha = pyro.sample("alpha", prior)
    beta = pyro.sample("beta", prior.expand([X.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfCauchy(constant(data, 2.5)))
    # A plate, since each value is scored given the observed ones before it.
    with pyro.plate("data", len(X)):
        pyro.sample("y", dist.Normal(alpha + rows(beta @ X.T), sigma), obs=data["y"])


def prepare_garch11(raw: Raw) -> Data:
    """Take the series and the first standard deviation."""
    return {"y": raw["y"], "sigma1": raw["sigma1"]}


def garch11(data: Data) -> None:
    """Follow garch11.stan: (alpha1, beta1) flat on the triangle where their sum is below 1.

    A site's support must not depend on another site: guides fix their transforms once. So beta1 is
    a fraction of 1 - alpha1. The law below is uniform on the triangle, with density 2.
    """
    y = data["y"]
    mu = pyro.sample("mu", flat(data))
    alpha0 = pyro.sample("alpha0", flat_positive(data))
    alpha1 = pyro.sample("alpha1", dist.Beta(constant(data, 1.0), 2.0))
    fraction = pyro.sample("beta1_fraction", dist.Uniform(constant(data, 0.0), 1.0))
    beta1 = pyro.deterministic("beta1", fraction * (1 - alpha1), event_dim=0)
    news = alpha0 + alpha1 * (y[:-1] - mu).square()
    first = data["sigma1"].square().expand(news.shape[:-1] + (1,))
    variance = discounted_sums(torch.cat([first, news], -1), beta1)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, variance.sqrt()), obs=y)


def discounted_sums(terms: Tensor, factor: Tensor) -> Tensor:
    """Return v with v[t] = terms[t] + factor v[t-1] over [*, T], in log2(T) steps.

    Each step doubles how many terms back the sums reach.
    """
    sums, reach = terms, 1
    while reach < terms.shape[-1]:
        sums = sums + factor * nn.functional.pad(sums[..., :-reach], (reach, 0))
        factor, reach = factor.square(), 2 * reach
    return sums


def garch11_parameters(samples: Samples) -> Samples:
    """Add beta1."""
    return samples | {"beta1": samples["beta1_fraction"] * (1 - samples["alpha1"])}


def garch11_latents(draws: Samples) -> Samples:
    """Replace beta1 by its fraction."""
    latents = {name: draws[name] for name in ("mu", "alpha0", "alpha1")}
    return latents | {"beta1_fraction": draws["beta1"] / (1 - draws["alpha1"])}


# ------------------------------------------------------------------------------------- other models


def prepare_eight_schools(raw: Raw) -> Data:
    """Take the effects and their standard errors."""
    return {"y": raw["y"], "sigma": raw["sigma"]}


def eight_schools_noncentered(data: Data) -> None:
    """Follow eight_schools_noncentered.stan; the draws have theta, not theta_trans."""
    num_schools = len(data["y"])
    standard = dist.Normal(constant(data, 0.0), 1.0)
    theta_trans = pyro.sample("theta_trans", standard.expand([num_schools]).to_event(1))
    mu = pyro.sample("mu", dist.Normal(constant(data, 0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(constant(data, 5.0)))
    theta = theta_trans * tau.unsqueeze(-1) + mu.unsqueeze(-1)
    theta = pyro.deterministic("theta", theta, event_dim=1)
    with pyro.plate("data", num_schools):
        pyro.sample("y", dist.Normal(rows(theta), data["sigma"]), obs=data["y"])


def eight_schools_parameters(samples: Samples) -> Samples:
    """Add theta."""
    mu, tau = samples["mu"].unsqueeze(-1), samples["tau"].unsqueeze(-1)
    return samples | {"theta": samples["theta_trans"] * tau + mu}


def eight_schools_latents(draws: Samples) -> Samples:
    """Replace theta by theta_trans."""
    mu, tau = draws["mu"], draws["tau"]
    theta_trans = (draws["theta"] - mu.unsqueeze(-1)) / tau.unsqueeze(-1)
    return {"theta_trans": theta_trans, "mu": mu, "tau": tau}


class Ordered(dist.TorchDistribution):
    """Independent draws of one law on the line, sorted: Stan's prior on an ordered vector.

    :param base: the law, with shape [*].
    :param size: number of draws in a vector.
    """

    arg_constraints = {}
    support = constraints.ordered_vector
    has_rsample = True

    def __init__(
        self, base: dist.TorchDistribution, size: int, validate_args: bool | None = None
    ) -> None:
        self.base, self.size = base, size
        super().__init__(base.batch_shape, torch.Size([size]), validate_args=validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: None = None) -> "Ordered":
        """Return the law with this batch shape."""
        return Ordered(self.base.expand(torch.Size(batch_shape)), self.size, self._validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draw vectors."""
        draws = self.base.rsample(torch.Size([self.size, *sample_shape]))
        return draws.movedim(0, -1).sort(-1).values

    def log_prob(self, value: Tensor) -> Tensor:
        """Score vectors: each is the image of size! unsorted ones."""
        if self._validate_args:
            self._validate_sample(value)
        return self.base.log_prob(value.movedim(-1, 0)).sum(0) + math.lgamma(self.size + 1)


def prepare_low_dim_gauss_mix(raw: Raw) -> Data:
    """Take the points."""
    return {"y": raw["y"]}


def low_dim_gauss_mix(data: Data) -> None:
    """Follow low_dim_gauss_mix.stan: two normals with ordered means, the labels summed out."""
    y = data["y"]
    mu = pyro.sample("mu", Ordered(dist.Normal(constant(data, 0.0), 2.0), 2))
    sigma = pyro.sample("sigma", dist.HalfNormal(constant(data, 2.0)).expand([2]).to_event(1))
    theta = pyro.sample("theta", dist.Beta(constant(data, 5.0), 5.0))
    # Several times as fast as MixtureSameFamily, which expands the weights to every point.
    first, second = (dist.Normal(mu[..., k], sigma[..., k]).log_prob(y) for k in (0, 1))
    log_mix = torch.logaddexp(theta.log() + first, (-theta).log1p() + second)
    with pyro.plate("data", len(y)):
        pyro.factor("y", log_mix)


def prepare_gp_regr(raw: Raw) -> Data:
    """Compute squared distances once."""
    x, y = raw["x"], raw["y"]
    squares = (x.unsqueeze(-1) - x).square()
    return {"squares": squares, "identity": torch.eye(len(y), dtype=y.dtype), "y": y}


def gp_regr(data: Data) -> None:
    """Follow gp_regr.stan, where sigma is a variance; the points are one draw, without a plate."""
    y = data["y"]
    rho = pyro.sample("rho", dist.Gamma(constant(data, 25.0), 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(constant(data, 2.0)))
    sigma = pyro.sample("sigma", dist.HalfNormal(constant(data, 1.0)))
    rho, alpha, sigma = (value[..., None, None] for value in (rho, alpha, sigma))
    kernel = alpha.square() * (-data["squares"] / (2 * rho.square())).exp()
    factor = torch.linalg.cholesky(kernel + sigma * data["identity"])
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), scale_tril=factor), obs=y)


# -------------------------------------------------------------------------------------------- table


@dataclass(frozen=True)
class PosteriorModel:
    """A posterior as a Pyro model.

    :param model: the model, a function of prepared data.
    :param prepare: makes its data from those of the Stan program.
    :param parameters: names to compare with reference draws, in the order of these.
    :param to_parameters: adds parameters that follow from the latent sites to samples of these.
    :param to_latents: gives the latent sites from parameters. Both take any leading dimensions.
    """

    model: Callable[[Data], None]
    prepare: Callable[[Raw], Data]
    parameters: tuple[str, ...]
    to_parameters: Callable[[Samples], Samples] = unchanged
    to_latents: Callable[[Samples], Samples] = unchanged


MODELS = {
    "gp_pois_regr-gp_regr": PosteriorModel(gp_regr, prepare_gp_regr, ("rho", "alpha", "sigma")),
    "kidiq-kidscore_momiq": PosteriorModel(
        kidscore_momiq, prepare_kidscore_momiq, ("beta", "sigma")
    ),
    "garch-garch11": PosteriorModel(
        garch11,
        prepare_garch11,
        ("mu", "alpha0", "alpha1", "beta1"),
        garch11_parameters,
        garch11_latents,
    ),
    "earnings-logearn_interaction_z": PosteriorModel(
        logearn_interaction_z, prepare_logearn_interaction_z, ("beta", "sigma")
    ),
    "kidiq_with_mom_work-kidscore_interaction_c": PosteriorModel(
        kidscore_interaction_c, prepare_kidscore_interaction_c, ("beta", "sigma")
    ),
    "low_dim_gauss_mix-low_dim_gauss_mix": PosteriorModel(
        low_dim_gauss_mix, prepare_low_dim_gauss_mix, ("mu", "sigma", "theta")
    ),
    "sblri-blr": PosteriorModel(blr, prepare_blr, ("beta", "sigma")),
    "arK-arK": PosteriorModel(arK, prepare_arK, ("alpha", "beta", "sigma")),
    "mesquite-logmesquite": PosteriorModel(logmesquite, prepare_logmesquite, ("beta", "sigma")),
    "eight_schools-eight_schools_noncentered": PosteriorModel(
        eight_schools_noncentered,
        prepare_eight_schools,
        ("theta", "mu", "tau"),
        eight_schools_parameters,
        eight_schools_latents,
    ),
    "nes1980-nes": PosteriorModel(nes, prepare_nes, ("beta", "sigma")),
}


def load(
    folder: str | os.PathLike[str],
    name: str,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Data:
    """Read and prepare the data of a model; without a dtype in torch's default."""
    raw = read_posteriordb(folder, name).data
    dtype = dtype or torch.get_default_dtype()
    prepared = MODELS[name].prepare(raw)
    return {key: value.to(device, dtype).contiguous() for key, value in prepared.items()}


def load_draws(folder: str | os.PathLike[str], name: str) -> Samples:
    """Read the reference draws in float64, all chains after one another: shape [S, *]."""
    draws = read_posteriordb(folder, name).draws
    return {key: values.flatten(0, 1) for key, values in draws.items()}


def posteriordb_folder(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return where the files are, or say how to get them."""
    folder = Path(data_dir or ".") / "posteriordb"
    if data_dir is not None and (folder / "INDEX.tsv").is_file():
        return folder
    problem = "--data-dir or PYRO_SIG_DATA must be set" if data_dir is None else f"no {folder}"
    raise FileNotFoundError(
        f"{problem}: the folder posteriordb there must hold INDEX.tsv, data/*.json.zip and "
        "draws/*.json.zip. The archives are in https://github.com/stan-dev/posteriordb, in "
        "posterior_database/data/data and posterior_database/reference_posteriors/draws/draws; "
        "INDEX.tsv has a line for each posterior with its name and the names of its two archives, "
        "in columns posterior, data and draws"
    )


def main(args: argparse.Namespace) -> None:
    """Print a line for each posterior."""
    folder = posteriordb_folder(args.data_dir)
    print(f"{'posterior':44}{'dims':>5}{'observed':>10}{'means':>20}{'sds':>20}")
    for name, posterior in MODELS.items():
        draws = draw_matrix(load_draws(folder, name), posterior.parameters)
        observed = len(load(folder, name)["y"])
        ranges = [
            f"{float(values.min()):.3g} to {float(values.max()):.3g}"
            for values in (draws.mean(0), draws.std(0))
        ]
        print(f"{name:44}{draws.shape[-1]:5}{observed:10}{ranges[0]:>20}{ranges[1]:>20}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-dir",
        default=os.environ.get("PYRO_SIG_DATA"),
        help="has the folder posteriordb; PYRO_SIG_DATA by default",
    )
    try:
        main(parser.parse_args())
    except FileNotFoundError as error:
        parser.error(str(error))
