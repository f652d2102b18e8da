"""Watch a sweep in the browser, while it runs or after it, from its folder alone, local or remote:

python jobs/dashboard.py runs/quickstart-sweep
python jobs/dashboard.py s3://bucket/runs/imagenet-sweep --port 8600
python jobs/dashboard.py runs/quickstart-sweep --html report.html
"""

import argparse
import importlib.util
import os
import socket
import sys
from pathlib import Path

import backbone.begin  # noqa: F401
from backbone.cli import fail, run_main
from backbone.errors import UserError
from backbone.extras import how_to_install
from backbone.sweep.record import read

OPTIONS = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "runner.magicEnabled": "false",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "minimal",
    "theme.light.backgroundColor": "#fbfaf7",
    "theme.light.secondaryBackgroundColor": "#f3f1ec",
    "theme.light.textColor": "#22252a",
    "theme.light.primaryColor": "#1f6fb2",
    "theme.light.borderColor": "#e4e1da",
    "theme.dark.backgroundColor": "#16181b",
    "theme.dark.secondaryBackgroundColor": "#24282d",
    "theme.dark.textColor": "#e6e4df",
    "theme.dark.primaryColor": "#5aa9e6",
    "theme.dark.borderColor": "#32363c",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", help="folder of the sweep, <storage>/<name>, a path or URL")
    parser.add_argument("--port", type=int, default=8501)
    parser.add_argument("--host", default="127.0.0.1", help="who may look: 127.0.0.1, this machine alone; no password")
    parser.add_argument("--html", metavar="FILE", help="write the page as one file instead, which needs no server")
    given = parser.parse_args()
    try:
        record = read(given.sweep)
        if given.html:
            from backbone.sweep.view.page import report

            Path(given.html).write_text(report(record), "utf-8")
            print(f"report    {given.html}")
            return
        serve(given.sweep, given.host, given.port)
    except OSError as error:
        fail(error)


def serve(sweep: str, host: str, port: int) -> None:
    """Become the page's server. UserError where it is not installed or the port is taken."""
    app = importlib.util.find_spec("backbone.sweep.view.app")
    if importlib.util.find_spec("streamlit") is None or app is None or not app.origin:
        needs = f"the live page needs streamlit: {how_to_install('dashboard')}"
        raise UserError(f"{needs}; --html FILE writes one without it")
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise UserError(f"--host {host} --port {port}: {error}; give another --port") from error
    print(f"dashboard http://{host}:{port}")
    if host not in ("127.0.0.1", "localhost", "::1"):
        print(f"anyone who reaches {host}:{port} can read this sweep: there is no password")
    options = {"server.address": host, "server.port": str(port), **OPTIONS}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", app.origin, *words, "--", sweep])


if __name__ == "__main__":
    run_main(main)
