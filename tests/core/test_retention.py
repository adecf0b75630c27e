from datetime import UTC, datetime, timedelta

import pytest

from matl_common.errors import ConfigurationError, InvalidInputError
from matl_coordinator.core.retention import (
    Compliance,
    RetentionError,
    check_expired,
    check_years,
    kept_until,
)


@pytest.mark.parametrize(
    ("month", "years", "until"),
    [
        ("2019-01", 7, datetime(2026, 2, 1, tzinfo=UTC)),
        ("2019-12", 7, datetime(2027, 1, 1, tzinfo=UTC)),
        ("2020-02", 0, datetime(2020, 3, 1, tzinfo=UTC)),
    ],
)
def test_a_month_is_kept_until_its_last_entry_is_old_enough(
    month: str, years: int, until: datetime
) -> None:
    assert kept_until(month, years=years) == until
    check_expired(month, years=years, now=until)
    with pytest.raises(RetentionError, match="kept until"):
        check_expired(month, years=years, now=until - timedelta(microseconds=1))


@pytest.mark.parametrize(
    "month", ["", "2019", "2019-00", "2019-13", "2019-1", "0000-01", "2019-01\n"]
)
def test_anything_else_is_no_month(month: str) -> None:
    with pytest.raises(InvalidInputError):
        kept_until(month, years=7)


def test_below_six_years_is_refused_where_compliance_asks_for_them() -> None:
    check_years(6, Compliance.HIPAA)
    check_years(0, Compliance.NONE)
    with pytest.raises(ConfigurationError, match="6"):
        check_years(5, Compliance.HIPAA)
