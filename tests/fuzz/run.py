"""Fuzz one target with atheris for a bounded time, or repeat one input.

    python -m tests.fuzz.run TARGET [SECONDS]
    python -m tests.fuzz.run TARGET FILE

The corpus grows in out/fuzz/TARGET/corpus; input that breaks the promise is kept beside it.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris

# Before gRPC, which reads its TLS settings once.
import matl_common  # noqa: F401

ROOT = Path(__file__).parents[2]
# Memory is libFuzzer's to watch, too: what it may grow by while it runs, its corpus included.
MAX_GROWTH_MIB = 256

with atheris.instrument_imports(
    include=["matl_common", "matl_coordinator", "matl_participant", "tests.fuzz"]
):
    from tests.fuzz.target import MAX_INPUT_BYTES, Target, peak_bytes, try_input, warm_up

    name = sys.argv[1]
    target: Target = importlib.import_module(f"tests.fuzz.{name}").TARGET


def main() -> None:
    """Fuzz, or repeat."""
    warm_up(target)
    argument = sys.argv[2] if len(sys.argv) > 2 else "20"
    if not argument.isdecimal():
        taken = try_input(target, Path(argument).read_bytes())
        print(f"{name}: {'taken' if taken else 'refused'}")
        return
    folder = ROOT / "out" / "fuzz" / name
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
        if not try_input(target, seed) and not target.is_live:
            sys.exit(f"{name}: seed {number} is refused, so that fuzzing starts from nothing")
    options = [
        f"-max_total_time={argument}",
        f"-max_len={MAX_INPUT_BYTES}",
        f"-rss_limit_mb={(peak_bytes() >> 20) + MAX_GROWTH_MIB}",
        "-timeout=10",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]

    def test_one_input(data: bytes) -> None:
        try_input(target, data)

    print(f"{name}: {argument} s from {len(target.seeds)} seeds", flush=True)
    atheris.Setup([sys.argv[0], *options, str(corpus)], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
