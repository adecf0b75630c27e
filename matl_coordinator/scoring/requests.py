"""What a scoring worker can be asked, parsed once and strictly; unknown keys are refused.

Errors name the field that is wrong, never its value.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from matl_common.errors import InvalidInputError
from matl_common.ids import Digest, NodeId, parse_digest, parse_node_id
from matl_common.protocol import Recipe
from matl_common.vision.dataset import OnBadImage
from matl_common.vision.images import VIEWS

MAX_IMAGE_SIZE = 1024
MAX_UPDATES = 10_000


def _digest(text: str) -> str:
    try:
        return parse_digest(text)
    except InvalidInputError as error:
        raise ValueError("must be a SHA-256 digest") from error


def _node(text: str) -> str:
    try:
        return parse_node_id(text)
    except InvalidInputError as error:
        raise ValueError("must be a node id") from error


FilePath = Annotated[Path, Field(strict=False)]
DigestText = Annotated[Digest, AfterValidator(_digest)]
NodeName = Annotated[NodeId, AfterValidator(_node)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Holdout(_Strict):
    """The coordinator's de-identified holdout set and how it is looked at."""

    data_dir: FilePath
    labels_csv: FilePath
    on_bad_image: Annotated[OnBadImage, Field(strict=False)] = OnBadImage.SKIP
    image_size: int = Field(default=224, ge=16, le=MAX_IMAGE_SIZE)
    backbone: str = "efficientnet_lite0"
    """A backbone (``head``) or a network (``full``) by name; as in the study plan."""
    views: int = Field(default=2, ge=1, le=len(VIEWS))
    weights_file: FilePath | None = None
    weights_digest: DigestText | None = None
    cache_dir: FilePath | None = None
    """Where features are kept; required for ``head``."""
    cache_max_bytes: int = Field(default=1 << 30, ge=1 << 20)


class Resources(_Strict):
    """What a job may use."""

    device: Literal["auto", "cuda", "cpu"] = "cpu"
    workers: int = Field(default=2, ge=1, le=64)
    physical_batch: int = Field(default=16, ge=1, le=4096)


class _Job(_Strict):
    recipe: Annotated[Recipe, Field(strict=False)]
    holdout: Holdout
    resources: Resources = Resources()


class PrepareRequest(_Job):
    """Check the holdout set; for ``head`` also extract and cache its features."""

    job: Literal["prepare"]


class EvaluateRequest(_Job):
    """Judge one model on the whole holdout set."""

    job: Literal["evaluate"]
    model_path: FilePath
    model_digest: DigestText


class ScoreRequest(_Job):
    """Judge each update alone, and write the root gradients at the base model."""

    job: Literal["score"]
    model_path: FilePath
    """The base model of the round."""
    model_digest: DigestText
    updates: Annotated[dict[NodeName, FilePath], Field(max_length=MAX_UPDATES)]
    out_dir: FilePath
    """An existing folder for the root rows; files of the same name are replaced."""
    folds: int = Field(default=4, ge=2, le=64)


class InitialiseRequest(_Strict):
    """Make the model a study begins with, from public knowledge only."""

    job: Literal["initialise"]
    recipe: Annotated[Recipe, Field(strict=False)]
    public: Holdout
    """``head``: the public images that the projection is fitted to."""
    dimensions: int = Field(default=64, ge=1, le=4096)
    whitening: float = Field(default=0.5, ge=0.0, le=1.0)
    out_dir: FilePath
    resources: Resources = Resources()


Request = PrepareRequest | EvaluateRequest | ScoreRequest | InitialiseRequest
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
    images = request.public if isinstance(request, InitialiseRequest) else request.holdout
    if request.recipe is Recipe.HEAD and images.cache_dir is None:
        raise InvalidInputError("recipe 'head' keeps features on disk; set cache_dir")
    return request
