from matl_common.modes import MATLMode


def test_a_mode_that_promises_more_is_the_stronger() -> None:
    by_strength = sorted(MATLMode, key=lambda mode: mode.strength)
    assert by_strength == [MATLMode.MODE0, MATLMode.MODE1, MATLMode.MODE2]
