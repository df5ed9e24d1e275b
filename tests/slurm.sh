#!/bin/bash
# A Slurm cluster of two nodes on this machine, for tests: tests/slurm.sh start|stop [FOLDER]
# Needs root and Debian's slurm-wlm and munge. Without accounting, so there is no sacct.
set -euo pipefail
folder=${2:-/tmp/diffjax-slurm}

start() {
  mkdir -p "$folder"/{state,n0,n1} /run/munge /etc/munge
  [ -s /etc/munge/munge.key ] || mungekey --create
  chown -R munge: /run/munge /etc/munge
  pgrep -x munged >/dev/null || runuser -u munge -- munged
  local memory=$(( $(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 / 2 ))
  cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
SlurmctldPort=16817
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n/slurmd.log
NodeName=n0 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=16818 CPUs=2 RealMemory=$memory
NodeName=n1 NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=16819 CPUs=2 RealMemory=$memory
PartitionName=all Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES:4
CONF
  export SLURM_CONF=$folder/slurm.conf
  mkdir -p "$folder"/n0/spool "$folder"/n1/spool
  slurmctld -c
  for node in n0 n1; do slurmd -N $node; done
  for _ in $(seq 60); do
    [ "$(sinfo -h -t idle -o %D 2>/dev/null || true)" = 2 ] && { echo "export SLURM_CONF=$SLURM_CONF"; return; }
    sleep 0.5
  done
  echo "the nodes did not come up; see $folder" >&2
  sinfo >&2 || true
  exit 1
}

stop() {
  for pid in "$folder"/slurmctld.pid "$folder"/n?/slurmd.pid; do
    [ -s "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true
  done
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  *) echo "usage: $0 start|stop [FOLDER]" >&2; exit 2 ;;
esac
