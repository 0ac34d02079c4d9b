#!/bin/sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --output=distil-%j.log
# Distil one student on several nodes, each with all its GPUs:
#
#     sbatch profiles/slurm/distil.sh paper distil-multi
#     sbatch --nodes=4 profiles/slurm/distil.sh paper distil-multi changes.yaml
#
# changes.yaml: parameters that go before those of the profile.
# Two minutes before its time is over the training writes a checkpoint; the same command goes on from
# there: on as many nodes as before, and if `log_every` steps take less than 100 seconds. A study
# finds the finished student and trains the rest (make study PROFILE=paper); one that changes.yaml
# has changed it trains again.
#
# The batch of an optimizer step is batch_size x accumulation x processes: lower `accumulation`, in
# the profile, as the processes become more.
set -eu
if [ -z "${MAIN_NODE:-}" ]; then  # start this script once on each node
    MAIN_NODE=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MAIN_NODE
    exec srun sh profiles/slurm/distil.sh "$@"
fi
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=100  # torchrun kills after 30 s, which a long step may need
profile=$1 student=$2
shift 2
params=params/$profile
exec .venv/bin/torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --master-addr "$MAIN_NODE" --master-port $((20000 + SLURM_JOB_ID % 20000)) \
    -m rolib.stages distil_student "${ROLIB_RUNS:-runs}/$profile/students/$student" \
    "$params/common.yaml" "$params/training.yaml" "$params/distill.yaml" \
    "$params/students/$student.yaml" "$@"
