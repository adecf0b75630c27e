"""What the requests to both kinds of worker have in common, parsed once and strictly.

Unknown keys are refused. Errors name the field that is wrong, never its value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, parse_digest
from matl_common.validation import problems_in
from matl_common.vision.dataset import OnBadImage
from matl_common.vision.images import VIEWS

MAX_IMAGE_SIZE = 1024


def _digest(text: str) -> str:
    try:
        return parse_digest(text)
    except InvalidInputError as error:
        raise ValueError("must be a SHA-256 digest") from error


FilePath = Annotated[Path, Field(strict=False)]
DigestText = Annotated[Digest, AfterValidator(_digest)]

RequestT = TypeVar("RequestT")


class Strict(BaseModel):
    """A part of a request: frozen, strictly typed, unknown keys refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class ImageSource(Strict):
    """Where images and labels are, and how they are looked at."""

    data_dir: FilePath
    labels_csv: FilePath
    on_bad_image: Annotated[OnBadImage, Field(strict=False)] = OnBadImage.SKIP
    image_size: int = Field(default=224, ge=16, le=MAX_IMAGE_SIZE)
    backbone: str = "efficientnet_lite0"
    """A backbone (``head``) or a network (``full``) by name, as in the study plan."""
    views: int = Field(default=2, ge=1, le=len(VIEWS))
    weights_file: FilePath | None = None
    weights_digest: DigestText | None = None
    cache_dir: FilePath | None = None
    """Where features are kept; required for ``head``."""
    cache_max_bytes: int = Field(default=4 << 30, ge=1 << 20)


def parse_strictly(adapter: TypeAdapter[RequestT], message: dict[str, Any]) -> RequestT:
    """Check one request.

    Raises:
        InvalidInputError: names the offending fields and the rule each breaks.
    """
    try:
        return adapter.validate_python(message)
    except ValidationError as error:
        problems = problems_in(error, whole="request")
        raise InvalidInputError(f"the request is malformed: {problems}") from None
