"""Training scripts to copy from, and the source agents they made (not part of the wheel)."""
