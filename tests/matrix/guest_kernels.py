"""Stock Debian kernels for guests: fetched with apt into a cache of our own, unpacked, with their module indices.

The machine's own apt configuration stays as it is: a private list directory, and the mirrors that the machine already uses.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from libslo.errors import CannotError, InputError

SUITES = {"6.1": "bookworm", "6.12": "trixie"}
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
RESOLVED_FOR_S = 86_400  # a day: the archive changes a kernel some times a month


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """An unpacked kernel: `vmlinuz`, and `modules` with what depmod says about them."""

    version: str  # as asked for: 6.1
    release: str  # as uname -r says
    package: str  # package and version
    root: Path

    @property
    def vmlinuz(self) -> Path:
        return self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        return self.root / "lib" / "modules" / self.release


def cache_directory() -> Path:
    """SLO_KERNEL_CACHE, or llm-slo-kernels in the user's cache."""
    named = os.environ.get("SLO_KERNEL_CACHE")
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "llm-slo-kernels"


def guest_kernel(version: str, cache: Path | None = None) -> GuestKernel:
    """The newest stock kernel of a version, from the cache or the archive.

    Raises InputError for a version that no suite has, CannotError when it is neither cached nor to be had.
    """
    if version not in SUITES:
        raise InputError(f"no suite for kernel {version!r}", source="--kernels", hint=f"one of {', '.join(SUITES)}")
    cache = cache or cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    noted = _noted(cache, version)
    if noted and time.time() - noted["resolved_s"] < RESOLVED_FOR_S:
        return _kernel(cache, version, noted)
    try:
        fresh = _resolve(cache, version)
        if not noted or noted["package"] != fresh["package"]:
            _unpack(cache, fresh)
    except CannotError:
        if noted:  # what was fetched once is good enough where the archive is out of reach
            return _kernel(cache, version, noted)
        raise
    (cache / f"{version}.json").write_text(json.dumps(fresh))
    return _kernel(cache, version, fresh)


def _noted(cache: Path, version: str) -> dict[str, str | float] | None:
    try:
        noted = json.loads((cache / f"{version}.json").read_text())
        return noted if (cache / noted["package"] / "complete").exists() else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _kernel(cache: Path, version: str, noted: dict) -> GuestKernel:
    return GuestKernel(version, noted["release"], noted["package"], cache / noted["package"])


def mirrors(targets: str) -> dict[str, str]:
    """{"Debian": address, "Debian-Security": address} from lines `LABEL ADDRESS` of apt-get indextargets."""
    found: dict[str, str] = {}
    for line in targets.splitlines():
        label, _, address = line.partition(" ")
        if label in ("Debian", "Debian-Security") and address.strip():
            found.setdefault(label, address.strip())
    return found


def newest(madison: str, version: str) -> str:
    """The newest Debian version of a kernel series in the output of apt-cache madison; "" when it has none."""
    listed = [line.split("|")[1].strip() for line in madison.splitlines() if line.count("|") >= 2]
    return next((found for found in listed if re.match(rf"{re.escape(version)}\.", found)), "")  # newest first


def _run(command: list[str], what: str, hint: str, **options: object) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600, **options)  # type: ignore[call-overload]
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise CannotError(f"{what}: {error}", source=command[0], hint=hint) from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise CannotError(f"{what}: {last[0]}", source=command[0], hint=hint)
    return str(done.stdout)


_ONLINE = "a machine that reaches a Debian archive, or a filled SLO_KERNEL_CACHE"


def _apt(cache: Path, version: str) -> list[str]:
    """Options that point apt at a place of our own, its list of sources written."""
    if not KEYRING.is_file():
        raise CannotError("the archive's keys are missing", source=str(KEYRING), hint="apt-get install debian-archive-keyring")
    listed = _run(["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"],
                  "the sources of packages cannot be listed", "a Debian machine")  # fmt: skip
    known = mirrors(listed)
    if not known:
        raise CannotError("apt knows no Debian archive", source="apt-get indextargets", hint="apt-get update, on a Debian machine")
    suite, place = SUITES[version], cache / f"apt-{version}"
    for name in ("lists/partial", "archives/partial", "parts"):
        (place / name).mkdir(parents=True, exist_ok=True)
    names = {"Debian": suite, "Debian-Security": f"{suite}-security"}
    lines = [f"deb [arch=amd64 signed-by={KEYRING}] {address} {names[label]} main\n" for label, address in known.items()]
    (place / "sources.list").write_text("".join(lines))
    options = {
        "Dir::State::lists": place / "lists", "Dir::Cache": place, "Dir::Etc::SourceList": place / "sources.list",
        "Dir::Etc::SourceParts": place / "parts", "Dir::State::status": "/dev/null", "APT::Sandbox::User": "root",
        "Acquire::Languages": "none", "APT::Architecture": "amd64", "Acquire::Retries": "2",
    }  # fmt: skip
    return [word for name, value in options.items() for word in ("-o", f"{name}={value}")]


def _resolve(cache: Path, version: str) -> dict[str, str | float]:
    options = _apt(cache, version)
    _run(["apt-get", *options, "update", "-qq", "--error-on=any"], f"no index of {SUITES[version]}", _ONLINE)
    found = newest(_run(["apt-cache", *options, "madison", "linux-image-amd64"], "no list of kernels", _ONLINE), version)
    if not found:
        raise CannotError(f"{SUITES[version]} has no kernel {version}", source="apt-cache madison", hint=f"one of {', '.join(SUITES)}")
    shown = _run(["apt-cache", *options, "show", f"linux-image-amd64={found}"], "the meta package cannot be read", _ONLINE)
    name = re.search(rf"^Depends:.*?\b(linux-image-{re.escape(version)}\.\S+)", shown, re.MULTILINE)
    if not name:
        raise CannotError(f"linux-image-amd64 {found} depends on no kernel", source="apt-cache show", hint=_ONLINE)
    return {
        "release": name[1].removeprefix("linux-image-"), "package": f"{name[1]}_{found}", "name": name[1], "debian_version": found,
        "version": version, "resolved_s": time.time(),
    }  # fmt: skip


def _unpack(cache: Path, fresh: dict) -> None:
    options = _apt(cache, fresh["version"])
    place = cache / fresh["package"]
    if (place / "complete").exists():
        return
    work = cache / f"{fresh['package']}.{os.getpid()}"  # its own: two runs may fetch at once
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        # apt compares each package with the SHA256 of the signed index.
        _run(["apt-get", *options, "download", "-qq", f"{fresh['name']}={fresh['debian_version']}"], "the kernel was not fetched", _ONLINE,
             cwd=work)  # fmt: skip
        (package,) = work.glob("*.deb")
        _run(["dpkg", "-x", str(package), str(work)], "the kernel was not unpacked", "free space in the cache")
        package.unlink()
        if not (work / "lib").exists():  # since trixie the modules are below /usr/lib
            (work / "lib").symlink_to("usr/lib")
        depmod = shutil.which("depmod", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or "depmod"
        _run([depmod, "-b", str(work), fresh["release"]], "the modules were not indexed", "apt-get install kmod")
        (work / "complete").touch()
        shutil.rmtree(place, ignore_errors=True)
        work.rename(place)
    finally:
        shutil.rmtree(work, ignore_errors=True)
