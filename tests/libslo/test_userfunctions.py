"""Finding the files that a probe of user functions attaches to."""

from __future__ import annotations

from pathlib import Path

from libslo.kernel.userfunctions import executable_mappings, files_with_function

MAPS = """\
00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/app
7f00-7f10 r--p 00000000 08:02 10 /usr/lib/libssl.so.3
7f10-7f20 r-xp 00010000 08:02 10 /usr/lib/libssl.so.3
7f20-7f30 r-xp 00020000 08:02 10 /usr/lib/libssl.so.3
7f30-7f40 r-xp 00000000 08:02 11 /opt/with space/libssl.so.1.1 (deleted)
7f50-7f60 rw-p 00000000 00:00 0
7ffd-7ffe r-xp 00000000 00:00 0 [vdso]
"""


def make_process(proc: Path, pid: int, maps: str, **files: bytes) -> None:
    """A /proc/<pid> with a root that has these files."""
    root = proc / str(pid) / "root"
    root.mkdir(parents=True)
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_so", ".so")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (proc / str(pid) / "maps").write_text(maps)


def test_only_code_of_files_counts() -> None:
    """Of the mappings, those that are executable and of a file are found once each, with their first address range."""
    assert executable_mappings(MAPS) == {
        "/usr/bin/app": "00400000-00452000",
        "/usr/lib/libssl.so.3": "7f10-7f20",
        "/opt/with space/libssl.so.1.1 (deleted)": "7f30-7f40",
    }


def test_each_file_is_found_once_inside_its_processes_root(tmp_path: Path) -> None:
    """Libraries of two containers are two files, one library of two processes is one, and a library without the function is none."""
    line = "7f10-7f20 r-xp 00010000 08:02 10 /usr/lib/libssl.so\n"
    make_process(tmp_path, 7, line, usr__lib__libssl_so=b"..\0SSL_do_handshake\0..")
    make_process(tmp_path, 8, line, usr__lib__libssl_so=b"another SSL_do_handshake\0")
    make_process(tmp_path, 9, line, usr__lib__libssl_so=b"SSL_do_handshake_later\0")
    make_process(tmp_path, 10, line)
    (tmp_path / "10/root/usr/lib").mkdir(parents=True)
    (tmp_path / "10/root/usr/lib/libssl.so").hardlink_to(tmp_path / "7/root/usr/lib/libssl.so")
    make_process(tmp_path, 11, line.replace("libssl", "libother"), usr__lib__libother_so=b"SSL_do_handshake\0")
    found = files_with_function("SSL_do_handshake", "libssl", proc=tmp_path)
    assert found == [tmp_path / f"{pid}/root/usr/lib/libssl.so" for pid in (7, 8)]


def test_programs_and_replaced_files(tmp_path: Path) -> None:
    """A program that holds the function itself is found, and a library whose path is gone through its mapping; empty files are none."""
    make_process(tmp_path, 7, "7f10-7f20 r-xp 0 08:02 10 /usr/lib/libssl.so (deleted)\n", program=b"\0SSL_free\0")
    (tmp_path / "7/exe").symlink_to(tmp_path / "7/root/program")
    (tmp_path / "7/map_files").mkdir()
    (tmp_path / "7/map_files/7f10-7f20").write_bytes(b"SSL_free\0")
    make_process(tmp_path, 8, "", empty=b"")
    (tmp_path / "8/exe").symlink_to(tmp_path / "8/root/empty")
    (tmp_path / "not-a-pid").mkdir()
    assert files_with_function("SSL_free", "libssl", proc=tmp_path) == [tmp_path / "7/exe", tmp_path / "7/map_files/7f10-7f20"]
