#!/bin/bash
#SBATCH --job-name=lmscale-isoflop-4d60d2
#SBATCH --array=0-0
#SBATCH --dependency=singleton
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:h100:8
#SBATCH --time=1-0
#SBATCH --partition=long
#SBATCH --account=lab
#SBATCH --constraint=ib
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
#SBATCH --output=/shared/isoflop/logs/%A_%a.log
#SBATCH --requeue

module load cuda

set -uo pipefail
out=/shared/isoflop
logs=/shared/isoflop/logs

# Where the processes of this group meet: a port of the first node that no other group holds.
host=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
for try in $(seq 0 199); do
  port=$((20000 + (SLURM_JOB_ID * 7 + try) % 10000))
  exec {lock}>"/tmp/lmscale-port-$port" || continue
  if flock --nonblock "$lock" && ! (: >"/dev/tcp/127.0.0.1/$port"); then break; fi
  exec {lock}>&-
  port=
done 2>/dev/null
if [ -z "$port" ]; then
  echo "no free port between 20000 and 29999 on $SLURMD_NODENAME" >&2
  exit 1
fi
export coordinator="${host:-$(hostname)}:$port,4"

# TERM (preemption, requeue, scancel) is for the training processes; this shell stays to see them end.
trap : TERM
# shellcheck disable=SC2016 # expanded by each process, which has a rank
srun --kill-on-bad-exit=0 --open-mode=append --output=/shared/isoflop/logs/%A_%a-%t.log bash -c 'exec "$@" --distributed "$coordinator,$SLURM_PROCID"' group lmscale run isoflop --scale gpu --out /shared/isoflop --shard "$SLURM_ARRAY_TASK_ID/1" &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?
echo "$(date '+%F %T') task $SLURM_ARRAY_TASK_ID ended with code $code"

# The steps of all runs, or "unknown" where `lmscale status` refuses to answer.
steps_done() {
  local answer code
  answer=$(lmscale status "$out" --json 2>&1)
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

# 0: all is done. 1, 2: a run failed, or bad usage: no repetition helps. 42: stopped and saved. Others: killed.
case $code in 0 | 1 | 2) exit "$code" ;; esac
if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" != RUNNING ]; then
  # Cancelled, or already on its way back into the queue.
  exit "$code"
fi
record="$logs/${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID.steps"
last=-1 stuck=0
[ -f "$record" ] && read -r last stuck <"$record"
now=$(steps_done)
# Without an answer the last one stays, and nothing is said about progress.
if [ "$now" != unknown ]; then
  if [ "$now" -gt "$last" ]; then stuck=0; else stuck=$((stuck + 1)); fi
  last=$now
fi
if [ "$stuck" -ge 3 ]; then
  echo "no progress in $stuck requeues: giving up; see the logs of this task in $logs" >&2
  exit 1
fi
echo "$last $stuck" >"$record"
echo "requeued after $now steps of all runs"
scontrol requeue "$SLURM_JOB_ID" || exit "$code"

# submitted by: sbatch --parsable /shared/isoflop/logs/lmscale-isoflop-4d60d2.sbatch
