"""``python -m upright.cli``."""

from upright.cli import main

main()
