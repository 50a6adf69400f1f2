"""Alerts begin, are repeated while a trouble lasts, and end; what goes on unchanged is not said again."""

from __future__ import annotations

from engine.alerts import ALERT_EVERY_S, Alert, Alerts
from engine.sample import Sample
from shm.layout import StatusCode
from shm.message import payload
from shm.ring import status_record
from tests.unit.test_health import LIMITS, process, sample, view

FINE = {1: ("active", "delivers")}


def slow(now_s: float, milliseconds: int) -> Sample:
    """Two processes, of which one reads late."""
    histograms = {"ring_latency": view(milliseconds * 1_000_000, 1000)}
    quick = process(now_s, label="cache", pid=101, histograms={"ring_latency": view(1000, 1000)})
    return sample(now_s, processes=(quick, process(now_s, label="fanout-0", histograms=histograms)))


def test_a_slow_hop_is_told_repeated_and_ended_with_process_and_numbers() -> None:
    alerts, before = Alerts(LIMITS), sample(0)
    assert alerts.look(slow(1, 50), before, FINE) == []
    (raised,) = alerts.look(slow(2, 250), before, FINE)
    assert (raised.code, raised.text) == (StatusCode.LATENCY_ALERT, "ring_latency fanout-0")
    assert raised.from_sequence > raised.to_sequence == 100_000_000
    assert alerts.look(slow(3, 250), before, FINE) == []
    assert len(alerts.look(slow(2 + ALERT_EVERY_S, 250), before, FINE)) == 1
    (cleared,) = alerts.look(slow(13, 50), before, FINE)
    assert (cleared.code, cleared.text) == (raised.code, raised.text)
    assert cleared.from_sequence < cleared.to_sequence
    assert alerts.look(slow(14, 50), before, FINE) == []

    def data(alert: Alert) -> dict[str, object]:
        record = status_record(
            alert.code, text=alert.text, from_sequence=alert.from_sequence, to_sequence=alert.to_sequence
        )
        found: dict[str, object] = payload(record, None)["data"]
        return found

    told = data(raised)
    assert (told["state"], told["hop"], told["process"]) == ("raised", "ring_latency", "fanout-0")
    assert told["threshold_ms"] == 100.0
    assert isinstance(told["p99_ms"], float)
    assert 240 < told["p99_ms"] < 260
    assert data(cleared)["state"] == "cleared"


def test_an_alert_ends_when_nothing_passes_any_more() -> None:
    alerts = Alerts(LIMITS)
    assert len(alerts.look(slow(1, 250), sample(0), FINE)) == 1
    (cleared,) = alerts.look(sample(2), sample(0), FINE)
    assert (cleared.text, cleared.from_sequence) == ("ring_latency fanout-0", 1)


def test_a_stale_feed_is_told_once_and_so_is_its_return() -> None:
    alerts, now = Alerts(LIMITS), sample(1)
    stale = {1: ("stale", "silent for 5.0 s")}
    assert alerts.look(now, now, FINE) == []
    assert alerts.look(now, now, stale) == [Alert(StatusCode.FEED_STALE, "silent for 5.0 s", 1)]
    assert alerts.look(now, now, stale) == []
    assert alerts.look(now, now, FINE) == [Alert(StatusCode.FEED_RECOVERED, "delivers again", 1)]
    alerts.look(now, now, stale)
    assert alerts.look(now, now, {1: ("down", "")}) == []  # the feed itself says that
    assert alerts.look(now, now, FINE) == []
    alerts.look(now, now, stale)
    alerts.look(now, now, {})  # removed; another of that number begins anew
    assert alerts.look(now, now, stale) == [Alert(StatusCode.FEED_STALE, "silent for 5.0 s", 1)]


def test_losses_are_told_by_process_with_their_count() -> None:
    alerts = Alerts(LIMITS)

    def losing(now_s: float, lost: int) -> Sample:
        return sample(now_s, processes=(process(now_s, label="fanout-0", counters={"records_lost": lost}),))

    def told(now_s: float, lost: int) -> list[int]:
        found = alerts.look(losing(now_s, lost), sample(0), FINE)
        assert all((a.code, a.text) == (StatusCode.OVERLOAD, "records_lost fanout-0") for a in found)
        return [alert.to_sequence for alert in found]

    assert told(1, 0) == []
    assert told(2, 10) == [10]
    assert told(3, 30) == []  # told together with what follows
    assert told(2 + ALERT_EVERY_S, 40) == [30]
    assert told(60, 40) == []
    assert told(61, 5) == [5]  # a new process
