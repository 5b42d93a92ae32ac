#!/bin/bash
set -uo pipefail
name=lmscale-isoflop-a09ebf
out=gs://bucket/isoflop
logs=logs/lmscale-isoflop-a09ebf
poll=60
where=(--quiet)
request=(gcloud compute tpus queued-resources create lmscale-isoflop-a09ebf --node-id=lmscale-isoflop-a09ebf --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite)

# What every host does once, in its copy of this clone.
setup() {
  set -e
  python3 -m pip install --quiet --user uv
  ~/.local/bin/uv venv --quiet --clear --python 3.11 ~/lmscale/venv
  ~/.local/bin/uv pip install --quiet --python ~/lmscale/venv -e '.[tpu,gcs]' -c constraints.txt
}
# What every host does as one process of the job.
train() {
  ~/lmscale/venv/bin/lmscale run isoflop --out gs://bucket/isoflop --shard 0/1 --distributed auto
}
# The steps of all runs, or "unknown" where `lmscale status` refuses to answer.
steps_done() {
  local answer code
  answer=$(~/lmscale/venv/bin/lmscale status "$out" --json 2>&1)
  code=$?
  case $code-$answer in
    0-*) grep -o '"step": *[0-9]*' <<<"$answer" | awk '{sum += $2} END {print sum + 0}' ;;
    [12]-*"holds no experiment.json"*) echo 0 ;;
    [12]-*)
      echo "$answer" >&2
      echo unknown
      ;;
    *) echo 0 ;;
  esac
}

say() { echo "$(date '+%F %T') $*" >&2; }
on() { gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"; }
state() {
  local answer
  if answer=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>&1); then
    tail -n 1 <<<"$answer"
  else
    case $answer in *NOT_FOUND*) echo NONE ;; *) echo UNKNOWN ;; esac
  fi
}
give_back() {
  say "deleting $name"
  gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force
}
# The processes save and end; one that is left would keep the chips.
stop_training() {
  # shellcheck disable=SC2016 # expanded by the hosts
  on all 'pid=$(cat ~/lmscale/pid 2>/dev/null) || exit 0; kill -TERM -- "-$pid" 2>/dev/null
for _ in $(seq 90); do kill -0 -- "-$pid" 2>/dev/null || exit 0; sleep 1; done
kill -KILL -- "-$pid"; true' >/dev/null 2>&1
}
trap give_back EXIT
trap 'say "stopping"; stop_training; exit 42' INT TERM

# Returns with a slice that is there and prepared; waits in the queue for as long as it takes.
get_slice() {
  local asked=0 tried=0
  while true; do
    case $(state) in
      ACTIVE)
        prepare && return
        tried=$((tried + 1))
        [ "$tried" -lt 5 ] || { say "the hosts could not be prepared; see $logs"; exit 1; }
        ;;
      NONE)
        asked=$((asked + 1))
        [ "$asked" -lt 5 ] || { say "the slice does not come up"; exit 1; }
        say "asking for $name"
        "${request[@]}" "${where[@]}" --async || exit 1
        ;;
      FAILED | SUSPENDED) give_back ;;
    esac
    sleep "$poll"
  done
}
prepare() {
  on all 'test -e ~/lmscale/ready' >/dev/null 2>&1 && return
  say "preparing the hosts"
  git archive --format=tar.gz --output="$logs/clone.tar.gz" HEAD || exit 1
  on all 'mkdir -p ~/lmscale/clone' >"$logs/prepare.log" 2>&1 &&
    gcloud compute tpus tpu-vm scp "$logs/clone.tar.gz" "$name:lmscale/" "${where[@]}" --worker=all >>"$logs/prepare.log" 2>&1 &&
    on all "$(declare -f setup)
tar -xzf ~/lmscale/clone.tar.gz -C ~/lmscale/clone && cd ~/lmscale/clone && (setup) && touch ~/lmscale/ready" >>"$logs/prepare.log" 2>&1
}
# Detached, so that a lost connection stops nothing; the exit code is the last line of a host's log.
start_training() {
  # shellcheck disable=SC2016 # expanded by the hosts
  { declare -f train; echo 'cd ~/lmscale/clone 2>/dev/null; (train); echo "exit code $?"'; } >"$logs/train.sh"
  # shellcheck disable=SC2016 # expanded by the hosts
  gcloud compute tpus tpu-vm scp "$logs/train.sh" "$name:lmscale/" "${where[@]}" --worker=all >/dev/null 2>&1 &&
    on all 'cd ~/lmscale && { setsid nohup bash train.sh >log 2>&1 </dev/null & echo $! >pid; }' >/dev/null 2>&1
}

mkdir -p "$logs"
last=-1 stuck=0 turn=0
while true; do
  get_slice
  stop_training
  now=$(on 0 "cd ~/lmscale/clone 2>/dev/null; out=$(printf %q "$out"); $(declare -f steps_done); steps_done" 2>"$logs/status.log" | tail -n 1)
  # Without an answer the last one stays, and nothing is said about progress.
  if [ "$now" != unknown ]; then
    if [ "${now:-0}" -gt "$last" ]; then stuck=0; else stuck=$((stuck + 1)); fi
    last=${now:-0}
  fi
  if [ "$stuck" -ge 3 ]; then
    say "no progress in $stuck turns: giving up; see $logs"
    exit 1
  fi
  turn=$((turn + 1)) log="$logs/turn-$turn"
  say "turn $turn begins; logs in $log.*"
  start_training
  code=
  while [ -z "$code" ]; do
    sleep "$poll"
    # shellcheck disable=SC2016 # expanded by the host
    on 0 'cat ~/lmscale/log; kill -0 "$(cat ~/lmscale/pid)" 2>/dev/null || echo "exit code gone"' >"$log.new" 2>/dev/null &&
      mv "$log.new" "$log.0.log" && code=$(sed -n 's/^exit code //p' "$log.0.log" | head -n 1)
    if [ -z "$code" ]; then
      case $(state) in ACTIVE | UNKNOWN) ;; *) code=lost ;; esac
    fi
    say "$(tail -n 1 "$log.0.log" 2>/dev/null)"
  done
  # shellcheck disable=SC2016 # expanded by the hosts
  on all 'sed "s/^/$(hostname) /" ~/lmscale/log' >"$log.all.log" 2>/dev/null
  # 0: all is done. 1, 2: a run failed, or bad usage: no repetition helps. 42: stopped, saved. Else: lost.
  say "turn $turn ended: $code"
  case $code in 0 | 1 | 2) exit "$code" ;; esac
done
