"""The planner in a simulated farm."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest


def test_a_farm_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nodes die and turn slow, a map ends soon after the bound, and does little twice."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3]))
    farms = importlib.import_module("benchmarks.farms")
    farm = farms.Farm.make(farms.Scenario(nodes=50, items=20_000, dying=0.04, slowing=0.04))
    outcome = farms.Simulation(farm).run()
    assert outcome.lost == 0
    assert outcome.after < 0.03
    assert 0 < outcome.twice < 0.02
    careful = farms.Simulation(farms.Farm.make(farm.scenario), idempotent=False).run()
    assert careful.lost > 0
    assert careful.twice == pytest.approx(0, abs=1e-9)
    stealing = farms.simulate_stealing(farms.Farm.make(farm.scenario), 20)
    assert stealing.after > 2 * outcome.after


def test_growth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as many nodes cost the planner little more for each piece."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3]))
    farms = importlib.import_module("benchmarks.farms")
    few, many = (
        farms.Simulation(farms.Farm.make(farms.Scenario(nodes=nodes, items=5_000))).run().planning
        for nodes in (20, 200)
    )
    assert many < 4 * few
