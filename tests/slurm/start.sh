#!/usr/bin/env bash
# A cluster of one node for the tests, on loopback: SLURM of Debian, run by root, without accounting.
# Exit code 3, with one line that says why, where there cannot be one.
set -euo pipefail

mark="# The tests' own cluster of one node: tests/slurm/start.sh"
base=/run/mirage-slurm
conf=/etc/slurm/slurm.conf

impossible() {
    echo "IMPOSSIBLE: no SLURM for tests here: $*" >&2
    exit 3
}

# Whether the process of a file with its number is there.
alive() {
    [ -s "$1" ] && kill -0 "$(cat "$1")" 2> /dev/null
}

[ "$(id -u)" = 0 ] || impossible "only root can start one"
if [ -e "$conf" ] && ! grep -qxF "$mark" "$conf"; then
    impossible "$conf is another cluster's"
fi

PATH=$PATH:/usr/sbin
if [ ! -x /usr/sbin/slurmctld ] || [ ! -x /usr/sbin/slurmd ] || [ ! -x /usr/sbin/munged ]; then
    command -v apt-get > /dev/null || impossible "slurm-wlm and munge are not installed"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge; } \
        > /tmp/mirage-slurm-install.log 2>&1 \
        || impossible "apt-get install slurm-wlm munge failed: /tmp/mirage-slurm-install.log"
fi
[ -s /etc/munge/munge.key ] || impossible "munge has no key: /etc/munge/munge.key"

# What this script started counts, by its own files of process numbers; other daemons stay alone.
for daemon in slurmctld slurmd; do
    if pgrep -x "$daemon" > /dev/null && ! alive "$base"/*/"$daemon.pid"; then
        impossible "a $daemon runs already"
    fi
done

# The base stays root's: munge refuses a folder that another user than itself or root may write.
mkdir -p /etc/slurm "$base/state" "$base/spool" "$base/munge"
chmod 755 "$base" "$base/munge"
chown slurm:slurm "$base/state"
chown munge:munge "$base/munge"

# The node claims more memory and GPUs than there are, and slurmd is told to believe it
# (config_overrides): the rules' own requests then fit on any machine. Cores it has two, each for a
# job of one thread. A requeued job may start again after five seconds (cred_expire), a killed one
# has ten to save. Ended jobs stay in squeue's list for two hours: without accounting, Snakemake
# learns of their end there.
cat > "$conf.new" << CONF
$mark
ClusterName=mirage
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$base/munge/socket,cred_expire=5
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$base/state
SlurmdSpoolDir=$base/spool
SlurmctldPidFile=$base/state/slurmctld.pid
SlurmdPidFile=$base/spool/slurmd.pid
SlurmctldLogFile=$base/state/slurmctld.log
SlurmdLogFile=$base/spool/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
MinJobAge=7200
KillWait=10
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
GresTypes=gpu
NodeName=localhost NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000000 Gres=gpu:4 State=UNKNOWN
PartitionName=tests Nodes=localhost Default=YES MaxTime=INFINITE State=UP
CONF
mv "$conf.new" "$conf"
touch "$base"/spool/gpu{0..3}
echo "NodeName=localhost Name=gpu File=$base/spool/gpu[0-3]" > /etc/slurm/gres.conf

alive "$base/munge/munged.pid" || runuser -u munge -- munged \
    --socket "$base/munge/socket" --pid-file "$base/munge/munged.pid" \
    --log-file "$base/munge/munged.log" --seed-file "$base/munge/seed"
alive "$base/state/slurmctld.pid" || slurmctld -c
alive "$base/spool/slurmd.pid" || slurmd -N localhost

for _ in $(seq 30); do
    if sinfo --noheader --format %T 2> /dev/null | grep -q idle; then
        sinfo
        exit 0
    fi
    sleep 1
done
tail -n 20 "$base"/*/*.log >&2
impossible "no node became idle within 30 s; see the logs above and in $base"
