"""``python -m matl_participant`` is ``matl-participant``."""

from matl_participant.daemon import main

if __name__ == "__main__":
    main()
