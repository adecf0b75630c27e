"""Other implementations' rules: Flower's and ByzFL's own aggregators, asked as they are.

Everything here and in ``flower_rules.py`` enters their results, and names them.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from matl.simulation.arms import Decision, RoundInput
from matl.simulation.datasets import Float32Array
from matl.simulation.study import ArmName
from matl.sources import sources_hash
from matl_common.ids import NodeId
from matl_coordinator.core.trust_record import TrustRecord

VERSIONS: Final = {"flwr": "1.41.0", "byzfl": "0.0.11"}
Rows = NDArray[np.float32]
Rule = Callable[[Rows], Rows]

MOST: Final[Mapping[str, Callable[[int], int]]] = {
    "median": lambda n: (n - 1) // 2,
    "trimmed-mean": lambda n: (n - 1) // 2,
    "krum": lambda n: (n - 3) // 2,
    "multi-krum": lambda n: (n - 3) // 2,
    "bulyan": lambda n: (n - 3) // 4,
    "nnm+trimmed-mean": lambda n: (n - 1) // 2,
    "geometric-median": lambda n: (n - 1) // 2,
    "centered-clipping": lambda n: (n - 1) // 2,
}
"""How many Byzantine rows of n each accepts at most."""
FLOWERS: Final = ("median", "trimmed-mean", "krum", "multi-krum", "bulyan")
BYZFLS: Final = ("krum", "multi-krum", "geometric-median", "centered-clipping", "nnm+trimmed-mean")


class RuleFailedError(RuntimeError):
    """The rule cannot be applied to what is left: it raised."""


class PeerArm:
    """A rule that somebody else wrote, on every admitted update; an ``arms.Arm``."""

    name = ArmName.MEAN
    trust: tuple[TrustRecord, ...] = ()

    def __init__(self, rule: Rule, *, first_model: Float32Array) -> None:
        self.refused: frozenset[NodeId] = frozenset()
        self._rule = rule
        self._model = first_model

    def decide(self, closed: RoundInput) -> Decision:
        """As ``Arm.decide``."""
        self.refused = frozenset(closed.violations)
        if not closed.updates:
            return Decision(None, {})
        try:
            change = self._rule(np.stack(list(closed.updates.values())))
        except RuleFailedError:
            # Flower ends the whole run; here the round is held, as the coordinator would.
            return Decision(None, {})
        self._model = (self._model + change).astype(np.float32)
        return Decision(self._model, dict.fromkeys(closed.updates, 1.0 / len(closed.updates)))

    def guess(self, updates: Mapping[NodeId, Float32Array], root: RoundInput) -> Float32Array:
        """As ``Arm.guess``."""
        return self._rule(np.stack(list(updates.values())))

    def released(self) -> Float32Array:
        """As ``Arm.released``."""
        return self._model


def byzfl_rule(name: str, f: int) -> Rule:
    """One of ByzFL's aggregators."""
    import byzfl

    match name:
        case "krum":
            found: Any = byzfl.Krum(f=f)
        case "multi-krum":
            found = byzfl.MultiKrum(f=f)
        case "geometric-median":
            found = byzfl.GeometricMedian()
        case "centered-clipping":
            clipping = byzfl.CenteredClipping(L=3)

            def found(rows: Rows) -> Rows:
                # The default is a hundred, far longer than any update here: then it is the mean.
                clipping.tau = float(np.median(np.linalg.norm(rows, axis=1)))
                return np.asarray(clipping(rows))
        case _:
            mix, trim = byzfl.NNM(f=f), byzfl.TrMean(f=f)

            def found(rows: Rows) -> Rows:
                return np.asarray(trim(mix(rows)))

    def rule(rows: Rows) -> Rows:
        try:
            return np.asarray(found(rows), dtype=np.float32)
        except (ValueError, IndexError) as error:
            raise RuleFailedError(str(error)) from error

    return rule


@contextmanager
def flower_rules(python: Path) -> Iterator[Callable[[str, int], Rule]]:
    """Flower's aggregators, asked in their own interpreter."""
    script = Path(__file__).with_name("flower_rules.py")
    # Flower counts its starts over the network otherwise.
    env = {"PATH": os.environ["PATH"], "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [python, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        ) as process,
    ):
        source, target = Path(folder) / "rows.npy", Path(folder) / "answer.npy"

        def ask(name: str, f: int, rows: Rows) -> Rows:
            assert process.stdin is not None, "it is a pipe"
            assert process.stdout is not None, "it is a pipe"
            np.save(source, rows)
            process.stdin.write(f"{name} {f} {source} {target}\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip()
            if answer == "failed":
                raise RuleFailedError(name)
            if answer != "done":
                raise RuntimeError(f"Flower's interpreter {python} ended")
            return np.asarray(np.load(target), dtype=np.float32)

        yield lambda name, f: partial(ask, name, f)
        assert process.stdin is not None, "it is a pipe"
        process.stdin.close()


def rules_digest() -> str:
    """Names what makes these rules' results, beside the simulation."""
    folder = "benchmarks/results"
    return sources_hash([f"{folder}/peer_rules.py", f"{folder}/flower_rules.py"]).hexdigest()[:16]
