"""The hospital's data as the daemon sees it: never an image, never a row."""
