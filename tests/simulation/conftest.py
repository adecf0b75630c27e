"""Images that every test here may draw from."""

import pytest

from matl.simulation.datasets import DataSet, Images, load_images


@pytest.fixture(scope="session")
def digits() -> Images:
    """The digits of scikit-learn."""
    return load_images(DataSet.DIGITS)
