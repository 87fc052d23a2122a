"""What speculative decoding keeps for one running task. Engine thread only; see `spec`."""

from __future__ import annotations

from server.engine.speculation.lookup import Lookup
from server.engine.speculation.trust import ModelTrust
from server.records import record


@record(eq=False)
class Drafting:
    """A task's limits, its sources of drafts, and how the drafts fared.

    A draft has at least `n_min` tokens and at most `n_lookup` from the text or `n_model` from the small model, each of
    these at least `p_min` likely. `lookup` is made when first needed. `is_by_model` is about the latest draft.
    """

    n_lookup: int
    n_model: int
    n_min: int
    p_min: float
    trust: ModelTrust
    lookup: Lookup | None = None
    is_by_model: bool = False
    n_drafted: int = 0
    n_accepted: int = 0
