"""What others sign for: 164.308(b), 164.314(a), and uploaded reports. Nothing is tested."""

from __future__ import annotations

from datetime import timedelta

from matl.compliance.control import BrokenControlError, NotTestedError, Outcome, attested
from matl.compliance.registry import Document
from matl.compliance.site import Site, at_coordinator
from matl_common.identity.allowlist import load_allowlist
from matl_common.identity.certificates import Role
from matl_common.ids import digest_of_file

_DAY = timedelta(days=1)


def agreements(site: Site) -> Outcome:
    """Look for an unexpired agreement of every enrolled hospital."""
    here = at_coordinator(site)
    nodes = load_allowlist(here.config.federation.allowlist).nodes.values()
    hospitals = sorted(each.node_id for each in nodes if each.role is Role.PARTICIPANT)
    today = here.now.date()
    held = {each.node: each for each in sorted(here.registry.agreements, key=lambda a: a.expires)}
    remedy = "sign one, and enter its SHA-256 in [[agreements]] of safeguards.toml"
    if missing := [node for node in hospitals if node not in held]:
        raise BrokenControlError(f"no agreement with {', '.join(missing)}", remedy)
    for node in hospitals:
        agreement = held[node]
        if not agreement.signed <= today <= agreement.expires:
            raise BrokenControlError(
                f"the {agreement.kind} with {node} is valid from {agreement.signed} to "
                f"{agreement.expires}",
                remedy,
            )
        check_document(agreement)
    return attested(
        "; ".join(
            f"{node}: {held[node].kind} {held[node].sha256[:16]}… until {held[node].expires}, by "
            f"{held[node].by}"
            for node in hospitals
        )
    )


def upload(site: Site, kind: str, *, days: int) -> Outcome:
    """The newest report or attestation of a kind, no older than so many days."""
    found = sorted(
        (each for each in site.registry.uploads if each.kind == kind), key=lambda u: u.signed
    )
    remedy = f'enter it in [[uploads]] of safeguards.toml, kind = "{kind}"'
    if not found:
        raise NotTestedError(f"nobody has signed for it ({kind})", remedy)
    newest = found[-1]
    age = (site.now.date() - newest.signed).days
    if not 0 <= age <= days:
        raise BrokenControlError(f"signed on {newest.signed}, {age} days ago", remedy)
    check_document(newest)
    return attested(f"{newest.sha256[:16]}… of {newest.signed}, by {newest.by}")


def check_document(named: Document) -> None:
    """Compare a document's digest, where the document is at hand.

    Raises:
        BrokenControlError: it is another.
    """
    if named.document is None:
        return
    if not named.document.is_file():
        raise BrokenControlError(
            f"{named.document} is not there", "correct document in safeguards.toml, or leave it out"
        )
    if digest_of_file(named.document) != named.sha256:
        raise BrokenControlError(
            f"{named.document} is not the document of SHA-256 {named.sha256[:16]}…",
            "find out who changed it",
        )
