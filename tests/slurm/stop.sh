#!/usr/bin/env bash
# Ends the cluster of start.sh, and nothing else: only the processes whose numbers it left.
set -uo pipefail

mark="# The tests' own cluster of one node: tests/slurm/start.sh"
base=/run/mirage-slurm
conf=/etc/slurm/slurm.conf

[ -d "$base" ] || exit 0
# Jobs first: without their daemons they would run on.
if [ -s "$base/state/slurmctld.pid" ] && grep -qxF "$mark" "$conf" 2> /dev/null; then
    timeout 10 scancel --user root 2> /dev/null
    for _ in $(seq 15); do
        [ -z "$(timeout 5 squeue --noheader 2> /dev/null)" ] && break
        sleep 1
    done
fi
for file in "$base"/{spool/slurmd,state/slurmctld,munge/munged}.pid; do
    [ -s "$file" ] || continue
    number=$(cat "$file")
    # A number may belong to another process by now.
    [ "$(cat "/proc/$number/comm" 2> /dev/null)" = "$(basename "$file" .pid)" ] || continue
    kill "$number"
    for _ in $(seq 50); do
        kill -0 "$number" 2> /dev/null || break
        sleep 0.2
    done
done
grep -qxF "$mark" "$conf" 2> /dev/null && rm -f "$conf" /etc/slurm/gres.conf
rm -rf "$base"
