"""One pretrained agent: its networks, its preprocessing, its outputs."""
