"""Start one daemon of a federation: ``python deploy_medical_fl.py --role coordinator …``."""

from matl.deploy.command import main

if __name__ == "__main__":
    main()
