"""Tests the driver's conclusions from its streams' notes."""

import numpy as np
import pytest
from tests.chaos.record import BETWEEN, PERIOD, TOGETHER, Record

START = 1_000_000.0
DELAY_US = 500


@pytest.fixture
def record() -> Record:
    """Records two flows and 2,000 ticks; everything arrives at once."""
    made = Record(2, 10.0)
    made.sent[:2000] = START + np.arange(2000) // TOGETHER * BETWEEN
    made.late[:, :2000] = DELAY_US
    made.put("ticks", 2000)
    return made


def test_when_all_arrives_there_is_no_outage_and_no_loss(record: Record) -> None:
    assert record.outage(0, 100, 2000) == pytest.approx(0, abs=1e-6)
    assert record.lost(0, 0, 2000) == 0
    assert record.clean(0, START, START + 3)


def test_what_is_lost_is_an_outage(record: Record) -> None:
    record.late[0, 500:600] = 0
    assert record.lost(0, 0, 2000) == 100
    assert record.outage(0, 490, 2000) == pytest.approx(100 * PERIOD, abs=1e-6)
    assert record.gap(0, 490, 2000)[0] == pytest.approx(START + 500 * PERIOD - BETWEEN + DELAY_US / 1e6, abs=1e-6)
    assert record.outage(1, 490, 2000) == pytest.approx(0, abs=1e-6)
    assert not record.clean(0, START, START + 3)
    assert record.clean(0, START + 601 * PERIOD, START + 3)


def test_what_comes_late_is_an_outage_without_loss(record: Record) -> None:
    arrives = 600 * PERIOD
    record.late[0, 500:600] = ((arrives - np.arange(500, 600) // TOGETHER * BETWEEN) * 1e6 + DELAY_US).astype(int)
    assert record.lost(0, 0, 2000) == 0
    assert record.outage(0, 490, 2000) == pytest.approx(100 * PERIOD, abs=1e-5)
    assert record.delays(500, 501).max() == pytest.approx(100 * PERIOD, abs=1e-3)


def test_a_sender_that_stood_still_is_no_outage(record: Record) -> None:
    record.sent[700:2000] += 0.25
    assert record.outage(0, 600, 2000) == pytest.approx(0, abs=1e-6)
    assert record.stalls(600, 2000) == pytest.approx(0.25, abs=1e-6)


def test_an_outage_that_still_goes_on_counts_to_the_end(record: Record) -> None:
    record.late[0, 1000:2000] = 0
    assert record.outage(0, 900, 2000) == pytest.approx(1000 * PERIOD - BETWEEN, abs=0.01)


def test_one_that_went_on_when_it_began_counts_from_there(record: Record) -> None:
    record.late[0, :1500] = 0
    assert record.outage(0, 1000, 2000) == pytest.approx(500 * PERIOD, abs=0.01)


def test_a_flow_without_any_arrival_is_out_all_the_time(record: Record) -> None:
    record.late[0, :2000] = 0
    assert record.outage(0, 1000, 2000) == pytest.approx(1000 * PERIOD, abs=0.01)


def test_a_flow_lives_while_packets_arrive(record: Record) -> None:
    end = START + 2000 * PERIOD
    assert record.alive(0, 0.1, end)
    record.late[0, 1900:2000] = 0
    assert not record.alive(0, 0.1, end)
    assert record.alive(0, 0.3, end)


def test_the_history_counts_arrivals_by_slot(record: Record) -> None:
    record.late[1, 625:1250] = 0
    history = record.history(START, START + 3)
    assert history[0].sum() == pytest.approx(3 / PERIOD, abs=2)
    assert history[1, 11:19].sum() == 0
    assert history[1, 5] == pytest.approx(0.1 / PERIOD, abs=1)
