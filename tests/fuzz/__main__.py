"""Fuzz one target for a while, with atheris: ``python -m tests.fuzz server --seconds 600``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    """Run until the time is over, or an input makes the target raise; that input is kept."""
    try:
        import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ModuleNotFoundError:
        sys.exit("fuzzing needs atheris: .venv/bin/pip install atheris==3.0.0")
    with atheris.instrument_imports(include=["greensmtp.protocol", "greensmtp.testing", "email"]):
        from tests.fuzz.targets import TARGETS
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600, help="how long (%(default)s)")
    options = parser.parse_args()
    target = TARGETS[options.target]
    corpus = ROOT / ".bench" / "fuzz" / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    found = ROOT / "tests" / "fuzz" / "findings" / options.target
    found.mkdir(parents=True, exist_ok=True)
    limits = [f"-max_total_time={options.seconds}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *limits, f"-artifact_prefix={found}/", str(corpus)], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
