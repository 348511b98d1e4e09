"""How long E2B may take, and the pauses between tries: one value, shorter in tests."""

import math
from dataclasses import dataclass

from config import LIFETIME_MARGIN_S, OVERHEAD_S


@dataclass(frozen=True)
class Timing:
    # How much longer than its run a request may take; no create lasts longer.
    overhead_s: float = OVERHEAD_S
    # The part of `overhead_s` that is kept for the steps after the run; it is enough on
    # a busy machine, too.
    reserve_s: float = 1.5
    # How much longer than its run's limit a sandbox may live.
    lifetime_margin_s: int = LIFETIME_MARGIN_S
    # The limit of a small call to E2B: kill, renew, prime, list.
    small_call_s: float = 4
    # Pauses after a kill that failed. The last one lasts until E2B has ended the
    # sandbox itself.
    kill_again_after_s: tuple[float, ...] = (0.5, 2, math.inf)
    # The pause between searches for a sandbox whose create was not answered. E2B was
    # seen to make one some 3 s late.
    search_again_after_s: float = 5


TIMING = Timing()
