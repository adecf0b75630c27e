"""What privacy costs in accuracy, with the mechanisms that hospitals run."""
