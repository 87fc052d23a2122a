"""Token buckets: the rate of accepted requests, and the memory for many clients."""

from __future__ import annotations

import pytest

from server.errors import ApiError
from server.web import rate
from server.web.rate import RateLimiter, network_of


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def taken(limiter: RateLimiter, owner: str, n: int) -> int:
    """How many of `n` requests at once go through."""
    passed = 0
    for _ in range(n):
        try:
            limiter.take(owner)
            passed += 1
        except ApiError:
            pass
    return passed


def test_so_many_at_once_and_then_one_for_each_share_of_the_time():
    clock = Clock()
    limiter = RateLimiter(10, 60.0, clock)
    assert taken(limiter, "a", 50) == 10
    clock.now += 5.9
    assert taken(limiter, "a", 5) == 0
    clock.now += 0.2
    assert taken(limiter, "a", 5) == 1
    clock.now += 12
    assert taken(limiter, "a", 5) == 2
    clock.now += 3600
    assert taken(limiter, "a", 50) == 10, "patience is not saved up"


def test_over_a_long_time_the_rate_is_kept_exactly():
    clock = Clock()
    limiter, passed = RateLimiter(7, 1.0, clock), 0
    for _ in range(1000):
        passed += taken(limiter, "a", 3)
        clock.now += 0.05
    assert 350 <= passed <= 350 + 7


def test_everybody_has_a_bucket():
    limiter = RateLimiter(2, 60.0, Clock())
    assert [taken(limiter, owner, 5) for owner in ("a", "b", "a")] == [2, 2, 0]


@pytest.mark.parametrize(
    ("n", "seconds", "wait"), [(1, 60.0, "60"), (1, 3600.0, "3600"), (10, 1.0, "1"), (4, 60.0, "15")]
)
def test_the_refusal_says_when_to_come_back_and_then_it_works(n, seconds, wait):
    clock = Clock()
    limiter = RateLimiter(n, seconds, clock)
    taken(limiter, "a", n)
    with pytest.raises(ApiError) as caught:
        limiter.take("a")
    assert (caught.value.status, caught.value.type) == (429, "rate_limit_error")
    assert caught.value.headers["Retry-After"] == wait
    clock.now += int(wait)
    limiter.take("a")


def test_full_buckets_are_forgotten_and_the_others_bounded(monkeypatch):
    clock = Clock()
    limiter = RateLimiter(5, 10.0, clock)
    for i in range(1000):
        limiter.take(f"client {i}")
        clock.now += 1.0
    assert len(limiter._full_at) <= 4
    monkeypatch.setattr(rate, "N_BUCKETS", 100)
    for i in range(1000):
        limiter.take(f"crowd {i}")
    assert len(limiter._full_at) <= 101


@pytest.mark.parametrize(
    ("client", "network"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("unix", "unix"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_of_an_ipv6_address_the_network_counts(client, network):
    assert network_of(client) == network
