"""What a scoring worker can be asked, parsed once and strictly; unknown keys are refused.

Errors name the field that is wrong, never its value.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from matl_common.errors import InvalidInputError
from matl_common.ids import NodeId, parse_node_id
from matl_common.protocol import Recipe
from matl_common.vision.requests import (
    DigestText,
    FilePath,
    ImageSource,
    Strict,
    parse_strictly,
)

MAX_UPDATES = 10_000


def _node(text: str) -> str:
    try:
        return parse_node_id(text)
    except InvalidInputError as error:
        raise ValueError("must be a node id") from error


NodeName = Annotated[NodeId, AfterValidator(_node)]
Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class Resources(Strict):
    """What a job may use."""

    device: Literal["auto", "cuda", "cpu"] = "cpu"
    workers: int = Field(default=2, ge=1, le=64)
    physical_batch: int = Field(default=16, ge=1, le=4096)


class _Job(Strict):
    recipe: Annotated[Recipe, Field(strict=False)]
    holdout: ImageSource
    resources: Resources = Resources()


class PrepareRequest(_Job):
    """Check the holdout set; for ``head`` also extract and cache its features."""

    job: Literal["prepare"]


class ModelJob(_Job):
    """What is asked about one model on the holdout set."""

    model_path: FilePath
    model_digest: DigestText


class EvaluateRequest(ModelJob):
    """Judge one model on the whole holdout set."""

    job: Literal["evaluate"]


class _RoundJob(ModelJob):
    """About the base model of a round."""

    folds: int = Field(default=4, ge=2, le=64)


class ReachRequest(_RoundJob):
    """Find out how much of the change to a candidate the validation part bears."""

    job: Literal["reach"]
    candidate: FilePath


class _RowsJob(_RoundJob):
    out_dir: FilePath
    """An existing folder for the rows; files of the same name are replaced."""


class RootRequest(_RowsJob):
    """Write the root gradients at the base model."""

    job: Literal["root"]


class ScoreRequest(_RowsJob):
    """Judge each update alone, and write the root gradients along the updates' common step."""

    job: Literal["score"]
    updates: Annotated[dict[NodeName, FilePath], Field(max_length=MAX_UPDATES)]
    weights: Annotated[dict[NodeName, Weight], Field(max_length=MAX_UPDATES)]
    """What each update counts for in that step; 0 where it is not named."""
    steps: int = Field(ge=1)
    """Gradient steps in a round, as hospitals train."""
    learning_rate: float = Field(gt=0.0, allow_inf_nan=False)
    max_grad_norm: float = Field(gt=0.0, allow_inf_nan=False)
    """To which hospitals clip every image's gradient."""

    @model_validator(mode="after")
    def _check(self) -> "ScoreRequest":
        if not self.weights.keys() <= self.updates.keys():
            raise ValueError("weights must be of updates in the request")
        return self


class InitialiseRequest(Strict):
    """Make the model a study begins with, from public knowledge only."""

    job: Literal["initialise"]
    recipe: Annotated[Recipe, Field(strict=False)]
    public: ImageSource
    """``head``: the public images that the projection is fitted to."""
    dimensions: int = Field(default=64, ge=1, le=4096)
    whitening: float = Field(default=0.5, ge=0.0, le=1.0)
    public_steps: int = Field(default=0, ge=0, le=10_000)
    """``head``: steps on the public images and their labels."""
    learning_rate: float = Field(default=1.0, gt=0.0, le=1e6)
    out_dir: FilePath
    resources: Resources = Resources()


Request = (
    PrepareRequest | EvaluateRequest | RootRequest | ScoreRequest | ReachRequest | InitialiseRequest
)
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="job")])


def parse_request(message: dict[str, Any]) -> Request:
    """Check one request.

    Raises:
        InvalidInputError: names the offending fields and the rule each breaks.
    """
    request = parse_strictly(_REQUEST, message)
    images = request.public if isinstance(request, InitialiseRequest) else request.holdout
    if request.recipe is Recipe.HEAD and images.cache_dir is None:
        raise InvalidInputError("recipe 'head' keeps features on disk; set cache_dir")
    return request
