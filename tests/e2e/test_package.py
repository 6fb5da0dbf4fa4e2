"""`package`: what remote tasks would take along, as the command line shows and saves it."""

import tarfile
from pathlib import Path

from harness import run_flow

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


def test_info_says_size_and_place(folder: Path) -> None:
    told = run_flow(folder, FLOW, "package", "info").ok().stderr
    assert "Size: " in told and "Place in a remote datastore: code/" in told


def test_a_package_that_cannot_be_saved_is_told(folder: Path) -> None:
    result = run_flow(folder, FLOW, "package", "save", "no/such/folder.tgz")
    assert result.code == 1
    assert f"cannot write the code package `{folder}/no/such/folder.tgz`" in result.stderr
