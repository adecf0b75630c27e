"""`deploy_medical_fl.py`: one daemon, by the tutorial's words."""
