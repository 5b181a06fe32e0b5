"""`python -m penstock.cli` is the command `penstock`."""

from penstock.cli.main import main

main()
