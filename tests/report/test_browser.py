"""The page in a real browser: everything is drawn, nothing is fetched, nothing complains."""

import re
import shutil
import subprocess
from dataclasses import replace

import pytest
from small_plans import PROFILE, SPLIT, TOPOLOGY, measured
from test_page import HOSTILE, hostile_findings

from splitinfer.report import Traces, examine

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt-get install chromium")


def browse(path, tmp_path, *options):
    """The DOM after scripts ran, and what the console said."""
    result = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", "--window-size=1200,3000", *options, path.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout, [line for line in result.stderr.splitlines() if ":CONSOLE" in line]


@pytest.mark.slow
def test_all_sections_are_drawn_and_the_console_is_silent(tmp_path):
    found = examine(SPLIT, PROFILE, TOPOLOGY, Traces((measured(),)), points=3)
    found.save(tmp_path / "report.html")
    shot = tmp_path / "report.png"
    dom, console = browse(tmp_path / "report.html", tmp_path, "--dump-dom", f"--screenshot={shot}")
    assert console == []
    for name in ("plan", "clocks", "request", "rivals", "bandwidth", "trade-offs"):
        assert f'<section id="{name}"' in dom
    assert dom.count("<svg") == 8
    assert 'data-clocks="3"' in dom  # the script ran, and read the numbers
    assert "Open all tables" in dom
    assert "data-tip=" in dom


def test_without_scripts_it_is_all_there_too(tmp_path):
    path = tmp_path / "report.html"
    examine(SPLIT, PROFILE, TOPOLOGY, points=2).save(path)
    text, removed = re.subn(r"<script>.*?</script>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert removed == 1
    path.write_text(text, encoding="utf-8")
    dom, console = browse(path, tmp_path, "--dump-dom")
    assert console == []
    assert "data-clocks" not in dom
    assert dom.count("<svg") == 7
    assert "Latency at each rate" in dom


def test_markup_in_names_runs_nothing(tmp_path):
    hostile_findings(HOSTILE).save(tmp_path / "report.html")
    dom, console = browse(tmp_path / "report.html", tmp_path, "--dump-dom")
    assert console == []
    assert "data-pwned" not in dom
    assert dom.count("<script") == 2


def test_the_policy_stops_what_escaping_would_let_through(tmp_path):
    """The check above can fail: the same script put into the page by hand is refused by the browser, and said on the console."""
    path = tmp_path / "report.html"
    examine(replace(SPLIT, baselines=()), PROFILE, TOPOLOGY, points=2).save(path)
    script = '<script>document.documentElement.dataset.pwned = "yes"</script><img src="https://example.org/x.png">'
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("<main>", f"<main>{script}"), encoding="utf-8")
    dom, console = browse(path, tmp_path, "--dump-dom")
    assert "data-pwned" not in dom
    assert len([line for line in console if re.search("Content Security Policy", line)]) == 2
    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text(encoding="utf-8"))
    path.write_text(without.replace("https://example.org/x.png", "data:,"), encoding="utf-8")
    assert 'data-pwned="yes"' in browse(path, tmp_path, "--dump-dom")[0]
