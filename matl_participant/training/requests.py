"""What a training worker can be asked, parsed once and strictly; unknown keys are refused.

Errors name the field that is wrong, never its value.
"""

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, parse_digest
from matl_common.protocol import Recipe
from matl_common.vision.dataset import OnBadImage
from matl_common.vision.images import VIEWS

MAX_IMAGE_SIZE = 1024
MAX_STEPS = 100_000


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("must be finite")
    return number


def _digest(text: str) -> str:
    try:
        return parse_digest(text)
    except InvalidInputError as error:
        raise ValueError("must be a SHA-256 digest") from error


FilePath = Annotated[Path, Field(strict=False)]
DigestText = Annotated[Digest, AfterValidator(_digest)]
Positive = Annotated[float, Field(gt=0.0), AfterValidator(_finite)]
NonNegative = Annotated[float, Field(ge=0.0), AfterValidator(_finite)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class DataSource(_Strict):
    """Where a hospital's data is and how it is looked at."""

    data_dir: FilePath
    labels_csv: FilePath
    on_bad_image: Annotated[OnBadImage, Field(strict=False)] = OnBadImage.SKIP
    image_size: int = Field(default=224, ge=16, le=MAX_IMAGE_SIZE)
    backbone: str = "efficientnet_lite0"
    """A backbone (``head``) or a network (``full``) by name."""
    views: int = Field(default=2, ge=1, le=len(VIEWS))
    weights_file: FilePath | None = None
    weights_digest: DigestText | None = None
    cache_dir: FilePath | None = None
    """Where features are kept; required for ``head``."""
    cache_max_bytes: int = Field(default=4 << 30, ge=1 << 20)


class Resources(_Strict):
    """What a job may use."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    device_memory_bytes: int | None = Field(default=None, ge=1 << 20)
    workers: int = Field(default=2, ge=1, le=64)
    physical_batch: int = Field(default=8, ge=1, le=4096)


class PrepareRequest(_Strict):
    """Check a data set; for ``head`` also extract and cache its features."""

    job: Literal["prepare"]
    recipe: Annotated[Recipe, Field(strict=False)]
    data: DataSource
    resources: Resources = Resources()


class TrainRequest(_Strict):
    """Train one round and write the update."""

    job: Literal["train"]
    recipe: Annotated[Recipe, Field(strict=False)]
    model_path: FilePath
    model_digest: DigestText
    out_path: FilePath
    steps: int = Field(ge=0, le=MAX_STEPS)
    learning_rate: Positive
    noise_multiplier: NonNegative
    max_grad_norm: Positive
    sample_rate: float = Field(default=1.0, gt=0.0, le=1.0)
    declared_patients: int = Field(ge=1)
    dataset_digest: DigestText
    """As ``prepare`` returned it; the budget was opened for exactly this data set."""
    data: DataSource
    resources: Resources = Resources()


Request = PrepareRequest | TrainRequest
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="job")])


def parse_request(message: dict[str, Any]) -> Request:
    """Check one request.

    Raises:
        InvalidInputError: names the offending fields and the rule each breaks.
    """
    try:
        request = _REQUEST.validate_python(message)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'request'}: {problem['msg']}"
            for problem in error.errors(include_input=False, include_url=False)
        )
        raise InvalidInputError(f"the request is malformed: {problems}") from None
    if request.recipe is Recipe.HEAD:
        if request.data.cache_dir is None:
            raise InvalidInputError("recipe 'head' keeps features on disk; set data.cache_dir")
        if isinstance(request, TrainRequest) and request.sample_rate != 1.0:
            raise InvalidInputError(
                "recipe 'head' uses every patient at every step; sample_rate must be 1"
            )
    return request
