#!/bin/bash
# Pretraining on four nodes of eight GPUs:  sbatch deploy/slurm.sh
# One Ray node a Slurm node; `ray symmetric-run` starts them, runs the command on the first, and stops them after it.
#SBATCH --job-name=raybone
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=112
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=raybone-%j.log
set -euo pipefail

cd "${SLURM_SUBMIT_DIR:-.}" # the repository, on a file system that all nodes see, with its .venv
export PATH="$PWD/.venv/bin:$PATH" RAY_AUTH_MODE=token RAY_ENABLE_UV_RUN_RUNTIME_ENV=0
[ -s ~/.ray/auth_token ] || ray get-auth-token --generate > /dev/null # homes are shared: one token for all nodes
# Workers wait for the head 30 s, and 40 s for its store, by themselves: imports on NFS exceed that.
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=600 RAY_py_gcs_connect_timeout_s=600

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
port=$((20000 + SLURM_JOB_ID % 20000)) # two jobs that share a head node do not meet
# Without --min-nodes: with it Ray 2.60 returns 1 after a job that succeeded. So the job waits for the nodes (autoscales).
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --kill-on-bad-exit=1 \
    ray symmetric-run --address "$head:$port" \
    --num-gpus "${SLURM_GPUS_ON_NODE:-8}" --num-cpus "$SLURM_CPUS_PER_TASK" -- \
    python jobs/pretrain.py --config jobs/recipes/imagenet-modern/resnet50.yaml --name imagenet-resnet50 \
    --run.storage "${RUNS:-/shared/runs}" --data.source webdataset \
    --data.train /shared/shards/train --data.val /shared/shards/val \
    --scaling.num_workers 32 --scaling.cpus_per_worker 14 --scaling.autoscales true --scaling.wait_at_most 0.5 \
    --run.checkpoint_every 500
# Stopped at its time limit or requeued, the same script goes on from the newest checkpoint.
