"""The pytest plugin: found by its entry point, free for others, and its example passes."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
TREES = (ROOT, ROOT / "runner", ROOT / "cli")


def run_pytest(folder: pathlib.Path, *words: str) -> subprocess.CompletedProcess[str]:
    """pytest as a user calls it, with none of this project's settings."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, TREES)),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Others only take their time.
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    env.pop("PYTEST_ADDOPTS", None)
    options = ["-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(folder)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *words],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=55,
    )


def test_example_passes() -> None:
    ended = run_pytest(ROOT / "examples/testing", "-p", "moat_kv_pytest")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "6 passed" in ended.stdout


def test_entry_point_names_it() -> None:
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert found["pytest11"] == {"moat_kv_pytest": "moat_kv_pytest"}


def test_it_costs_others_nothing_and_shows_the_scripts_own_lines(tmp_path: pathlib.Path) -> None:
    """One session for all, because each takes seconds to start; files go by their names."""
    (tmp_path / "test_a_other.py").write_text(
        "import sys\n"
        "def test_other():\n"
        "    assert 'moat_kv_pytest' in sys.modules\n"
        "    assert 'moat_kv' not in sys.modules\n"
        "    assert 'moat_kv_runner' not in sys.modules\n"
    )
    (tmp_path / "bad.py").write_text("x = 1\nreturn x / 0  # this line\n")
    (tmp_path / "test_bad.py").write_text(
        "def test_unseen(run_script):\n    run_script('bad.py')\n"
        "def test_wrong(run_script):\n    assert run_script(code='return 1').result == 2\n"
    )
    (tmp_path / "test_loop.py").write_text(
        "import pytest\n"
        "@pytest.fixture(params=['asyncio', 'trio'])\n"
        "def moat_backend(request): return request.param\n"
        "def test_loop(run_script, moat_backend):\n"
        "    code = 'import sniffio; return sniffio.current_async_library()'\n"
        "    assert run_script(code=code).result == moat_backend\n"
    )
    ended = run_pytest(tmp_path, "-p", "moat_kv_pytest")
    assert ended.returncode == 1
    # The script that failed unseen is an error at its test's end.
    assert "1 failed, 4 passed, 1 error" in ended.stdout, ended.stdout
    assert "ZeroDivisionError" in ended.stdout
    assert "return x / 0  # this line" in ended.stdout
    assert "assert 1 == 2" in ended.stdout
