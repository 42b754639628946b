"""Prints what the fault tests counted."""

from tests.faults.counts import COUNTS


def pytest_terminal_summary(terminalreporter):
    if COUNTS:
        terminalreporter.section("counts")
        for name, value in COUNTS.items():
            terminalreporter.write_line(f"{name:<32} {value}")
