"""Tasks of this checkout's scripts, configs and tests (not part of the wheel)."""
