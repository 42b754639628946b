"""What the fault tests counted, for the summary."""

COUNTS: dict[str, str] = {}
