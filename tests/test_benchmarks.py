"""The benchmarks run and write what they say; what they time is not asserted."""

import json
import sys

import pytest

from pyro_bvae.metrics import METRICS

SMALL = {
    "steps": ["spirals", "--eager", "--rounds", "1"],
    "aggregate": ["--quick", "--eager"],
    "growth": ["--quick"],
    "jobs": ["help", "--repeat", "1"],
    "metrics": ["--rows", "300"],
}
KINDS = [pytest.param(name, marks=[pytest.mark.slow] * (name == "metrics")) for name in SMALL]


@pytest.mark.parametrize("name", KINDS)
def test_a_benchmark_writes_its_numbers_and_the_hardware(name, tmp_path, monkeypatch, capsys):
    main = pytest.importorskip("benchmarks.__main__", reason="only in a clone").main
    out = tmp_path / "out.json"
    monkeypatch.setattr("pyro_bvae.cli.process.tune_allocator", lambda: None)  # of this process
    monkeypatch.setattr(sys, "argv", ["benchmarks", name, *SMALL[name], "--out", str(out)])
    main()
    record = json.loads(out.read_text())
    assert all(record["hardware"][key] for key in ("cpu", "python", "torch", "date"))
    rows = sum(record["rows"].values(), []) if name in ("aggregate", "growth") else record["rows"]
    times = [v for row in rows for key, v in row.items() if key.endswith(("ms", "_s"))]
    assert times and all(time > 0 for time in times)
    if name == "metrics":
        assert set(METRICS) <= {row["metric"] for row in rows}
    assert str(out) in capsys.readouterr().out


def test_a_name_that_is_none(monkeypatch):
    main = pytest.importorskip("benchmarks.__main__", reason="only in a clone").main
    monkeypatch.setattr(sys, "argv", ["benchmarks", "speed"])
    with pytest.raises(SystemExit, match="speed: one of steps, aggregate, growth, jobs, metrics"):
        main()
