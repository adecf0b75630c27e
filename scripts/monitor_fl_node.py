"""Watch a federation, or a hospital of it: ``--dashboard`` or ``--watch``."""

from matl.dashboard.command import main

main()
