"""Can this machine run the course? `python -m tools.doctor` looks, and says what to do.

It prints one line for each check: `ok`, `note` (the course runs, but not quite as
README.md says) or `fault`, and below it what to do. The exit status is 1 if there is a
fault. If a check fails, the others are still made.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 11), (3, 14)  # the versions of Python that the packages support
NOTEBOOK = 3  # gigabytes of memory, at most
ENVIRONMENT = 4  # gigabytes on disk, while it is installed
FEATURES = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16"]


def quoted(path):
    """A path, in quotes if a command line needs them."""
    return f'"{path}"' if " " in str(path) else str(path)


PYTHON = quoted(sys.executable)
PIP = f"{PYTHON} -m pip install"
INSTALL = f"{PIP} -r {quoted(ROOT / 'requirements.txt')}"


def check_python():
    """The version of this Python, and whether it is the course's own."""
    text = f"{'.'.join(map(str, sys.version_info[:3]))}, {sys.executable}"
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        remedy = "install one of these, then: make PYTHON=python3.14 course"
        return "fault", f"{text}; the course needs 3.11 to 3.14", remedy
    own = ROOT / ".venv"
    if own.exists() and Path(sys.prefix).resolve() != own:
        start = own / ("Scripts" if os.name == "nt" else "bin") / "python"
        remedy = f"{quoted(start)} -m tools.doctor"
        return "note", f"{text}; the course's own is in .venv", remedy
    return "ok", text


def fits(version, wanted):
    """Whether a version meets a requirement such as `>=2.7,<2.14`."""
    number = [int(part) for part in re.findall(r"\d+", version.split("+")[0])]
    for sign, limit in re.findall(r"(==|>=|<)([\d.]+)", wanted):
        other = [int(part) for part in limit.split(".")]
        if not {"==": number == other, ">=": number >= other, "<": number < other}[
            sign
        ]:
            return False
    return True


