"""`python -m vitslim`: the command line."""

from vitslim.cli.main import main

main()
