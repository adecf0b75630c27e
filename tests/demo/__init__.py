"""Tests of the demonstration federation."""
