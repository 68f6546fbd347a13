"""The README is true: its commands and snippets are run as printed, here or on a page of docs/ that has them too."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def block_with(language: str, text: str) -> str:
    (found,) = [block for block in blocks(language) if text in block]
    return found


def shell(script: str, cwd: Path) -> str:
    """Run a shell script with this environment's `flcore` and `python` first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def commands(script: str) -> list[list[str]]:
    return [words for line in script.splitlines() if (words := shlex.split(line, comments=True))]


def test_the_two_commands_exist_and_are_what_ci_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for _, verb in commands(block_with("sh", "make demo")):
        assert re.search(rf"^{verb}:", makefile, re.MULTILINE)
    assert "$(BIN)/flcore run digits" in makefile
    assert "make check\nmake test" in (ROOT / ".ci/run").read_text()


def test_the_readme_has_one_picture_one_table_and_less_than_150_lines() -> None:
    assert len(README.splitlines()) < 150
    assert len(re.findall(r"!\[", README)) == len(re.findall(r"^\|---", README, re.MULTILINE)) == 1
    # Beside its example, which is a program.
    prose = re.sub(r"```python.*?```", "", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.DOTALL)
    assert len(prose.splitlines()) < 80


def test_aggregation_alone() -> None:
    script = block_with("python", "flcore.aggregate")
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[4. 5.]"


def code_of(block: str) -> list[str]:
    """Its lines without comments: a page may say more, or less."""
    return [code for line in block.splitlines() if (code := re.sub(r"\s*# .*", "", line).strip())]


def test_what_is_not_run_here_is_on_a_page_where_it_is() -> None:
    """`tests/test_docs.py` runs what is on a page, and `test_tls_processes.py` the section Real machines."""
    real_machines = README.partition("## Real machines")[2].partition("\n## ")[0]
    own = (block_with("sh", "make demo"), block_with("python", "flcore.aggregate"), *blocks("sh", real_machines))
    tested = [
        code_of(block) for page in PAGES for language in ("sh", "python", "toml") for block in blocks(language, page)
    ]
    for language in ("sh", "python", "toml"):
        for block in blocks(language):
            assert block in own or code_of(block) in tested, block


def test_links_lead_somewhere() -> None:
    for document in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "bench/RESULTS.md"]:
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            assert link.startswith("https://") or (document.parent / link).exists(), f"{document.name}: {link}"
