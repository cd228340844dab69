"""Configs, runs, evaluations and studies: everything between a YAML file and a table of results."""
