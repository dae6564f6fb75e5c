"""Manifests on disk, followed: what is said of them, and when. With the command around it they are tests/cli/test_apply.py's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import IO

import pytest

from netpol.agent import files
from netpol.agent.files import FileSource
from netpol.errors import InvalidManifests, KernelError
from netpol.kube.events import Event, Gone, Put
from netpol.kube.manifests import load, stamp
from netpol.model import Pod

POD = '{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "%s", "namespace": "x"}}\n'


class Scene:
    """A source of the files of a folder, which was read once; what it said since, "+name" and "-name", and its complaints."""

    def __init__(self, folder: Path) -> None:
        self.said: list[str] = []
        self.times = 0
        self.complaints: list[str] = []
        paths = [str(folder)]
        self.source = FileSource(paths, self._hear, self._complain)
        self.source.say(load(paths), stamp(paths))
        self.said.clear()
        self.times = 0

    def _hear(self, *events: Event) -> None:
        self.times += 1
        self.said += sorted(f"+{one.object.name}" for one in events if isinstance(one, Put))
        self.said += sorted(f"-{one.name}" for one in events if isinstance(one, Gone))

    def _complain(self, error: InvalidManifests | KernelError) -> None:
        self.complaints.append(str(error))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_text(POD % "a")
    (tmp_path / "b.json").write_text(POD % "b")
    return tmp_path


def test_nothing_is_read_while_somebody_writes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what else changed meanwhile: half a file is another cluster. When it is closed, all of it is."""
    scene = Scene(folder)
    with (folder / "b.json").open("w") as file, monkeypatch.context() as patch:
        patch.setattr(files, "load", None)
        (folder / "c.json").write_text(POD % "c")
        assert not scene.source.look()
        file.write(POD % "b")
        file.flush()
        assert not scene.source.look()
        file.write(POD % "d")
    assert scene.said == []
    assert scene.source.look()
    assert scene.said == ["+c", "+d"]
    assert scene.complaints == []


def test_who_begins_to_write_while_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the end, or from beginning to end: what was read of it is thrown away, also where it is a mistake."""
    scene = Scene(folder)
    (folder / "c.json").write_text(POD % "c")
    for text in (POD % "b", ""):

        def writing(paths: list[str], text: str = text) -> object:
            (folder / "b.json").write_text(text)
            return load(paths)

        with monkeypatch.context() as patch:
            patch.setattr(files, "load", writing)
            (folder / "b.json").write_text(POD % "before")
            assert not scene.source.look()
    held = []

    def opening(paths: list[str]) -> object:
        held.append((folder / "b.json").open("a"))
        return load(paths)

    (folder / "b.json").write_text(POD % "b")
    with monkeypatch.context() as patch:
        patch.setattr(files, "load", opening)
        assert not scene.source.look()
    held[0].close()
    assert (scene.said, scene.complaints) == ([], [])
    assert scene.source.look()
    assert scene.said == ["+c"]


def test_files_that_are_replaced_all_the_while_keep_nothing_from_being_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever of them was read was whole; what came meanwhile is another change, for the next look."""
    scene = Scene(folder)

    def replacing(paths: list[str]) -> object:
        found = load(paths)
        (folder / "new").write_text(POD % "longer")
        (folder / "new").rename(folder / "b.json")
        (folder / "d.json").write_text(POD % "d")
        return found

    (folder / "c.json").write_text(POD % "c")
    with monkeypatch.context() as patch:
        patch.setattr(files, "load", replacing)
        assert scene.source.look()
    assert scene.said == ["+c"]
    assert scene.source.look()
    assert scene.said == ["+c", "+d", "+longer", "-b"]


def test_who_writes_for_long_is_named_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time anew."""
    monkeypatch.setattr(files, "SLOW", 0.0)
    scene = Scene(folder)
    for times in (1, 2):
        with (folder / "b.json").open("a") as file:
            file.write("\n")
            file.flush()
            assert [scene.source.look() for _ in range(3)] == [False] * 3
        assert scene.source.look()
        words = f"{folder}/b.json: file: has been written to for 0 s on end: what changed is read when that ends"
        assert scene.complaints == [words] * times


def test_who_writes_before_the_first_reading_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in force from before stays until he is done; for long, and he is named."""
    with (folder / "b.json").open("a") as file:
        file.write(POD % "c")
        monkeypatch.setattr(time, "sleep", lambda seconds: file.close())
        objects, seen = files.read([str(folder)])
    assert [item.name for item in objects if isinstance(item, Pod)] == ["a", "b", "c"]
    assert seen.looks_like(stamp([str(folder)]))
    monkeypatch.setattr(files, "SLOW", 0.0)
    with (folder / "b.json").open("a"), pytest.raises(InvalidManifests, match=r"b\.json: file: has been written to for 0 s on end: what"):
        files.read([str(folder)])


