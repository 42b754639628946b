"""The pool fills, then swaps half of what comes in, and forgets nothing else."""

import io
import math

import pytest
import torch

from pyro_sig.adversarial import ImagePool


def numbered(start, stop, **kwargs):
    """Fakes that can be told apart."""
    return torch.arange(start, stop, **kwargs).float()[:, None]


def test_it_shows_new_fakes_until_it_is_full():
    pool, fakes = ImagePool(5), numbered(0, 5)
    assert torch.equal(pool(fakes[:3]), fakes[:3])
    assert len(pool) == 3
    assert torch.equal(pool(fakes[3:]), fakes[3:])
    assert len(pool) == 5
    assert torch.equal(pool.state_dict()["stored"], fakes)


@pytest.mark.parametrize("batch", [1, 3, 8, 30])
@pytest.mark.parametrize("size", [1, 4, 10])
def test_what_is_shown_and_what_is_stored_is_all_that_came(batch, size):
    pool, shown, seen = ImagePool(size), [], 0
    for _ in range(6):
        shown.append(pool(numbered(seen, seen + batch))[:, 0])
        assert shown[-1].shape == (batch,)
        seen += batch
    shown = torch.cat(shown)
    stored = pool.state_dict()["stored"][:, 0]
    # The first ones were shown and stored; a swap shows one and stores another.
    values, counts = torch.cat([shown, stored]).unique(return_counts=True)
    assert torch.equal(values, torch.arange(seen).float())
    assert int((counts == 2).sum()) == min(size, seen)
    assert int(counts.max()) <= 2


def test_a_fake_is_swapped_with_probability_one_half():
    pool, n = ImagePool(50), 20_000
    pool(numbered(0, 50))
    swapped = 0
    for start in range(50, 50 + n, 20):
        new = numbered(start, start + 20)
        swapped += int((pool(new) != new).sum())
    # Normal approximation, failure rate 6e-7 at five standard errors.
    assert abs(swapped / n - 0.5) < 5 * math.sqrt(0.25 / n)


def test_each_stored_fake_is_as_likely_to_come_out():
    trials, counts = 4000, torch.zeros(4)
    for _ in range(trials):
        pool = ImagePool(4)
        pool(numbered(0, 4))
        shown = pool(numbered(4, 5))
        if shown.item() < 4:
            counts[int(shown)] += 1
    # Each comes out with probability 1 / 8; four of them at five standard errors: rate 2e-6.
    error = 5 * math.sqrt(trials * 1 / 8 * 7 / 8)
    assert ((counts - trials / 8).abs() < error).all()


def test_a_pool_of_size_zero_shows_what_it_gets():
    pool = ImagePool(0)
    state = torch.get_rng_state()
    fakes = numbered(0, 7)
    assert torch.equal(pool(fakes), fakes)
    assert len(pool) == 0
    assert torch.equal(state, torch.get_rng_state())


def test_nothing_that_it_keeps_or_shows_has_a_gradient_or_shares_memory():
    pool = ImagePool(4)
    fakes = torch.zeros(3, 2, requires_grad=True)
    shown = pool(fakes * 1)
    assert not shown.requires_grad
    assert not pool.state_dict()["stored"].requires_grad
    shown += 1
    with torch.no_grad():
        fakes += 1
    assert float(pool.state_dict()["stored"].abs().sum()) == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_type_follows_the_fakes(dtype):
    pool = ImagePool(4)
    pool(torch.zeros(4, 2))
    shown = pool(torch.ones(4, 2, dtype=dtype))
    assert shown.dtype == pool.state_dict()["stored"].dtype == dtype


@pytest.mark.parametrize("seen", [0, 2, 9])
def test_a_restored_pool_goes_on_bit_for_bit(seen):
    pool = ImagePool(4)
    if seen:
        pool(numbered(0, seen))
    file = io.BytesIO()
    torch.save(pool.state_dict(), file)
    file.seek(0)
    fresh = ImagePool(4)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    shown = []
    for each in (pool, fresh):
        torch.manual_seed(1)
        shown.append(torch.cat([each(numbered(10 * i, 10 * i + 6)) for i in range(1, 4)]))
    assert torch.equal(*shown)


def test_a_state_does_not_change_with_the_pool():
    pool = ImagePool(4)
    pool(numbered(0, 4))
    state = pool.state_dict()
    pool(numbered(10, 30))
    assert torch.equal(state["stored"], numbered(0, 4))
    pool.load_state_dict(state)
    pool(numbered(10, 30))
    assert torch.equal(state["stored"], numbered(0, 4))


@pytest.mark.parametrize("size", [-1, 1.5, True, None])
def test_bad_sizes(size):
    with pytest.raises(ValueError, match="`size` must be an integer of at least 0"):
        ImagePool(size)


def test_bad_fakes_and_states():
    pool = ImagePool(4)
    pool(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"`fakes` must have rows of shape \(3,\)"):
        pool(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="`state_dict` must hold at most 1"):
        ImagePool(1).load_state_dict(pool.state_dict())


def test_it_has_a_repr():
    assert repr(ImagePool(7)) == "ImagePool(7)"


@pytest.mark.cuda
def test_the_same_fakes_are_swapped_on_any_device():
    shown = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        pool = ImagePool(4)
        shown.append(
            torch.cat([pool(numbered(i, i + 6, device=device)) for i in range(0, 30, 6)]).cpu()
        )
    assert torch.equal(*shown)
