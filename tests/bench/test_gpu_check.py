"""bench/gpu_check.sh, with stub programs that print their arguments."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


def test_the_check_is_valid_and_names_what_exists() -> None:
    script = BENCH / "gpu_check.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text(encoding="utf-8")
    programs = {word for word in text.replace('"', " ").split() if word.endswith(".py")}
    assert "-m vosengine bench" in text
    assert {"bench/gpu_parity.py", "bench/gpu_sanitize.py", "bench/kernels.py"} <= programs
    for name in programs:
        assert (BENCH.parent / name).is_file(), name


FAKES = {
    # Does nothing well, but fails where FAIL names one of its words; notes what it was asked for.
    "python3": """
        echo "python3 $*" >> "$LOG"
        for word in "$@"; do
          case "$word" in
            */site) mkdir -p "$word/vosengine" ;;
            "$FAIL") exit 1 ;;
          esac
        done
    """,
    "nvidia-smi": 'case "$*" in *name*) echo "Some GPU, 580, 9.0" ;; *) echo 9.0 ;; esac',
    "nvcc": "",
    "compute-sanitizer": """
        echo "sanitizer $*" >> "$LOG"
        case "$*" in
          *"$FAIL"*triton) echo "========= Invalid read"; exit "$CODE" ;;
        esac
        echo "========= ERROR SUMMARY: 0 errors"
    """,
}


def check_with_fakes(
    folder: Path, *arguments: str, fail: str = "nothing", code: int = 86, without: str = ""
) -> tuple[int, str, list[str]]:
    """gpu_check.sh with programs that only say what they were called with: its exit code, what it
    printed, and the calls."""
    for name, body in FAKES.items():
        if name != without:
            (folder / name).write_text(f"#!/bin/bash\n{body}\n")
            (folder / name).chmod(0o755)
    log = folder / "log"
    log.touch()
    environment = {
        "PATH": f"{folder}:/usr/bin:/bin",
        "LOG": str(log),
        "FAIL": fail,
        "CODE": str(code),
        "CUDA_HOME": str(folder),
    }
    done = subprocess.run(
        ["bash", str(BENCH / "gpu_check.sh"), *arguments, str(folder / "results")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr, log.read_text().splitlines()


def timed(log: list[str]) -> list[str]:
    return [line for line in log if "bench/kernels.py" in line]


def test_the_check_goes_through_all_its_stages(tmp_path: Path) -> None:
    code, text, log = check_with_fakes(tmp_path)
    assert code == 0, text
    assert "CUDA for 90" in text
    for part in ("doctor", "tests/kernels/test_kernels.py", "bench/gpu_parity.py"):
        assert any(part in line for line in log), part
    tools = [line.split()[2] for line in log if line.startswith("sanitizer")]
    assert tools == ["memcheck", "memcheck", "racecheck", "racecheck"]
    assert len(timed(log)) == 3
    assert "--dtype bfloat16" in timed(log)[0]


def test_whole_models_instead_of_kernels(tmp_path: Path) -> None:
    code, text, log = check_with_fakes(tmp_path, "--models")
    assert code == 0, text
    lines = [line for line in log if "vosengine bench" in line]
    assert all("--device cuda" in line for line in lines)
    assert "--no-compiled" in lines[0] and "-models-cuda.json" in lines[0]
    assert "--no-compiled" not in lines[1] and "-models-cuda-compiled.json" in lines[1]
    assert any("tests/engine/test_on_gpu.py" in line for line in log)
    assert timed(log) == [] and not any(line.startswith("sanitizer") for line in log)
    code, _, log = check_with_fakes(tmp_path, "--models", fail="tests/engine/test_on_gpu.py")
    assert code == 1


@pytest.mark.parametrize(
    "stage", ["pip", "doctor", "tests/kernels/test_kernels.py", "bench/gpu_parity.py"]
)
def test_what_is_wrong_is_not_timed(stage: str, tmp_path: Path) -> None:
    code, text, log = check_with_fakes(tmp_path, fail=stage)
    assert code == 1
    assert "FAILED" in text
    assert timed(log) == []


def test_a_bad_access_ends_the_check(tmp_path: Path) -> None:
    code, text, log = check_with_fakes(tmp_path, fail="memcheck")
    assert code == 1
    assert "Invalid read" in text
    assert timed(log) == []


def test_a_hazard_is_timed_and_fails_at_the_end(tmp_path: Path) -> None:
    code, text, log = check_with_fakes(tmp_path, fail="racecheck")
    assert code == 1
    assert "note: racecheck, triton: errors found" in text
    assert len(timed(log)) == 3


def test_wrong_results_among_the_timings_fail_at_the_end(tmp_path: Path) -> None:
    code, _, log = check_with_fakes(tmp_path, fail="bfloat16")
    assert code == 1
    assert len(timed(log)) == 3


def test_a_tool_that_does_not_work_costs_nothing(tmp_path: Path) -> None:
    code, text, log = check_with_fakes(tmp_path, fail="racecheck", code=255)
    assert code == 0
    assert "racecheck, triton: did not work here (exit code 255)" in text
    code, text, log = check_with_fakes(tmp_path, fail="memcheck", code=124)
    assert code == 0
    assert "memcheck, triton: not done within its time" in text
    assert len(timed(log)) >= 3


def test_without_nvcc_and_sanitizer_the_rest_is_checked(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    code, text, _ = check_with_fakes(tmp_path / "a", without="compute-sanitizer")
    assert "compute-sanitizer: not installed, skipped" in text
    assert code == 0
    (tmp_path / "b").mkdir()
    code, text, _ = check_with_fakes(tmp_path / "b", without="nvcc")
    assert "built without CUDA" in text
    assert code == 0
