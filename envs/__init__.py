"""Builders of the tasks that the scripts, configs and tests of this checkout use (not part of the wheel)."""
