"""One pretrained agent: its networks, its preprocessing, its action parameters."""
