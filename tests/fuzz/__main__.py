"""`make fuzz`: each target for FUZZ_SECONDS (60), from its seeds and what earlier runs found; a table of executions at the end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from netpol.kernel import namespaces
from tests.fuzz import readers, seeds, targets

BUILD = Path("build/fuzz")


def main() -> int:
    if os.geteuid() != 0:
        namespaces.enter_private_world()
    seconds = int(os.environ.get("FUZZ_SECONDS") or 60)
    limit = f"-max_total_time={seconds}"
    targets.build(BUILD)
    seeds.write(BUILD / "seeds", BUILD / "xtables.lock")
    found = total = 0
    print(f"{'target':<12}{'executions':>12}{'features':>10}")
    for target in targets.TARGETS:
        corpus = (BUILD / "corpus" / target, BUILD / "seeds" / target)
        corpus[0].mkdir(parents=True, exist_ok=True)
        try:
            ran = targets.run(BUILD / target, limit, corpus=corpus, artifacts=BUILD / "found" / target)
        except targets.Found as error:
            found += 1
            print(f"{target:<12}  broke: {BUILD / 'found' / target} has the input\n{error}")
            continue
        total += ran.executions
        print(f"{target:<12}{ran.executions:>12,}{ran.features:>10,}", flush=True)
    for name, reader in readers.READERS.items():
        try:
            executions = readers.run(reader, BUILD / "found" / name, seconds=seconds)
        except targets.Found as error:
            found += 1
            print(f"{name:<12}  broke: {error}")
            continue
        total += executions
        print(f"{name:<12}{executions:>12,}{'':>10}", flush=True)
    print(f"{'all':<12}{total:>12,}")
    return 1 if found else 0


sys.exit(main())
