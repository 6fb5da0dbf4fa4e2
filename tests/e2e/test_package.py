"""`package`: what remote tasks would take along, as the command line shows and saves it."""

import re
import tarfile
from pathlib import Path

import pytest
from harness import r_library, run_flow

import metaflow

FLOW = """
class Packed(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    Packed()
"""


def project(folder: Path) -> None:
    for name in ("helpers/tool.py", "model.R", "table.csv", ".hidden/no.py", "data.bin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def test_list_names_files_and_archive_names_members(folder: Path) -> None:
    project(folder)
    listed = run_flow(folder, FLOW, "package", "list").ok().stderr.splitlines()
    assert str(folder / "helpers/tool.py") in listed and str(folder / "model.R") in listed
    assert not any("hidden" in line or line.endswith((".csv", ".bin")) for line in listed)
    inside = run_flow(folder, FLOW, "package", "list", "--archive").ok().stderr.splitlines()
    assert {"helpers/tool.py", "model.R", ".mf_meta/INFO", ".mf_code/metaflow/__init__.py"} <= set(
        inside
    )


def test_saved_packages_are_the_same_and_hold_what_runs(folder: Path) -> None:
    project(folder)
    arguments = ("--package-suffixes", ".csv,bin", "package", "save")
    for name in ("one.tgz", "two.tgz"):
        told = run_flow(folder, FLOW, *arguments, name).ok().stderr
        assert f"Code package saved in {folder / name}." in told
    assert (folder / "one.tgz").read_bytes() == (folder / "two.tgz").read_bytes()
    with tarfile.open(folder / "one.tgz") as archive:
        members = {member.name: member for member in archive}
    assert {"table.csv", "data.bin", ".mf_code/metaflow/_native.abi3.so"} <= members.keys()
    assert {(each.mtime, each.uid, each.gid, each.uname) for each in members.values()} == {
        (1575331200, 0, 0, "")
    }


def test_suffixes_come_from_the_option_else_from_configuration(folder: Path) -> None:
    project(folder)
    configured = {"METAFLOW_DEFAULT_PACKAGE_SUFFIXES": ".csv"}

    def listed(*options: str) -> str:
        return run_flow(folder, FLOW, *options, "package", "list", env=configured).ok().stderr

    assert "table.csv" in listed() and "data.bin" not in listed()
    of_option = listed("--package-suffixes", ".bin")
    assert "data.bin" in of_option and "table.csv" not in of_option and "model.R" in of_option


def test_a_file_that_cannot_be_read_is_left_out_and_told(folder: Path) -> None:
    """A link to what only its owner may read, say; here, to a file that vanishes on reading."""
    project(folder)
    (folder / "unreadable.py").symlink_to("/proc/self/mem")
    (folder / "dead.py").symlink_to(folder / "nowhere")
    result = run_flow(folder, FLOW, "package", "save", "out.tgz").ok()
    text = " ".join(result.stderr.split())
    assert "dead.py" not in text
    with tarfile.open(folder / "out.tgz") as archive:
        names = set(archive.getnames())
    assert not {"unreadable.py", "dead.py"} & names and "model.R" in names
    assert "the code package goes without `unreadable.py`, which cannot be read: " in text


def test_links_are_followed_and_ignore_files_are_not(folder: Path) -> None:
    project(folder)
    elsewhere = folder.parent / f"{folder.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "shared.py").write_text("x = 1")
    (folder / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / ".gitignore").write_text("helpers/\n")
    listed = run_flow(folder, FLOW, "package", "list", "--archive").ok().stderr.splitlines()
    assert {"linked/shared.py", "helpers/tool.py"} <= set(listed)
    assert not any("linked/back" in line for line in listed)


def test_info_says_size_and_place(folder: Path) -> None:
    told = run_flow(folder, FLOW, "package", "info").ok().stderr
    assert "Size: " in told and "Place in a remote datastore: code/" in told


def test_a_package_that_cannot_be_saved_is_told(folder: Path) -> None:
    result = run_flow(folder, FLOW, "package", "save", "no/such/folder.tgz")
    assert result.code == 1
    assert f"cannot write the code package `{folder}/no/such/folder.tgz`" in result.stderr


@pytest.mark.parametrize("language", ["python", "r"])
def test_what_tasks_load_asks_for_no_newer_glibc_than_promised(language: str) -> None:
    extension = Path(metaflow.__file__).parent / "_native.abi3.so"
    if language == "r":
        extension = Path(r_library()) / "metaflow/libs/metaflow.so"
    versions = {
        tuple(map(int, found.split(b".")))
        for found in re.findall(rb"GLIBC_(\d+\.\d+)", extension.read_bytes())
    }
    assert versions and max(versions) <= (2, 28), max(versions)
