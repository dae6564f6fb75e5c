"""`make fuzz`: each target for FUZZ_SECONDS (60), from its seeds and what earlier runs found; a table of executions at the end.

Arguments name the targets, if not all. Those of C grow their corpora under AddressSanitizer; then they run from these for a quarter of
that time under MemorySanitizer.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from netpol.kernel import namespaces
from tests.fuzz import readers, seeds, targets

BUILD = Path("build/fuzz")


def main() -> int:
    every = [*targets.TARGETS, *readers.READERS]
    names = sys.argv[1:] or every
    if unknown := sorted(set(names).difference(every)):
        print(f"no fuzz target: {', '.join(unknown)}; there are {', '.join(every)}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        namespaces.enter_private_world()
    seconds = int(os.environ.get("FUZZ_SECONDS") or 60)
    for sanitizer in targets.SANITIZERS:
        targets.build(BUILD / sanitizer, sanitizer)
    seeds.write(BUILD / "seeds", BUILD / "xtables.lock")
    found = total = 0
    print(f"{'target':<20}{'executions':>12}{'features':>10}")
    for target in [target for target in targets.TARGETS if target in names]:
        corpus = (BUILD / "corpus" / target, BUILD / "seeds" / target)
        corpus[0].mkdir(parents=True, exist_ok=True)
        for sanitizer, part in (("address", 1), ("memory", 4)):
            name, limit = f"{target}, {sanitizer}", f"-max_total_time={max(1, seconds // part)}"
            try:
                ran = targets.run(BUILD / sanitizer / target, limit, corpus=corpus, artifacts=BUILD / "found" / target)
            except targets.Found as error:
                found += 1
                print(f"{name:<20}  broke: {BUILD / 'found' / target} has the input\n{error}")
                continue
            total += ran.executions
            print(f"{name:<20}{ran.executions:>12,}{ran.features:>10,}", flush=True)
    for name, reader in [(name, reader) for name, reader in readers.READERS.items() if name in names]:
        try:
            executions = readers.run(reader, BUILD / "found" / name, seconds=seconds)
        except targets.Found as error:
            found += 1
            print(f"{name:<20}  broke: {error}")
            continue
        total += executions
        print(f"{name:<20}{executions:>12,}{'':>10}", flush=True)
    print(f"{'all':<20}{total:>12,}")
    return 1 if found else 0


sys.exit(main())
