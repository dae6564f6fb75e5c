"""The fuzz targets are built and run a little, so that they cannot rot; what longer runs (`make fuzz`) found is replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import readers, seeds, targets
from tests.referees import require

FOUND = sorted(file for target in targets.TARGETS for file in (targets.REGRESSIONS / target).glob("*"))
FOUND_BY_READERS = sorted(file for name in readers.READERS for file in (targets.REGRESSIONS / name).glob("*"))


@pytest.fixture(scope="module", params=targets.SANITIZERS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The targets under one of the sanitizers, and their seeds in seeds/."""
    require("clang")
    folder = tmp_path_factory.mktemp("fuzz")
    targets.build(folder, request.param)
    seeds.write(folder / "seeds", folder / "xtables.lock")
    return folder


@pytest.mark.parametrize("target", targets.TARGETS)
def test_the_invariant_holds_for_a_while(built: Path, tmp_path: Path, target: str) -> None:
    """From seeds that the real code made, 20,000 inputs: always the same ones."""
    ran = targets.run(built / target, "-runs=20000", "-seed=1", corpus=(tmp_path, built / "seeds" / target), artifacts=tmp_path / "found")
    assert ran.executions >= 20_000
    assert ran.features > 100


@pytest.mark.parametrize("file", FOUND, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_what_was_found_stays_fixed(built: Path, file: Path) -> None:
    """An input that once broke an invariant breaks none."""
    targets.replay(built / file.parent.name, file)


@pytest.mark.parametrize("name", readers.READERS)
def test_the_invariant_of_a_reader_holds_for_a_while(tmp_path: Path, name: str) -> None:
    """Some hundred inputs: always the same ones."""
    assert readers.run(readers.READERS[name], tmp_path, examples=300) >= 300


@pytest.mark.parametrize("file", FOUND_BY_READERS, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_what_a_reader_broke_at_stays_fixed(file: Path) -> None:
    """An input that once broke an invariant breaks none."""
    readers.READERS[file.parent.name].check(file.read_bytes())


def test_every_input_that_was_found_is_replayed() -> None:
    """Each folder of regressions is a target's."""
    assert {folder.name for folder in targets.REGRESSIONS.iterdir()} <= {*targets.TARGETS, *readers.READERS}
