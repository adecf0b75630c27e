"""The features of a request's data set: from the cache, from this process, or from several.

Extraction is all that several processes share of the ``head`` recipe. Its descent works on
cached rows and takes less time than a process takes to start, so it stays in one.
"""

from functools import partial

import torch

from matl_common.errors import IntegrityError
from matl_common.ids import Digest
from matl_common.vision.backbones import Backbone, load_backbone
from matl_common.vision.dataset import Labels, dataset_digest
from matl_common.vision.features import (
    FeatureCache,
    FeatureSet,
    cache_key,
    cached_features,
    extract_features,
    help_extract,
)
from matl_common.vision.images import first_views
from matl_common.vision.requests import ImageSource
from matl_common.worker import Message, ReportProgress
from matl_participant.training.dataset import (
    PercentReport,
    check_dataset,
    check_same_data,
    labels_of,
)
from matl_participant.training.group import ProcessGroup
from matl_participant.training.processes import Processes
from matl_participant.training.requests import ExtractRequest, Resources, TrainRequest

Place = torch.device | Processes
"""Where features are computed: on a device by this process, or by others together."""


def features_of(
    labels: Labels,
    data: ImageSource,
    resources: Resources,
    place: Place,
    report: ReportProgress | None,
) -> FeatureSet:
    """The features of a data set, which are in the cache from then on.

    Raises:
        BadRowError, LabelsError: as ``cached_features``.
        ProcessLostError, TrainingProcessError: as ``Processes.run``.
    """
    elsewhere = place if isinstance(place, Processes) else None
    return cached_features(
        labels,
        _backbone(data),
        cache=_cache(data),
        views=first_views(data.views),
        image_size=data.image_size,
        on_bad_image=data.on_bad_image,
        decoders=resources.workers,
        device=None if isinstance(place, Processes) else place,
        progress=PercentReport(report) if report else None,
        extract=partial(_extracted_by, elsewhere, data, resources) if elsewhere else None,
    )


def pinned_features(request: TrainRequest, place: Place) -> FeatureSet:
    """The features of the data set the request names, from the cache when they are there.

    Raises:
        DatasetChangedError: the data on disk is another.
    """
    data = request.data
    if data.weights_digest is not None:
        key = cache_key(
            dataset=request.dataset_digest,
            backbone=data.backbone,
            weights=data.weights_digest,
            views=data.views,
            image_size=data.image_size,
        )
        found = _cache(data).load(key)
        if found is not None:
            return found
    found = features_of(labels_of(data), data, request.resources, place, report=None)
    check_dataset(found.dataset, request.dataset_digest)
    return found


def _extracted_by(
    processes: Processes, data: ImageSource, resources: Resources, dataset: Digest, key: Digest
) -> FeatureSet:
    request = ExtractRequest(
        job="extract", data=data, dataset_digest=dataset, key=key, resources=resources
    )
    cache = _cache(data)
    processes.run(request.model_dump(mode="json"), beside=cache.folder)
    found = cache.load(key)
    if found is None:
        raise IntegrityError(
            "the features that several processes stored cannot be read again; look for a faulty "
            "disk, or for a cache_bytes that is too small for them"
        )
    return found


def extract_together(
    request: ExtractRequest, device: torch.device, group: ProcessGroup, report: ReportProgress
) -> Message:
    """Do one process's share of an extraction; the first one stores the features.

    Returns:
        How many patients they are of; nothing from a process that is not the first.

    Raises:
        BadRowError, LabelsError: as ``extract_features``.
        ProcessLostError: another process is gone.
        ProcessesDisagreeError: another node has other data.
    """
    data = request.data
    labels, backbone = labels_of(data), _backbone(data)
    nodes = request.resources.nodes
    # On the first node the worker has just computed it.
    is_known = nodes is None or nodes.rank == 0
    found = request.dataset_digest if is_known else dataset_digest(labels.records)
    check_same_data(found, group)
    decoders = request.resources.threads_each(group.size)
    views = first_views(data.views)
    if not group.is_first:
        help_extract(
            labels,
            backbone,
            views=views,
            image_size=data.image_size,
            decoders=decoders,
            device=device,
            team=group,
        )
        return {}
    features = extract_features(
        labels,
        backbone,
        dataset=request.dataset_digest,
        views=views,
        image_size=data.image_size,
        on_bad_image=data.on_bad_image,
        decoders=decoders,
        device=device,
        team=group,
        progress=PercentReport(report),
    )
    _cache(data).store(request.key, features)
    return {"patients": features.patients}


def _backbone(data: ImageSource) -> Backbone:
    return load_backbone(
        data.backbone, weights_file=data.weights_file, weights_digest=data.weights_digest
    )


def _cache(data: ImageSource) -> FeatureCache:
    assert data.cache_dir is not None  # parse_request requires it for ``head``
    return FeatureCache(data.cache_dir, max_bytes=data.cache_max_bytes)
