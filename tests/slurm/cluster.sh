#!/usr/bin/env bash
# A small real Slurm on this machine, for tests: one controller and four one-machine nodes, each of two
# CPUs, started by hand (no systemd, no cgroups) in a folder of their own. Needs root.
#
#   cluster.sh install       packages of Debian or Ubuntu; their services are not started
#   cluster.sh start DIR     then: export SLURM_CONF=DIR/slurm.conf
#   cluster.sh stop DIR
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

install_packages() {
  command -v slurmctld >/dev/null && command -v munged >/dev/null && return
  [ "$(id -u)" = 0 ] || { echo "installing Slurm needs root" >&2; exit 1; }
  command -v apt-get >/dev/null || { echo "installing Slurm needs apt-get" >&2; exit 1; }
  # One at a time: apt waits for nobody.
  exec 9>/tmp/lmscale-slurm-install.lock
  flock 9
  command -v slurmctld >/dev/null && command -v munged >/dev/null && return
  # Packages ask this program whether they may start their services: not here. An own one stays.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends slurm-wlm munge
}

configure() {
  local dir=$1 host port node
  host=$(hostname)
  # Ports that follow from the folder, so that two clusters on one machine rarely meet.
  port=$((15000 + $(printf '%s' "$dir" | cksum | cut -d' ' -f1) % 400 * 10))
  mkdir -p "$dir/state" "$dir/spool" "$dir/log"
  cat >"$dir/slurm.conf" <<CONF
ClusterName=lmscale
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/slurmctld.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdSpoolDir=$dir/spool/%n
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmdLogFile=$dir/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=20
MinJobAge=300
CONF
  for node in 1 2 3 4; do
    echo "NodeName=n$node NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + node)) CPUs=2 RealMemory=4000"
  done >>"$dir/slurm.conf"
  echo "PartitionName=debug Nodes=ALL Default=YES MaxTime=60 State=UP" >>"$dir/slurm.conf"
}

start() {
  local dir=$1
  [ "$(id -u)" = 0 ] || { echo "starting Slurm needs root" >&2; exit 1; }
  mkdir -p "$dir"
  configure "$dir"
  head -c 1024 /dev/urandom >"$dir/munge.key"
  chmod 600 "$dir/munge.key"
  # munged insists on folders that nobody else can write to; --force makes that a warning.
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" \
    --pid-file="$dir/munged.pid" --log-file="$dir/log/munged.log" --seed-file="$dir/munged.seed"
  export SLURM_CONF="$dir/slurm.conf"
  slurmctld -c -f "$SLURM_CONF"
  for node in 1 2 3 4; do slurmd -N "n$node" -f "$SLURM_CONF"; done
  for _ in $(seq 100); do
    [ "$(sinfo --noheader --states=idle --format=%D 2>/dev/null)" = 4 ] && return
    sleep 0.1
  done
  echo "the nodes did not come up; see $dir/log" >&2
  tail -n 5 "$dir"/log/*.log >&2
  stop "$dir"
  exit 1
}

stop() {
  local dir=$1 file pid
  export SLURM_CONF="$dir/slurm.conf"
  scancel --user=root 2>/dev/null || true
  for _ in $(seq 300); do
    [ -n "$(squeue --noheader 2>/dev/null)" ] || break
    sleep 0.1
  done
  for file in "$dir"/slurmd.*.pid "$dir/slurmctld.pid" "$dir/munged.pid"; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null && sleep 0.1; done
  done
}

case "${1:-}" in
  install) install_packages ;;
  start) start "$2" ;;
  stop) stop "$2" ;;
  *) sed -n '2,/^set/p' "$0" | grep '^#' >&2; exit 2 ;;
esac
