#!/bin/sh
# Print the command of a Python that can make our environment: 3.11 or later, with venv and pip's bootstrap.
# $PYTHON, if set, is the only candidate. Newest is not best: the pinned wheels are tested on 3.11 first.
set -u
for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.13 /usr/bin/python3 python}; do
    if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        echo "$candidate"
        exit 0
    fi
done
echo "No Python >= 3.11 with venv found (tried: ${PYTHON:-python3 python3.11 python3.12 python3.13 /usr/bin/python3 python})." >&2
echo "Install one (Debian: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12 ..." >&2
exit 1
