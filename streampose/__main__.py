"""`python -m streampose` is the command `streampose`."""

from streampose.cli import main

main()