def test_who_begins_to_write_during_the_first_reading_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of it is not used."""
    held: list[IO[str]] = []

    def opening(paths: list[str]) -> object:
        found = load(paths)
        if not held:
            held.append((folder / "b.json").open("a"))
        return found

    def closing(seconds: float) -> None:
        held[0].write(POD % "c")
        held[0].close()

    monkeypatch.setattr(files, "load", opening)
    monkeypatch.setattr(time, "sleep", closing)
    objects, _ = files.read([str(folder)])
    assert [item.name for item in objects if isinstance(item, Pod)] == ["a", "b", "c"]


def test_what_is_torn_while_it_is_read_first_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was written in its place from beginning to end meanwhile: half of it may have been read, or no text at all."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    texts = [POD % "longer", "", POD % "c"]

    def writing(paths: list[str]) -> object:
        if texts:
            (folder / "b.json").write_text(texts.pop())
        return load(paths)

    monkeypatch.setattr(files, "load", writing)
    objects, _ = files.read([str(folder)])
    assert [item.name for item in objects if isinstance(item, Pod)] == ["a", "longer"]
    (folder / "b.json").write_text("")
    with pytest.raises(InvalidManifests, match="is empty"):
        files.read([str(folder)])
    texts.append(POD % "b")
    monkeypatch.setattr(files, "SLOW", 0.0)
    with pytest.raises(InvalidManifests, match=r"b\.json: file: has been written to for 0 s on end: what it holds may not be all$"):
        files.read([str(folder)])


def test_a_file_that_is_written_faster_than_all_are_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In its place, and closed each time: no look finds it open, and each one finds that it changed meanwhile."""
    now, names = [100.0], ["e", "dd", "ccc", "bbbb"]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    scene = Scene(folder)

    def writing(paths: list[str]) -> object:
        found = load(paths)
        if names:
            (folder / "b.json").write_text(POD % names.pop())
        return found

    monkeypatch.setattr(files, "load", writing)
    (folder / "b.json").write_text(POD % "before")
    for expected in ([], [], [f"{folder}/b.json: file: has been written to for 30 s on end: what changed is read when that ends"]):
        assert not scene.source.look()
        assert scene.complaints == expected
        now[0] += 15
    assert not scene.source.look()
    assert scene.source.look()
    assert (scene.said, len(scene.complaints)) == (["+e", "-b"], 1)
    names.append("ff")
    (folder / "b.json").write_text(POD % "before")
    assert not scene.source.look()  # another time, and all of it again until anybody is named
    assert len(scene.complaints) == 1


def test_a_writer_who_took_his_file_away_is_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one has all of his time."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    scene = Scene(folder)
    seen = stamp([str(folder)])
    with (folder / "new.json").open("w"):
        assert not scene.source.look()
        (folder / "new.json").unlink()
    monkeypatch.setattr(files, "stamp", lambda paths: scene.source._seen)
    assert scene.source.look()
    monkeypatch.setattr(files, "stamp", lambda paths: seen._replace(errors=("other",)))
    now[0] += 2 * files.SLOW
    with (folder / "b.json").open("a"):
        assert not scene.source.look()
    assert scene.complaints == []


def test_files_from_the_future_are_not_read_for_ever(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that was set back makes them look as if they had been written just now: for some seconds that may be so."""
    then, now = time.time_ns() - 3_600_000_000_000, [100.0]
    monkeypatch.setattr(time, "time_ns", lambda: then)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    scene, read = Scene(folder), list[float]()

    def noted(paths: list[str]) -> object:
        read.append(now[0])
        return load(paths)

    monkeypatch.setattr(files, "load", noted)
    for now[0] in (102.0, 104.0, 106.0, 108.0):
        assert scene.source.look()
    assert read == [102.0, 104.0]
    (folder / "c.json").write_text(POD % "c")
    for now[0] in (110.0, 112.0, 118.0):
        assert scene.source.look()
    assert read == [102.0, 104.0, 110.0, 112.0]
    assert scene.said == ["+c"]


def test_a_mistake_is_told_once_and_changes_nothing(folder: Path) -> None:
    """However often it is looked at; after it was mended it is another one. What is as before is said, so that he sees it is heard."""
    scene = Scene(folder)
    for times in (1, 2):
        (folder / "b.json").write_text("")
        for _ in range(3):
            assert scene.source.look()
        assert scene.complaints == [f"{folder}/b.json: file: is empty"] * times
        (folder / "b.json").write_text(POD % "b")
        for _ in range(3):
            assert scene.source.look()
        assert (scene.said, scene.times) == ([], times)


def test_what_may_have_been_written_twice_at_one_time_is_read_twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks the same, and only what it holds says whether anything changed: then it is said, and else nothing is."""
    scene = Scene(folder)
    (folder / "c.json").write_text(POD % "c")
    seen = stamp([str(folder)])
    monkeypatch.setattr(files, "stamp", lambda paths: seen._replace(fresh=object()))
    for text, said in ((POD % "c", ["+c"]), (POD % "c", ["+c"]), (POD % "d", ["+c", "+d", "-c"])):
        (folder / "c.json").write_text(text)
        assert scene.source.look()
        assert scene.said == said
    assert scene.times == 2


def test_what_is_behind_a_link_changes(folder: Path) -> None:
    """The kernel does not tell of it, and a look finds it: the file, and the folder that a link leads to from now on."""
    (folder / "real").mkdir()
    (folder / "other").mkdir()
    (folder / "real" / "p.json").write_text(POD % "p")
    (folder / "other" / "p.json").write_text(POD % "q")
    (folder / "named").symlink_to("real")
    scene = Scene(folder / "named")
    (folder / "real" / "p.json").write_text(POD % "r")
    assert scene.source.look()
    assert scene.said == ["+r", "-p"]
    (folder / "named").unlink()
    (folder / "named").symlink_to("other")
    assert scene.source.look()
    assert scene.said[2:] == ["+q", "-r"]
