"""``kill -9`` of the node at random moments while four senders push images."""

from __future__ import annotations

import random
import threading
import time

import pytest

from dicom_archives import Archive
from dicom_modality import radiograph, send
from dicom_peers import RunningNode, kill, start_node, until, write_config

SENDERS = 4
CHUNK = 5
ROOT = "1.2.826.0.1.3680043.10.5.1"

pytestmark = pytest.mark.slow


class _Sender(threading.Thread):
    """A modality: sends its images in small associations, and each again until it got 0x0000."""

    def __init__(self, numbers: list[int], port) -> None:
        super().__init__(daemon=True)
        self._left, self._port = list(numbers), port
        self.accepted: set[int] = set()
        self.stop = threading.Event()

    def run(self) -> None:
        while self._left and not self.stop.is_set():
            numbers = self._left[:CHUNK]
            # Studies of two images: what arrives late belongs to a study that may be reported already.
            statuses = send(self._port(), [radiograph(number, study=number // 2) for number in numbers])
            accepted = {number for number, status in zip(numbers, statuses, strict=True) if status == 0}
            self.accepted |= accepted
            self._left = [number for number in self._left if number not in accepted]
            if not accepted:
                time.sleep(0.2)


def test_nothing_is_lost_and_nothing_is_sent_twice(tmp_path, tiny, size, record):
    """Every image that got 0x0000 is in one report at the destination, and no object arrived twice."""
    rng = random.Random(size.seed)
    began = time.monotonic()
    numbers = list(range(size.instances))
    with Archive() as archive:
        config = write_config(
            tmp_path,
            tiny.path,
            mode="live",
            destinations=[archive.destination()],
            process={"workers": 1},
            metrics={"port": None},
        )
        node: list[RunningNode] = [start_node(config)]
        senders = [_Sender(numbers[first::SENDERS], lambda: node[0].port) for first in range(SENDERS)]
        for sender in senders:
            sender.start()
        done, expected = 0, size.instances / max(1, size.kills)
        while done < size.kills:
            # Spread over the whole run: the next one once its share of the images was accepted.
            end = time.monotonic() + 20
            while sum(len(one.accepted) for one in senders) < done * expected and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(rng.uniform(0, 5 if size.kills > 1 else 2))
            kill(node[0])
            done += 1
            node[0] = start_node(config)
        for sender in senders:
            sender.join(300)
        accepted = {number for sender in senders for number in sender.accepted}
        assert accepted == set(numbers)

        def finished() -> bool:
            status = node[0].status()
            sent = set(status.deliveries.get("pacs", {})) == {"sent"}
            return sent and set(status.instances) == {"reported"}

        try:
            until(finished, max(600, 2 * size.instances), every=0.5)
        finally:
            for sender in senders:
                sender.stop.set()
            status = node[0].status()
            node[0].process.terminate()
            node[0].end()
        sources, attempts = archive.sources(), archive.attempts
    seconds = time.monotonic() - began
    record(
        "kills",
        kills=done,
        instances=len(accepted),
        reports=status.results,
        objects=len(attempts),
        twice=sum(count > 1 for count in attempts.values()),
        seconds=round(seconds),
    )
    assert status.instances == {"reported": size.instances}
    assert sources == {f"{ROOT}.{number // 2}.{number}": 1 for number in numbers}
    assert set(attempts.values()) == {1}
    assert node[0].command("audit", "--verify").code == 0
