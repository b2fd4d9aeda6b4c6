"""Finding the running trials whose workers are lost, so that others go on with them."""

import logging
import time
from collections.abc import Callable

from studies.ownership import OwnedStorage
from studies.storage import STALE_SECONDS
from studies.study import OpenedStudy

SUSPICION_SECONDS = 15.0
"""A trial without a heartbeat counts as lost when it has been seen to be so for so long.

When a database comes back after an outage, all hearts have stopped for a while: that of a living
worker beats again within this time.
"""

logger = logging.getLogger(__name__)


class LostTrials:
    """The trials of a study that give no sign of life."""

    def __init__(
        self,
        opened: OpenedStudy,
        storage: OwnedStorage,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study_id = opened.study._study_id
        self._retries = opened.config.trial.max_retries
        self._storage, self._clock = storage, clock
        self._suspected: dict[tuple[int, str | None], float] = {}

    def take_back(self) -> None:
        """Let any worker take those that are lost; to be called again and again."""
        now = self._clock()
        try:
            silent = self._storage.lost_trials(self._study_id).items()
        except Exception:
            self._suspected = {}
            raise
        self._suspected = {item: self._suspected.get(item, now) for item in silent}
        reason = f"no sign of life for {STALE_SECONDS} s"
        for (trial_id, owner), since in self._suspected.items():
            if now - since < SUSPICION_SECONDS:
                continue
            if self._storage.take_away(trial_id, owner, self._retries, reason, if_silent=True):
                number = self._storage.get_trial(trial_id).number
                logger.warning("trial %d: its worker was lost (%s)", number, reason)