def check_packages(file, options=""):
    """Whether every package of a requirements file is here, in the right version."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = (re.match(r"([\w.-]+)(?:\[.*\])?([=<>][^\s#]*)", line) for line in lines)
    versions, missing, other = [match.groups() for match in found if match], [], []
    for package, wanted in versions:
        try:
            version = metadata.version(package)
            if not fits(version, wanted):
                other.append(f"{package} is {version}, not {wanted}")
        except metadata.PackageNotFoundError:
            missing.append(package)
    if missing:
        other.append(f"missing: {', '.join(missing)}")
    if other:
        return "fault", "; ".join(other), f"{PIP} {options}-r {quoted(ROOT / file)}"
    return "ok", f"{len(versions)}, in the versions of {file}"


def check_course():
    """Whether notebooks can import `shared` from any folder."""
    code = "import shared; print(getattr(shared, '__path__', [shared.__file__])[0])"
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=elsewhere, capture_output=True, text=True
        )
    where = Path(done.stdout.strip()).parent if done.returncode == 0 else "nowhere"
    if where != ROOT:
        text = f"notebooks find it here: {where}; it should be {ROOT}"
        before = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
        if Path(where).resolve() in (Path(p).resolve() for p in before):
            text += f"; {where} has a `shared` of its own and is in PYTHONPATH"
            there = Path(where).resolve()
            others = os.pathsep.join(p for p in before if Path(p).resolve() != there)
            if os.name == "nt":
                return "fault", text, f"set PYTHONPATH={others}"
            remedy = f"export PYTHONPATH={quoted(others)}" if others else None
            return "fault", text, remedy or "unset PYTHONPATH"
        return "fault", text, f"{PIP} -e {quoted(ROOT)}"
    return "ok", f"notebooks import it from {ROOT}"


def check_processor():
    """What the processor can do, and what PyTorch uses of it."""
    linux = Path("/proc/cpuinfo")
    flags = set(re.findall(r"\w+", linux.read_text())) if linux.exists() else ()
    features = [platform.machine(), *(name for name in FEATURES if name in flags)]
    text = f"{' '.join(features)}; "
    try:
        import torch
    except Exception as error:  # one of its own libraries may be missing
        return "fault", f"{text}torch cannot be imported: {error}", INSTALL
    level = torch.backends.cpu.get_cpu_capability()
    text += (
        f"torch {torch.__version__} uses {level}, threads: {torch.get_num_threads()}"
    )
    if level == "DEFAULT" and platform.machine() in ("x86_64", "AMD64"):
        return "note", f"{text}; without AVX2 all takes longer than README.md says"
    return "ok", text


def check_memory():
    """Free memory, for one notebook and for several side by side."""
    import psutil

    free = psutil.virtual_memory().available / 1e9
    text = f"{free:.1f} GB free; a notebook takes up to {NOTEBOOK}"
    if free < NOTEBOOK:
        return "fault", text, "close other programs, and kernels that are still open"
    if free < NOTEBOOK * min(4, os.cpu_count() or 1):  # as many as `make course` runs
        command = f"{PYTHON} -m tools.course run --jobs 1"
        return "note", f"{text}; instead of `make course` run", command
    return "ok", text


def check_disk():
    """Free disk space where the course is."""
    free = shutil.disk_usage(ROOT).free / 1e9
    wanted = 1 if (ROOT / ".venv").exists() else ENVIRONMENT
    text = f"{free:.1f} GB free, {wanted} needed"
    return ("ok", text) if free >= wanted else ("fault", text, f"free some for {ROOT}")


def check_data():
    """Which data files are here and intact, and need no network."""
    from shared import data

    absent = [file for file in data.FILES.values() if data.local_copy(file) is None]
    needed = [file for file in absent if file.repository or file.package]
    if needed:
        text = f"missing or changed: {', '.join(file.name for file in needed)}"
        return "fault", text, *dict.fromkeys(map(data.remedy, needed))
    text = f"{len(data.FILES) - len(absent)} files, all that the course needs"
    others = ", ".join(file.name for file in absent)
    return "ok", f"{text}; only online: {others}" if others else text


def check_writing(folder, kind="fault", remedy=None):
    """Whether a folder can be written to, or made if it is not there."""
    folder = Path(folder)
    there = next(place for place in [folder, *folder.parents] if place.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            return "ok", f"{folder} can be written to"
    except OSError as error:
        return kind, f"{error}: {folder}", remedy or f"chmod u+w {quoted(there)}"


def check_cache():
    """The folder for downloads; the chapters need none."""
    from shared.data import cache_folder

    remedy = "set LLM_COURSE_DATA to a folder of yours before you fetch other data"
    return check_writing(cache_folder(), "note", remedy)


def check_kernel():
    """Whether the kernel of the notebooks runs this Python."""
    from jupyter_client.kernelspec import KernelSpecManager

    program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    if re.fullmatch(r"python[\d.]*", program) or Path(program) == Path(sys.executable):
        return "ok", "python3 runs this Python"
    remedy = f"{PYTHON} -m ipykernel install --sys-prefix"
    return "fault", f"python3 runs another Python, {program}", remedy


CHECKS = {
    "Python": check_python,
    "packages": lambda: check_packages("requirements.txt"),
    "data packages": lambda: check_packages("requirements-data.txt", "--no-deps "),
    "course": check_course,
    "processor": check_processor,
    "memory": check_memory,
    "disk": check_disk,
    "data": check_data,
    "checkout": lambda: check_writing(ROOT, "note"),
    "cache": check_cache,
    "temporary": lambda: check_writing(tempfile.gettempdir()),
    "kernel": check_kernel,
}


def main(arguments=None) -> int:
    """Print a line for each check; return the exit status."""
    argparse.ArgumentParser(
        prog="python -m tools.doctor", description=__doc__.split("\n", 1)[0]
    ).parse_args(arguments)
    faults = 0
    for name, check in CHECKS.items():
        try:
            kind, text, *remedies = check()
        except Exception as error:  # the other checks are still made
            kind, text = "fault", f"{type(error).__name__}: {error}"
            remedies = [INSTALL]
        faults += kind == "fault"
        print(f"{kind:5}  {name:13}  {text}")
        for remedy in remedies:
            print(f"{'':22}-> {remedy}")
    print(f"\nfaults: {faults}" + ("; begin with the first" if faults else ""))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
