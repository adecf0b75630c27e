import pytest

from matl_common.version import IncompatibleVersionError, __version__, check_compatible


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (__version__, __version__),
        ("1.4.0", "1.4.9"),
        ("1.4.0", "1.3.7"),
        ("1.4.0", "1.5.0rc1"),
        ("1.4.0", "1.5.0-rc.1"),
        ("1.4.0", "1.5"),
    ],
)
def test_versions_at_most_one_minor_number_apart_work_together(ours: str, theirs: str) -> None:
    check_compatible(ours, theirs)
    check_compatible(theirs, ours)


@pytest.mark.parametrize(
    ("ours", "theirs", "behind"),
    [
        ("1.4.0", "1.2.9", "the other side"),
        ("1.4.0", "1.6.0", "this side"),
        ("1.0.0", "0.9.0", "the other side"),
        ("1.9.0", "2.0.0", "this side"),
        ("0.10.0", "0.8.0", "the other side"),
    ],
)
def test_versions_further_apart_are_refused_with_who_has_to_upgrade(
    ours: str, theirs: str, behind: str
) -> None:
    with pytest.raises(IncompatibleVersionError, match=f"upgrade {behind}"):
        check_compatible(ours, theirs)


@pytest.mark.parametrize(
    "theirs", ["", "source", "0", "1.x", "9" * 400 + ".1", "\u0661.\u0662.\u0663"]
)
def test_what_is_no_version_keeps_nobody_out(theirs: str) -> None:
    check_compatible("1.4.0", theirs)
