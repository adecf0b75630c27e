"""Part 8 of the tutorial: a page of a Streamlit script about any client, embedded or not.

Draws what the client tells, and nothing of a patient is in that. Whoever operates a federation
has a page with a door, an idle time and proofs: ``monitor_fl_node.py --dashboard``.
"""

from __future__ import annotations

import math

from matl.client import MATLClient
from matl.history import relation_of
from matl_common.errors import ConfigurationError

WARNED_FROM = 0.5
"""Trust below it, and half of a budget, are pointed out."""


def create_medical_fl_dashboard(matl_client: MATLClient) -> None:
    """Draw the study of a client into the Streamlit script that calls this.

    Save as ``page.py``, with a client made in it, and start ``streamlit run page.py``.

    Args:
        matl_client: asked once for each drawing.

    Raises:
        ConfigurationError: streamlit is not installed.
        OperationsError: the coordinator does not answer or refuses.
    """
    try:
        import streamlit as st
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "the dashboard needs streamlit: pip install 'matl[dashboard]'"
        ) from error
    st.title("🏥 Medical FL Monitoring Dashboard")
    st.caption("No patient data is shown.")
    accuracy = matl_client.get_accuracy()
    for column, (name, value) in zip(
        st.columns(3),
        (
            ("Active hospitals", str(matl_client.get_active_nodes())),
            ("Current round", str(matl_client.get_current_round())),
            ("Model accuracy", "not measured" if math.isnan(accuracy) else f"{accuracy:.1f} %"),
        ),
        strict=True,
    ):
        column.metric(name, value)
    if claim := matl_client.claim:
        st.caption(f"What it withstands: {claim}.")
    st.subheader("Trust in each hospital")
    trust = matl_client.get_trust_scores_df()
    st.dataframe(trust)
    if low := [str(node) for node, score in trust.items() if score < WARNED_FROM]:
        st.error(f"Low trust: {', '.join(low)}")
    st.subheader("Privacy budget")
    _draw_budget(matl_client)
    st.subheader("Newest entries of the study's log")
    st.table(
        [
            {"at": each.get("at", ""), "event": each.get("event", ""), "node": each.get("node", "")}
            for each in matl_client.get_recent_events(limit=10)
        ]
    )


def _draw_budget(client: MATLClient) -> None:
    import streamlit as st

    left = client.get_remaining_privacy_budget()
    if math.isinf(left):
        st.caption("ε = ∞: this study adds no noise and promises no privacy.")
        return
    if math.isnan(left):
        st.caption("Only the hospitals' own ledgers know what is left.")
        return
    fraction = client.get_budget_fraction()
    # Of Σ 1/σ², which rounds use up evenly; ε itself runs ahead of them.
    st.progress(min(1.0, max(0.0, 1.0 - fraction)))
    st.caption(
        f"{100 * (1 - fraction):.0f} % of the rounds are left to pay for, ε = {left:.2f} "
        f"({_relation(client)})."
    )
    if fraction > WARNED_FROM:
        st.warning("More than half of the privacy budget is spent.")


def _relation(client: MATLClient) -> str:
    if client.get_current_round() > 0:
        return relation_of(client.history()["delta"])
    return relation_of(math.nan if client.privacy is None else client.privacy.delta)
