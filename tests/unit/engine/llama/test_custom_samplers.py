"""`engine.backend_custom`: tail-free sampling keeps exactly the tokens that llama.cpp's former sampler kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.llama.sampler import compute_tail_free_length


def kept_by_2024(probs: list[float], z: float, min_keep: int) -> int:
    """llama.cpp, src/llama.cpp of July 2024, `llama_sample_tail_free_impl`, line by line."""
    first = [probs[i] - probs[i + 1] for i in range(len(probs) - 1)]
    second = [first[i] - first[i + 1] for i in range(len(first) - 1)]
    second = [abs(value) for value in second]
    total = sum(second)
    second = [value / total for value in second] if total > 1e-6 else [1.0 / len(second)] * len(second)
    cum_sum, last_idx = 0.0, len(probs)
    for i, value in enumerate(second):
        cum_sum += value
        if cum_sum > z and i >= min_keep:
            last_idx = i
            break
    return last_idx


WEIGHTS = st.lists(st.floats(0.001, 100), min_size=3, max_size=40).map(lambda w: sorted(w, reverse=True))


@given(weights=WEIGHTS, z=st.floats(0.0, 1.0), min_keep=st.integers(1, 50))
def test_the_tail_is_cut_where_it_was_in_2024(weights, z, min_keep):
    probs = [weight / sum(weights) for weight in weights]
    kept = compute_tail_free_length(probs, z, min_keep)
    assert (len(probs) if kept is None else kept) == kept_by_2024(probs, z, min_keep)


@given(weights=WEIGHTS, z=st.floats(0.0, 1.0))
def test_at_least_one_token_is_left(weights, z):
    probs = [weight / sum(weights) for weight in weights]
    kept = compute_tail_free_length(probs, z, 0)
    assert kept is None or 1 <= kept < len(probs)


def test_a_flat_curve_is_cut_by_its_length_alone():
    assert compute_tail_free_length([0.1] * 10, 0.5, 1) == 4
