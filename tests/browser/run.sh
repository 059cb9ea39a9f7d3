#!/usr/bin/env bash
# The lab in a real browser. Installs chromium where root and apt allow; says so and ends well where there is none.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-.venv/bin/python}
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    (apt-get update && apt-get install -y --no-install-recommends chromium) > /tmp/chromium-install.log 2>&1 || true
  fi
fi
if ! command -v chromium >/dev/null && ! command -v google-chrome >/dev/null; then
  echo "test-browser: SKIPPED: there is no chromium, and it cannot be installed here"
  exit 0
fi
if ! "$PYTHON" -c 'import playwright' 2>/dev/null; then
  "$PYTHON" -m pip install -q --disable-pip-version-check -c constraints.txt "playwright" || {
    echo "test-browser: SKIPPED: playwright cannot be installed here"
    exit 0
  }
fi
exec "$PYTHON" -m pytest -m browser -p no:cacheprovider tests/browser ${PYTEST_ARGS:-}
