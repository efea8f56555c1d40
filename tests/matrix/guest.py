"""Run a command, or a shell, on a stock Debian kernel under qemu, on this machine's own files.

The guest's root is this machine's root, shared read-only through 9p with a layer in the guest's memory above it, so that the
checkout, its .venv and the compiled objects are just there, at their own paths. /scratch (TMPDIR) is an ext4 file system on a virtio
disk of its own. cgroup2 is the only hierarchy; lo is up; tracefs, bpffs and securityfs are mounted. Nothing that the guest writes
reaches the machine, but for the directory in SLO_GUEST_OUT.

Usage:
  guest.py shell --kernel 6.1 [--lockdown confidentiality]
  guest.py run   --kernel 6.12 [--cpus 2] [--timeout 600] -- COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import lzma
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from guest_kernels import SUITES, GuestKernel, guest_kernel

from libslo.errors import CannotError, SloError

LOCKDOWN = ("none", "integrity", "confidentiality")
CHECKOUT = Path(__file__).resolve().parents[2]
QEMU = "qemu-system-x86_64"
# What the guest needs to see its disks; everything else it loads itself.
BOOT_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
_PREFIX = "slo-guest-"
SCRATCH_BYTES = 2 << 30  # sparse
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys /dev /host /over /root /scratch
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in $(cat /modules/order); do insmod /modules/$module || echo "insmod $module failed"; done
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /host || echo "no host root"
mount -t tmpfs -o mode=755 over /over
mkdir /over/up /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/up,workdir=/over/work root /root || echo "no overlay"
mkdir -p /root/lib/modules /root/scratch /root/out
release=$(uname -r)
mkdir -p /root/lib/modules/$release
mount --bind "/root$(cat /modules/path)" /root/lib/modules/$release
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 out /root/out || echo "no way out"
mount --move /proc /root/proc
mount --move /sys /root/sys
mount --move /dev /root/dev
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs shm /root/dev/shm
mount -t tmpfs -o mode=755 run /root/run
mkdir -p /root/run/lock
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
mount -t tracefs tracefs /root/sys/kernel/tracing
mount -t bpf bpf /root/sys/fs/bpf
mount -t securityfs securityfs /root/sys/kernel/security
ip link set lo up
exec switch_root /root /bin/sh /out/start
"""


def make_initramfs(kernel: GuestKernel, place: Path) -> Path:
    """An archive with busybox, the modules that reach the disks, in order, and the script above."""
    busybox = shutil.which("busybox")
    if not busybox:
        raise CannotError("no busybox for the guest's first steps", source="busybox", hint="apt-get install busybox-static")
    tree, modules = place / "initramfs", place / "initramfs" / "modules"
    (tree / "bin").mkdir(parents=True)
    modules.mkdir()
    shutil.copy(busybox, tree / "bin" / "busybox")
    (tree / "init").write_text(INIT)
    (tree / "init").chmod(0o755)
    order = []
    for path in modules_in_order(kernel, BOOT_MODULES):
        name = path.name.removesuffix(".xz")
        data = path.read_bytes()
        (modules / name).write_bytes(lzma.decompress(data) if path.suffix == ".xz" else data)
        order.append(name)
    (modules / "order").write_text("\n".join(order) + "\n")
    (modules / "path").write_text(f"{kernel.modules}\n")
    archive = place / "initramfs.cpio"
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with archive.open("wb") as out:
        subprocess.run([busybox, "cpio", "-o", "-H", "newc", "--quiet"], cwd=tree, input=names.encode(), stdout=out,
                       stderr=subprocess.DEVNULL, check=True)  # fmt: skip
    return archive


def modules_in_order(kernel: GuestKernel, wanted: tuple[str, ...]) -> list[Path]:
    """Files of modules and of what they need, each after its needs. Built-in ones are left out. Raises CannotError for an unknown one."""
    needs: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()

    def name_of(path: str) -> str:
        return Path(path).name.split(".ko")[0].replace("-", "_")

    by_name = {name_of(path): path for path in needs}
    built_in = {name_of(line) for line in (kernel.modules / "modules.builtin").read_text().split()}
    order: list[str] = []
    for name in wanted:
        if name in built_in:
            continue
        if name not in by_name:
            raise CannotError(f"kernel {kernel.release} has no module {name}", source=str(kernel.modules), hint="another kernel")
        path = by_name[name]
        order += [need for need in (*reversed(needs[path]), path) if need not in order]  # modules.dep names the deepest last
    return [kernel.modules / path for path in order]


def require() -> None:
    """Raises CannotError when no guest can run here."""
    needed = (QEMU, "qemu-system-x86"), ("busybox", "busybox-static"), ("modprobe", "kmod"), ("mke2fs", "e2fsprogs")
    path = f"{os.environ.get('PATH', '')}:{_PATH}"
    missing = [package for program, package in needed if not shutil.which(program, path=path)]
    if missing:
        raise CannotError(f"missing: {' '.join(missing)}", source="qemu", hint=f"apt-get install {' '.join(missing)}")


