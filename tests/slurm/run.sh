#!/usr/bin/env bash
# The SLURM tests on a cluster of their own; arguments go to pytest.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

status=0
"$here/start.sh" || status=$?
if [ "$status" != 0 ]; then
    "$here/stop.sh"
    # 3: there cannot be a cluster here, which is no failure of what is tested.
    [ "$status" = 3 ] || exit "$status"
    echo "SKIPPED: the SLURM tests did not run, see the line above" >&2
    exit 0
fi
trap '"$here/stop.sh"' EXIT
cd "$here/../.."
MIRAGE_TEST_SLURM=1 python -m pytest -x tests/test_slurm.py "$@"
