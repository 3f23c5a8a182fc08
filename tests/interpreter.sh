#!/bin/sh
# Prints the path of a Python: tests/interpreter.sh 3.12 (or python3.12). For Makefile, noxfile.py, .ci/run.
#
# Takes the first that runs and has that version: `python3.12` on PATH, pyenv's versions from the newest, then uv's.
# A name on PATH is no proof: pyenv's shims fail where no version is chosen.
# Status 1: this machine has none. Status 2: pyenv or uv has one, and it does not run.
set -u
version=${1#python}
status=1

path_of() {
  "$1" - "$version" 2>/dev/null <<'PROGRAM'
import sys

if "%d.%d" % sys.version_info[:2] != sys.argv[1]:
    sys.exit(1)
print(sys.executable)
PROGRAM
}

try() {
  [ -x "$1" ] && path_of "$1" && exit 0
}

name=$(command -v "python$version") && try "$name"

pyenv=$(pyenv root 2>/dev/null) || pyenv=${PYENV_ROOT:-${HOME-}/.pyenv}
IFS='
'
for folder in $(ls -d "$pyenv/versions/$version" "$pyenv/versions/$version".* 2>/dev/null | sort -rV); do
  case $folder in *t) continue ;; esac # a free-threaded build
  try "$folder/bin/python"
  status=2
done

# Only uv's own installations: with a pyenv shim on PATH it would stop at that.
if managed=$(uv python find --no-project --python-preference only-managed "$version" 2>/dev/null); then
  try "$managed"
  status=2
fi

case $status in
1) echo "There is no Python $version here: not on PATH, with pyenv or with uv." >&2 ;;
2) echo "The Python $version that pyenv or uv installed does not run." >&2 ;;
esac
exit $status
