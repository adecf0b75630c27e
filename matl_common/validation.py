"""What is wrong with a document or table, in one line, without what it holds."""

from pydantic import ValidationError


def problems_in(error: ValidationError, *, whole: str) -> str:
    """Every problem with the place it is at; ``whole`` names the thing itself."""
    return "; ".join(
        f"{'.'.join(map(str, each['loc'])) or whole}: {each['msg'].removeprefix('Value error, ')}"
        for each in error.errors(include_input=False, include_url=False)
    )
