"""What a training worker and its processes can be asked, parsed once and strictly.

Unknown keys are refused. Errors name the field that is wrong, never its value.
"""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, TypeAdapter, model_validator

from matl_common.errors import InvalidInputError
from matl_common.privacy.mechanisms import Noise
from matl_common.protocol import Recipe
from matl_common.vision.requests import (
    DigestText,
    FilePath,
    ImageSource,
    Strict,
    parse_strictly,
)

MAX_STEPS = 100_000


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("must be finite")
    return number


Positive = Annotated[float, Field(gt=0.0), AfterValidator(_finite)]
NonNegative = Annotated[float, Field(ge=0.0), AfterValidator(_finite)]


class Nodes(Strict):
    """The machines that train together, as one of them sees them."""

    count: int = Field(ge=2, le=64)
    rank: int = Field(default=0, ge=0, le=63)
    """This one's number; the participant's daemon runs on 0."""
    rendezvous: str
    """``host:port`` of the first, on the link between them."""
    interface: str
    """This machine's end of the link."""
    token_file: FilePath
    """What all of them know and nobody else."""


class Resources(Strict):
    """What a job may use."""

    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    device_memory_bytes: int | None = Field(default=None, ge=1 << 20)
    workers: int = Field(default=2, ge=1, le=64)
    """Processor threads, of all processes together."""
    processes: int | None = Field(default=None, ge=1, le=64)
    """That share the work; one for each GPU, or one, if unset."""
    stall_seconds: float = Field(default=600.0, gt=0.0)
    """How long one process may keep the others waiting."""
    physical_batch: int = Field(default=8, ge=1, le=4096)
    nodes: Nodes | None = None
    """Without them this machine works alone."""

    def threads_each(self, processes: int) -> int:
        """Processor threads of one of ``processes``."""
        return max(1, self.workers // processes)


class PhiScan(Strict):
    """How to look for identifiers before anything is computed."""

    policy: Literal["refuse", "warn"]
    ocr: bool = False
    folder: FilePath
    """Of the daemon's, for the key of the marks and the newest verdict."""


class PrepareRequest(Strict):
    """Check a data set; for ``head`` also extract and cache its features."""

    job: Literal["prepare"]
    recipe: Annotated[Recipe, Field(strict=False)]
    data: ImageSource
    resources: Resources = Resources()
    phi: PhiScan | None = None


class TrainRequest(Strict):
    """Train one round and write the update."""

    job: Literal["train"]
    recipe: Annotated[Recipe, Field(strict=False)]
    model_path: FilePath
    model_digest: DigestText
    out_path: FilePath
    steps: int = Field(ge=0, le=MAX_STEPS)
    learning_rate: Positive
    noise: Annotated[Noise, Field(strict=False)] = Noise.GAUSSIAN
    noise_multiplier: NonNegative
    evaluation_noise_multiplier: Positive | None = None
    """With it, the base model is evaluated, too: the noise on the count, in patients."""
    max_grad_norm: Positive
    sample_rate: float = Field(default=1.0, gt=0.0, le=1.0)
    declared_patients: int = Field(ge=1)
    images_per_patient: int = Field(default=1, ge=1, le=1000)
    """The most images any patient has, where the labels have no ``group_key``."""
    dataset_digest: DigestText
    """As ``prepare`` returned it; the budget was opened for exactly this data set."""
    data: ImageSource
    resources: Resources = Resources()


class ExtractRequest(Strict):
    """Compute the features of a data set and store them in its cache."""

    job: Literal["extract"]
    data: ImageSource
    dataset_digest: DigestText
    """Of the labels and images, computed just before."""
    key: DigestText
    """Under which the features are stored."""
    resources: Resources


class MeetRequest(Strict):
    """See that all nodes are there and hold the data set that ``full`` will train on."""

    job: Literal["meet"]
    data: ImageSource
    dataset_digest: DigestText
    resources: Resources


class FollowRequest(Strict):
    """Do what the first node will tell, on this node's own copy of the data."""

    job: Literal["follow"]
    data_dir: FilePath
    labels_csv: FilePath
    weights_file: FilePath | None = None
    resources: Resources

    @model_validator(mode="after")
    def _follows_somebody(self) -> Self:
        if self.resources.nodes is None or self.resources.nodes.rank == 0:
            raise ValueError("needs resources.nodes, with a rank above 0")
        return self


Request = PrepareRequest | TrainRequest
Shared = ExtractRequest | MeetRequest | TrainRequest
_Order = Shared | FollowRequest
_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="job")])
_SHARED: TypeAdapter[Shared] = TypeAdapter(Annotated[Shared, Field(discriminator="job")])
_ORDER: TypeAdapter[_Order] = TypeAdapter(Annotated[_Order, Field(discriminator="job")])


def parse_request(message: dict[str, Any]) -> Request:
    """Check one request.

    Raises:
        InvalidInputError: names the offending fields and the rule each breaks.
    """
    request = parse_strictly(_REQUEST, message)
    if request.resources.nodes is not None and request.data.cache_dir is None:
        raise InvalidInputError("several nodes meet in a folder beside data.cache_dir; set it")
    if request.recipe is Recipe.HEAD:
        if request.data.cache_dir is None:
            raise InvalidInputError("recipe 'head' keeps features on disk; set data.cache_dir")
        if isinstance(request, TrainRequest) and request.sample_rate != 1.0:
            raise InvalidInputError(
                "recipe 'head' uses every patient at every step; sample_rate must be 1"
            )
    elif isinstance(request, TrainRequest):
        _check_full(request)
    return request


def parse_shared(message: dict[str, Any]) -> Shared:
    """Check what several processes are asked to do together.

    Raises:
        InvalidInputError: as ``parse_request``.
    """
    return parse_strictly(_SHARED, message)


def parse_order(message: dict[str, Any]) -> Shared | FollowRequest:
    """Check what one process is started with.

    Raises:
        InvalidInputError: as ``parse_request``.
    """
    return parse_strictly(_ORDER, message)


def _check_full(request: TrainRequest) -> None:
    if request.images_per_patient != 1:
        raise InvalidInputError(
            "recipe 'full' draws one image of each patient; give the labels a group_key column "
            "instead of images_per_patient"
        )
    if request.noise is not Noise.GAUSSIAN:
        raise InvalidInputError("recipe 'full' has no mechanism with such noise; see noise")
    if request.evaluation_noise_multiplier is not None:
        raise InvalidInputError("recipe 'full' has no noised evaluation")
