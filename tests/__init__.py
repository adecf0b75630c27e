"""Tests mirror the packages; each folder here is one of ours."""
