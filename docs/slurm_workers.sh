#!/usr/bin/env bash
# Workers of a study as an array job, one GPU each:
#   sbatch --array=1-8 docs/slurm_workers.sh STUDY STORAGE_URL
# A job that is preempted or runs into its time limit costs nothing: it gives its trial back, others take
# it over, and a preempted job is begun again (--requeue).
#SBATCH --job-name=bo-act
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
#SBATCH --output=bo-act-%A-%a.log
set -euo pipefail

study=${1:?expected a study: sbatch docs/slurm_workers.sh STUDY STORAGE_URL}
storage=${2:?expected the URL of the storage: postgresql://me@server/studies}

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-4}
exec bo-act worker "$study" --storage "$storage" --quiet
