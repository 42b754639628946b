"""Speed and memory, measured in one run as ratios: ``make bench``."""
