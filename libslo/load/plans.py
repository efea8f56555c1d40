"""Plans: the requests of a load in order of time, drawn from a generator. Pure.

Draws come in blocks of a fixed size from streams of their own, so that a longer plan begins with the shorter one of the same seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from libslo.errors import InputError
from libslo.load.profiles import Arrival, Load, Tokens

__all__ = ["LoadRequest", "arrival_offsets_s", "check_order", "planned", "prompt_text"]

Numbers = np.ndarray[Any, np.dtype[np.float64]]
_BLOCK = 256  # a block takes well below a millisecond: the driver draws while requests are under way
_WORDS = tuple(
    word
    for line in (
        "the time of a name is what we ask when one call was slow and so the next had to wait for it but not all of them were late",
        "that day because some found an open line while others did not get to speak until the first had been given its answer",
    )
    for word in line.split()
)


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request: due `offset_ns` after the start of the run. Either the prompt, or a seed for one of about prompt_tokens."""

    request_id: str
    profile: str
    offset_ns: int
    prompt_tokens: int
    max_tokens: int
    prompt_seed: int = 0
    prompt: str | None = None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> LoadRequest:
        """From an object of the contract load-request."""
        return cls(**record)

    def as_record(self) -> dict[str, Any]:
        """As an object of the contract load-request."""
        what = {"prompt_seed": self.prompt_seed} if self.prompt is None else {"prompt": self.prompt}
        return {
            "request_id": self.request_id,
            "profile": self.profile,
            "offset_ns": self.offset_ns,
            "prompt_tokens": self.prompt_tokens,
            "max_tokens": self.max_tokens,
            **what,
        }

    def text(self) -> str:
        """The prompt."""
        return self.prompt if self.prompt is not None else prompt_text(self.prompt_tokens, self.prompt_seed)


def prompt_text(tokens: int, seed: int) -> str:
    """A prompt of that many short common words, about one token each; the seed leads, so that no cache knows its beginning."""
    drawn = np.random.Generator(np.random.PCG64(seed)).integers(0, len(_WORDS), max(0, tokens - 1))
    return " ".join([str(seed), *(_WORDS[index] for index in drawn.tolist())])


def arrival_offsets_s(arrival: Arrival, rng: np.random.Generator, duration_s: float) -> Iterator[Numbers]:
    """Times of arrival in seconds from the start, below `duration_s`, in blocks (the last may be shorter).

    constant: the first at 0, then every 1/rate. ramp: as many as a rate that grows evenly from rate to rate_to makes due.
    poisson, gamma: gaps of mean 1/rate, the first before the first request; gamma's coefficient of variation is 1/√shape.
    """
    first, last_s = 0, 0.0
    while True:
        if arrival.kind in ("constant", "ramp"):
            number = np.arange(first, first + _BLOCK, dtype=np.float64)
            growth = 0.0 if arrival.rate_to is None else (arrival.rate_to - arrival.rate) / duration_s
            # the root of rate·t + growth·t²/2 = number, in the form that holds for growth 0; a falling ramp may never get there
            inside = arrival.rate**2 + 2 * growth * number
            offsets_s = np.where(inside >= 0, 2 * number / (arrival.rate + np.sqrt(np.maximum(inside, 0))), np.inf)
        else:
            shape = arrival.shape if arrival.kind == "gamma" else 1.0
            offsets_s = last_s + np.cumsum(rng.gamma(shape, 1 / (shape * arrival.rate), _BLOCK))
        within = offsets_s[offsets_s < duration_s]
        if within.size:
            yield within
        if within.size < _BLOCK:
            return
        first, last_s = first + _BLOCK, float(offsets_s[-1])


def planned(
    load: Load, rng: np.random.Generator, duration_s: float, *, prefix: str = "r", max_requests: int | None = None
) -> Iterator[LoadRequest]:
    """The requests of `duration_s` seconds of a load, drawn from four streams spawned from `rng`; ids are prefix and number."""
    return islice(_planned(load, rng, duration_s, prefix), max_requests)


def _planned(load: Load, rng: np.random.Generator, duration_s: float, prefix: str) -> Iterator[LoadRequest]:
    arrivals, mixing, sizes, seeds = rng.spawn(4)
    bounds = np.cumsum([weight for _, weight in load.mix])
    number = 0
    for offsets_s in arrival_offsets_s(load.arrival, arrivals, duration_s):
        which = np.searchsorted(bounds, mixing.random(_BLOCK) * bounds[-1], side="right")
        uniform, normal = sizes.random((2, _BLOCK)), sizes.standard_normal((2, _BLOCK))
        prompts = [_token_counts(profile.prompt_tokens, uniform[0], normal[0]) for profile, _ in load.mix]
        outputs = [_token_counts(profile.output_tokens, uniform[1], normal[1]) for profile, _ in load.mix]
        drawn = seeds.integers(0, 1 << 32, _BLOCK).tolist()
        for at, offset_ns in enumerate(np.rint(offsets_s * 1e9).astype(np.int64).tolist()):
            kind = int(which[at])
            name = load.mix[kind][0].name
            yield LoadRequest(f"{prefix}-{number:06d}", name, offset_ns, int(prompts[kind][at]), int(outputs[kind][at]), drawn[at])
            number += 1


def _token_counts(tokens: Tokens, uniform: Numbers, normal: Numbers) -> Numbers:
    drawn: Numbers = np.rint(tokens.median * np.exp(tokens.sigma * normal))
    if tokens.kind != "lognormal":
        drawn = tokens.least + np.floor(uniform * (tokens.most - tokens.least + 1))
    return np.minimum(np.maximum(drawn, tokens.least), tokens.most)


def check_order(requests: Iterator[tuple[int, LoadRequest]], source: str) -> Iterator[LoadRequest]:
    """The requests of (line number, request), as they came; InputError at the first that is due before the one above it."""
    before_ns = 0
    for line, request in requests:
        if request.offset_ns < before_ns:
            fact = f"offset_ns {request.offset_ns} is before that of the line above, {before_ns}"
            raise InputError(fact, source=source, line=line, hint="sort the plan by offset_ns: jq -cs 'sort_by(.offset_ns)[]'")
        before_ns = request.offset_ns
        yield request
