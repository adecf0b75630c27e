"""MATL: the library a researcher imports.

``import matl`` loads next to nothing: each name is imported from its module when it is first
asked for, torch only with training, gRPC only with an address.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import matl_common  # noqa: F401 - before gRPC, which reads its TLS settings once
from matl_common.modes import MATLMode

if TYPE_CHECKING:
    from matl.checklist import verify_hipaa_compliance
    from matl.client import MATLClient
    from matl.privacy import DifferentialPrivacy
    from matl.results import plot_medical_fl_results
    from matl.sdk.federation import MatlWarning, Submission
    from matl.streamlit_page import create_medical_fl_dashboard
    from matl.training import evaluate_medical_model, train_federated_medical_ai

__all__ = [
    "DifferentialPrivacy",
    "MATLClient",
    "MATLMode",
    "MatlWarning",
    "Submission",
    "create_medical_fl_dashboard",
    "evaluate_medical_model",
    "plot_medical_fl_results",
    "train_federated_medical_ai",
    "verify_hipaa_compliance",
]

_MODULES = {
    "DifferentialPrivacy": "matl.privacy",
    "MATLClient": "matl.client",
    "MatlWarning": "matl.sdk.federation",
    "Submission": "matl.sdk.federation",
    "create_medical_fl_dashboard": "matl.streamlit_page",
    "evaluate_medical_model": "matl.training",
    "plot_medical_fl_results": "matl.results",
    "train_federated_medical_ai": "matl.training",
    "verify_hipaa_compliance": "matl.checklist",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'matl' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