def remove_left_over() -> None:
    """Directories of runs that were killed: their process is gone."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = path.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def prepared(kernel: GuestKernel, script: str, *, lockdown: str, cpus: int, memory_mib: int) -> Iterator[tuple[list[str], Path]]:
    """The qemu command that boots a kernel into a shell script, and the directory that the guest sees as /out."""
    require()
    remove_left_over()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-") as directory:
        place, out = Path(directory), Path(directory) / "out"
        out.mkdir()
        (out / "start").write_text(script)
        disk = place / "scratch.raw"
        with disk.open("wb") as file:
            file.truncate(SCRATCH_BYTES)
        subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", str(disk)], check=True,
                       env={**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_PATH}"})  # fmt: skip
        archive = make_initramfs(kernel, place)
        words = ["console=ttyS0", "quiet", "loglevel=3", "panic=-1", "random.trust_cpu=on", "slo.guest"]
        if lockdown != "none":
            words.append(f"lockdown={lockdown}")
        command = [
            QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-machine", "pc", "-accel", "tcg,thread=multi",
            "-cpu", "max", "-smp", str(cpus), "-m", str(memory_mib), "-kernel", str(kernel.vmlinuz), "-initrd", str(archive),
            "-append", " ".join(words), "-serial", "mon:stdio" if sys.stdin.isatty() else "stdio",
            "-drive", f"file={disk},format=raw,if=none,id=scratch,cache=unsafe", "-device", "virtio-blk-pci,drive=scratch",
            "-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device", "virtio-9p-pci,fsdev=host,mount_tag=host",
            "-fsdev", f"local,id=out,path={out},security_model=none", "-device", "virtio-9p-pci,fsdev=out,mount_tag=out",
        ]  # fmt: skip
        # Not left over when whoever started it is killed.
        yield ["setpriv", "--pdeathsig", "KILL", *command], out


def start_script(command: list[str], *, directory: Path, environment: dict[str, str]) -> str:
    """What the guest does after its start: the command, its exit status into /out, and off."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    return f"""{exports}modprobe virtio_blk
for turn in 1 2 3 4 5 6 7 8 9 10; do test -b /dev/vda && break; sleep 0.2; done
mount -t ext4 /dev/vda /scratch || echo "no scratch disk"
cd {shlex.quote(str(directory))}
{shlex.join(command)}
echo $? > /out/status
echo 0 > /proc/sys/kernel/printk
busybox poweroff -f
"""


def guest_environment() -> dict[str, str]:
    return {
        "PATH": f"{Path.cwd()}/.venv/bin:{CHECKOUT}/.venv/bin:{_PATH}", "HOME": "/scratch", "TMPDIR": "/scratch", "LANG": "C.UTF-8",
        "TERM": os.environ.get("TERM", "dumb"),
        "SLO_GUEST": "1", "SLO_GUEST_OUT": "/out", "PYTHONDONTWRITEBYTECODE": "1",
        **{name: value for name, value in os.environ.items() if name.startswith("SLO_") and name != "SLO_KERNEL_CACHE"},
        **({"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}),
    }  # fmt: skip


def run_in_guest(
    kernel: GuestKernel, command: list[str], *, lockdown: str = "none", cpus: int = 2, memory_mib: int = 2048, timeout_s: float = 600,
    keep: Path | None = None, console: int | None = None,
) -> int:  # fmt: skip
    """Boot, run, switch off: the command's exit status. keep: where files that the command left in /out are copied to.

    console: a file descriptor for the guest's console; none: this process's own standard output.
    Raises CannotError when the guest ended without a status, TimeoutError when it did not end in time.
    """
    script = start_script(command, directory=Path.cwd(), environment=guest_environment())
    with prepared(kernel, script, lockdown=lockdown, cpus=cpus, memory_mib=memory_mib) as (qemu, out):
        guest = subprocess.Popen(qemu, stdout=console, stdin=None if sys.stdin.isatty() else subprocess.DEVNULL)
        try:
            guest.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"the guest {kernel.release} did not end in {timeout_s:g} s") from error
        finally:
            guest.kill()
            guest.wait()
        status = out / "status"
        if not status.is_file():
            raise CannotError(f"the guest {kernel.release} ended without an answer", source=QEMU, hint="guest.py shell, to look at it")
        if keep:
            for path in out.iterdir():
                if path.name not in ("start", "status"):
                    shutil.copy(path, keep / path.name)
        return int(status.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("shell", "run", "fetch"))
    parser.add_argument("--kernel", default="6.1", choices=list(SUITES))
    parser.add_argument("--lockdown", default="none", choices=LOCKDOWN)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--memory", type=int, default=2048, help="MiB")
    parser.add_argument("--timeout", type=float, help="seconds; default 1200, none for a shell")
    parser.add_argument("--keep", type=Path, help="a directory for what the command leaves in /out")
    words = sys.argv[1:]
    own = words.index("--") if "--" in words else len(words)
    options, asked = parser.parse_args(words[:own]), words[own + 1 :]
    try:
        kernel = guest_kernel(options.kernel)
        if options.what == "fetch":
            print(json.dumps({"release": kernel.release, "package": kernel.package, "root": str(kernel.root)}))
            return 0
        command = ["sh", "-c", "exec setsid -c bash -i </dev/ttyS0 >/dev/ttyS0 2>&1"] if options.what == "shell" else asked
        if not command:
            parser.error("run needs a command")
        timeout_s = options.timeout or (1e6 if options.what == "shell" else 1200)
        begun = time.monotonic()
        status = run_in_guest(kernel, command, lockdown=options.lockdown, cpus=options.cpus, memory_mib=options.memory,
                              timeout_s=timeout_s, keep=options.keep)  # fmt: skip
        print(
            f"guest {kernel.release}, lockdown {options.lockdown}: exit status {status} after {time.monotonic() - begun:.0f} s",
            file=sys.stderr,
        )
        return status
    except SloError as error:
        print(f"guest: {error}\n  try: {error.hint}", file=sys.stderr)
        return error.exit_code
    except TimeoutError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
