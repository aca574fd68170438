#!/usr/bin/env bash
# Starts Ray on the nodes of a Slurm job, submits the service to it, and ends both. From a checkout with an
# environment (make setup) on a file system that all nodes see:
#
#   sbatch --nodes 4 --gpus-per-node 4 cluster/deploy/slurm.sh cluster/examples/ray-4-nodes.toml
#   sbatch --nodes 1 --gpus-per-node 8 cluster/deploy/slurm.sh cluster/examples/ray-2p6d.toml --decode-workers 5
#
# What follows the file are options of `pdserve serve`. The endpoints stand in the job's output. A SIGTERM to
# this script drains the service: `scancel --batch --signal=TERM JOB`, or Slurm 120 s before the time limit. A
# plain scancel signals Ray itself too, so requests are cut.
#   PDSERVE_VENV   environment with pdserve and ray; default .venv
#   RAY_PORT       port of the head; default 6379.   RAY_DASHBOARD_PORT   of job submissions; default 8265
#SBATCH --job-name=pdserve
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

config=${1:?"usage: sbatch [options of sbatch] cluster/deploy/slurm.sh CONFIG.toml [options of serve]"}
shift
cd "${SLURM_SUBMIT_DIR:-.}"
PATH="$(realpath "${PDSERVE_VENV:-.venv}")/bin:$PATH"
export PATH
export RAY_USAGE_STATS_ENABLED=0
port=${RAY_PORT:-6379}
dashboard_port=${RAY_DASHBOARD_PORT:-8265}
cpus=${SLURM_CPUS_PER_TASK:-16}
gpus=${SLURM_GPUS_ON_NODE:-0}
submission="pdserve-${SLURM_JOB_ID:?"run this with sbatch"}"

# Everybody on these nodes could reach the dashboard: a token that only this user can read.
umask 077
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID"
od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap hostname --ip-address)
head_address=${head_address%% *}
dashboard="http://$head_address:$dashboard_port"

steps=()
submitted=
finish() {
    trap - EXIT TERM INT
    if [ -n "$submitted" ]; then
        ray job stop --address "$dashboard" "$submission" || true
    fi
    for step in "${steps[@]}"; do
        kill "$step" 2>/dev/null || true
    done
    wait || true
    rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap finish EXIT
trap 'exit 143' TERM INT

# A step has the GPUs of the job but, since Slurm 22.05, only the CPUs it asks for.
ray_on() {
    local node=$1
    shift
    srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap --cpus-per-task="$cpus" \
        ray start --block --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats "$@" &
    steps+=($!)
}

ray_on "$head" --head --node-ip-address="$head_address" --port="$port" \
    --dashboard-host="$head_address" --dashboard-port="$dashboard_port"
# The head is up when its dashboard answers; then the others join, and the service waits for places.
until ray job list --address "$dashboard" >/dev/null 2>&1; do
    kill -0 "${steps[0]}" || { echo "the head on $head did not start" >&2; exit 1; }
    sleep 1
done
for node in "${nodes[@]:1}"; do
    ray_on "$node" --address="$head_address:$port"
done

submitted=yes
# In the background: bash runs no trap while it waits for a command in front.
ray job submit --address "$dashboard" --submission-id "$submission" --working-dir . \
    --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}' \
    -- python -m cluster serve --launcher ray --config "$config" "$@" &
wait $!
