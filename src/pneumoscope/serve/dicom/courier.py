"""Sending results to one destination: retry, back-off, and the dead-letter list."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from pneumoscope.errors import PneumoscopeError
from pneumoscope.serve.dicom.background import Background
from pneumoscope.serve.dicom.config import MB, DestinationConfig, RetryConfig
from pneumoscope.serve.dicom.contracts import Delivery, Outcome, Sender
from pneumoscope.serve.dicom.journal import JournalError
from pneumoscope.serve.dicom.outbox import Outbox, QueuedDelivery

__all__ = ["Courier"]

logger = logging.getLogger(__name__)

LOOK_AGAIN = 1.0  # seconds after which the journal is looked at even if nothing was announced
IDLE_SECONDS = 5.0  # that a connection stays open after the last object
LARGEST = 100 * MB  # of an object; those that the node makes are far smaller


class Courier(Background):
    """A thread that sends what is due to one destination.

    Parameters
    ----------
    destination : DestinationConfig
    retry : RetryConfig
    outbox : Outbox
    open_sender : callable
        Makes the sender.
    on_outcome : callable
        Called with each outcome.
    """

    def __init__(
        self,
        destination: DestinationConfig,
        retry: RetryConfig,
        outbox: Outbox,
        open_sender: Callable[[], Sender],
        *,
        on_outcome: Callable[[str, str], None] = lambda _destination, _outcome: None,
    ) -> None:
        longest = 2 * (destination.batch + 2) * destination.timeout + IDLE_SECONDS
        super().__init__(f"send-{destination.name}", longest)
        self.destination = destination
        self._retry, self._outbox, self._open_sender = retry, outbox, open_sender
        self._on_outcome = on_outcome
        # By the clock that no one sets: until when an object waits, and since when it is uncertain.
        self._postponed: dict[int, float] = {}
        self._uncertain_since: dict[int, float] = {}
        # What a call of the sender is about, and what is sent by itself because such a call raised.
        self._in_hand: Sequence[QueuedDelivery] = ()
        self._alone: set[int] = set()
        self._unreachable = 0
        self._not_before = 0.0

    @property
    def reachable(self) -> bool:
        """Whether the destination responded when it was last tried."""
        return self._unreachable == 0

    def _work(self) -> None:
        sender: Sender | None = None
        last_use = time.monotonic()
        try:
            while True:
                self.pulse.beat()
                self._wake.clear()
                try:
                    due = self._due()
                    if due:
                        sender = sender or self._opened()
                        if sender is not None and not self._tried(sender, due):
                            sender = None
                        last_use = time.monotonic()
                        continue
                except JournalError as error:
                    if not error.passing:
                        raise
                    logger.error("journal not written", extra={"why": str(error)})
                if self._stopping:  # nothing is due, or the journal cannot be written
                    return
                if sender is not None and time.monotonic() - last_use > IDLE_SECONDS:
                    sender.close()
                    sender = None
                self._wake.wait(LOOK_AGAIN)
        finally:
            if sender is not None:
                sender.close()

    def _opened(self) -> Sender | None:
        try:
            return self._open_sender()
        except PneumoscopeError as error:  # a certificate or token that was removed
            self._out_of_reach(str(error))
            return None

    def _tried(self, sender: Sender, due: Sequence[QueuedDelivery]) -> bool:
        """Send what is due; return whether the sender can go on."""
        self._in_hand = ()
        try:
            self._round(sender, due)
        except JournalError:
            raise
        except Exception as error:
            # Of one object or one destination: the others go on. Its text may quote the object.
            logger.exception("sending failed", extra={"destination": self.destination.name})
            self._close(sender)
            self._broken(type(error).__name__, self._in_hand or due)
            return False
        return True

    def _broken(self, why: str, deliveries: Sequence[QueuedDelivery]) -> None:
        """Count a failed try for each object; from now on they are sent one by one: one may be to blame."""
        for one in deliveries:
            self._alone.add(one.id)
            self._uncertain_since[one.id] = time.monotonic()
            self._failed(one, why)

    def _close(self, sender: Sender) -> None:
        try:
            sender.close()
        except Exception:
            logger.exception("connection not closed", extra={"destination": self.destination.name})

    def _due(self) -> list[QueuedDelivery]:
        now = time.monotonic()
        if now < self._not_before:
            return []
        self._postponed = {number: end for number, end in self._postponed.items() if end > now}
        due = self._outbox.due(self._postponed, self.destination.batch)
        for one in due:
            if one.uncertain:
                since = self._uncertain_since.setdefault(one.id, now)
                if now - since < self._retry.settle_seconds:
                    self._postponed[one.id] = since + self._retry.settle_seconds
        return [one for one in due if one.id not in self._postponed]

    def _round(self, sender: Sender, due: Sequence[QueuedDelivery]) -> None:
        """Send a batch, after asking for what may have arrived already."""
        if any(one.id in self._alone for one in due):
            due = due[:1]
        due = [one for one in due if self._has_file(one)]
        uncertain = [one for one in due if one.uncertain]
        certain = [one for one in due if not one.uncertain]
        if uncertain and self.destination.query:
            self._in_hand = uncertain
            present = sender.present([one.object for one in uncertain])
            if present is None:
                if why := sender.echo():
                    self._out_of_reach(why)
                    return
                self._not_asked(uncertain)
                uncertain = []
            else:
                there = [one for one in uncertain if one.object.sop_instance in present]
                self._outbox.sent(there, before=True)
                self._settled(there, Outcome.ALREADY_THERE)
                uncertain = [one for one in uncertain if one.object.sop_instance not in present]
        batch = [*uncertain, *certain]
        batch = self._outbox.sending(batch)
        if not batch:
            return
        self._in_hand = batch
        deliveries = sender.send([one.object for one in batch])
        self._record(sender, batch, deliveries)

    def _not_asked(self, deliveries: Sequence[QueuedDelivery]) -> None:
        """Count a failed try where the destination responds, but not to a query; others may be sent."""
        self._unreachable = 0
        for one in deliveries:
            self._failed(one, "it may have arrived, and the query failed")
        self._log("query failed", "if it has none, set query: false")

    def _has_file(self, one: QueuedDelivery) -> bool:
        """Return whether an object has a file that can be sent; one without is on the dead-letter list."""
        why = "its file is missing"
        if one.object.path.is_file():
            if one.object.path.stat().st_size <= LARGEST:  # a sender holds it in memory
                return True
            why = f"its file has more than {LARGEST // MB} MB; no result is so large"
        self._outbox.failed(one, why, dead=True)
        self._settled([one], Outcome.FAILED)
        return False

    def _record(
        self, sender: Sender, batch: Sequence[QueuedDelivery], deliveries: Sequence[Delivery]
    ) -> None:
        pairs = list(zip(batch, deliveries, strict=True))
        arrived = [
            one for one, delivery in pairs if delivery.outcome in {Outcome.SENT, Outcome.ALREADY_THERE}
        ]
        self._outbox.sent(arrived)
        self._settled(arrived, Outcome.SENT)
        unsure = [(one, delivery) for one, delivery in pairs if delivery.outcome is Outcome.RETRY]
        idle = [(one, delivery) for one, delivery in pairs if delivery.outcome is Outcome.NOT_TRIED]
        self._outbox.not_tried([one for one, _ in idle])
        for one, delivery in pairs:
            if delivery.outcome is Outcome.FAILED:
                self._outbox.failed(one, delivery.detail, dead=True)
                self._settled([one], Outcome.FAILED)
                self._log("not delivered", delivery.detail)
        if len(unsure) + len(idle) < len(pairs):
            self._unreachable = 0
        if not unsure and not idle:
            return
        now = time.monotonic()
        for one, _ in unsure:
            self._uncertain_since[one.id] = now
        why = sender.echo() if not arrived else ""
        if why:
            self._out_of_reach(why)
            return
        self._unreachable = 0
        for one, delivery in unsure:
            self._failed(one, delivery.detail)
        self._log("to be sent again", [*unsure, *idle][0][1].detail)

    def _failed(self, one: QueuedDelivery, why: str) -> None:
        """Count a failed try of an object, which comes again later unless it was the last one."""
        dead = one.tries + 1 >= self._retry.tries
        self._outbox.failed(one, why, dead=dead)
        if dead:  # a command that lets it be sent again need not wait
            self._settled([one], Outcome.FAILED)
        else:
            self._postponed[one.id] = time.monotonic() + self._pause(one.tries)
            self._on_outcome(self.destination.name, "retry")

    def _settled(self, deliveries: Sequence[QueuedDelivery], outcome: Outcome) -> None:
        for one in deliveries:
            self._uncertain_since.pop(one.id, None)
            self._alone.discard(one.id)
            self._on_outcome(self.destination.name, outcome.name.lower())

    def _out_of_reach(self, why: str) -> None:
        """Wait, longer each time; the objects are not to blame."""
        self._not_before = time.monotonic() + self._pause(self._unreachable)
        self._unreachable += 1
        self._on_outcome(self.destination.name, "unreachable")
        self._log("destination not reached", why)

    def _pause(self, failures: int) -> float:
        return min(self._retry.longest_seconds, self._retry.first_seconds * 2.0 ** min(failures, 30))

    def _log(self, what: str, why: str) -> None:
        logger.warning(what, extra={"destination": self.destination.name, "why": why})
