"""`python -m hubrl`."""

from hubrl.cli import main

main()
