"""A subscriber process for tests/stress/test_late_join.py: writes down all that it is handed, until the end.

    python -m tests.stress.late_joiner FILE ENDPOINT REPLAY_ENDPOINT RECEIVE_HWM JOIN_RECORDS END SYMBOLS TOPIC ...

It ends when each of SYMBOLS topics has brought a record whose source_sequence is END or more. FILE (.npz) then has, per
topic, the numbers, ring sequences and source sequences in the order of arrival, and the gaps.
"""

from __future__ import annotations

import sys

import numpy as np

from workers.subscriber import Subscriber


def main() -> None:
    """Receive as the command line says."""
    file, endpoint, replay, receive_hwm, join_records, end, symbols, *topics = sys.argv[1:]
    rows: dict[str, list[np.ndarray]] = {}
    gaps: list[tuple[str, int, int]] = []
    ended: set[str] = set()
    with Subscriber(
        endpoint,
        topics,
        receive_hwm=int(receive_hwm),
        join_records=int(join_records),
        replay_endpoints=[replay],
        heal_timeout_s=20.0,
    ) as subscriber:
        print("ready", flush=True)
        while len(ended) < int(symbols):
            message = subscriber.receive()
            assert message is not None
            if message.gap is not None:
                gaps.append(tuple(message.gap))
            records = message.records
            first = message.topic_sequence
            columns = np.arange(first, first + len(records)), records["sequence"], records["source_sequence"]
            rows.setdefault(message.topic, []).append(np.column_stack([column.astype(np.int64) for column in columns]))
            if int(records["source_sequence"][-1]) >= int(end):
                ended.add(message.topic)
        counts = [subscriber.healed, subscriber.joined, subscriber.gap_count, subscriber.records_missed]
    np.savez(
        file,
        counts=np.array(counts),
        gap_topics=np.array([topic for topic, _, _ in gaps]),
        gap_spans=np.array([span[1:] for span in gaps], dtype=np.int64).reshape(-1, 2),
        **{topic: np.concatenate(parts) for topic, parts in rows.items()},
    )


if __name__ == "__main__":
    main()
