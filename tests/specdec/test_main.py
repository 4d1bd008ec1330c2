"""`python -m specdec` is the command line."""

import subprocess
import sys


def test_the_module_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "specdec", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(command in done.stdout for command in ("serve", "generate", "info", "bench"))
